"""A learning rate from the distance to the solution, as in Prodigy."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree

PyTree = Any

# The estimate at the first step.
FIRST_DISTANCE = 3e-4
# The estimate in units of the root mean square of the weights, and its largest value,
# if the loss does not depend on the length of nearly all of them.
RELATIVE_DISTANCE, MAX_RELATIVE = 0.03, 0.01
# Steps in which this is checked: at the first one some gradients may be zero.
CHECKED_STEPS = 10
# The share of the weights that counts as nearly all.
NEARLY_ALL = 0.9
# A leaf counts if the mean of <g, w>^2 / sum (g_i w_i)^2 over its units is below. Terms
# of random signs have a mean of 1.
ORTHOGONAL = 0.01
# A mean over few units, or of few weights each, may be below by chance.
MIN_UNITS, MIN_WEIGHTS = 8, 8
# Units whose weights have a variance below this share of their mean square do not
# count: the gradient of a softmax is orthogonal to equal weights.
MIN_VARIANCE = 1e-3
# Decay of both sums.
DECAY = 0.9995
# A common learning rate of Adam. Above it, the rate that is found grows with the root
# of the distance.
COMMON_RATE = 0.01
# Steps after which the learning rate falls with the root of their number.
CONSTANT_STEPS = 300


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


def relative_distance(gradient: PyTree, params: PyTree) -> jax.Array:
    r"""An estimate from the weights themselves if their length is arbitrary, shape=().

    Where normalisation follows a layer, such as batch or weight normalisation, the loss
    is the same for the weights :math:`w` of a unit and for :math:`c w`. So
    :math:`\langle g, w \rangle = 0`, and a step of length :math:`\eta` has the effect
    of one of length :math:`c \eta` on :math:`c w` (van Laarhoven, L2 regularization
    versus batch and weight normalization, 2017). The distance has no scale but that of
    the weights: it is taken as 0.03 times their root mean square, and at most 0.01. It
    is 0 unless the gradient is orthogonal to the weights of each unit, for leaves that
    have nine tenths of all weights. The estimate is one for all parameters, also for
    the others.

    Units are along the first or the last axis. Leaves of less than two axes, and
    those without a gradient, are left out.

    Args:
      gradient: the gradient.
      params: the parameters, float32 or wider.
    """
    dtype = pytree.scalar_dtype(params)
    total, free, squares = [], [], []
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(gradient), strict=True)
    for w, g in pairs:
        if w.ndim < 2 or w.size == 0:
            continue
        is_free, size = _has_free_length(w, g), jnp.asarray(float(w.size), dtype)
        total.append(jnp.where(jnp.any(g != 0), size, 0))
        free.append(jnp.where(is_free, size, 0))
        square = jnp.sum(jnp.square(jnp.abs(w)), dtype=dtype)
        squares.append(jnp.where(is_free, square, 0))
    if not total:
        return jnp.zeros((), dtype)
    total, free, squares = map(pytree.total, (total, free, squares))
    size = jnp.sqrt(squares / jnp.where(free > 0, free, 1))
    found = jnp.minimum(RELATIVE_DISTANCE * size, MAX_RELATIVE)
    is_found = (free > 0) & (free >= NEARLY_ALL * total)
    return jnp.where(is_found, found, 0).astype(dtype)


def _has_free_length(w: jax.Array, g: jax.Array) -> jax.Array:
    """Whether the gradient is orthogonal to the weights of each unit of a leaf."""

    def scaled(x):  # their squares neither overflow nor vanish
        largest = jnp.max(jnp.abs(x))
        return x / jnp.where(largest > 0, largest, 1)

    w, g = scaled(w), scaled(g)
    terms = (jnp.conj(w) * g).real
    is_free = jnp.zeros((), bool)
    for axis in (0, w.ndim - 1):
        units = w.shape[axis]
        if units < MIN_UNITS or w.size < MIN_WEIGHTS * units:
            continue
        others = tuple(i for i in range(w.ndim) if i != axis)
        dots, sums = jnp.sum(terms, others), jnp.sum(jnp.square(terms), others)
        variance = jnp.var(w, others)
        differ = variance > MIN_VARIANCE * jnp.mean(jnp.square(jnp.abs(w)), others)
        used = (sums > 0) & differ
        ratios = jnp.where(used, jnp.square(dots) / jnp.where(used, sums, 1), 0)
        number = jnp.sum(used, dtype=ratios.dtype)
        is_free |= (number >= MIN_UNITS) & (jnp.sum(ratios) < ORTHOGONAL * number)
    return is_free


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
      \eta = \frac{\min(d, \sqrt{0.01\, d})}{\sqrt{1 + t / 300}}

    A step of Adam moves each component by up to :math:`\eta`. For a convex loss the
    regret of :math:`T` steps of AdaGrad's kind is at most proportional to :math:`d^2 /
    \eta + T \eta` (Duchi, Hazan and Singer 2011), which is least at :math:`\eta = d /
    \sqrt T`; in the first steps gradients are more signal than noise. The number of
    steps need not be known. Distances above 0.01, a common learning rate of Adam, made
    too long steps: then the rate is the geometric mean of the two. This and the 300
    steps were chosen on the problems that docs/tuning.md names.
    """
    d = distance.estimate
    first = jnp.minimum(d, jnp.sqrt(COMMON_RATE * d))
    return first / jnp.sqrt(1 + steps / CONSTANT_STEPS)
