"""The empirical Fisher matrix."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, validate
from ncg_optax._utils.reductions import reduced_axes_size
from ncg_optax.curvature.base import Curvature, Operator, matmul_precision
from ncg_optax.curvature.linearized_model import (
    MODES,
    linearize_model,
)
from ncg_optax.losses.objective import Objective

PyTree = Any


@dataclasses.dataclass(frozen=True)
class empirical_fisher(Curvature):
    r"""The empirical Fisher matrix: the second moment of the per-example gradients.

    .. math::
      B v = \frac{1}{N} \sum_{i=1}^{N} g_i\, (g_i^T v), \qquad
      g_i = J_i^T \nabla \ell_i

    This matrix needs a :class:`CompositeLoss`. The first axis of its outputs runs over
    the examples, and its loss is the *mean* over examples of a loss of each example's
    outputs. A product costs as much as a Gauss-Newton product. The matrix approximates
    the Gauss-Newton matrix badly where the model does not fit the data, and it is zero
    where the fit is perfect (Kunstner et al. 2019). No preset uses it.

    Attributes:
      mode: how to compute ``J v``, as in :func:`gauss_newton`.
      precision: matrix precision of the products, a value of
        `jax.default_matmul_precision`; None keeps the one that is set outside.

    Raises:
      ValueError: if ``mode`` or ``precision`` is unknown. In ``update``: if the outputs
        have no common first axis.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> loss = ncg.CompositeLoss(
      ...     lambda w, x: x * w, lambda outputs: jnp.mean(outputs)
      ... ).bind(x=jnp.array([1.0, 3.0]))
      >>> product = ncg.curvature.curvature_product(
      ...     ncg.empirical_fisher(), loss, jnp.array(0.0)
      ... )
      >>> print(product(jnp.array(1.0)))  # (1^2 + 3^2) / 2
      5.0
    """

    mode: str = "auto"
    precision: str | None = "highest"

    cost = 1.2

    def __post_init__(self):
        validate.choice("empirical_fisher: mode", self.mode, MODES)
        validate.matmul_precision("empirical_fisher: precision", self.precision)

    def linearize(
        self, objective: Objective, params: PyTree
    ) -> tuple[jax.Array, Operator]:
        """The loss at ``params`` and the product with the Fisher matrix there."""
        model, loss = objective.model_and_loss("empirical_fisher")
        with matmul_precision(self.precision):
            outputs, push, pull = linearize_model(model, params, self.mode)
            value, cotangent = jax.value_and_grad(loss)(outputs)
        # cotangent[i] = grad l_i / N. If the user has averaged the loss over devices, N
        # is the number of examples on all of them.
        examples = _examples(outputs) * reduced_axes_size(value, objective.axes)

        def product(v):
            slopes = _sum_per_example(cotangent, push(v))  # (grad l_i / N) . J_i v
            weighted = jax.tree.map(
                lambda u: u * (examples * slopes).reshape(-1, *(1,) * (u.ndim - 1)),
                cotangent,
            )
            return pytree.conj(pull(weighted))

        return value, product


def _examples(outputs: PyTree) -> int:
    """The common length of the first axis of all outputs."""
    shapes = [x.shape for x in jax.tree.leaves(outputs)]
    if len({shape[:1] for shape in shapes}) != 1 or () in shapes:
        raise ValueError(
            "empirical_fisher needs outputs whose first axis runs over the examples, "
            f"with the same length in all of them; got outputs of shapes {shapes}."
        )
    return shapes[0][0]


def _sum_per_example(a: PyTree, b: PyTree) -> jax.Array:
    """``Re(a_i . b_i)`` for each example i; JAX's cotangents need no conjugate."""
    dots = jax.tree.map(
        lambda x, y: jnp.sum(jnp.real(x * y).reshape(x.shape[0], -1), axis=1), a, b
    )
    return pytree.add_leaves(dots)
