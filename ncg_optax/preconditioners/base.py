"""The protocol of preconditioners, and the identity."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax

from ncg_optax._utils.parts import Part
from ncg_optax.solvers.base import Operator

PyTree = Any


@runtime_checkable
class Preconditioner(Part, Protocol):
    """A symmetric positive definite ``M`` near ``(B + damping I)^-1``.

    To add a preconditioner, subclass this protocol. Only ``apply`` has no default. All
    vectors are trees shaped like the trained parameters, float32 or wider.

    Attributes:
      fraction: share of the examples that ``update`` needs for its products, in (0, 1].
        ``product.share`` is the share that they are computed on: it may be larger, and
        is 1 if the data cannot be split.
      has_sqrt: whether the method ``sqrt`` is implemented.

    Examples:
      A diagonal matrix that is known in advance:

      >>> import dataclasses, jax, jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> @dataclasses.dataclass(frozen=True)
      ... class diagonal(ncg.preconditioners.Preconditioner):
      ...     diag: jax.Array
      ...     def apply(self, state, r, damping):
      ...         return jax.tree.map(lambda x, d: x / (d + damping), r, self.diag)
      >>> tx = ncg.newton_cg(preconditioner=diagonal(jnp.array([1.0, 100.0])))
    """

    fraction: float = 1.0
    has_sqrt: bool = False

    def init(self, params: PyTree) -> Any:
        """The state before the first step: arrays of fixed shapes and dtypes."""
        del params
        return ()

    def update(
        self,
        state: Any,
        product: Operator,
        grads: PyTree,
        damping: jax.Array,
        key: jax.Array,
        count: jax.Array,
    ) -> tuple[Any, jax.Array | int]:
        """The state for this step; called once per step, before the solve.

        Args:
          state: state of the last step.
          product: ``v -> B v``.
          grads: the gradient.
          damping: lambda, shape=().
          key: a random key, new at each step and the same on all devices.
          count: number of steps done, int32, shape=().

        Returns:
          ``(state, products)``, with ``products`` the number of calls of ``product``.
        """
        del product, grads, damping, key, count
        return state, 0

    def over(self, axes: tuple[str, ...]) -> "Preconditioner":
        """The same preconditioner, with its work shared over mapped axes.

        By default each device does all of it. ``axes`` is empty without a mapped axis.
        """
        del axes
        return self

    def prepare(self, state: Any, damping: jax.Array) -> Any:
        """What ``apply`` and ``sqrt`` get as ``state``; called once before the solve.

        By default this is the state. What it returns is not kept for the next step.
        """
        del damping
        return state

    def apply(self, state: Any, r: PyTree, damping: jax.Array) -> PyTree:
        """``M r``; called once per iteration of the solver."""
        ...

    def sqrt(self, state: Any, r: PyTree, damping: jax.Array) -> PyTree:
        """``S r`` with ``S`` symmetric and ``S S = M``; :func:`compose` calls it."""
        raise NotImplementedError(f"{self!r} has no method sqrt, which compose needs.")


@dataclasses.dataclass(frozen=True)
class identity(Preconditioner):
    """No preconditioning: ``M = I``. The same as ``preconditioner=None``.

    Examples:
      >>> import ncg_optax as ncg
      >>> tx = ncg.newton_cg(preconditioner=ncg.identity())
    """

    has_sqrt = True

    def apply(self, state: Any, r: PyTree, damping: jax.Array) -> PyTree:
        """``r``."""
        return r

    def sqrt(self, state: Any, r: PyTree, damping: jax.Array) -> PyTree:
        """``r``."""
        return r
