"""Solves of symmetric positive definite systems to nearly full accuracy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ncg_optax._utils import pytree
from ncg_optax.solvers.linear_cg import conjugate_gradient

PyTree = Any


def symmetric_solve(matvec: Callable[[PyTree], PyTree], b: PyTree) -> PyTree:
    """``x`` with ``A x = b``, by conjugate gradients, also under reverse mode.

    Args:
      matvec: ``v -> A v``, for trees like ``b``.
      b: a tree of floating-point arrays.
    """
    # One vector: the transpose of `custom_linear_solve` fails if some leaves of ``b``
    # are constants. In real numbers a Hessian of complex parameters is symmetric.
    vector, unravel = ravel_pytree(pytree.as_real(b))

    def of_vector(v):
        v = pytree.from_real(unravel(v), b)
        return ravel_pytree(pytree.as_real(matvec(v)))[0]

    def solve(matvec, b):
        wide = pytree.widen(b)
        result = conjugate_gradient(
            pytree.in_dtypes_of(b, matvec),
            wide,
            maxiter=max(100, 3 * b.size),
            tolerance=jnp.finfo(wide.dtype).eps ** 0.75 * pytree.norm(wide),
            ignore_negative_curvature=True,
        )
        return pytree.cast_like(result.solution, b)

    solution = jax.lax.custom_linear_solve(of_vector, vector, solve, symmetric=True)
    return pytree.from_real(unravel(solution), b)
