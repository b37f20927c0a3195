"""The Kronecker factors of one leaf: estimates, damped inverses, products."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree

PyTree = Any


class Factor(NamedTuple):
    """The Kronecker factors of one leaf, seen as a matrix of shape (m, n).

    In a state its fields are trees of these, see :class:`KroneckerState`.

    Attributes:
      left: running mean of ``Y Y^H``, shape (m, m), or its diagonal, shape (m,).
      right: running mean of ``Y^H Y``, shape (n, n), or its diagonal, shape (n,).
      left_inverse: of the damped ``L``, shaped like ``left``; its square root if that
        was asked for.
      right_inverse: of the damped ``R``, shaped like ``right``, likewise.
    """

    left: jax.Array
    right: jax.Array
    left_inverse: jax.Array
    right_inverse: jax.Array


def of_trees(factors: list[Factor], treedef: Any) -> Factor:
    """The factors of all leaves as one factor of trees."""
    fields = ([getattr(f, name) for f in factors] for name in Factor._fields)
    return Factor(*map(treedef.unflatten, fields))


def of_leaves(factors: Factor) -> list[Factor]:
    """The other way: a factor for each leaf."""
    return list(map(Factor, *map(jax.tree.leaves, factors)))


class Sides(NamedTuple):
    """One array for each side of a leaf."""

    left: jax.Array
    right: jax.Array


def as_matrix(x: jax.Array) -> jax.Array:
    """Folds a leaf: vectors to one column, kernels to (spatial and inputs, outputs)."""
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


# One matrix at a time, under vmap as well. On a CPU with jax 0.10, several batched
# decompositions at once wait for each other's threads for ever, if these are few: an
# ensemble of four networks did on two cores.
_eigh = jax.custom_batching.sequential_vmap(lambda gram: tuple(jnp.linalg.eigh(gram)))


class _Eigen(NamedTuple):
    values: jax.Array  # not negative, shape (k,)
    basis: jax.Array  # shape (k, k); of a diagonal (k,), where it is not looked at


def _eigen(gram: jax.Array) -> _Eigen:
    """Eigenvalues and eigenvectors of the factor whose square is ``gram``."""
    if gram.ndim == 1:
        return _Eigen(jnp.sqrt(gram.real), gram)
    values, vectors = _eigh(gram)
    return _Eigen(jnp.sqrt(jnp.maximum(values, 0)), vectors)


def _function_of(eigen: _Eigen, values: jax.Array) -> jax.Array:
    """The matrix, or diagonal, with these eigenvectors and other eigenvalues."""
    if eigen.basis.ndim == 1:
        return values.astype(eigen.basis.dtype)
    return (eigen.basis * values) @ jnp.conj(eigen.basis.T)


def _damped(values: Sides, lam: jax.Array, own: jax.Array | float | float) -> Sides:
    """Eigenvalues of both sides, each damped by ``c`` times its mean.

    The equation is that of :func:`kronecker`. What all have in common, the product of
    the means, is kept on the left.
    """
    means = Sides(*map(jnp.mean, values))
    mean = means.left * means.right
    alive = mean > 0
    # A dead leaf is divided by lambda, or by 1 if that is zero too.
    unit = jnp.where(alive, mean, jnp.where(lam > 0, lam, 1))
    shared, own = jnp.where(alive, lam / unit, 1), jnp.where(alive, own, 0)
    left, right = (
        jnp.where(alive, x / jnp.where(alive, m, 1), 0)
        for x, m in zip(values, means, strict=True)
    )
    one_sided = 1 in (left.size, right.size)
    c = shared + own if one_sided else jnp.sqrt(shared + jnp.square(own))
    c = jnp.where(c > 0, c, 1)
    if right.size == 1:
        return Sides(unit * (left + c), jnp.ones_like(right))
    if left.size == 1:
        return Sides(unit * jnp.ones_like(left), right + c)
    return Sides(unit * (left + c), right + c)


def _inverses(
    factor: Factor, lam: jax.Array, own: jax.Array | float, power: float
) -> Sides:
    """The inverses of both damped sides, or their ``power``.

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
    """The factors with their inverses, or their ``power``, brought up to date.

    Those of one type, by shape, dtype and sharding, go through one program: a deep
    network has hundreds of leaves, of a few shapes, and each would be compiled.
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
    """Left inverse, ``x`` and right inverse multiplied, shape (m, n)."""
    left, right = factor.left_inverse, factor.right_inverse
    x = left @ x if left.ndim == 2 else left[:, None] * x
    return x @ right if right.ndim == 2 else x * right
