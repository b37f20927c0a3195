"""What a curvature is, and its product on a share of the examples.

Products run at the highest matrix precision by default. The default of GPUs and TPUs
(TF32, bfloat16) makes the matrix of the products unsymmetric, and conjugate gradients
need a symmetric one.
"""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from ncg_optax._utils import validate
from ncg_optax._utils.parts import Part
from ncg_optax.losses.objective import Objective, as_objective

PyTree = Any
Operator = Callable[[PyTree], PyTree]


@runtime_checkable
class Curvature(Part, Protocol):
    """A matrix ``B`` that stands for the second derivative of the loss.

    It is known by its products ``v -> B v`` alone. Subclass this protocol for a
    curvature of one's own.

    Attributes:
      cost: of one product, in gradients, as a rule of thumb for accounting (that of a
        dense network whose forward pass costs half its backward pass).

    Examples:
      The identity, which makes Newton's method gradient descent:

      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> class Identity(ncg.curvature.Curvature):
      ...     cost = 0.0
      ...     def linearize(self, objective, params):
      ...         return objective.value(params), lambda v: v
      >>> product = ncg.curvature.curvature_product(Identity(), jnp.sum, jnp.zeros(2))
      >>> print(product(jnp.array([1.0, 2.0])))
      [1. 2.]
    """

    cost: float

    def linearize(
        self, objective: Objective, params: PyTree
    ) -> tuple[jax.Array, Operator]:
        """The loss at ``params`` and the product there.

        Args:
          objective: the loss, with the fields ``value``, ``model`` and ``loss`` (see
            :class:`CompositeLoss`). On several devices it is that of one device's
            share of the data; the optimizer reduces.
          params: the trained parameters.

        Returns:
          ``(value, product)``: the loss, shape=(), and ``v -> B v`` for trees ``v``
          with the structure, shapes and dtypes of ``params``.
        """
        ...


class SampledProduct(NamedTuple):
    """The product ``v -> B v`` of the curvature on a share of the examples.

    Attributes:
      product: the function itself; calling the object calls it.
      share: of the examples, in (0, 1].

    Examples:
      >>> import ncg_optax as ncg
      >>> product = ncg.curvature.SampledProduct(lambda v: 2.0 * v, share=0.25)
      >>> product(3.0), product.share
      (6.0, 0.25)
    """

    product: Operator
    share: float | jax.Array = 1.0

    def __call__(self, v: PyTree) -> PyTree:
        """``B v``."""
        return self.product(v)


def share_of(product: Operator) -> float | jax.Array:
    """The share of the examples that ``product`` is computed on; 1 if not known."""
    return product.share if isinstance(product, SampledProduct) else 1.0


def matmul_precision(precision: str | None) -> AbstractContextManager:
    """The precision that products are traced under.

    A CPU multiplies in full precision anyway. To ask for it there would only keep XLA
    from sharing the linearisation with the user's gradient.
    """
    if precision == "highest" and jax.default_backend() == "cpu":
        precision = None
    if precision is None:
        return contextlib.nullcontext()
    return jax.default_matmul_precision(precision)


def curvature_product(
    curvature: Curvature, value_fn: Callable, params: PyTree, **data: Any
) -> Operator:
    """The product ``v -> B v`` of a curvature, for use outside of an optimizer.

    Args:
      curvature: :func:`hessian`, :func:`gauss_newton`, :func:`empirical_fisher` or
        one's own.
      value_fn: the loss, as for ``update``; a :class:`CompositeLoss` for the latter
        two.
      params: where to linearise.
      **data: further arguments of ``value_fn``, by name.

    Returns:
      A function of a tree with the structure, shapes and dtypes of ``params``.

    Raises:
      TypeError: as ``update`` does for an unsuitable ``value_fn``.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> f = lambda w, a: 0.5 * jnp.sum(a * w**2)
      >>> a = jnp.array([0.0, 1.0])
      >>> product = ncg.curvature.curvature_product(ncg.hessian(), f, jnp.ones(2), a=a)
      >>> print(product(jnp.ones(2)))
      [0. 1.]
    """
    validate.component("curvature", curvature, Curvature, "hessian() or gauss_newton()")
    return curvature.linearize(as_objective(value_fn, data), params)[1]
