"""A bound on what one batch can do: a gradient far above the usual norm is reduced."""

import jax
import jax.numpy as jnp

# Gradients of a norm above so many times the usual one are reduced.
LIMIT = 3.0
DECAY = 0.9
# In the first FIRST_STEPS steps a gradient whose norm is so many times below the usual
# one shows that the first batch was an outlier.
RESTART, FIRST_STEPS = 100.0, 10


def clipped(
    level: jax.Array, norm: jax.Array, steps: jax.Array
) -> tuple[jax.Array, jax.Array]:
    r"""The factor on the gradient, and the usual norm with this one added.

    .. math::
      f = q^2, \qquad q = \min\Bigl(1, \frac{c\, \ell}{|g|}\Bigr), \qquad
      \ell \leftarrow \ell + w\, (q |g| - \ell), \qquad
      w = \max\Bigl(0.1, \frac{1}{t + 1}\Bigr)

    at step :math:`t`, with :math:`q = 1` at the first one and :math:`c = 3`. The longer
    an outlier is, the less it counts: with the norm clipped at :math:`c\, \ell` the
    running mean of the gradients would follow it for some ten steps. After the
    tenth step one batch raises the level by a fifth at most, and a lasting rise is
    followed at that rate.

    Args:
      level: the usual norm, shape=().
      norm: that of the gradient, shape=().
      steps: number of gradients before this one, int32, shape=().
    """
    bound = LIMIT * level
    is_outlier = (steps > 0) & (level > 0) & (norm > bound)
    ratio = jnp.where(is_outlier, bound / jnp.where(norm > 0, norm, 1), 1)
    # The difference to the norm of an outlier would lose all digits.
    level = jnp.where(steps > 0, level, 0)
    weight = jnp.maximum(1 - DECAY, 1 / (steps + 1))
    return jnp.square(ratio), level + weight * (ratio * norm - level)


def counted_steps(level: jax.Array, norm: jax.Array, steps: jax.Array) -> jax.Array:
    """The number of gradients before this one, 0 if the first one was an outlier.

    The first gradient is not clipped, because no usual norm is known. If it was a
    hundred times as long as those that follow, the moments and the distance would
    depend on it for hundreds of steps. So the optimizer begins again with the first
    usual gradient.

    Args:
      level: the usual norm, shape=().
      norm: that of the gradient, shape=().
      steps: number of gradients before this one, int32, shape=().
    """
    is_first_usual = (steps < FIRST_STEPS) & (norm > 0) & (level > RESTART * norm)
    return jnp.where(is_first_usual, 0, steps)
