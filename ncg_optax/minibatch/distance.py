"""A learning rate from the distance to the solution, as in Prodigy."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree

PyTree = Any

# The estimate at the first step.
FIRST_DISTANCE = 3e-4
# Decay of both sums.
DECAY = 0.9995
# Steps after which the learning rate falls with the root of their number.
CONSTANT_STEPS = 100


class Distance(NamedTuple):
    """State of the estimate.

    Attributes:
      estimate: the distance in the largest component, shape=().
      products: the sum of ``<g, x_0 - x>``, shape=().
      gradients: the sum of gradients, in the eigenbases, a tree shaped like the
        parameters.
      start: the parameters at the first step, likewise, not in the eigenbases.
    """

    estimate: jax.Array
    products: jax.Array
    gradients: PyTree
    start: PyTree


def first_distance(params: PyTree) -> Distance:
    """The state before the first step. Leaves may be `jax.ShapeDtypeStruct`."""
    dtype = pytree.scalar_dtype(params)
    return Distance(
        jnp.asarray(FIRST_DISTANCE, dtype),
        jnp.zeros((), dtype),
        pytree.widened_zeros_like(params),
        pytree.widened_zeros_like(params),
    )


def next_distance(
    distance: Distance, gradient: PyTree, turned: PyTree, params: PyTree
) -> Distance:
    r"""The estimate with one more gradient.

    .. math::
      r \leftarrow \beta r + (1 - \beta)\, d^2 \langle g, x_0 - x \rangle, \qquad
      s \leftarrow \beta s + (1 - \beta)\, d^2 Q^H g, \qquad
      d \leftarrow \max\Bigl(d, \frac{r}{|s|_1}\Bigr)

    For a convex loss :math:`r / |s|_1` is at most the distance to the solution in the
    largest component, if the basis is fixed (Mishchenko and Defazio, Prodigy, 2023,
    algorithm 4). The 1-norm depends on the basis: it has to be that in which Adam
    divides by the root of the squares.

    Args:
      distance: the state.
      gradient: the gradient.
      turned: the gradient in the eigenbases.
      params: the parameters, float32 or wider.
    """
    moved = pytree.add_scaled(distance.start, -1, params)
    new = (1 - DECAY) * jnp.square(distance.estimate)
    products = DECAY * distance.products + new * pytree.vdot(gradient, moved)
    gradients = jax.tree.map(
        lambda s, g: DECAY * s + new * g, distance.gradients, turned
    )
    norms = jax.tree.map(lambda s: jnp.sum(jnp.abs(s), dtype=new.dtype), gradients)
    norm = pytree.total(norms)
    found = products / jnp.where(norm > 0, norm, 1)
    estimate = jnp.maximum(distance.estimate, found)
    return Distance(estimate, products, gradients, distance.start)


def found_rate(distance: Distance, steps: jax.Array) -> jax.Array:
    r"""The learning rate after :math:`t` steps, shape=().

    .. math::
      \eta = \frac{d}{\sqrt{1 + t / 100}}

    A step of Adam moves each component by up to :math:`\eta`. For a convex loss the
    regret of :math:`T` steps of AdaGrad's kind is at most proportional to :math:`d^2 /
    \eta + T \eta` (Duchi, Hazan and Singer 2011), which is least at :math:`\eta = d /
    \sqrt T`; in the first steps gradients are more signal than noise. The number of
    steps need not be known.
    """
    return distance.estimate / jnp.sqrt(1 + steps / CONSTANT_STEPS)
