"""The Kronecker factors of one leaf: estimates, damped inverses, products."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree

PyTree = Any


class Factor(NamedTuple):
    """The Kronecker factors of one leaf, which is a matrix of shape (m, n).

    In :class:`KroneckerState` each field is a tree of the arrays of all leaves.

    Attributes:
      left: running mean of ``Y Y^H``, shape (m, m), or its diagonal, shape (m,).
      right: running mean of ``Y^H Y``, shape (n, n), or its diagonal, shape (n,).
      left_inverse: inverse of the damped ``L`` or, with ``with_sqrt``, its square root;
        shaped like ``left``.
      right_inverse: inverse of the damped ``R`` or, with ``with_sqrt``, its square
        root; shaped like ``right``.
    """

    left: jax.Array
    right: jax.Array
    left_inverse: jax.Array
    right_inverse: jax.Array


def of_trees(factors: list[Factor], treedef: Any) -> Factor:
    """The factors of all leaves as one :class:`Factor` of trees."""
    fields = ([getattr(f, name) for f in factors] for name in Factor._fields)
    return Factor(*map(treedef.unflatten, fields))


def of_leaves(factors: Factor) -> list[Factor]:
    """The inverse of :func:`of_trees`: a :class:`Factor` for each leaf."""
    return list(map(Factor, *map(jax.tree.leaves, factors)))


class Sides(NamedTuple):
    """One array for each side of a leaf."""

    left: jax.Array
    right: jax.Array


def as_matrix(x: jax.Array) -> jax.Array:
    """A leaf as a matrix: a vector has one column, a kernel those of its last axis."""
    if x.ndim < 2:
        return x.reshape(-1, 1)
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _gram(y: jax.Array, full: bool) -> jax.Array:
    """``Y Y^H`` or its diagonal."""
    return y @ jnp.conj(y.T) if full else jnp.sum(jnp.abs(y) ** 2, axis=1)


def grams_like(factor: Factor, y: jax.Array) -> Sides:
    """The contribution of a product ``y`` to the factors of its leaf."""
    y = as_matrix(y)
    return Sides(
        _gram(y, factor.left.ndim == 2), _gram(jnp.conj(y.T), factor.right.ndim == 2)
    )


# One matrix at a time, also under vmap. On a CPU with jax 0.10 several batched
# decompositions that run at the same time can block each other for ever if there are
# few threads. This happened with an ensemble of four networks on two cores.
_eigh = jax.custom_batching.sequential_vmap(lambda gram: tuple(jnp.linalg.eigh(gram)))


class _Eigen(NamedTuple):
    """Eigenvalues and eigenvectors of a factor."""

    values: jax.Array  # not negative, shape (k,)
    basis: jax.Array  # shape (k, k); for a diagonal factor (k,), and only for its dtype


def _eigen(gram: jax.Array) -> _Eigen:
    """Eigenvalues and eigenvectors of the factor whose square is ``gram``."""
    if gram.ndim == 1:
        return _Eigen(jnp.sqrt(gram.real), gram)
    values, vectors = _eigh(gram)
    return _Eigen(jnp.sqrt(jnp.maximum(values, 0)), vectors)


def _function_of(eigen: _Eigen, values: jax.Array) -> jax.Array:
    """The matrix, or the diagonal, with these eigenvectors and other eigenvalues."""
    if eigen.basis.ndim == 1:
        return values.astype(eigen.basis.dtype)
    return (eigen.basis * values) @ jnp.conj(eigen.basis.T)


def _damped(values: Sides, lam: jax.Array, own: jax.Array | float) -> Sides:
    """Eigenvalues of both factors, each damped by ``c`` times its mean.

    :func:`kronecker` has the equation. The right eigenvalues are divided by their mean,
    and the left ones multiplied by it.

    Args:
      values: eigenvalues of both factors.
      lam: lambda, shape=().
      own: own damping of the preconditioner, in units of the mean, shape=().
    """
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
        return Sides(unit * (left + c), jnp.ones_like(right))
    if left.size == 1:
        return Sides(unit * jnp.ones_like(left), right + c)
    return Sides(unit * (left + c), right + c)


def _inverses(
    factor: Factor, lam: jax.Array, own: jax.Array | float, power: float
) -> Sides:
    """The inverses of both damped factors, to the power ``power``.

    With ``B = R (x) L`` and random ``V``, ``Y = L V R`` has ``E[Y Y^H] = tr(R^2) L^2``
    and ``E[Y^H Y] = tr(L^2) R^2``, both of trace ``tr(L^2) tr(R^2)``.
    """
    left, right = _eigen(factor.left), _eigen(factor.right)
    total = jnp.sum(jnp.square(left.values))
    size = jnp.sqrt(jnp.where(total > 0, total, 1))
    damped = _damped(Sides(left.values, right.values / size), lam, own)
    new = Sides(
        _function_of(left, damped.left**-power),
        _function_of(right, damped.right**-power),
    )
    old = Sides(factor.left_inverse, factor.right_inverse)
    # A decomposition may fail (on some GPUs it does): the last inverses stay.
    usable = pytree.all_finite((left.values, right.values, new))
    return pytree.where(usable, pytree.cast_like(new, old), old)


def inverted(
    factors: list[Factor], lam: jax.Array, own: jax.Array | float, power: float
) -> list[Factor]:
    """The factors with new inverses, to the power ``power``.

    Factors with the same shapes, dtypes and sharding are stacked, so that they are
    compiled once. A deep network has hundreds of leaves but only a few shapes.
    """
    kinds = pytree.indices_by(lambda f: tuple(map(jax.typeof, f)), factors)
    inverted = list(factors)
    for members in kinds.values():
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *(factors[k] for k in members))
        inverses = jax.vmap(lambda f: _inverses(f, lam, own, power))(stacked)
        for i, k in enumerate(members):
            left, right = inverses.left[i], inverses.right[i]
            inverted[k] = Factor(factors[k].left, factors[k].right, left, right)
    return inverted


def times(factor: Factor, x: jax.Array) -> jax.Array:
    """The product of left inverse, ``x`` and right inverse, shape (m, n)."""
    left, right = factor.left_inverse, factor.right_inverse
    x = left @ x if left.ndim == 2 else left[:, None] * x
    return x @ right if right.ndim == 2 else x * right
