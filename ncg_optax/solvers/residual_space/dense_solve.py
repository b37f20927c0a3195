"""Solutions of ``(G + damping I) y = c`` for a dense positive semidefinite ``G``."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

Solve = Callable[[jax.Array], jax.Array]


def factorised(gram: jax.Array, damping: jax.Array) -> Solve:
    """``c -> (gram + damping I)^-1 c`` by one factorisation.

    The result is not finite if rounding made that matrix indefinite.
    """
    damped = gram + damping.astype(gram.dtype) * jnp.eye(len(gram), dtype=gram.dtype)
    factor = jnp.linalg.cholesky(damped, symmetrize_input=False)
    return lambda c: jax.scipy.linalg.cho_solve((factor, True), c.astype(gram.dtype))


def spectral_solve(gram: jax.Array, damping: jax.Array, c: jax.Array) -> jax.Array:
    """The same, without eigenvectors whose eigenvalue is at the level of rounding."""
    values, vectors = jnp.linalg.eigh(gram)
    values = jnp.maximum(values, 0)
    level = len(gram) * jnp.finfo(gram.dtype).eps * values[-1]
    damped = values + damping.astype(gram.dtype)
    inverse = jnp.where(damped > level, 1 / jnp.where(damped > level, damped, 1), 0)
    return vectors @ (inverse * (vectors.T @ c.astype(gram.dtype)))


def solve_shifted(gram: jax.Array, damping: jax.Array, c: jax.Array) -> jax.Array:
    """``(gram + damping I)^-1 c`` by Cholesky factorisation, else by eigenvectors."""
    y = factorised(gram, damping)(c)
    return jax.lax.cond(
        jnp.all(jnp.isfinite(y)),
        lambda: y,
        functools.partial(spectral_solve, gram, damping, c),
    )
