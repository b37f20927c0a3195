"""The Jacobian of a composite loss, weighted by a root of the loss Hessian.

The Gauss-Newton matrix is ``A^T A`` with ``A = S J``, where ``J`` is the Jacobian of
the model's outputs and ``S^T S`` the Hessian of the loss in them, a block per example.
A row of ``A`` is the backward pass of a row of ``S``: through the model on one example,
or through the model on the whole batch if it mixes examples (batch statistics).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, reductions
from ncg_optax.losses.objective import Objective
from ncg_optax.solvers.residual_space import jacobian_rows
from ncg_optax.solvers.residual_space.jacobian_rows import RowPullback
from ncg_optax.solvers.residual_space.loss_hessian import (
    Blocks,
    Group,
    group_outputs,
    loss_blocks,
)

PyTree = Any
Pull = Callable[[Sequence[jax.Array]], PyTree]

UNKNOWN, PER_EXAMPLE, WHOLE_BATCH = 0, 1, 2


class Mode(NamedTuple):
    """How the rows are computed: example by example, or over the whole batch.

    Attributes:
      pullbacks: a function without arguments that returns a :class:`RowPullback` for
        each group of outputs.
      passes: number of backward passes through the whole batch that cost as much as
        all rows.
    """

    pullbacks: Callable[[], list[RowPullback]]
    passes: int


class WeightedJacobian(NamedTuple):
    """The matrix ``A``, whose rows are not computed yet.

    Attributes:
      objective: the loss.
      blocks: of the loss Hessian, one for each group of outputs.
      modes: how the rows can be computed, ``PER_EXAMPLE`` or ``WHOLE_BATCH`` or both.
      mode: which of these is used, int32, shape=().
      rest: the component of the gradient outside the row space of ``A``.
      products: cost of all rows, in curvature products, int32, shape=().
      outputs_at: parameters to the outputs of each group on this device,
        shape=(examples, width).
      pull: ``J^T u`` on this device, a real vector, for ``u`` of these shapes.
    """

    objective: Objective
    blocks: list[Blocks]
    modes: dict[int, Mode]
    mode: jax.Array
    rest: PyTree
    products: jax.Array
    outputs_at: Callable[[PyTree], list[jax.Array]]
    pull: Pull

    @property
    def residuals(self) -> int:
        """Number of rows, those of all devices together."""
        devices = reductions.size(self.objective.axes)
        return devices * sum(block.target.size for block in self.blocks)

    @property
    def target(self) -> jax.Array:
        """``q`` with ``A^T q + rest`` the gradient, for the rows of all devices."""
        q = jnp.concatenate([block.target.reshape(-1) for block in self.blocks])
        return reductions.gather(q, self.objective.axes)

    def rows(self, chunk: int) -> jax.Array:
        """``A``, the rows of all devices, shape=(residuals, parameters)."""

        def compute(pullbacks):
            groups = [
                jacobian_rows.all_rows(pullback, block.root, chunk)
                for pullback, block in zip(pullbacks, self.blocks, strict=True)
            ]
            return jnp.concatenate(groups)

        return reductions.gather(self._in_mode(compute), self.objective.axes)

    def fold_rows(self, fold: Callable, carry: PyTree, chunk: int) -> PyTree:
        """``fold(carry, rows, targets)`` over chunks of the rows, summed over devices.

        Args:
          fold: returns the new carry, of the same shapes.
          carry: zeros.
          chunk: rows that are computed at once.
        """
        axes = self.objective.axes
        carry = reductions.to_varying(carry, axes)
        roots = [block.root for block in self.blocks]
        targets = [block.target for block in self.blocks]

        def compute(pullbacks):
            return _fold_groups(fold, carry, pullbacks, roots, targets, chunk)

        return reductions.total(self._in_mode(compute), axes)

    def _in_mode(self, compute: Callable[[list[RowPullback]], PyTree]) -> PyTree:
        """``compute`` applied to the pullbacks of the mode that is used."""
        if len(self.modes) == 1:
            [mode] = self.modes.values()
            return compute(mode.pullbacks())
        return jax.lax.cond(
            self.mode == WHOLE_BATCH,
            lambda: compute(self.modes[WHOLE_BATCH].pullbacks()),
            lambda: compute(self.modes[PER_EXAMPLE].pullbacks()),
        )


def _fold_groups(
    fold: Callable,
    carry: PyTree,
    pullbacks: list[RowPullback],
    cotangents: list[jax.Array],
    targets: list[jax.Array],
    chunk: int,
) -> PyTree:
    """:func:`jacobian_rows.fold_rows` over one group of outputs after the other."""
    for pullback, u, target in zip(pullbacks, cotangents, targets, strict=True):
        carry = jacobian_rows.fold_rows(fold, carry, pullback, u, target, chunk)
    return carry


def weighted_jacobian(
    objective: Objective, params: PyTree, known: jax.Array, jacobian: str, chunk: int
) -> WeightedJacobian:
    """The weighted Jacobian at ``params``.

    Args:
      objective: the loss, with its model.
      params: where to differentiate, varying over the mapped axes.
      known: the mode of an earlier step or ``UNKNOWN``, int32, shape=().
      jacobian: ``"per_example"``, ``"whole_batch"`` or ``"auto"``.
      chunk: rows that are computed at once.

    Raises:
      ValueError: if ``jacobian="per_example"`` does not fit the data.
    """
    model, _ = objective.model_and_loss("residual_space")
    outputs, pullback = jax.vjp(model, params)
    groups = group_outputs(outputs)
    blocks = [loss_blocks(objective, outputs, group) for group in groups]

    def outputs_at(params):
        there = model(params)
        return [group.flatten(there) for group in groups]

    def pull(cotangents):
        tree = pytree.zeros_like(outputs)
        for group, flat in zip(groups, cotangents, strict=True):
            tree = group.replace(tree, flat)
        return jacobian_rows.real_row(pullback(tree)[0])

    modes = _possible_modes(objective, params, groups, jacobian)
    if len(modes) == 1:
        [(code, only)] = modes.items()
        mode, products = jnp.full_like(known, code), only.passes
    else:
        unknown = known == UNKNOWN
        mode = jax.lax.cond(
            unknown,
            lambda: _compare_modes(
                objective, params, modes[PER_EXAMPLE].pullbacks(), blocks, pull, chunk
            ),
            lambda: known,
        )
        passes = {code: mode.passes for code, mode in modes.items()}
        slow = mode == WHOLE_BATCH
        products = jnp.where(slow, passes[WHOLE_BATCH], passes[PER_EXAMPLE])
        products += 2 * unknown.astype(jnp.int32)
    return WeightedJacobian(
        objective=objective,
        blocks=blocks,
        modes=modes,
        mode=mode,
        rest=_outside_row_space(objective, outputs, blocks, pull),
        products=jnp.asarray(products, jnp.int32),
        outputs_at=outputs_at,
        pull=pull,
    )


def _outside_row_space(
    objective: Objective, outputs: PyTree, blocks: list[Blocks], pull: Pull
) -> PyTree:
    """The component of the gradient outside the row space of ``A``, of all devices."""
    axes = objective.axes
    outside = [block.rest for block in blocks]
    # It is zero for a squared loss, and then the backward pass is skipped.
    size = sum(jnp.sum(jnp.abs(rest)) for rest in outside)
    somewhere = reductions.mean(size, axes) != 0
    zeros = pytree.zeros_like(jax.eval_shape(pull, outside))
    zeros = reductions.to_varying(zeros, axes)
    local = jax.lax.cond(somewhere, pull, lambda _: zeros, outside)
    if not axes:
        return local
    _, loss = objective.model_and_loss("residual_space")
    return reductions.derivative_reducer(loss(outputs), axes)(local)


def has_examples(objective: Objective, params: PyTree) -> bool:
    """Whether all rows can be computed by passes through single examples.

    The shapes say so. A model that mixes examples may have these shapes as well.
    """
    model, _ = objective.model_and_loss("residual_space")
    groups = group_outputs(jax.eval_shape(model, params))
    lengths = [group.examples for group in groups]
    return all(
        jacobian_rows.per_example_pullback(objective, params, group, lengths)
        for group in groups
    )


def _possible_modes(
    objective: Objective, params: PyTree, groups: list[Group], jacobian: str
) -> dict[int, Mode]:
    """The modes that fit the model and its data, and the setting ``jacobian``."""
    lengths = [group.examples for group in groups]
    rows = [group.examples * group.width for group in groups]

    def whole(group):
        return jacobian_rows.whole_batch_pullback(objective, params, group)

    by_example = [None] * len(groups)
    if jacobian != "whole_batch":
        by_example = [
            jacobian_rows.per_example_pullback(objective, params, group, lengths)
            for group in groups
        ]
    if jacobian == "per_example" and None in by_example:
        raise ValueError(
            'residual_space: jacobian="per_example" needs the data bound to the loss '
            "or given to update by name, and a model whose outputs for one example, "
            f"a batch of one, have length one; the outputs of lengths {lengths} do "
            "not follow that. Use jacobian='auto'."
        )
    modes = {}
    if any(by_example):
        # A pass through one example costs that fraction of a pass through the batch.
        passes = sum(
            count / sum(lengths) if pullback else count
            for count, pullback in zip(rows, by_example, strict=True)
        )
        pairs = list(zip(by_example, groups, strict=True))
        modes[PER_EXAMPLE] = Mode(
            lambda: [pullback or whole(group) for pullback, group in pairs],
            math.ceil(passes),
        )
    if jacobian == "auto" or not modes:
        modes[WHOLE_BATCH] = Mode(lambda: [whole(group) for group in groups], sum(rows))
    return modes


def _compare_modes(
    objective: Objective,
    params: PyTree,
    pullbacks: list[RowPullback],
    blocks: list[Blocks],
    pull: Pull,
    chunk: int,
) -> jax.Array:
    """Whether the rows can be computed example by example.

    Compares a random combination of these rows with the same combination from one
    backward pass through the whole batch. A model that normalises over the batch, for
    example, also runs on a single example, but its output for it is another one.

    Args:
      objective: the loss.
      params: where to differentiate.
      pullbacks: compute the rows example by example.
      blocks: of the loss Hessian.
      pull: a backward pass through the whole batch.
      chunk: rows that are computed at once.

    Returns:
      ``PER_EXAMPLE`` or ``WHOLE_BATCH``; ``UNKNOWN`` if the rows are not finite.
    """
    keys = jax.random.split(jax.random.key(0), len(blocks))
    cotangents = [
        jnp.einsum(
            "nkc,nk->nc", block.root, jax.random.normal(key, block.target.shape)
        ).astype(block.root.dtype)
        for key, block in zip(keys, blocks, strict=True)
    ]
    together = pull(cotangents)

    def fold(carry, rows, _):
        total, square = carry
        total = jax.tree.map(lambda x, y: x + jnp.sum(y, axis=0), total, rows)
        return total, square + pytree.vdot(rows, rows)

    axes = objective.axes
    carry = pytree.zeros_like(together), jnp.zeros((), pytree.scalar_dtype(together))
    carry = reductions.to_varying(carry, axes)
    one_row_each = [u[:, None] for u in cotangents]
    unused = [block.target[:, :1] for block in blocks]
    total, square = _fold_groups(fold, carry, pullbacks, one_row_each, unused, chunk)
    eps = max(jnp.finfo(x.dtype).eps for x in jax.tree.leaves(params))
    error = pytree.norm(pytree.add_scaled(total, -1.0, together))
    wrong = jnp.logical_not(error <= eps**0.5 * jnp.sqrt(square))  # or not finite
    wrong = reductions.mean(wrong.astype(square.dtype), axes) > 0
    known = jnp.isfinite(reductions.mean(pytree.norm(together), axes))
    mode = jnp.where(wrong, WHOLE_BATCH, PER_EXAMPLE)
    return jnp.where(known, mode, UNKNOWN).astype(jnp.int32)
