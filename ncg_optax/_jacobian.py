"""Rows of the Jacobian of a composite loss, weighted by a root of the loss Hessian.

The Gauss-Newton matrix is ``A^T A`` with ``A = S J``, where ``J`` is the Jacobian of
the model's outputs and ``S^T S`` the Hessian of the loss in them, a block per example.
A row of ``A`` is a backward pass whose cotangent is a row of ``S``. Trees of rows have
leaves of shape=(rows, *leaf.shape); complex leaves are seen as pairs of reals.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax import _collectives
from ncg_optax._loss import Objective

PyTree = Any


class Group(NamedTuple):
    """The outputs of the model with the same number of examples.

    Attributes:
      members: which leaves of the outputs.
      examples: the length of their first axis.
      width: numbers per example, over all members.
    """

    members: tuple[int, ...]
    examples: int
    width: int

    def flatten(self, outputs: PyTree) -> jax.Array:
        """The members side by side, shape=(examples, width)."""
        leaves = jax.tree.leaves(outputs)
        chosen = [leaves[k] for k in self.members]
        return jnp.concatenate([x.reshape(x.shape[0], -1) for x in chosen], axis=1)

    def replace(self, outputs: PyTree, flat: jax.Array) -> PyTree:
        """``outputs`` with the members taken from ``flat``."""
        leaves, treedef = jax.tree.flatten(outputs)
        start = 0
        for k in self.members:
            shape = leaves[k].shape
            stop = start + math.prod(shape[1:])
            leaves[k] = flat[:, start:stop].reshape(shape).astype(leaves[k].dtype)
            start = stop
        return treedef.unflatten(leaves)


class Blocks(NamedTuple):
    """The loss in the outputs of a group, to second order, example by example.

    Attributes:
      root: ``S`` with ``S^T S`` the Hessian, shape=(examples, width, width).
      target: ``q`` with ``S^T q`` the gradient, as far as it lies in the range of
        ``S^T``, shape=(examples, width).
      rest: what of the gradient lies outside, shape=(examples, width).
    """

    root: jax.Array
    target: jax.Array
    rest: jax.Array


class Route(NamedTuple):
    """A way to the rows of a group.

    Attributes:
      pull: ``pull(cotangents, item)``: the derivatives of ``cotangents . outputs`` of
        one example, with ``cotangents`` of shape=(k, width); a tree of k rows.
      items: what ``pull`` needs to know of each example, examples first.
    """

    pull: Callable[[jax.Array, PyTree], PyTree]
    items: PyTree


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


def group_outputs(outputs: PyTree) -> list[Group]:
    """The outputs by the number of their examples.

    Raises:
      ValueError: if an output has no axis of examples.
      TypeError: if one is not real and floating-point.
    """
    by_length: dict[int, list[int]] = {}
    leaves = jax.tree.leaves(outputs)
    for k, leaf in enumerate(leaves):
        if leaf.ndim == 0:
            raise ValueError(
                "residual_space needs outputs whose first axis runs over the examples; "
                f"the model returned shapes {[x.shape for x in leaves]}. Give a "
                "single number the shape (1,)."
            )
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                "residual_space needs real floating-point outputs, but the model "
                f"returned dtype {leaf.dtype}. Return real and imaginary parts apart."
            )
        if leaf.size:
            by_length.setdefault(leaf.shape[0], []).append(k)
    return [
        Group(tuple(members), n, sum(leaves[k].size // n for k in members))
        for n, members in by_length.items()
    ]


def loss_blocks(objective: Objective, outputs: PyTree, group: Group) -> Blocks:
    """Gradient and Hessian of the loss in the outputs of a group, by its columns.

    A Hessian product with the sum of one unit vector per example gives a column of
    every block at once, as no example's outputs couple with those of another. Negative
    eigenvalues of a block are taken for zero. Scaled for the mean over devices.
    """
    flat = group.flatten(outputs)
    flat = flat.astype(jnp.result_type(jnp.float32, flat.dtype))
    dtype, width = flat.dtype, group.width

    def loss(flat):
        return objective.loss(group.replace(outputs, flat))

    def column(unit):
        tangent = jnp.broadcast_to(unit, flat.shape)
        return push(_collectives.to_varying(tangent, objective.axes))

    gradient, push = jax.linearize(jax.grad(loss), flat)
    columns = jax.vmap(column)(jnp.eye(width, dtype=dtype))
    hessian = jnp.moveaxis(columns, 0, -1)
    if width == 1:
        values, vectors = hessian[..., 0], jnp.ones_like(hessian)
    else:
        values, vectors = jnp.linalg.eigh(hessian)
    level = (width - 1) * jnp.finfo(dtype).eps * jnp.max(values, axis=1, keepdims=True)
    inside = values > jnp.maximum(level, 0)
    scale = jnp.sqrt(jnp.where(inside, values, 1))
    along = jnp.einsum("nck,nc->nk", vectors, gradient)
    weight = _local_weight(objective, outputs)
    root = jnp.where(inside, scale, 0)[:, :, None] * jnp.swapaxes(vectors, 1, 2)
    return Blocks(
        root=weight * root,
        target=weight * jnp.where(inside, along / scale, 0),
        rest=jnp.einsum("nck,nk->nc", vectors, jnp.where(inside, 0, along)),
    )


def _local_weight(objective: Objective, outputs: PyTree) -> jax.Array | float:
    """The root of this device's share in the loss over all of them."""
    if not objective.axes:
        return 1.0
    value = objective.loss(outputs)
    devices = _collectives.size(objective.axes)
    reduced = _collectives.reduced_axes_size(value, objective.axes)
    return (reduced / devices) ** 0.5


def whole_batch_route(objective: Objective, params: PyTree, group: Group) -> Route:
    """A backward pass through the whole batch for every row."""
    shape = (group.examples, group.width)
    flat, pullback = jax.vjp(lambda p: group.flatten(objective.model(p)), params)

    def pull(cotangents, i):
        def row(cotangent):
            whole = jnp.zeros(shape, flat.dtype).at[i].set(cotangent.astype(flat.dtype))
            whole = _collectives.to_varying(whole, objective.axes)
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
        return objective.on(treedef.unflatten(cut)).model(params)

    def pull(cotangents, item):
        flat, pullback = jax.vjp(
            lambda p: group.flatten(outputs_of_one(p, item))[0], params
        )
        return jax.vmap(lambda c: real_row(pullback(c.astype(flat.dtype))[0]))(
            cotangents
        )

    items = [jnp.asarray(leaf) for leaf in leaves if length(leaf) == group.examples]
    if not items or objective.on is None:
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

    return as_real(jax.tree.map(wide, cotangent))


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
    return x.reshape(-1, *x.shape[2:])


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
        lambda x: x[:full].reshape(-1, size, *x.shape[1:]), everything
    )
    carry, _ = jax.lax.scan(step, carry, chunks)
    if full < examples:
        carry, _ = step(carry, jax.tree.map(lambda x: x[full:], everything))
    return carry


def stack(trees: Sequence[PyTree]) -> PyTree:
    """Trees of rows, one below the other."""
    if len(trees) == 1:
        return trees[0]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *trees)


def gram(a: PyTree) -> jax.Array:
    """``A A^T``, shape=(rows, rows), leaf by leaf."""
    flat = [x.reshape(x.shape[0], -1) for x in jax.tree.leaves(a)]
    return sum(x @ x.T for x in flat)


def times(a: PyTree, v: PyTree) -> jax.Array:
    """``A v``, shape=(rows,)."""
    products = jax.tree.map(lambda x, y: jnp.tensordot(x, y, axes=y.ndim), a, v)
    return sum(jax.tree.leaves(products))


def transposed_times(a: PyTree, y: jax.Array) -> PyTree:
    """``A^T y``, a vector like the parameters."""
    return jax.tree.map(lambda x: jnp.tensordot(y, x, axes=1), a)
