"""Gradient and Hessian of the loss in the model's outputs, by examples."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import reductions
from ncg_optax.losses.objective import Objective

PyTree = Any


class Group(NamedTuple):
    """The leaves of the model's outputs with the same number of examples.

    Attributes:
      members: indices of these leaves.
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
    """Hessian and gradient of the loss in the outputs of a group, a block an example.

    The gradient is ``S^T q + rest``; ``rest`` is zero for a squared loss.

    Attributes:
      root: ``S`` with ``S^T S`` the Hessian, shape=(examples, width, width).
      target: ``q``, shape=(examples, width).
      rest: the component of the gradient outside the range of ``S^T``,
        shape=(examples, width).
    """

    root: jax.Array
    target: jax.Array
    rest: jax.Array


def group_outputs(outputs: PyTree) -> list[Group]:
    """Groups the outputs by the number of their examples.

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
    """Gradient and Hessian of the loss in the outputs of a group.

    The loss does not couple the outputs of different examples. So a Hessian product
    with the sum of one unit vector per example is one column of every block. Negative
    eigenvalues of a block are set to zero. The blocks are scaled for the mean over
    devices.
    """
    _, loss_of_outputs = objective.model_and_loss("residual_space")
    flat = group.flatten(outputs)
    flat = flat.astype(jnp.result_type(jnp.float32, flat.dtype))
    dtype, width = flat.dtype, group.width

    def loss(flat):
        return loss_of_outputs(group.replace(outputs, flat))

    def column(unit):
        tangent = jnp.broadcast_to(unit, flat.shape)
        return push(reductions.to_varying(tangent, objective.axes))

    gradient, push = jax.linearize(jax.grad(loss), flat)
    columns = jax.vmap(column)(jnp.eye(width, dtype=dtype))
    hessian = jnp.moveaxis(columns, 0, -1)
    if width == 1:
        values, vectors = hessian[..., 0], jnp.ones_like(hessian)
    else:
        values, vectors = jnp.linalg.eigh(hessian)
    level = (width - 1) * jnp.finfo(dtype).eps * jnp.max(values, axis=1, keepdims=True)
    # NaN counts as inside, so that the rows are NaN and not zero.
    inside = jnp.logical_not(values <= jnp.maximum(level, 0))
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
    """The square root of this device's weight in the loss over all devices."""
    if not objective.axes:
        return 1.0
    value = objective.model_and_loss("residual_space")[1](outputs)
    devices = reductions.size(objective.axes)
    reduced = reductions.reduced_axes_size(value, objective.axes)
    return (reduced / devices) ** 0.5
