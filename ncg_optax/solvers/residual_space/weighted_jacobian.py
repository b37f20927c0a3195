"""The Jacobian of a composite loss, weighted by a root of the loss Hessian.

The Gauss-Newton matrix is ``A^T A`` with ``A = S J``, where ``J`` is the Jacobian of
the model's outputs and ``S^T S`` the Hessian of the loss in them, a block per example.
The cotangent of a row of ``A`` is a row of ``S``. It is pulled back through its example
alone if the model allows, and through the whole batch if it mixes examples.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, reductions
from ncg_optax.losses.objective import Objective
from ncg_optax.solvers.residual_space import jacobian_rows as _jacobian
from ncg_optax.solvers.residual_space.jacobian_rows import Route
from ncg_optax.solvers.residual_space.loss_hessian import (
    Blocks,
    Group,
    group_outputs,
    loss_blocks,
)

PyTree = Any
Pull = Callable[[Sequence[jax.Array]], PyTree]

UNKNOWN, PER_EXAMPLE, WHOLE_BATCH = 0, 1, 2


class Way(NamedTuple):
    """One of the two ways to the rows.

    Attributes:
      routes: ``routes()``, a :class:`Route` for each group of outputs.
      passes: backward passes through the whole batch that all rows amount to.
    """

    routes: Callable[[], list[Route]]
    passes: int


class WeightedJacobian(NamedTuple):
    """What is known of ``A`` before its rows are computed.

    Attributes:
      objective: the loss.
      blocks: of the loss Hessian, one for each group of outputs.
      ways: to the rows, ``PER_EXAMPLE`` or ``WHOLE_BATCH`` or both.
      route: which of them to take, int32, shape=().
      rest: the gradient's part outside of the range of ``A^T``.
      products: what the rows cost, int32, shape=().
    """

    objective: Objective
    blocks: list[Blocks]
    ways: dict[int, Way]
    route: jax.Array
    rest: PyTree
    products: jax.Array

    @property
    def residuals(self) -> int:
        """Number of rows, over all devices."""
        devices = reductions.size(self.objective.axes)
        return devices * sum(block.target.size for block in self.blocks)

    @property
    def target(self) -> jax.Array:
        """``q`` with ``A^T q`` the gradient, up to ``rest``; of all devices."""
        q = jnp.concatenate([block.target.reshape(-1) for block in self.blocks])
        return reductions.gather(q, self.objective.axes)

    def rows(self, chunk: int) -> PyTree:
        """``A`` as a tree of rows, of all devices."""

        def compute(routes):
            groups = [
                _jacobian.rows(route, block.root, chunk)
                for route, block in zip(routes, self.blocks, strict=True)
            ]
            return jax.tree.map(lambda *x: jnp.concatenate(x), *groups)

        return reductions.gather(self._along(compute), self.objective.axes)

    def fold_rows(self, fold: Callable, carry: PyTree, chunk: int) -> PyTree:
        """``fold(carry, rows, targets)`` over chunks of the rows; summed over devices.

        Args:
          fold: returns the new carry, of the same shapes.
          carry: zeros.
          chunk: rows that are computed at once.
        """
        axes = self.objective.axes
        carry = reductions.to_varying(carry, axes)
        roots = [block.root for block in self.blocks]
        targets = [block.target for block in self.blocks]

        def compute(routes):
            return _fold_groups(fold, carry, routes, roots, targets, chunk)

        return reductions.total(self._along(compute), axes)

    def _along(self, of_routes: Callable[[list[Route]], PyTree]) -> PyTree:
        """``of_routes`` of the routes that are to be taken."""
        if len(self.ways) == 1:
            [way] = self.ways.values()
            return of_routes(way.routes())
        return jax.lax.cond(
            self.route == WHOLE_BATCH,
            lambda: of_routes(self.ways[WHOLE_BATCH].routes()),
            lambda: of_routes(self.ways[PER_EXAMPLE].routes()),
        )


def _fold_groups(fold, carry, routes, cotangents, targets, chunk):
    """:func:`_jacobian.fold_rows` over one group of outputs after the other."""
    for route, u, target in zip(routes, cotangents, targets, strict=True):
        carry = _jacobian.fold_rows(fold, carry, route, u, target, chunk)
    return carry


def weighted_jacobian(
    objective: Objective, params: PyTree, known: jax.Array, jacobian: str, chunk: int
) -> WeightedJacobian:
    """The loss at the outputs, and how to get at the rows.

    Args:
      objective: the loss, with its model.
      params: where to differentiate, varying over the mapped axes.
      known: the route of an earlier step or ``UNKNOWN``, int32, shape=().
      jacobian: ``"per_example"``, ``"whole_batch"`` or ``"auto"``.
      chunk: rows that are computed at once.

    Raises:
      ValueError: if ``jacobian="per_example"`` does not fit the data.
    """
    outputs, pullback = jax.vjp(objective.model, params)
    groups = group_outputs(outputs)
    blocks = [loss_blocks(objective, outputs, group) for group in groups]

    def pull(cotangents):
        """``J^T u`` of this device, a real vector."""
        tree = pytree.zeros_like(outputs)
        for group, flat in zip(groups, cotangents, strict=True):
            tree = group.replace(tree, flat)
        return _jacobian.real_row(pullback(tree)[0])

    ways = _ways(objective, params, groups, jacobian)
    if len(ways) == 1:
        [(only, way)] = ways.items()
        route, products = jnp.full_like(known, only), way.passes
    else:
        unknown = known == UNKNOWN
        route = jax.lax.cond(
            unknown,
            lambda: _compare(
                objective, params, ways[PER_EXAMPLE].routes(), blocks, pull, chunk
            ),
            lambda: known,
        )
        passes = {code: way.passes for code, way in ways.items()}
        slow = route == WHOLE_BATCH
        products = jnp.where(slow, passes[WHOLE_BATCH], passes[PER_EXAMPLE])
        products += 2 * unknown
    return WeightedJacobian(
        objective=objective,
        blocks=blocks,
        ways=ways,
        route=route,
        rest=_rest(objective, outputs, blocks, pull),
        products=jnp.asarray(products, jnp.int32),
    )


def _rest(
    objective: Objective, outputs: PyTree, blocks: list[Blocks], pull: Pull
) -> PyTree:
    """The gradient's part outside of the range of ``A^T``, over all devices."""
    axes = objective.axes
    outside = [block.rest for block in blocks]
    # Squared losses have no such part, and then the pass is not made.
    size = sum(jnp.sum(jnp.abs(rest)) for rest in outside)
    somewhere = reductions.mean(size, axes) != 0
    zeros = pytree.zeros_like(jax.eval_shape(pull, outside))
    zeros = reductions.to_varying(zeros, axes)
    local = jax.lax.cond(somewhere, pull, lambda _: zeros, outside)
    if not axes:
        return local
    return reductions.derivative_reducer(objective.loss(outputs), axes)(local)


def _ways(
    objective: Objective, params: PyTree, groups: list[Group], jacobian: str
) -> dict[int, Way]:
    """The ways to the rows that are open, and not ruled out by ``jacobian``."""
    lengths = [group.examples for group in groups]
    rows = [group.examples * group.width for group in groups]

    def whole(group):
        return _jacobian.whole_batch_route(objective, params, group)

    by_example = [None] * len(groups)
    if jacobian != "whole_batch":
        by_example = [
            _jacobian.per_example_route(objective, params, group, lengths)
            for group in groups
        ]
    if jacobian == "per_example" and None in by_example:
        raise ValueError(
            'residual_space: jacobian="per_example" needs the data bound to the loss '
            "or given to update by name, and a model whose outputs for one example, "
            f"a batch of one, have length one; the outputs of lengths {lengths} do "
            "not follow that. Use jacobian='auto'."
        )
    ways = {}
    if any(by_example):
        # A pass through one example is that share of a pass through all of them.
        passes = sum(
            count / sum(lengths) if route else count
            for count, route in zip(rows, by_example, strict=True)
        )
        pairs = list(zip(by_example, groups, strict=True))
        ways[PER_EXAMPLE] = Way(
            lambda: [route or whole(group) for route, group in pairs],
            math.ceil(passes),
        )
    if jacobian == "auto" or not ways:
        ways[WHOLE_BATCH] = Way(lambda: [whole(group) for group in groups], sum(rows))
    return ways


def _compare(
    objective: Objective,
    params: PyTree,
    routes: list[Route],
    blocks: list[Blocks],
    pull: Pull,
    chunk: int,
) -> jax.Array:
    """Which way is right, by a random combination of all rows.

    A model that normalises over the batch, say, takes a single example as well, but
    makes something else of it.
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
    total, square = _fold_groups(fold, carry, routes, one_row_each, unused, chunk)
    eps = max(jnp.finfo(x.dtype).eps for x in jax.tree.leaves(params))
    error = pytree.norm(pytree.add_scaled(total, -1.0, together))
    wrong = jnp.logical_not(error <= eps**0.5 * jnp.sqrt(square))  # or not finite
    wrong = reductions.mean(wrong.astype(square.dtype), axes) > 0
    known = jnp.isfinite(reductions.mean(pytree.norm(together), axes))
    route = jnp.where(wrong, WHOLE_BATCH, PER_EXAMPLE)
    return jnp.where(known, route, UNKNOWN).astype(jnp.int32)
