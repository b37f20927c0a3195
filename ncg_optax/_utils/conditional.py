"""Computations that are made only if they are needed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


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


def inside_loop(tree: PyTree, index: jax.Array) -> PyTree:
    """The same arrays, as if they depended on ``index``, the index of a loop.

    XLA moves what does not depend on a loop out of it. Of a loop that makes one
    iteration in ten steps it would be computed at each step.
    """
    return jax.lax.optimization_barrier((tree, index))[0]
