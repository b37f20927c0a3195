"""Solves of symmetric positive definite systems to nearly full accuracy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree
from ncg_optax.solvers.linear_cg import conjugate_gradient

PyTree = Any


def symmetric_solve(matvec: Callable[[PyTree], PyTree], b: PyTree) -> PyTree:
    """``x`` with ``A x = b``, by conjugate gradients, also under reverse mode.

    Args:
      matvec: ``v -> A v``, for trees like ``b``.
      b: a tree of floating-point arrays.
    """
    size = sum(leaf.size for leaf in jax.tree.leaves(b))

    def solve(matvec, b):
        eps = jnp.finfo(pytree.scalar_dtype(b)).eps
        wide = pytree.widen(b)
        result = conjugate_gradient(
            pytree.in_dtypes_of(b, matvec),
            wide,
            maxiter=max(100, 3 * size),
            tolerance=eps**0.75 * pytree.norm(wide),
            ignore_negative_curvature=True,
        )
        return pytree.cast_like(result.solution, b)

    return jax.lax.custom_linear_solve(matvec, b, solve, symmetric=True)
