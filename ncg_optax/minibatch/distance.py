"""A learning rate from the distance to the solution, as in Prodigy."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree

PyTree = Any

# The estimate at the first step.
FIRST_DISTANCE = 3e-4
# The estimate after it in units of the root mean square of the weights, if the loss
# does not depend on the length of most of them.
FIRST_ANGLE = 0.03
# Below this mean of n cos^2, with the angle between gradient and weights of a unit, the
# loss does not depend on their length. For unrelated vectors of n numbers it is 1.
# Fewer units may be below by chance.
ORTHOGONAL, MIN_UNITS = 0.01, 8
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


def first_estimate(gradient: PyTree, params: PyTree) -> jax.Array:
    r"""The estimate after the first gradient, shape=().

    It is ``FIRST_DISTANCE``, unless the loss does not depend on the length of most of
    the weights. Where batch normalisation follows a layer, the loss is the same for the
    weights :math:`w` of a unit and for :math:`c w`, so :math:`\langle g, w \rangle =
    0`, and a step of length :math:`\eta` has the effect of one of length :math:`c \eta`
    on :math:`c w` (van Laarhoven, L2 regularization versus batch and weight
    normalization, 2017). The distance in them has no scale but their own. And the
    gradients are noisy there: :func:`next_distance` finds no longer distance. So the
    estimate is 0.03 times their root mean square, if this is more. It is shape=() and
    the same for all parameters.

    Leaves of less than two axes are left out. Units are along the first or the last
    axis.

    Args:
      gradient: the first gradient.
      params: the parameters, float32 or wider.
    """
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(gradient), strict=True)
    total = free = squares = jnp.zeros((), pytree.scalar_dtype(params))
    for w, g in pairs:
        if w.ndim < 2:
            continue
        is_free = _is_scale_free(w, g)
        total += jnp.where(jnp.any(g != 0), w.size, 0)
        free += jnp.where(is_free, w.size, 0)
        squares += jnp.where(is_free, jnp.sum(jnp.square(jnp.abs(w))), 0)
    size = jnp.sqrt(squares / jnp.where(free > 0, free, 1))
    found = jnp.maximum(FIRST_ANGLE * size, FIRST_DISTANCE)
    return jnp.where(2 * free > total, found, FIRST_DISTANCE).astype(total.dtype)


def _is_scale_free(w: jax.Array, g: jax.Array) -> jax.Array:
    """Whether gradients of the units of a leaf are orthogonal to their weights."""
    means = [jnp.inf]
    for axis in (0, w.ndim - 1):
        units = w.shape[axis]
        if units < MIN_UNITS:
            continue
        others = tuple(i for i in range(w.ndim) if i != axis)
        dots = jnp.square(jnp.sum((jnp.conj(w) * g).real, others))
        lengths = jnp.sum(jnp.square(jnp.abs(w)), others)
        lengths *= jnp.sum(jnp.square(jnp.abs(g)), others)
        used = lengths > 0
        cosines = jnp.where(used, dots / jnp.where(used, lengths, 1), 0)
        mean = w.size / units * jnp.sum(cosines) / jnp.maximum(jnp.sum(used), 1)
        means.append(jnp.where(jnp.any(used), mean, jnp.inf))
    return jnp.min(jnp.stack(means)) < ORTHOGONAL


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
