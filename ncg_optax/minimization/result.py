"""The result of a minimisation."""

from typing import NamedTuple

import jax


class MinimizeResult(NamedTuple):
    """How a minimisation ended; arrays of shape=().

    Attributes:
      value: the loss at the returned parameters.
      gradient_norm: the largest absolute entry of the gradient there.
      iterations: updates done, int32.
      products: curvature products spent, int32.
      evaluations: evaluations of the loss alone, int32.
      gradient_equivalents: all of it in gradients, by the rule of thumb: 1 for each
        gradient, ``curvature.cost`` for a product, 1/3 for an evaluation.
      status: a :class:`Status` code, int32; :func:`explain` it.
      converged: whether a tolerance was met, bool.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> _, _, result = ncg.minimize(lambda w: jnp.sum((w - 1.0) ** 2), jnp.zeros(3))
      >>> print(result.value, result.converged, ncg.Status(int(result.status)).name)
      0.0 True CONVERGED_GRADIENT
    """

    value: jax.Array
    gradient_norm: jax.Array
    iterations: jax.Array
    products: jax.Array
    evaluations: jax.Array
    gradient_equivalents: jax.Array
    status: jax.Array
    converged: jax.Array
