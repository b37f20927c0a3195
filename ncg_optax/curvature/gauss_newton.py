"""The generalised Gauss-Newton matrix."""

import dataclasses
from typing import Any

import jax

from ncg_optax._utils import pytree, validate
from ncg_optax.curvature.base import Curvature, Operator, matmul_precision
from ncg_optax.curvature.linearized_model import (
    MODES,
    linearize_model,
)
from ncg_optax.losses.objective import Objective

PyTree = Any


@dataclasses.dataclass(frozen=True)
class gauss_newton(Curvature):
    r"""The generalised Gauss-Newton matrix of a :class:`CompositeLoss`.

    .. math::
      B v = J^T H_\ell J v

    :math:`J` is the Jacobian of the model's outputs with respect to the parameters, and
    :math:`H_\ell` the Hessian of the loss with respect to the outputs (Schraudolph
    2002; Martens 2010). The matrix is positive semidefinite if the loss is convex in
    the outputs. For a squared loss it is the classical Gauss-Newton matrix. A product
    costs about 1.2 gradients of a dense network.

    Attributes:
      mode: how to compute ``J v``. ``"forward"`` linearises the model.
        ``"double_vjp"`` is for layers with a ``custom_vjp``, which have no forward-mode
        derivative. ``"auto"`` takes the second if the model has such a layer.
      precision: matrix precision of the products, a value of
        `jax.default_matmul_precision`; None keeps the one that is set outside.

    Raises:
      ValueError: if ``mode`` or ``precision`` is unknown.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> loss = ncg.CompositeLoss(
      ...     lambda w: jnp.sin(w), lambda outputs: jnp.sum(outputs**2)
      ... )
      >>> product = ncg.curvature.curvature_product(
      ...     ncg.gauss_newton(), loss, jnp.zeros(2)
      ... )
      >>> print(product(jnp.ones(2)))  # 2 cos(0)^2, without the term in -sin
      [2. 2.]
    """

    mode: str = "auto"
    precision: str | None = "highest"

    cost = 1.2

    def __post_init__(self):
        validate.choice("gauss_newton: mode", self.mode, MODES)
        validate.matmul_precision("gauss_newton: precision", self.precision)

    def linearize(
        self, objective: Objective, params: PyTree
    ) -> tuple[jax.Array, Operator]:
        """The loss at ``params`` and the product with the Gauss-Newton matrix there."""
        model, loss = objective.model_and_loss("gauss_newton")
        with matmul_precision(self.precision):
            outputs, push, pull = linearize_model(model, params, self.mode)
            value_and_aux = lambda out: (loss(out),) * 2  # noqa: E731
            loss_grad = jax.grad(value_and_aux, has_aux=True)
            _, loss_hessian, value = jax.linearize(loss_grad, outputs, has_aux=True)
        return value, lambda v: pytree.conj(pull(loss_hessian(push(v))))
