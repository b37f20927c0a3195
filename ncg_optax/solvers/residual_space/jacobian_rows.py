"""Rows of the Jacobian of a model's outputs, example by example or over the batch.

A row is a backward pass, and what is pulled back says which: the cotangent of one
example's outputs. See :mod:`ncg_optax._utils.pytree` for what a tree of rows is.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, reductions
from ncg_optax.losses.objective import Objective
from ncg_optax.solvers.residual_space.loss_hessian import Group

PyTree = Any


class Route(NamedTuple):
    """A way to the rows of a group.

    Attributes:
      pull: ``pull(cotangents, item)``: the derivatives of ``cotangents . outputs`` of
        one example, with ``cotangents`` of shape=(k, width); a tree of k rows.
      items: what ``pull`` needs to know of each example, examples first.
    """

    pull: Callable[[jax.Array, PyTree], PyTree]
    items: PyTree


def whole_batch_route(objective: Objective, params: PyTree, group: Group) -> Route:
    """A backward pass through the whole batch for every row."""
    shape = (group.examples, group.width)
    flat, pullback = jax.vjp(lambda p: group.flatten(objective.model(p)), params)

    def pull(cotangents, i):
        def row(cotangent):
            whole = jnp.zeros(shape, flat.dtype).at[i].set(cotangent.astype(flat.dtype))
            whole = reductions.to_varying(whole, objective.axes)
            return real_row(pullback(whole)[0])

        return jax.vmap(row)(cotangents)

    return Route(pull, jnp.arange(group.examples))


def per_example_route(
    objective: Objective, params: PyTree, group: Group, lengths: Sequence[int]
) -> Route | None:
    """A backward pass through one example for every row of it.

    An example is what is left of the data if arrays with its group's number of rows are
    cut to its row and those of the other groups (``lengths``) to their first.

    Returns:
      None if there is nothing to cut or the outputs do not follow.
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
        return objective.with_data(treedef.unflatten(cut)).model(params)

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
    except Exception:  # Whatever the model says to a batch of one: it mixes examples.
        return None
    expected = jax.tree.leaves(jax.eval_shape(objective.model, params))
    one = jax.tree.leaves(one)
    aligned = len(one) == len(expected) and all(
        one[k].shape == (1, *expected[k].shape[1:]) for k in group.members
    )
    return Route(pull, items) if aligned else None


def real_row(cotangent: PyTree) -> PyTree:
    """A derivative as a real vector in float32 or wider."""

    def wide(x):
        return jnp.conj(x).astype(jnp.result_type(jnp.float32, x.dtype))

    return pytree.as_real(jax.tree.map(wide, cotangent))


def rows(route: Route, cotangents: jax.Array, chunk: int) -> PyTree:
    """All rows of a group, about ``chunk`` at a time.

    Args:
      route: to them.
      cotangents: of shape=(examples, k, width).
      chunk: rows that are computed at once.

    Returns:
      A tree of examples times k rows.
    """
    size = max(1, chunk // cotangents.shape[1])
    pulled = jax.lax.map(
        lambda one: route.pull(*one), (cotangents, route.items), batch_size=size
    )
    return jax.tree.map(_merge, pulled)


def _merge(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def fold_rows(
    fold: Callable[[PyTree, PyTree, jax.Array], PyTree],
    carry: PyTree,
    route: Route,
    cotangents: jax.Array,
    targets: jax.Array,
    chunk: int,
) -> PyTree:
    """``fold(carry, rows, targets)`` over chunks of rows, which are not kept.

    Args:
      fold: returns the new carry.
      carry: the first one.
      route: to the rows.
      cotangents: of shape=(examples, k, width).
      targets: a number per row, shape=(examples, k).
      chunk: rows that are computed at once.

    Returns:
      The last carry.
    """
    examples, k = targets.shape
    size = min(examples, max(1, chunk // k))
    full = examples // size * size
    everything = (cotangents, targets, route.items)

    def step(carry, part):
        cotangents, targets, items = part
        pulled = jax.vmap(route.pull)(cotangents, items)
        return fold(carry, jax.tree.map(_merge, pulled), targets.reshape(-1)), None

    chunks = jax.tree.map(
        lambda x: x[:full].reshape(full // size, size, *x.shape[1:]), everything
    )
    carry, _ = jax.lax.scan(step, carry, chunks)
    if full < examples:
        carry, _ = step(carry, jax.tree.map(lambda x: x[full:], everything))
    return carry
