"""The unit of the quadratic model, for losses that are very large or very small.

Squares of the gradient and of curvature products overflow in float32 for a loss of
1e19, and vanish for one of 1e-20. So the model is divided by a power of two, which
changes no digit: a loss times a power of two gives the same steps.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree
from ncg_optax.globalization.base import Damping

PyTree = Any

# Between 2^-WITHIN and 2^WITHIN nothing is divided.
WITHIN = 20
# The unit by the gradient is 1 between 2^-USUAL and 2^USUAL, and changes in steps of
# COARSE outside: the states of the parts keep the unit in which they were computed, so
# it may not change within a usual run.
USUAL, COARSE = 50, 40


def model_unit(damping: Damping, state: Any, gradient: PyTree) -> jax.Array:
    """A power of two near the scale of the curvature, or near that of the gradient.

    Args:
      damping: the damping rule, which may know the scale of the curvature.
      state: its state.
      gradient: the gradient of the loss.

    Returns:
      The unit, shape=(); 1 in the usual range.
    """
    scale = damping.unit(state)
    if scale is not None:
        unit = pytree.power_of_two(scale)
        usual = (unit >= 2.0**-WITHIN) & (unit <= 2.0**WITHIN)
        return jnp.where(usual, 1, unit).astype(scale.dtype)
    peak = pytree.max_norm(gradient)
    if jnp.finfo(peak.dtype).maxexp > jnp.finfo(jnp.float32).maxexp:
        return jnp.ones_like(peak)  # squares of float64 are in its range
    exponent = jnp.log2(pytree.power_of_two(peak))
    coarse = COARSE * jnp.round(exponent / COARSE)
    exponent = jnp.where(jnp.abs(exponent) <= USUAL, 0, coarse).astype(jnp.int32)
    return jnp.ldexp(jnp.ones_like(peak), exponent)
