"""Arithmetic on whole pytrees. No other module does it.

The vectors of the solvers are pytrees shaped like the parameters. No function here
ravels or concatenates leaves or calls `jax.numpy.vdot`: these operations fail on
explicitly sharded arrays. ``vdot`` also accumulates in the dtype of the leaves, and
with bfloat16 leaves this makes CG less accurate by a factor of 50.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any
Scalar = jax.Array  # shape=()


def scalar_dtype(tree: PyTree) -> jnp.dtype:
    """The real dtype of inner products over ``tree``: float32 or wider."""
    return jnp.finfo(
        jnp.result_type(jnp.float32, *(leaf.dtype for leaf in jax.tree.leaves(tree)))
    ).dtype


def widen(tree: PyTree) -> PyTree:
    """``tree`` with float16 and bfloat16 leaves as float32; the others unchanged."""
    return jax.tree.map(lambda x: x.astype(jnp.result_type(jnp.float32, x.dtype)), tree)


def zeros_like(tree: PyTree) -> PyTree:
    """Zeros in the shapes and dtypes of ``tree``."""
    return jax.tree.map(jnp.zeros_like, tree)


def widened_zeros_like(tree: PyTree) -> PyTree:
    """Zeros in the dtypes of :func:`widen`; leaves may be `jax.ShapeDtypeStruct`."""
    return jax.tree.map(
        lambda x: jnp.zeros_like(x, dtype=jnp.result_type(jnp.float32, x.dtype)), tree
    )


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """``tree`` with the leaf dtypes of ``like``, strongly typed.

    ``update`` applies it to the new state. So the types of the state never change, and
    a jitted step is compiled once.
    """
    return jax.tree.map(lambda x, y: jnp.asarray(x).astype(y.dtype), tree, like)


def add_leaves(tree: PyTree) -> jax.Array:
    """The sum of leaves that have the same shape."""
    return functools.reduce(jnp.add, jax.tree.leaves(tree))


def total(numbers: PyTree) -> Scalar:
    """The sum of a tree of scalars, one for each leaf of a vector.

    This is the last entry of a cumulative sum. XLA would copy a plain sum into the code
    of each leaf that is multiplied by it: hundreds of leaves would each repeat hundreds
    of terms, and compiling would take several times as long.
    """
    return jax.lax.cumsum(jnp.stack(jax.tree.leaves(numbers)))[-1]


def vdot(a: PyTree, b: PyTree) -> Scalar:
    """Real inner product ``Re <a, b>``, accumulated in :func:`scalar_dtype`."""
    dtype = scalar_dtype((a, b))

    def leaf_dot(x, y):
        wide = jnp.result_type(dtype, x.dtype)
        product = jnp.conj(x.astype(wide)) * y.astype(wide)
        return jnp.sum(jnp.real(product), dtype=dtype)

    return total(jax.tree.map(leaf_dot, a, b))


def norm(a: PyTree) -> Scalar:
    """Euclidean norm."""
    return jnp.sqrt(vdot(a, a))


def power_of_two(x: Scalar) -> Scalar:
    """The largest power of two that is not above ``x``, between 2^-100 and 2^100.

    1 if ``x`` is 0 or not finite. Products and quotients with it are exact.
    """
    exponent = jnp.frexp(x)[1] - 1
    exponent = jnp.where((x > 0) & jnp.isfinite(x), jnp.clip(exponent, -100, 100), 0)
    return jnp.ldexp(jnp.ones_like(x), exponent)


def scaled_norm(a: PyTree) -> Scalar:
    """:func:`norm`, also if the squares of the entries would overflow or underflow."""
    unit = power_of_two(max_norm(a))
    return unit * norm(scale(a, 1 / unit))


def max_norm(a: PyTree) -> Scalar:
    """Largest absolute entry."""
    dtype = scalar_dtype(a)
    peaks = [jnp.max(jnp.abs(x), initial=0).astype(dtype) for x in jax.tree.leaves(a)]
    return jax.lax.cummax(jnp.stack(peaks))[-1]  # for the reason in `total`


def add_scaled(a: PyTree, scale: Scalar | float, b: PyTree) -> PyTree:
    """``a + scale * b`` in the leaf dtypes of ``a``."""
    return jax.tree.map(lambda x, y: (x + scale * y).astype(x.dtype), a, b)


def scale(a: PyTree, factor: Scalar | float) -> PyTree:
    """``factor * a`` in the leaf dtypes of ``a``."""
    return jax.tree.map(lambda x: (factor * x).astype(x.dtype), a)


def negative(a: PyTree) -> PyTree:
    """``-a``."""
    return jax.tree.map(jnp.negative, a)


def where(condition: jax.Array, a: PyTree, b: PyTree) -> PyTree:
    """``a`` if the scalar ``condition`` is True, else ``b``; the other may be NaN."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def conj(a: PyTree) -> PyTree:
    """Complex conjugate; returns real leaves unchanged."""
    return jax.tree.map(lambda x: jnp.conj(x) if jnp.iscomplexobj(x) else x, a)


def all_finite(tree: PyTree) -> jax.Array:
    """Whether every entry is finite, as a boolean scalar."""
    bad = jax.tree.map(lambda x: jnp.any(~jnp.isfinite(x)).astype(jnp.int32), tree)
    return total(bad) == 0


def random_normal(key: jax.Array, like: PyTree) -> PyTree:
    """A standard normal vector shaped like ``like`` (complex where ``like`` is)."""
    leaves, treedef = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten(
        jax.random.normal(k, x.shape, x.dtype)
        for k, x in zip(keys, leaves, strict=True)
    )


def indices_by(kind: Callable[[Any], Any], items: list[Any]) -> dict[Any, list[int]]:
    """The positions of the items of each kind.

    An operation on all items of a kind together is compiled once.
    """
    found: dict[Any, list[int]] = {}
    for k, item in enumerate(items):
        found.setdefault(kind(item), []).append(k)
    return found


def random_signs(key: jax.Array, like: PyTree) -> PyTree:
    """A vector of random signs (Rademacher), shaped like ``like``.

    Draws one random bit for each sign. `jax.random.rademacher` draws 32 bits, which can
    take as long as a product on a few examples. Drawing takes long to compile, so the
    leaves of the same shape and dtype are drawn together. Leaves of different shapes
    are not: one array for all signs would be gathered where leaves are sharded. Complex
    entries are ``(+-1 +- i) / sqrt(2)``.
    """
    leaves, treedef = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    kinds = indices_by(lambda x: (x.shape, x.dtype), leaves)
    drawn = list(leaves)
    for (shape, dtype), members in kinds.items():
        draw = functools.partial(_random_signs, shape=shape, dtype=dtype)
        together = jax.vmap(draw)(keys[jnp.array(members)])
        for i, k in enumerate(members):
            drawn[k] = together[i]
    return treedef.unflatten(drawn)


def _random_signs(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype):
    if jnp.issubdtype(dtype, jnp.complexfloating):
        parts = _random_signs(key, (2, *shape), jnp.finfo(dtype).dtype)
        return jax.lax.complex(*parts) / math.sqrt(2)
    size = math.prod(shape)
    bits = jnp.unpackbits(jax.random.bits(key, (-(-size // 8),), jnp.uint8))
    return (1 - 2 * bits[:size].astype(dtype)).reshape(shape)


def in_dtypes_of(like: PyTree, matvec: Callable[[PyTree], PyTree]) -> Callable:
    """``matvec``, which needs vectors in the dtypes of ``like``, for widened vectors.

    The vectors of the solvers have the dtypes of :func:`widen`, but a product needs a
    tangent in the dtypes of the parameters. So ``v`` is cast to those, and the product
    is widened. In float16 a vector with entries above 65504 or below 6e-8 would be cast
    to infinity or zero. So a vector whose largest entry is not between 2^-10 and 2^10
    is divided by a power of two near that.
    """
    if not any(x.dtype == jnp.float16 for x in jax.tree.leaves(like)):
        return lambda v: widen(matvec(cast_like(v, like)))

    def product(v):
        peak = max_norm(v)
        usual = (peak >= 2.0**-10) & (peak <= 2.0**10)
        unit = jnp.where(usual, 1, power_of_two(peak))
        return scale(widen(matvec(cast_like(scale(v, 1 / unit), like))), unit)

    return product


def as_real(tree: PyTree) -> PyTree:
    """``tree`` with each complex leaf as a real one with a last axis of length 2."""

    def real(x):
        return jnp.stack([x.real, x.imag], axis=-1) if jnp.iscomplexobj(x) else x

    return jax.tree.map(real, tree)


def from_real(tree: PyTree, like: PyTree) -> PyTree:
    """The inverse of :func:`as_real`; ``like`` defines which leaves are complex."""

    def back(x, y):
        return jax.lax.complex(x[..., 0], x[..., 1]) if jnp.iscomplexobj(y) else x

    return jax.tree.map(back, tree, like)
