"""Adam's moments of the gradient in the eigenbases, and the direction they give."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree

PyTree = Any

# Decay of the running means of the gradient and of its squares.
MEAN_DECAY, SQUARE_DECAY = 0.9, 0.95
# Added to the root of each mean square, relative to the root of their sum over a leaf.
# Without it rounding errors of the rotation, along directions that have no gradient,
# would become steps of full length.
RELATIVE_FLOOR = 1e-6


class Moments(NamedTuple):
    """Running means over the gradients, in the eigenbases.

    Attributes:
      mean: of the gradients, a tree shaped like the parameters.
      square: of the squares of their absolute values, likewise, real.
    """

    mean: PyTree
    square: PyTree


def first_moments(params: PyTree) -> Moments:
    """No gradients yet. Leaves may be `jax.ShapeDtypeStruct`."""
    mean = pytree.widened_zeros_like(params)
    return Moments(mean, jax.tree.map(lambda x: jnp.zeros_like(x.real), mean))


def next_moments(moments: Moments, gradient: PyTree, steps: jax.Array) -> Moments:
    r"""The moments with a gradient :math:`g` in the eigenbases added.

    .. math::
      m \leftarrow m + w_m (g - m), \qquad v \leftarrow v + w_v (|g|^2 - v), \qquad
      w = \max\Bigl(1 - \beta, \frac{1}{t + 1}\Bigr)

    at step :math:`t`. In the first steps these are plain means, so there is no bias to
    correct.
    """

    def averaged(old, new, decay):
        weight = jnp.maximum(1 - decay, 1 / (steps + 1))
        return jax.tree.map(lambda x, y: x + weight * (y - x), old, new)

    squares = jax.tree.map(lambda g: jnp.square(jnp.abs(g)), gradient)
    return Moments(
        averaged(moments.mean, gradient, MEAN_DECAY),
        averaged(moments.square, squares, SQUARE_DECAY),
    )


def direction(moments: Moments) -> PyTree:
    r""":math:`m / (\sqrt v + 10^{-6} |\sqrt v|_2)` for each leaf, in the eigenbases."""

    def leaf(m, v):
        floor = RELATIVE_FLOOR * jnp.sqrt(jnp.sum(v))
        root = jnp.sqrt(v) + floor
        return m / jnp.where(root == 0, 1, root)

    return jax.tree.map(leaf, moments.mean, moments.square)
