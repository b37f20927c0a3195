"""The Kronecker factors of a leaf: their estimates, eigenvectors and inverses."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree


class Sides(NamedTuple):
    """What belongs to each side of a leaf, which is a matrix of shape (m, n)."""

    left: Any
    right: Any


class Factor(NamedTuple):
    """A symmetric positive semidefinite Kronecker factor ``F``, of shape (k, k).

    Attributes:
      gram: running mean of ``Y Y^H``, an estimate of ``F^2`` up to a scale, shape
        (k, k), or its diagonal, shape (k,).
      basis: approximate eigenvectors in columns, orthonormal, shape (k, k); shape () if
        ``gram`` is a diagonal.
      eigenvalues: approximate eigenvalues of ``F``, not negative, shape (k,).
    """

    gram: jax.Array
    basis: jax.Array
    eigenvalues: jax.Array


def as_matrix(x: jax.Array) -> jax.Array:
    """A leaf as a matrix: a vector has one column, a kernel those of its last axis."""
    if x.ndim < 2:
        return x.reshape(-1, 1)
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def first_factor(k: int, max_size: int, dtype: Any) -> Factor:
    """The factor of a side of length k before the first estimate."""
    real = jnp.finfo(dtype).dtype
    if 1 < k <= max_size:
        basis = jnp.eye(k, dtype=dtype)
        return Factor(jnp.zeros_like(basis), basis, jnp.zeros((k,), real))
    return Factor(jnp.zeros((k,), real), jnp.ones((), real), jnp.zeros((k,), real))


def is_full(factor: Factor) -> bool:
    """Whether the factor is a matrix, not a diagonal."""
    return factor.gram.ndim == 2


def gram(rows: jax.Array, y: jax.Array, full: bool) -> jax.Array:
    """Rows of ``Y Y^H``, or its diagonal; ``rows`` are the same rows of ``Y``."""
    return rows @ jnp.conj(y.T) if full else jnp.sum(jnp.abs(y) ** 2, axis=1)


def estimate_weight(
    sides: Sides, number: jax.Array, steps: jax.Array, decay: float
) -> jax.Array:
    """The weight of a new estimate in the running means of both sides of a leaf.

    At first it is 2 / (t + 2), not ``1 - decay``: the first estimates are of another
    curvature. An estimate of a side of length k has c columns, ``number`` products
    times the length of the other side. Few columns leave out directions. So the weight
    is at most c / (c + 3 k), and earlier estimates keep a part.

    Args:
      sides: both :class:`Factor` of the leaf; a diagonal sets no limit.
      number: number of products in the estimate, shape=().
      steps: number of estimates before, shape=().
      decay: factor on the running means at each step.
    """
    weight = 2 / (steps + 2)
    for factor, other in (sides, sides[::-1]):
        if is_full(factor):
            columns = number * len(other.gram)
            limit = columns / (columns + 3 * len(factor.gram))
            weight = jnp.minimum(weight, limit)
    return jnp.where(steps == 0, 1.0, jnp.maximum(1 - decay, weight))


# One matrix at a time, also under vmap. On a CPU with jax 0.10 several batched
# decompositions that run at the same time can block each other for ever if there are
# few threads. This happened with an ensemble of four networks on two cores.
_orthonormal = jax.custom_batching.sequential_vmap(lambda x: jnp.linalg.qr(x)[0])


def diagonalized(factor: Factor, iterations: jax.Array | int) -> Factor:
    """Eigenvectors and eigenvalues after some orthogonal iterations from the last ones.

    An iteration is ``Q <- qr(G Q)`` with ``G`` the Gram matrix (Golub and Van Loan
    2013, section 8.2.4). The eigenvalues are the square roots of the Rayleigh quotients
    of ``G``, 0 for those within rounding of 0. If the result is not finite the factor
    does not change.
    """
    matrix = factor.gram
    if not is_full(factor):
        return factor._replace(eigenvalues=jnp.sqrt(matrix))
    basis = jax.lax.fori_loop(
        0, iterations, lambda _, q: _orthonormal(matrix @ q), factor.basis
    )
    quotients = jnp.sum((jnp.conj(basis) * (matrix @ basis)).real, axis=0)
    # Of a singular matrix rounding leaves some quotients near eps. Their roots, near
    # sqrt(eps), would be seen in the inverse.
    rounding = jnp.finfo(quotients.dtype).eps * jnp.max(quotients)
    quotients = jnp.where(quotients < rounding, 0, quotients)
    new = Factor(matrix, basis, jnp.sqrt(quotients))
    return pytree.where(pytree.all_finite(new), new, factor)


def rescaled(factor: Factor) -> jax.Array:
    """The eigenvalues, scaled to the trace of the present Gram matrix.

    The scale of the curvature may change by orders of magnitude between two iterations,
    and not at the same steps for all leaves.
    """
    matrix, values = factor.gram, factor.eigenvalues
    present = jnp.sum(jnp.diagonal(matrix).real if is_full(factor) else matrix)
    present = jnp.maximum(present, 0)
    past = jnp.sum(jnp.square(values))
    scaled = values * jnp.sqrt(present / jnp.where(past > 0, past, 1))
    # Of a factor that was zero only the sum of the squares is known.
    return jnp.where(past > 0, scaled, jnp.sqrt(present / max(values.size, 1)))


def inverse_eigenvalues(
    left: jax.Array, right: jax.Array, lam: jax.Array, own: jax.Array | float
) -> Sides:
    """The inverses of the eigenvalues of both factors of a leaf, damped.

    With ``B = R (x) L`` and random ``V``, ``Y = L V R`` has ``E[Y Y^H] = tr(R^2) L^2``
    and ``E[Y^H Y] = tr(L^2) R^2``, both of trace ``tr(L^2) tr(R^2)``. Each factor is
    damped by ``c`` times its mean eigenvalue; :func:`kronecker` has the equation. The
    right eigenvalues are divided by their mean, and the left ones multiplied by it.

    Args:
      left: eigenvalues of the left factor, shape (m,), as :class:`Factor` has them.
      right: eigenvalues of the right factor, shape (n,).
      lam: lambda, shape=().
      own: own damping of the preconditioner, in units of the mean, shape=().
    """
    total = jnp.sum(jnp.square(left))
    values = Sides(left, right / jnp.sqrt(jnp.where(total > 0, total, 1)))
    means = Sides(*map(jnp.mean, values))
    mean = means.left * means.right
    curved = mean > 0
    # A leaf without curvature is divided by lambda, or by 1 if lambda is zero.
    unit = jnp.where(curved, mean, jnp.where(lam > 0, lam, 1))
    relative, own = jnp.where(curved, lam / unit, 1), jnp.where(curved, own, 0)
    left, right = (
        jnp.where(curved, x / jnp.where(curved, m, 1), 0)
        for x, m in zip(values, means, strict=True)
    )
    one_sided = 1 in (left.size, right.size)
    c = relative + own if one_sided else jnp.sqrt(relative + jnp.square(own))
    c = jnp.where(c > 0, c, 1)
    if right.size == 1:
        return Sides(1 / (unit * (left + c)), jnp.ones_like(right))
    if left.size == 1:
        return Sides(1 / (unit * jnp.ones_like(left)), 1 / (right + c))
    return Sides(1 / (unit * (left + c)), 1 / (right + c))


def times(inverses: Sides, x: jax.Array) -> jax.Array:
    """Left inverse times ``x`` times right inverse; a diagonal has one axis.

    A left inverse of some rows gives these rows of the result.
    """
    left, right = inverses
    x = left @ x if left.ndim == 2 else left[:, None] * x
    return x @ right if right.ndim == 2 else x * right[None, :]
