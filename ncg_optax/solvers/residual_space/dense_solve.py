"""Solutions of ``(G + damping I) y = c`` for a dense positive semidefinite ``G``."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def cholesky_solve(gram: jax.Array, damping: jax.Array, c: jax.Array) -> jax.Array:
    """``(gram + damping I)^-1 c``; not finite if rounding made that indefinite."""
    damped = gram + damping.astype(gram.dtype) * jnp.eye(len(gram), dtype=gram.dtype)
    factor = jnp.linalg.cholesky(damped, symmetrize_input=False)
    return jax.scipy.linalg.cho_solve((factor, True), c.astype(gram.dtype))


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
    y = cholesky_solve(gram, damping, c)
    return jax.lax.cond(
        jnp.all(jnp.isfinite(y)),
        lambda: y,
        lambda: spectral_solve(gram, damping, c),
    )


def solve_for_dampings(
    gram: jax.Array,
    dampings: jax.Array,
    target: Callable[[jax.Array], jax.Array],
    rise: float,
) -> tuple[jax.Array, jax.Array]:
    """Solutions for several dampings; not finite where the factorisation failed.

    Rounding can make ``gram`` indefinite. If the factorisations fail for all dampings,
    all are multiplied by ``rise``, until one succeeds or the largest exceeds the trace
    of ``gram``, which is always large enough.

    Args:
      gram: ``G``, shape=(m, m).
      dampings: in increasing order, shape=(k,).
      target: ``damping -> c``, shape=(m,).
      rise: the factor, above 1.

    Returns:
      The dampings, shape=(k,), and the solutions, shape=(k, m).
    """
    top = jnp.trace(gram)
    finite = jnp.isfinite(top) & jnp.all(jnp.isfinite(target(dampings[-1])))

    def broken(now):
        tries, dampings, ys = now
        usable = jnp.any(jnp.all(jnp.isfinite(ys), axis=1))
        again = finite & jnp.logical_not(usable) & (dampings[-1] < top)
        return (tries == 0) | again

    def attempt(now):
        tries, dampings, _ = now
        dampings = dampings * jnp.where(tries == 0, 1, rise).astype(dampings.dtype)
        ys = jax.lax.map(lambda lam: cholesky_solve(gram, lam, target(lam)), dampings)
        return tries + 1, dampings, ys

    nothing = jnp.full((len(dampings), len(gram)), jnp.nan, gram.dtype)
    return jax.lax.while_loop(broken, attempt, (0, dampings, nothing))[1:]
