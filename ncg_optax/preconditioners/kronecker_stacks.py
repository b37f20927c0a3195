"""The Kronecker factors of all leaves: in turn, stacked, shared between devices."""

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, reductions
from ncg_optax.preconditioners import sharing
from ncg_optax.preconditioners.kronecker_factors import Factor, diagonalized, is_full

# A cycle is counted in integers: the parts of successive steps have no gap between
# them. All numbers to 10 divide it. Stacks have less than 2**31 / (2 * CYCLE) members.
CYCLE = 64 * 2520


def _by_kind(factors: list[Factor]) -> list[list[int]]:
    """The indices of the matrices among the factors, by shape, dtype and sharding.

    Factors of the same kind are stacked, so that they are compiled once. A deep network
    has hundreds of leaves but only a few shapes.
    """
    full = [i for i, f in enumerate(factors) if is_full(f)]
    kinds = pytree.indices_by(lambda i: tuple(map(jax.typeof, factors[i])), full)
    return [[full[j] for j in members] for members in kinds.values()]


def whole(
    parts: list[jax.Array], factors: list[Factor], axes: reductions.Axes
) -> list[jax.Array]:
    """Matrices with the rows of all devices; a diagonal does not change.

    Args:
      parts: for each factor, the own rows of a matrix of its shape, or a diagonal.
      factors: the factors.
      axes: names of the mapped axes.
    """
    full = [i for i, f in enumerate(factors) if is_full(f)]
    sizes = [len(factors[i].gram) for i in full]
    matrices = sharing.all_rows([parts[i] for i in full], sizes, axes)
    found = dict(zip(full, matrices, strict=True))
    return [found.get(i, part) for i, part in enumerate(parts)]


def in_turn(
    factors: list[Factor],
    turn: jax.Array,
    advance: jax.Array,
    iterations: jax.Array,
    axes: reductions.Axes,
) -> list[Factor]:
    """The factors, those that are due with new eigenvectors and eigenvalues.

    Args:
      factors: the factors, with their present Gram matrices.
      turn: the part of the cycle that is over, in units of 1 / ``CYCLE``, int32,
        shape=().
      advance: the part of the cycle that this step is, likewise.
      iterations: number of orthogonal iterations, int32, shape=().
      axes: names of the mapped axes.
    """
    kinds = _by_kind(factors)
    sizes = [len(factors[members[0]].gram) for members in kinds]
    owners = sharing.deal([k**3 for k in sizes], list(map(len, kinds)))
    turns = []
    for i, (members, k) in enumerate(zip(kinds, sizes, strict=True)):
        stack = jax.tree.map(lambda *x: jnp.stack(x), *(factors[j] for j in members))
        # Kinds begin at different parts of the cycle.
        begin = (turn + i * CYCLE // len(kinds)) % CYCLE
        first = begin * len(members) // CYCLE
        number = (begin + advance) * len(members) // CYCLE - first
        owner = owners[i] if sharing.is_shared(k, axes) else None
        turns.append(sharing.Turn(stack.gram, stack[1:], first, number, owner))
    results = sharing.in_turn(
        lambda gram, last: diagonalized(Factor(gram, *last), iterations)[1:],
        turns,
        axes,
    )
    new = [f if is_full(f) else diagonalized(f, 0) for f in factors]
    for members, (bases, eigenvalues) in zip(kinds, results, strict=True):
        for j, k in enumerate(members):
            new[k] = Factor(factors[k].gram, bases[j], eigenvalues[j])
    return new


def own_inverses(
    factors: list[Factor], values: list[jax.Array], axes: reductions.Axes
) -> list[jax.Array]:
    """The own rows of the matrices with other eigenvalues; of a diagonal, these.

    Args:
      factors: the factors, whose eigenvectors the matrices have.
      values: the eigenvalues, each of shape (k,).
      axes: names of the mapped axes.
    """
    inverses = [v.astype(f.gram.dtype) for f, v in zip(factors, values, strict=True)]
    for members in _by_kind(factors):
        basis = jnp.stack([factors[k].basis for k in members])
        scaled = basis * jnp.stack([inverses[k] for k in members])[:, None]
        own = sharing.own_rows(scaled, axes, axis=1)
        own = own @ jnp.conj(jnp.swapaxes(basis, 1, 2))
        for j, k in enumerate(members):
            inverses[k] = own[j]
    return inverses
