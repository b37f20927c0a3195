"""Which device computes what of a preconditioner, under a mapped axis.

All devices have the same vectors and matrices. Each one computes a part of the rows of
a product of matrices, or some of the decompositions, and the parts are gathered. So
nothing is computed twice, apart from small matrices, for which the communication would
take longer. Without a mapped axis there is one part, and nothing is communicated.
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


def _is_shared(rows: int, axes: reductions.Axes) -> bool:
    return rows >= MIN_ROWS and reductions.size(axes) > 1


def own_rows(x: jax.Array, axes: reductions.Axes, axis: int = 0) -> jax.Array:
    """The rows of ``x`` (along ``axis``) of this device; all rows if there are few."""
    rows = x.shape[axis]
    if not _is_shared(rows, axes):
        return x
    each = _rows_each(rows, axes)
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, each * reductions.size(axes) - rows)
    x = reductions.to_varying(jnp.pad(x, padding), axes)
    return jax.lax.dynamic_slice_in_dim(x, reductions.index(axes) * each, each, axis)


def all_rows(
    parts: list[jax.Array], rows: list[int], axes: reductions.Axes, axis: int = 0
) -> list[jax.Array]:
    """The inverse of :func:`own_rows`: each array with the rows of all devices.

    Args:
      parts: arrays with the rows of this device along ``axis``.
      rows: how many rows each array has on all devices together.
      axes: names of the mapped axes.
      axis: the axis of the rows.
    """
    shared = [i for i, count in enumerate(rows) if _is_shared(count, axes)]
    if not shared:
        return parts
    # One gather for each dtype, of all arrays in one vector.
    whole = list(parts)
    for members in pytree.indices_by(lambda i: parts[i].dtype, shared).values():
        chosen = [shared[j] for j in members]
        moved = [jnp.moveaxis(parts[i], axis, 0) for i in chosen]
        flat = jnp.concatenate([x.ravel() for x in moved])
        flat = reductions.to_varying(flat, axes)
        table = reductions.gather(flat[None], axes)
        start = 0
        for i, x in zip(chosen, moved, strict=True):
            block = table[:, start : start + x.size].reshape(-1, *x.shape[1:])
            whole[i] = jnp.moveaxis(block[: rows[i]], 0, axis)
            start += x.size
    return whole


class Turn(NamedTuple):
    """The members of a stack that are due, and who computes them.

    Attributes:
      first: the first member that is due, int32, shape=(); the next ones follow in
        cyclic order.
      number: how many are due, int32, shape=().
      first_owner: the device of the first one; the next device has the next one.
    """

    first: jax.Array
    number: jax.Array
    first_owner: int


def in_turn(
    function: Callable[[Any], Any], stack: Any, turn: Turn, axes: reductions.Axes
) -> Any:
    """``function`` of the members that are due, computed one after the other.

    Args:
      function: of one member; returns a tree like it.
      stack: a tree of arrays whose first axis counts the members.
      turn: which members are due.
      axes: names of the mapped axes.

    Returns:
      The stack with the results in the place of the members that are due.
    """
    size = jax.tree.leaves(stack)[0].shape[0]
    devices = reductions.size(axes)
    place = (reductions.index(axes) - turn.first_owner) % devices
    own = jnp.maximum(turn.number - place + devices - 1, 0) // devices

    def one(n, stack):
        i = (turn.first + place + n * devices) % size
        new = function(jax.tree.map(lambda x: x[i], stack))
        return jax.tree.map(lambda x, y: x.at[i].set(y), stack, new)

    def work():
        own_stack = reductions.to_varying(stack, axes)
        return jax.lax.fori_loop(0, own, one, own_stack)

    if devices == 1:
        return work()
    order = (jnp.arange(size) - turn.first) % size
    due = order < turn.number
    mine = due & (order % devices == place)

    def shared():
        def chosen(flags, x, otherwise):
            return jnp.where(flags.reshape(-1, *(1,) * (x.ndim - 1)), x, otherwise)

        results = reductions.total(
            jax.tree.map(lambda x: chosen(mine, x, 0), work()), axes
        )
        return jax.tree.map(lambda x, old: chosen(due, x, old), results, stack)

    # All devices have the same turn: none waits for another one.
    return jax.lax.cond(turn.number > 0, shared, lambda: stack)


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
