"""A bound on what one batch can do: the gradient is clipped at its usual norm."""

import jax
import jax.numpy as jnp

# A gradient is clipped at so many times the usual norm.
LIMIT = 3.0
DECAY = 0.9


def clipped(
    level: jax.Array, norm: jax.Array, steps: jax.Array
) -> tuple[jax.Array, jax.Array]:
    r"""The factor on the gradient, and the usual norm with this one added.

    .. math::
      f = \min\Bigl(1, \frac{c\, \ell}{|g|}\Bigr), \qquad
      \ell \leftarrow \ell + w\, (f |g| - \ell), \qquad
      w = \max\Bigl(0.1, \frac{1}{t + 1}\Bigr)

    at step :math:`t`, with :math:`f = 1` at the first one. One batch raises the level
    by a fifth at most, and a lasting rise is followed at that rate.

    Args:
      level: the usual norm, shape=().
      norm: that of the gradient, shape=().
      steps: number of gradients before this one, int32, shape=().
    """
    bound = LIMIT * level
    is_outlier = (steps > 0) & (level > 0) & (norm > bound)
    factor = jnp.where(is_outlier, bound / jnp.where(norm > 0, norm, 1), 1)
    weight = jnp.maximum(1 - DECAY, 1 / (steps + 1))
    return factor, level + weight * (factor * norm - level)
