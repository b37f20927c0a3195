"""The exact Hessian."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, validate
from ncg_optax.curvature.base import Curvature, Operator, matmul_precision
from ncg_optax.losses.objective import Objective

PyTree = Any

MODES = ("forward_over_reverse", "reverse_over_reverse")


@dataclasses.dataclass(frozen=True)
class hessian(Curvature):
    r"""The exact Hessian; its products are directional derivatives of the gradient.

    .. math::
      B v = \nabla^2 f(\theta)\, v
          = \left.\tfrac{\partial}{\partial t} \nabla f(\theta + t v)\right|_{t=0}

    (Pearlmutter 1994). The Hessian may be indefinite, so the solver has to handle
    negative curvature; all solvers of this library do. The gradient is linearised once
    per step, so a product costs about 1.5 gradients of a dense network instead of 2.5.

    Attributes:
      mode: ``"forward_over_reverse"`` costs less. ``"reverse_over_reverse"`` is for
        models with a ``custom_vjp`` whose backward pass has no forward-mode derivative.
      precision: matrix precision of the products, a value of
        `jax.default_matmul_precision`; None keeps the one that is set outside.

    Raises:
      ValueError: if ``mode`` or ``precision`` is unknown.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> f = lambda w: w[0] ** 2 - 3.0 * w[1] ** 2
      >>> product = ncg.curvature.curvature_product(ncg.hessian(), f, jnp.ones(2))
      >>> print(product(jnp.ones(2)))
      [ 2. -6.]
    """

    mode: str = "forward_over_reverse"
    precision: str | None = "highest"

    cost = 1.5

    def __post_init__(self):
        validate.choice("hessian: mode", self.mode, MODES)
        validate.matmul_precision("hessian: precision", self.precision)

    def linearize(
        self, objective: Objective, params: PyTree
    ) -> tuple[jax.Array, Operator]:
        """The loss at ``params`` and the product with its Hessian there."""
        forward = self.mode == "forward_over_reverse"
        with matmul_precision(self.precision):
            return (_forward if forward else _reverse)(objective, params)


def _forward(objective: Objective, params: PyTree) -> tuple[jax.Array, Operator]:
    value_and_aux = lambda p: (objective.value(p),) * 2  # noqa: E731
    grad_fn = jax.grad(value_and_aux, has_aux=True)
    _, product, value = jax.linearize(grad_fn, params, has_aux=True)
    # optax's convention for complex parameters conjugates JAX's gradients.
    return value, lambda v: pytree.conj(product(v))


def _reverse(objective: Objective, params: PyTree) -> tuple[jax.Array, Operator]:
    (value, _), pullback = jax.vjp(jax.value_and_grad(objective.value), params)

    def product(v):
        # JAX pairs a cotangent with a tangent by Re(u . w), without a conjugate, and
        # its gradient is the conjugate of ours. As H is symmetric in Re(conj(u) . w),
        # the pullback of v is conj(H v).
        return pytree.conj(pullback((jnp.zeros_like(value), v))[0])

    return value, product
