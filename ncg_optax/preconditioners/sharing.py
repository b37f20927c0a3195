"""Which device computes what of a preconditioner, under a mapped axis.

All devices have the same vectors and matrices. Each one computes some rows of a product
of matrices, or some of several decompositions, and the results are gathered. Only small
matrices are computed by every device: to send them would take longer. Without a mapped
axis there is one device, and nothing is sent.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, reductions

# Sides of matrices from which on their rows are shared. A product of two matrices of
# this size takes as long on one core as it takes to send one of them.
MIN_ROWS = 128


def _rows_each(rows: int, axes: reductions.Axes) -> int:
    """Number of rows of a device; the last one may have fewer."""
    return -(-rows // reductions.size(axes))


def is_shared(rows: int, axes: reductions.Axes) -> bool:
    """Whether devices share the rows of a matrix with so many."""
    return rows >= MIN_ROWS and reductions.size(axes) > 1


def own_rows(x: jax.Array, axes: reductions.Axes, axis: int = 0) -> jax.Array:
    """The rows of ``x`` (along ``axis``) of this device; all rows if there are few."""
    rows = x.shape[axis]
    if not is_shared(rows, axes):
        return x
    each = _rows_each(rows, axes)
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, each * reductions.size(axes) - rows)
    x = reductions.to_varying(jnp.pad(x, padding), axes)
    return jax.lax.dynamic_slice_in_dim(x, reductions.index(axes) * each, each, axis)


def all_rows(
    parts: list[jax.Array], rows: list[int], axes: reductions.Axes
) -> list[jax.Array]:
    """The inverse of :func:`own_rows`: each array with the rows of all devices.

    Args:
      parts: arrays of this device, whose first axis counts its own rows.
      rows: how many rows each array has on all devices together.
      axes: names of the mapped axes.
    """
    whole = list(parts)
    shared = [i for i, count in enumerate(rows) if is_shared(count, axes)]
    kinds = pytree.indices_by(lambda i: parts[i].dtype, shared)
    for members in kinds.values():  # one gather for each dtype, of one long vector
        chosen = [shared[j] for j in members]
        flat = jnp.concatenate([parts[i].ravel() for i in chosen])
        table = reductions.gather(reductions.to_varying(flat[None], axes), axes)
        start = 0
        for i in chosen:
            stop = start + parts[i].size
            block = table[:, start:stop].reshape(-1, *parts[i].shape[1:])
            whole[i], start = block[: rows[i]], stop
    return whole


class Turn(NamedTuple):
    """Members of a stack that are due, and who computes them.

    Attributes:
      inputs: a tree of arrays whose first axis counts the members.
      results: the last results, likewise.
      first: the first member that is due, int32, shape=(); the next ones follow in
        cyclic order.
      number: how many are due, int32, shape=().
      owner: the device of the first one; the next device has the next one. None if
        every device computes all of them.
    """

    inputs: Any
    results: Any
    first: jax.Array
    number: jax.Array
    owner: int | None

    @property
    def size(self) -> int:
        """Number of members."""
        return jax.tree.leaves(self.results)[0].shape[0]


def in_turn(
    function: Callable[[Any, Any], Any], turns: list[Turn], axes: reductions.Axes
) -> list[Any]:
    """The results of all stacks, new ones in the place of the members that are due.

    Args:
      function: returns the result of one member, from its input and its last result.
        It is called for one member after the other.
      turns: the stacks, and which of their members are due.
      axes: names of the mapped axes.
    """
    computed = [
        _computed(function, turn, () if turn.owner is None else axes) for turn in turns
    ]
    shared = [i for i, turn in enumerate(turns) if turn.owner is not None]
    if not shared or reductions.size(axes) == 1:
        return computed
    last = [turns[i].results for i in shared]

    def gathered():
        flags = [_due_and_own(turns[i], axes) for i in shared]
        own = [_where(f[1], computed[i]) for f, i in zip(flags, shared, strict=True)]
        sums = reductions.total(own, axes)
        return [_where(f[0], *x) for f, *x in zip(flags, sums, last, strict=True)]

    # All devices have the same turns: none waits for another one.
    any_due = sum(turns[i].number for i in shared) > 0
    results = jax.lax.cond(any_due, gathered, lambda: last)
    for i, result in zip(shared, results, strict=True):
        computed[i] = result
    return computed


def _place(turn: Turn, axes: reductions.Axes) -> jax.Array | int:
    """Which of the members that are due is the first one of this device."""
    return (reductions.index(axes) - (turn.owner or 0)) % reductions.size(axes)


def _computed(
    function: Callable[[Any, Any], Any], turn: Turn, axes: reductions.Axes
) -> Any:
    """The results, new ones in the place of the own members that are due."""
    devices, place = reductions.size(axes), _place(turn, axes)
    own = jnp.maximum(turn.number - place + devices - 1, 0) // devices

    def one(n, results):
        i = (turn.first + place + n * devices) % turn.size
        members = (jax.tree.map(lambda x: x[i], x) for x in (turn.inputs, results))
        return jax.tree.map(lambda x, y: x.at[i].set(y), results, function(*members))

    return jax.lax.fori_loop(0, own, one, reductions.to_varying(turn.results, axes))


def _due_and_own(turn: Turn, axes: reductions.Axes) -> tuple[jax.Array, jax.Array]:
    """For each member: whether it is due, and whether this device computes it."""
    order = (jnp.arange(turn.size) - turn.first) % turn.size
    due = order < turn.number
    return due, due & (order % reductions.size(axes) == _place(turn, axes))


def _where(flags: jax.Array, stack: Any, otherwise: Any = None) -> Any:
    """The members with a flag; the others are those of ``otherwise``, or zero."""

    def chosen(x, y):
        return jnp.where(flags.reshape(-1, *(1,) * (x.ndim - 1)), x, y)

    if otherwise is None:
        otherwise = jax.tree.map(jnp.zeros_like, stack)
    return jax.tree.map(chosen, stack, otherwise)


def deal(costs: list[float], numbers: list[int]) -> list[int]:
    """The first owner of each stack: members are dealt in turn, expensive ones first.

    Args:
      costs: cost of a member of each stack.
      numbers: how many members each stack has.
    """
    owners, dealt = [0] * len(costs), 0
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owners[i] = dealt
        dealt += numbers[i]
    return owners
