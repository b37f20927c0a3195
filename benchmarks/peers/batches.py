"""The order in which a method sees the examples: all at once, or in mini-batches."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.peers.base import Method, Problem
from benchmarks.scenarios._base import Batch, Params

POINTS = 32  # the loss of a run is evaluated at least so many times


class Plan(NamedTuple):
    """How the examples are divided."""

    size: int  # of a batch
    parts: int  # of an epoch, one for each `advance`
    steps: int  # in a part
    total: int  # steps in the budget, if each costs one gradient of its batch


class Position(NamedTuple):
    """Where a method is in the examples, and what its latest `advance` cost."""

    inner: Any  # the state of the method itself
    key: jax.Array  # of the order of this epoch, and of the random numbers of its steps
    part: jax.Array  # of this epoch
    cost: jax.Array  # gradients of one batch


def plan(problem: Problem, batch: int | None) -> Plan:
    """Divides the examples into batches of a size, ``None`` for all of them."""
    examples = problem.examples
    size = min(batch or examples, examples)
    epoch = examples // size
    parts = min(math.ceil(POINTS * epoch * size / examples / problem.budget), epoch)
    steps = epoch // parts
    total = max(int(problem.budget / (steps * size / examples)), 1) * steps
    return Plan(size, parts, steps, total)


def in_batches(
    problem: Problem,
    plan: Plan,
    init: Callable[[Params, jax.Array], Any],
    step: Callable[[Params, Any, Batch], tuple[Params, Any, Any]],
) -> Method:
    """A method whose steps see the full batch, or shuffled mini-batches in turn.

    Args:
        problem: what to train on.
        plan: the mini-batches.
        init: ``init(params, learning_rate) -> state``.
        step: ``step(params, state, batch) -> (params, state, cost)``, the cost in
            gradients of the batch.
    """
    size, parts, steps, _ = plan

    def start(params: Params, seed: Any, learning_rate: Any) -> Position:
        inner = init(params, jnp.asarray(learning_rate))
        part, cost = jnp.zeros((), jnp.int32), jnp.zeros(())
        return Position(inner, jax.random.key(seed), part, cost)

    def body(carry: Any, batch: Batch) -> tuple[Any, jax.Array]:
        params, inner, cost = step(*carry, batch)
        return (params, inner), jnp.asarray(cost, float)

    def advance(params: Params, at: Position, data: Batch) -> tuple[Params, Position]:
        key, shuffle = jax.random.split(at.key)
        if size == problem.examples:
            batch = problem.scenario.with_key(data, shuffle)
            (params, inner), cost = body((params, at.inner), batch)
            return params, at._replace(inner=inner, key=key, cost=cost)
        rows = jax.random.permutation(shuffle, problem.examples)[: parts * steps * size]
        rows = rows.reshape(parts, steps, size)[at.part]
        batches = jax.tree.map(lambda leaf: leaf[rows], data)
        noise = jax.random.fold_in(shuffle, 1 + at.part)
        batches = problem.scenario.with_key(batches, jax.random.split(noise, steps))
        (params, inner), costs = jax.lax.scan(body, (params, at.inner), batches)
        ended = at.part == parts - 1
        return params, Position(
            inner,
            key=jnp.where(ended, key, at.key),
            part=jnp.where(ended, 0, at.part + 1),
            cost=costs.sum(),
        )

    def spent(at: Position) -> float:
        return float(at.cost) * size / problem.examples

    return Method(start, advance, spent, steps=steps)
