"""Solutions of ``(G + damping I) y = c`` for a dense positive semidefinite ``G``."""

import jax
import jax.numpy as jnp


def cholesky_solve(gram: jax.Array, damping: jax.Array, c: jax.Array) -> jax.Array:
    """``(gram + damping I)^-1 c``, not finite where rounding made that indefinite."""
    damped = gram + damping.astype(gram.dtype) * jnp.eye(len(gram), dtype=gram.dtype)
    factor = jnp.linalg.cholesky(damped, symmetrize_input=False)
    return jax.scipy.linalg.cho_solve((factor, True), c.astype(gram.dtype))


def spectral_solve(gram: jax.Array, damping: jax.Array, c: jax.Array) -> jax.Array:
    """The same without the eigenvectors that are known by rounding alone."""
    values, vectors = jnp.linalg.eigh(gram)
    values = jnp.maximum(values, 0)
    level = len(gram) * jnp.finfo(gram.dtype).eps * values[-1]
    damped = values + damping.astype(gram.dtype)
    inverse = jnp.where(damped > level, 1 / jnp.where(damped > level, damped, 1), 0)
    return vectors @ (inverse * (vectors.T @ c.astype(gram.dtype)))


def solve_shifted(gram: jax.Array, damping: jax.Array, c: jax.Array) -> jax.Array:
    """By Cholesky factorisation, or by eigenvectors where that breaks down."""
    y = cholesky_solve(gram, damping, c)
    return jax.lax.cond(
        jnp.all(jnp.isfinite(y)),
        lambda: y,
        lambda: spectral_solve(gram, damping, c),
    )
