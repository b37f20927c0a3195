"""What a preconditioner is."""

from collections.abc import Callable
from typing import Any, NamedTuple

PyTree = Any


class Preconditioner(NamedTuple):
    """A symmetric positive definite ``M`` near ``(B + damping I)^-1``.

    Attributes:
      init: ``init(params) -> state``, a pytree of arrays whose shapes and dtypes never
        change.
      update: ``update(state, matvec, grads, damping, key, count) -> (state, products)``
        once a step, before the solve. ``matvec`` is the product with ``B``, ``key`` a
        random key that is new at each step and the same on all devices, and
        ``products`` how often ``matvec`` was called.
      apply: ``apply(state, r, damping) -> M r``, once an iteration.
      sqrt: ``sqrt(state, r, damping) -> S r`` with ``S`` symmetric and ``S S = M``, or
        None if there is no cheap one. Only :func:`compose` asks for it.
      fraction: share of the examples that is enough for ``update``, in (0, 1]. Its
        ``matvec`` is then the product on such a share, with the share that it is
        (1 if the data cannot be split) as the attribute ``share``.

    All vectors are trees shaped like the trained parameters, float32 or wider.

    Examples:
      A diagonal that is known beforehand takes a few lines:

      >>> import jax, jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> def diagonal(diag):
      ...     return ncg.preconditioners.Preconditioner(
      ...         init=lambda params: (),
      ...         update=lambda state, *_: (state, 0),
      ...         apply=lambda state, r, damping: jax.tree.map(
      ...             lambda x, d: x / (d + damping), r, diag
      ...         ),
      ...     )
      >>> tx = ncg.newton_cg(preconditioner=diagonal(jnp.array([1.0, 100.0])))
    """

    init: Callable[[PyTree], Any]
    update: Callable[..., tuple[Any, Any]]
    apply: Callable[[Any, PyTree, Any], PyTree]
    sqrt: Callable[[Any, PyTree, Any], PyTree] | None = None
    fraction: float = 1.0


def identity() -> Preconditioner:
    """No preconditioning: ``M = I``. The same as ``preconditioner=None``.

    Returns:
      A :class:`Preconditioner`.

    Examples:
      >>> import ncg_optax as ncg
      >>> tx = ncg.newton_cg(preconditioner=ncg.identity())
    """
    return Preconditioner(
        init=lambda params: (),
        update=lambda state, *_: (state, 0),
        apply=lambda state, r, damping: r,
        sqrt=lambda state, r, damping: r,
    )
