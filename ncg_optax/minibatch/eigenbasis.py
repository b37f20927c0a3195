"""Eigenbases of the Kronecker factors of each leaf, followed by QR iterations."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, validate
from ncg_optax._utils.parts import Part
from ncg_optax.curvature.base import matmul_precision
from ncg_optax.preconditioners.kronecker_factors import (
    Factor,
    as_matrix,
    diagonalized,
    gram,
)

PyTree = Any

# Steps between two refreshes, and in the first FREQUENT_STEPS steps.
PERIOD, FREQUENT_PERIOD, FREQUENT_STEPS = 10, 2, 20
# Iterations at the first refresh, which begins with the identity; one at the others.
FIRST_ITERATIONS = 4
# Least weight of a new sample in the Gram matrices.
SAMPLE_WEIGHT = 0.1
# Multiple of its mean eigenvalue that is added to the diagonal of a Gram matrix in the
# iteration. Rounding errors would choose the basis of the null space of a few samples.
SHIFT = 1e-3


class Side(NamedTuple):
    """One side of the leaves, each of which is a matrix of shape (m, n).

    Attributes:
      gram: running mean of ``G G^H`` (left) or ``G^H G`` (right) of samples ``G`` of
        norm 1, a tree of matrices of shape (k, k), with k = m or n. A side of b blocks
        has the diagonal blocks of this matrix, shape (b, l, l), and a side that is not
        rotated has shape ().
      basis: approximate eigenvectors in columns, likewise.
    """

    gram: PyTree
    basis: PyTree


class EigenbasesState(NamedTuple):
    """The eigenbases of all leaves.

    Attributes:
      refreshes: number of refreshes done, int32, shape=().
      left: the side of the rows.
      right: the side of the columns.
    """

    refreshes: jax.Array
    left: Side
    right: Side


class Turned(NamedTuple):
    """Numbers in the eigenbases, which are turned along with them.

    Attributes:
      linear: trees shaped like the parameters, whose leaves are ``Q_L^H X Q_R``.
      squares: a tree of squares of such numbers.
    """

    linear: tuple[PyTree, ...]
    squares: PyTree


@dataclasses.dataclass(frozen=True)
class eigenbases(Part):  # noqa: N801
    r"""Which leaves :func:`ncg_optax.kronecker_adam` rotates, and in which blocks.

    Vectors and empty leaves are not rotated. A side of length k, longer than
    ``block_size``, is cut into the least number b of blocks, of length :math:`l =
    \lceil k / b \rceil`; the last one is shorter if b l is above k. Each block has a
    basis of its own, from its diagonal block of the Gram matrix.

    A side with blocks of length l of a leaf of shape (m, n) costs :math:`4 m n l`
    operations in each step, and :math:`O(k l^2)` at a refresh, and takes :math:`2 k l`
    numbers of memory. A side that is not cut has :math:`l = k`.

    Attributes:
      max_size: longest side that is rotated, at least 1.
      block_size: longest side that has a single basis, at least 2, or None: then no
        side is cut.

    Raises:
      TypeError: if a number is not an integer (``block_size`` may be None).
      ValueError: if a number is too small.

    Examples:
      Longer sides in blocks of at most 256:

      >>> import ncg_optax as ncg
      >>> bases = ncg.minibatch.eigenbases(max_size=8192, block_size=256)
      >>> tx = ncg.kronecker_adam(bases=bases)
    """

    max_size: int = 256
    block_size: int | None = None

    def __post_init__(self):
        validate.integer("eigenbases: max_size", self.max_size, low=1)
        if self.block_size is not None:
            validate.integer(
                "eigenbases: block_size", self.block_size, low=2, other=", or None"
            )

    def init(self, params: PyTree) -> EigenbasesState:
        """No samples, and the axes of the parameters as bases.

        Leaves may be `jax.ShapeDtypeStruct`.
        """

        def side(axis: int, fill: Callable[[int, Any], jax.Array]) -> PyTree:
            def first(leaf):
                shape = jax.eval_shape(as_matrix, leaf).shape
                dtype = jnp.result_type(jnp.float32, leaf.dtype)
                length = shape[axis]
                if min(shape) <= 1 or length > self.max_size:
                    return jnp.zeros((), dtype)
                number = math.ceil(length / (self.block_size or length))
                block = fill(math.ceil(length / number), dtype)
                return block if number == 1 else jnp.stack([block] * number)

            return jax.tree.map(first, params)

        def zeros(k, dtype):
            return jnp.zeros((k, k), dtype)

        def axes(k, dtype):
            return jnp.eye(k, dtype=dtype)

        sides = [Side(side(axis, zeros), side(axis, axes)) for axis in (0, 1)]
        return EigenbasesState(jnp.zeros((), jnp.int32), *sides)


def is_due(steps: jax.Array) -> jax.Array:
    """Whether the bases are refreshed at this step, bool, shape=()."""
    period = jnp.where(steps < FREQUENT_STEPS, FREQUENT_PERIOD, PERIOD)
    return steps % period == 0


def rotated(bases: EigenbasesState, tree: PyTree, back: bool = False) -> PyTree:
    """``Q_L^H X Q_R`` for each leaf ``X``, or ``Q_L X Q_R^H`` to undo it."""

    def leaf(x, left, right):
        y = as_matrix(x)
        if left.ndim:
            y = _times(left if back else _adjoint(left), y)
        if right.ndim:
            y = _times(y, _adjoint(right) if back else right)
        return y.reshape(x.shape)

    with matmul_precision("highest"):
        return jax.tree.map(leaf, tree, bases.left.basis, bases.right.basis)


def _times(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a @ b``, where ``a`` or ``b`` may be block-diagonal, of shape (blocks, k, k).

    The blocks may have more rows in all than the other matrix. Then zeros are added to
    that matrix, and the rows that belong to them are left out of the result. No basis
    mixes them with others: the first is the identity, and their part of the Gram matrix
    stays zero.
    """
    if a.ndim == 3:
        return (a @ _in_blocks(b, a)).reshape(-1, b.shape[1])[: len(b)]
    if b.ndim == 3:
        return _times(b.mT, a.T).T
    return a @ b


def _adjoint(x: jax.Array) -> jax.Array:
    return jnp.conj(x.mT)


def _in_blocks(x: jax.Array, blocks: jax.Array) -> jax.Array:
    """The rows of ``x`` in as many blocks, with zeros at the end of the last one."""
    number, size, _ = blocks.shape
    rows = jnp.pad(x, ((0, number * size - len(x)), (0, 0)))
    return rows.reshape(number, size, x.shape[1])


def refreshed(
    bases: EigenbasesState, samples: Sequence[PyTree], turned: Turned
) -> tuple[EigenbasesState, Turned]:
    r"""The bases after an iteration with new samples, and the numbers in them.

    .. math::
      L \leftarrow (1 - w) L + w \sum_G \frac{G G^H}{|G|^2}, \qquad
      Q_L \leftarrow \operatorname{qr}\bigl((L + 10^{-3}\, \bar l\, I)\, Q_L\bigr)

    and likewise on the right, with :math:`\bar l` the mean eigenvalue of :math:`L` and
    the weight :math:`w = \max(0.1, 1 / (k + 1))` after :math:`k` refreshes. A number
    :math:`x` in the old basis is :math:`T x` in the new one, with :math:`T = Q_{new}^H
    Q_{old}`; of squares, of which only a mean is known, the mean in the new basis is
    taken as :math:`|T|^2` times it. At the first refresh there are four iterations.

    Each block of a side has equations of its own, with its rows of :math:`G`, but the
    norm of all of it. Bases change with the old Gram matrices alone if a sample of the
    leaf is not finite.

    Args:
      bases: the bases.
      samples: vectors shaped like the parameters: gradients, curvature products.
      turned: the numbers in the bases.
    """
    weight = jnp.maximum(SAMPLE_WEIGHT, 1 / (bases.refreshes + 1))
    iterations = jnp.where(bases.refreshes == 0, FIRST_ITERATIONS, 1)
    columns = (*bases.left, *bases.right, turned.squares, *turned.linear)
    old = list(zip(*map(jax.tree.leaves, columns), strict=True))
    given = list(zip(*map(jax.tree.leaves, samples), strict=True))
    # Leaves of one kind are stacked, so that they are compiled once.
    kinds = pytree.indices_by(lambda leaf: tuple(map(jax.typeof, leaf)), old)
    new = list(old)
    for members in kinds.values():
        left, _, right, *_ = old[members[0]]
        if left.ndim or right.ndim:
            pairs = [(old[i], given[i]) for i in members]
            stacks = jax.tree.map(lambda *x: jnp.stack(x), *pairs)
            with matmul_precision("highest"):
                results = jax.vmap(
                    lambda x, g: _refreshed_leaf(x, g, weight, iterations)
                )(*stacks)
            for j, i in enumerate(members):
                new[i] = tuple(x[j] for x in results)
    unflatten = jax.tree.structure(turned.squares).unflatten
    a, b, c, d, squares, *linear = map(unflatten, zip(*new, strict=True))
    return (
        EigenbasesState(bases.refreshes + 1, Side(a, b), Side(c, d)),
        Turned(tuple(linear), squares),
    )


def _refreshed_leaf(
    old: tuple[jax.Array, ...],
    samples: tuple[jax.Array, ...],
    weight: jax.Array,
    iterations: jax.Array,
) -> tuple[jax.Array, ...]:
    """Both sides of a leaf, then its squares and the other numbers in its bases."""
    shape = old[4].shape
    sides = Side(*old[:2]), Side(*old[2:4])
    squares, *linear = map(as_matrix, old[4:])
    # A curvature product may overflow where the gradient does not.
    finite = pytree.all_finite(samples)
    weight = jnp.where(finite, weight, 0)
    given = [jnp.where(finite, _of_norm_one(as_matrix(g)), 0) for g in samples]
    left, right = (
        _iterated(
            side, [g if i == 0 else jnp.conj(g.T) for g in given], weight, iterations
        )
        for i, side in enumerate(sides)
    )
    if left.basis.ndim:
        turn = _adjoint(left.basis) @ sides[0].basis
        linear = [_times(turn, x) for x in linear]
        squares = _times(jnp.abs(turn) ** 2, squares)
    if right.basis.ndim:
        turn = _adjoint(sides[1].basis) @ right.basis
        linear = [_times(x, turn) for x in linear]
        squares = _times(squares, jnp.abs(turn) ** 2)
    return (*left, *right, *(x.reshape(shape) for x in (squares, *linear)))


def _of_norm_one(g: jax.Array) -> jax.Array:
    norm = jnp.linalg.norm(g)
    return g / jnp.where(norm > 0, norm, 1)


def _iterated(
    side: Side, rows: list[jax.Array], weight: jax.Array, iterations: jax.Array
) -> Side:
    """A side of one leaf with samples added, after some orthogonal iterations."""
    if not side.gram.ndim:
        return side
    if side.gram.ndim == 3:
        blocks = [_in_blocks(g, side.gram) for g in rows]
        each = jax.vmap(_iterated, in_axes=(0, 0, None, None))
        return each(side, blocks, weight, iterations)
    added = sum(gram(g, g, True) for g in rows)
    mixed = (1 - weight) * side.gram + weight * added
    mixed = mixed.astype(side.gram.dtype)
    k = len(mixed)
    shifted = mixed + SHIFT / k * jnp.trace(mixed).real * jnp.eye(k, dtype=mixed.dtype)
    unused = jnp.zeros(k, mixed.real.dtype)
    basis = diagonalized(Factor(shifted, side.basis, unused), iterations).basis
    return Side(mixed, basis)
