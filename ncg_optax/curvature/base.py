"""The protocol of curvatures, and their products on a share of the examples.

Products use the highest matrix precision by default. The default precision of GPUs and
TPUs (TF32, bfloat16) makes the matrix of the products unsymmetric, but conjugate
gradients need a symmetric matrix.
"""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from ncg_optax._utils import pytree, validate
from ncg_optax._utils.parts import Part
from ncg_optax.losses.objective import Objective, as_objective

PyTree = Any
Operator = Callable[[PyTree], PyTree]


@runtime_checkable
class Curvature(Part, Protocol):
    """A matrix ``B`` that approximates the second derivative of the loss.

    The optimizer uses only products ``v -> B v``. To add a curvature, subclass this
    protocol.

    Attributes:
      cost: cost of one product, in gradients, for the accounting in :func:`get_info`.
        The values are those of a dense network whose forward pass costs half as much
        as its backward pass.

    Examples:
      With the identity Newton's method is gradient descent:

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
            :class:`CompositeLoss`). On several devices it is the loss on one device's
            share of the data; the optimizer averages the products.
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
      share: share of the examples that the product is computed on, in (0, 1].

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

    def divided(self, unit: jax.Array) -> "SampledProduct":
        """The product with ``B / unit``."""
        factor = 1 / unit
        return self._replace(product=lambda v: pytree.scale(self.product(v), factor))


def share_of(product: Operator) -> float | jax.Array:
    """The share of the examples that ``product`` is computed on; 1 if not known."""
    return product.share if isinstance(product, SampledProduct) else 1.0


def matmul_precision(precision: str | None) -> AbstractContextManager:
    """The context in which products are traced, with this matrix precision.

    A CPU always multiplies in full precision. With a precision set, XLA could not share
    the linearisation with the user's gradient, so it is not set there.
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
        another :class:`Curvature`.
      value_fn: the loss, as for ``update``. :func:`gauss_newton` and
        :func:`empirical_fisher` need a :class:`CompositeLoss`.
      params: the parameters at which the loss is linearised.
      **data: further arguments of ``value_fn``, by name.

    Returns:
      The function ``v -> B v``, for trees ``v`` with the structure, shapes and dtypes
      of ``params``.

    Raises:
      TypeError: if ``curvature`` is not a :class:`Curvature`, or if ``value_fn`` is not
        a loss that ``update`` accepts.

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
