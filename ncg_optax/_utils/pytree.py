"""Arithmetic on whole pytrees, the only place where it is done.

Vectors of the solvers are pytrees shaped like the parameters. Nothing here ravels,
concatenates or calls ``vdot``: those fail on explicitly sharded arrays, and
``vdot`` accumulates in the dtype of the leaves, which costs CG on bfloat16 leaves a
factor of 50 in accuracy.

A tree of rows is a matrix ``A`` whose columns are the parameters: leaves of
shape=(rows, *leaf.shape), all real. It is dense, and not sharded.
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
    """``tree`` with float16 and bfloat16 leaves as float32; others untouched."""
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

    A state that goes through this at the end of ``update`` keeps its types, and a
    jitted step is compiled once.
    """
    return jax.tree.map(lambda x, y: jnp.asarray(x).astype(y.dtype), tree, like)


def add_leaves(tree: PyTree) -> jax.Array:
    """The sum of leaves that have the same shape."""
    return functools.reduce(jnp.add, jax.tree.leaves(tree))


def total(numbers: PyTree) -> Scalar:
    """The sum of a tree of scalars, one for each leaf of a vector.

    It is taken as the last of the running sums, because XLA repeats a plain sum in the
    code of each leaf that is scaled by it. With hundreds of leaves that is hundreds of
    terms hundreds of times, and several times as long to compile.
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


def max_norm(a: PyTree) -> Scalar:
    """Largest absolute entry."""
    dtype = scalar_dtype(a)
    peaks = [jnp.max(jnp.abs(x), initial=0).astype(dtype) for x in jax.tree.leaves(a)]
    return jax.lax.cummax(jnp.stack(peaks))[-1]  # as in `total`


def add_scaled(a: PyTree, scale: Scalar | float, b: PyTree) -> PyTree:
    """``a + scale * b`` in the leaf dtypes of ``a``."""
    return jax.tree.map(lambda x, y: (x + scale * y).astype(x.dtype), a, b)


def scale(a: PyTree, factor: Scalar | float) -> PyTree:
    """``factor * a`` in the leaf dtypes of ``a``."""
    return jax.tree.map(lambda x: (factor * x).astype(x.dtype), a)


def where(condition: jax.Array, a: PyTree, b: PyTree) -> PyTree:
    """``a`` if the scalar ``condition`` holds, else ``b``; never mixes in NaN."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def conj(a: PyTree) -> PyTree:
    """Complex conjugate; free for real leaves."""
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
    """Where the items of each kind are: what is done to these is compiled once."""
    found: dict[Any, list[int]] = {}
    for k, item in enumerate(items):
        found.setdefault(kind(item), []).append(k)
    return found


def random_signs(key: jax.Array, like: PyTree) -> PyTree:
    """A vector of random signs (Rademacher), shaped like ``like``.

    One random bit for each: `jax.random.rademacher` draws 32, which can take as long as
    a product on a few examples. Draws take long to compile, so leaves of a shape share
    theirs. Those of several shapes do not: where leaves are sharded, signs of all in
    one array would be gathered. Complex entries are of ``(+-1 +- i) / sqrt(2)``.
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
    """``matvec`` of a map that only takes vectors in the dtypes of ``like``.

    The solvers work on :func:`widen`-ed vectors, a product needs a tangent in the
    dtype of the parameters: cast down on the way in and up on the way out.
    """
    return lambda v: widen(matvec(cast_like(v, like)))


def as_real(tree: PyTree) -> PyTree:
    """``tree`` with complex leaves as real ones with a last axis of length 2."""

    def real(x):
        return jnp.stack([x.real, x.imag], axis=-1) if jnp.iscomplexobj(x) else x

    return jax.tree.map(real, tree)


def from_real(tree: PyTree, like: PyTree) -> PyTree:
    """The inverse of :func:`as_real`; ``like`` says which leaves are complex."""

    def back(x, y):
        return jax.lax.complex(x[..., 0], x[..., 1]) if jnp.iscomplexobj(y) else x

    return jax.tree.map(back, tree, like)


def rows_times(rows: PyTree, v: PyTree) -> jax.Array:
    """``A v`` for a tree of rows ``A``, shape=(rows,)."""
    products = jax.tree.map(lambda a, x: jnp.tensordot(a, x, axes=x.ndim), rows, v)
    return add_leaves(products)


def combine_rows(y: jax.Array, rows: PyTree) -> PyTree:
    """``A^T y`` for a tree of rows ``A``, a vector shaped like the parameters."""
    return jax.tree.map(lambda a: jnp.tensordot(y, a, axes=1), rows)


def gram(rows: PyTree) -> jax.Array:
    """``A A^T`` for a tree of rows ``A``, shape=(rows, rows)."""
    flat = [a.reshape(a.shape[0], -1) for a in jax.tree.leaves(rows)]
    return add_leaves([a @ a.T for a in flat])
