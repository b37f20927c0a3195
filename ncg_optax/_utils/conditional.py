"""A computation that is made only if it is needed."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def compute_if(
    needed: jax.Array, compute: Callable[[], jax.Array], otherwise: jax.Array
) -> jax.Array:
    """``compute()`` if ``needed``, else ``otherwise``, in the dtype of ``otherwise``.

    This is a loop of at most one iteration, not a `jax.lax.cond`. Under `jax.vmap` a
    cond makes the computation always, and a loop only if one of the mapped conditions
    holds. And JAX lowers a jitted function in a loop once for all loops: so the
    program has a curvature product once, here and in the loops of the solvers.

    Args:
      needed: bool, shape=().
      compute: returns an array shaped like ``otherwise``.
      otherwise: an array of any shape.
    """

    def body(loop):
        return jnp.zeros_like(loop[0]), compute().astype(otherwise.dtype)

    return jax.lax.while_loop(lambda loop: loop[0], body, (needed, otherwise))[1]
