r"""The Gaussian approximation of the posterior of the parameters, by dense algebra.

With the prior precisions :math:`D = \operatorname{diag}(\alpha)` and the Jacobian
:math:`A` of the residuals, in units of their standard deviations, the precision is

.. math::
  A^T A + D = D^{1/2} (R^T R + I) D^{1/2}, \qquad R = A D^{-1/2}.

All that the evidence needs follows from a Cholesky factor of :math:`R^T R + I`, or of
:math:`R R^T + I` if there are fewer residuals than parameters (Woodbury's identity).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular


class Posterior(NamedTuple):
    """``R^T R + I`` for m residuals and n parameters; the smaller number is k.

    Attributes:
      rows: ``R``, shape=(m, n).
      gram: ``R^T R`` or ``R R^T``, shape=(k, k).
      factor: Cholesky factor of ``gram + I``, lower, shape=(k, k).
    """

    rows: jax.Array
    gram: jax.Array
    factor: jax.Array

    @property
    def by_residuals(self) -> bool:
        """Whether the matrix is ``R R^T``."""
        return _by_residuals(self.rows)

    @property
    def log_determinant(self) -> jax.Array:
        """The logarithm of the determinant of ``R^T R + I``, shape=()."""
        return 2 * jnp.sum(jnp.log(jnp.diag(self.factor)))

    def solve(self, b: jax.Array, shift: jax.Array) -> jax.Array:
        """``(R^T R + shift I)^-1 b`` for a shift of at least 1, shape=(n,)."""
        factor = _factor(self.gram, shift)
        if self.by_residuals:
            inner = cho_solve((factor, True), self.rows @ b)
            return (b - self.rows.T @ inner) / shift
        return cho_solve((factor, True), b)

    def determined(self) -> jax.Array:
        """How far the data determine each parameter: in [0, 1], shape=(n,).

        The diagonal of ``R^T R (R^T R + I)^-1``. The sum is the effective number of
        parameters.
        """
        if self.by_residuals:
            half = solve_triangular(self.factor, self.rows, lower=True)
            shares = jnp.sum(jnp.square(half), axis=0)
        else:
            shares = 1 - _diagonal_of_inverse(self.factor)
        return jnp.clip(shares, 0.0, 1.0)

    def freedom(self) -> jax.Array:
        """The share of each residual that no parameter fits: in [0, 1], shape=(m,).

        One minus the diagonal of ``R (R^T R + I)^-1 R^T``. The sum is m minus the
        effective number of parameters.
        """
        if self.by_residuals:
            shares = _diagonal_of_inverse(self.factor)
        else:
            half = solve_triangular(self.factor, self.rows.T, lower=True)
            shares = 1 - jnp.sum(jnp.square(half), axis=0)
        return jnp.clip(shares, 0.0, 1.0)

    def variances(self, rows: jax.Array) -> jax.Array:
        """``r (R^T R + I)^-1 r`` for each row ``r``, shape=(rows,)."""
        if self.by_residuals:
            half = solve_triangular(self.factor, self.rows @ rows.T, lower=True)
            total = jnp.sum(jnp.square(rows), axis=1)
            return jnp.maximum(total - jnp.sum(jnp.square(half), axis=0), 0.0)
        half = solve_triangular(self.factor, rows.T, lower=True)
        return jnp.sum(jnp.square(half), axis=0)


def posterior(rows: jax.Array) -> Posterior:
    """The posterior of scaled rows ``R``."""
    gram = rows @ rows.T if _by_residuals(rows) else rows.T @ rows
    return Posterior(rows, gram, _factor(gram, jnp.ones((), rows.dtype)))


def prior_only(m: int, like: jax.Array) -> Posterior:
    """The posterior without data: ``R`` is zero."""
    eye = jnp.eye(min(m, like.size), dtype=like.dtype)
    return Posterior(jnp.zeros((m, like.size), like.dtype), 0 * eye, eye)


def _by_residuals(rows: jax.Array) -> bool:
    return rows.shape[0] < rows.shape[1]


def _factor(gram: jax.Array, shift: jax.Array) -> jax.Array:
    """The Cholesky factor of ``gram + shift I``, which rounding leaves definite."""
    rounding = 8 * jnp.finfo(gram.dtype).eps * jnp.trace(gram)
    eye = jnp.eye(len(gram), dtype=gram.dtype)
    return jnp.linalg.cholesky(gram + (shift + rounding) * eye, symmetrize_input=False)


def _diagonal_of_inverse(factor: jax.Array) -> jax.Array:
    half = solve_triangular(
        factor, jnp.eye(len(factor), dtype=factor.dtype), lower=True
    )
    return jnp.sum(jnp.square(half), axis=0)
