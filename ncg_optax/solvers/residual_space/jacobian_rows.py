"""Rows of the Jacobian of a model's outputs.

A row is computed by a backward pass of the cotangent of one example's outputs, either
through the model on that example alone or through the model on the whole batch.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ncg_optax._utils import pytree, reductions
from ncg_optax.losses.objective import Objective
from ncg_optax.solvers.residual_space.loss_hessian import Group

PyTree = Any


class RowPullback(NamedTuple):
    """The backward passes that compute the rows of a group of outputs.

    Attributes:
      pull: ``pull(cotangents, item)``: the derivatives of ``cotangents . outputs`` of
        one example, with ``cotangents`` of shape=(k, width); a tree of k rows.
      items: the argument ``item`` of ``pull`` for each example, along a first axis.
      most: largest number of rows to compute at once; None for no limit.
    """

    pull: Callable[[jax.Array, PyTree], PyTree]
    items: PyTree
    most: int | None = None

    def at_once(self, chunk: int, each: int) -> int:
        """The number of examples to compute at once, with ``each`` rows of each."""
        rows = chunk if self.most is None else min(chunk, self.most)
        return max(1, rows // each)


# A backward pass through the whole batch needs memory for all examples.
WHOLE_BATCH_ROWS = 256


def whole_batch_pullback(
    objective: Objective, params: PyTree, group: Group
) -> RowPullback:
    """A backward pass through the model on the whole batch for every row."""
    model, _ = objective.model_and_loss("residual_space")
    shape = (group.examples, group.width)
    flat, pullback = jax.vjp(lambda p: group.flatten(model(p)), params)

    def pull(cotangents, i):
        def row(cotangent):
            whole = jnp.zeros(shape, flat.dtype).at[i].set(cotangent.astype(flat.dtype))
            whole = reductions.to_varying(whole, objective.axes)
            return real_row(pullback(whole)[0])

        return jax.vmap(row)(cotangents)

    return RowPullback(pull, jnp.arange(group.examples), WHOLE_BATCH_ROWS)


def per_example_pullback(
    objective: Objective, params: PyTree, group: Group, lengths: Sequence[int]
) -> RowPullback | None:
    """A backward pass through the model on one example for each of its rows.

    The data of an example has one row of every array whose number of rows is that of
    the group, and the first row of the arrays of the other groups.

    Args:
      objective: the loss.
      params: where to differentiate.
      group: of the outputs.
      lengths: number of examples of every group.

    Returns:
      None if no array of the data has that number of rows, or if the outputs for one
      example do not have the shape of a batch of one.
    """
    leaves, treedef = jax.tree.flatten(dict(objective.data))

    def length(leaf):
        return leaf.shape[0] if getattr(leaf, "ndim", 0) else None

    def outputs_of_one(params, item):
        rows = iter(item)
        cut = [
            next(rows)[None]
            if length(leaf) == group.examples
            else (leaf[:1] if length(leaf) in lengths else leaf)
            for leaf in leaves
        ]
        example = objective.with_data(treedef.unflatten(cut))
        return example.model_and_loss("residual_space")[0](params)

    def pull(cotangents, item):
        flat, pullback = jax.vjp(
            lambda p: group.flatten(outputs_of_one(p, item))[0], params
        )
        return jax.vmap(lambda c: real_row(pullback(c.astype(flat.dtype))[0]))(
            cotangents
        )

    items = [jnp.asarray(leaf) for leaf in leaves if length(leaf) == group.examples]
    if not items:
        return None
    try:
        one = jax.eval_shape(outputs_of_one, params, [x[0] for x in items])
    except Exception:  # A model that mixes examples may raise anything here.
        return None
    model, _ = objective.model_and_loss("residual_space")
    expected = jax.tree.leaves(jax.eval_shape(model, params))
    one = jax.tree.leaves(one)
    aligned = len(one) == len(expected) and all(
        one[k].shape == (1, *expected[k].shape[1:]) for k in group.members
    )
    return RowPullback(pull, items) if aligned else None


def real_row(cotangent: PyTree) -> PyTree:
    """A derivative as a real vector in float32 or wider."""

    def wide(x):
        return jnp.conj(x).astype(jnp.result_type(jnp.float32, x.dtype))

    return pytree.as_real(jax.tree.map(wide, cotangent))


def all_rows(pullback: RowPullback, cotangents: jax.Array, chunk: int) -> jax.Array:
    """All rows of a group as a matrix, computed about ``chunk`` at a time.

    Args:
      pullback: computes them.
      cotangents: of shape=(examples, k, width).
      chunk: rows that are computed at once.

    Returns:
      The rows, shape=(examples * k, parameters), in the widest dtype of the parameters.
    """
    size = pullback.at_once(chunk, cotangents.shape[1])
    pulled = jax.lax.map(
        lambda one: jax.vmap(ravel)(pullback.pull(*one)),
        (cotangents, pullback.items),
        batch_size=size,
    )
    return _merge(pulled)


def ravel(tree: PyTree) -> jax.Array:
    """The entries of a real vector side by side, shape=(parameters,)."""
    return ravel_pytree(tree)[0]


def _merge(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def fold_rows(
    fold: Callable[[PyTree, PyTree, jax.Array], PyTree],
    carry: PyTree,
    pullback: RowPullback,
    cotangents: jax.Array,
    targets: jax.Array,
    chunk: int,
) -> PyTree:
    """``fold(carry, rows, targets)`` over chunks of rows, which are then discarded.

    Args:
      fold: returns the new carry.
      carry: the first one.
      pullback: computes the rows.
      cotangents: of shape=(examples, k, width).
      targets: a number per row, shape=(examples, k).
      chunk: rows that are computed at once.

    Returns:
      The last carry.
    """
    examples, k = targets.shape
    size = min(examples, pullback.at_once(chunk, k))
    full = examples // size * size
    everything = (cotangents, targets, pullback.items)

    def step(carry, part):
        cotangents, targets, items = part
        pulled = jax.vmap(pullback.pull)(cotangents, items)
        return fold(carry, jax.tree.map(_merge, pulled), targets.reshape(-1)), None

    chunks = jax.tree.map(
        lambda x: x[:full].reshape(full // size, size, *x.shape[1:]), everything
    )
    carry, _ = jax.lax.scan(step, carry, chunks)
    if full < examples:
        carry, _ = step(carry, jax.tree.map(lambda x: x[full:], everything))
    return carry
