"""Runs a method on a problem: compile first, then step until the budget is spent."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contenders import Method, Problem
from benchmarks.scenarios._base import Batch, Params

POINTS = 128  # at most so many points of a curve are kept, evenly spaced in units


class Compiled(NamedTuple):
    """A method as executables, so that no compilation hides in a step's seconds."""

    method: Method
    init: Callable[..., Any]
    advance: Callable[..., Any]
    value: Callable[..., Any]
    score: Callable[..., Any]
    seconds: float


class Curve(NamedTuple):
    """The training loss after so many steps, units and seconds, column by column.

    `wall_seconds` and `cpu_seconds` (of all threads of the process) count the jitted
    steps alone: neither the compilation nor the evaluation of the loss for this curve.
    """

    steps: list[int]
    units: list[float]
    wall_seconds: list[float]
    cpu_seconds: list[float]
    loss: list[float]


class Run(NamedTuple):
    """One training run: its curve and how well it does on held-out examples."""

    seed: int
    curve: Curve
    held_out_loss: float
    held_out_metric: float

    @property
    def loss(self) -> float:
        """The final training loss; infinite after a divergence."""
        final = self.curve.loss[-1]
        return final if math.isfinite(final) else math.inf


def compile_method(method: Method, problem: Problem) -> Compiled:
    """Compiles a method ahead of time and says how long its own two functions took."""
    params = problem.scenario.init(0)
    seed, learning_rate = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)

    start = time.perf_counter()
    if method.compiles:
        init, advance = method.init, method.advance
        state = init(params, seed, learning_rate)
    else:
        init = jax.jit(method.init).lower(params, seed, learning_rate).compile()
        state = init(params, seed, learning_rate)
        advance = jax.jit(method.advance).lower(params, state, problem.train).compile()
    seconds = time.perf_counter() - start

    # The first call of an executable allocates and wakes threads: off the clock.
    jax.block_until_ready(advance(params, state, problem.train))

    value = jax.jit(lambda p, data: problem.scenario.value(p, **data))
    return Compiled(method, init, advance, value, jax.jit(_score(problem)), seconds)


def train(
    compiled: Compiled,
    problem: Problem,
    seed: int,
    learning_rate: float = 0.0,
    points: int = POINTS,
    progress: Callable[[float], None] = lambda units: None,
) -> Run:
    """Trains from the seed's initial parameters until the budget is spent.

    The step that would exceed the budget does not count. A run ends early when its loss
    is no longer finite.

    Args:
        compiled: what to run.
        problem: what to run it on.
        seed: of the initial parameters and of the mini-batches.
        learning_rate: for the methods that take one.
        points: how many points of the curve to keep, at most.
        progress: called with the units spent so far.
    """
    params = problem.scenario.init(seed)
    state = compiled.init(params, jnp.int32(seed), jnp.float32(learning_rate))
    data = _sample(problem)
    context = _context(problem, data)
    rows = [(0, 0.0, 0.0, 0.0, float(compiled.value(params, data)))]
    steps, units, wall, cpu = 0, 0.0, 0.0, 0.0
    due = problem.budget / points

    while math.isfinite(rows[-1][-1]):
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        following, state = jax.block_until_ready(
            compiled.advance(params, state, problem.train)
        )
        elapsed = time.perf_counter() - wall_start, time.process_time() - cpu_start
        spent = compiled.method.spent(state)
        if units + spent > problem.budget * (1 + 1e-9):
            break
        params = following
        steps, units = steps + compiled.method.steps, units + spent
        wall, cpu = wall + elapsed[0], cpu + elapsed[1]
        if units >= due:
            loss = float(compiled.value(params, data))
            rows.append((steps, units, wall, cpu, loss))
            due = units + problem.budget / points
            progress(units)

    if rows[-1][0] != steps:
        loss = float(compiled.value(params, data))
        rows.append((steps, units, wall, cpu, loss))
    progress(problem.budget)
    held_out = compiled.score(params, problem.held_out, context)
    return Run(seed, Curve(*map(list, zip(*rows, strict=True))), *map(float, held_out))


def _sample(problem: Problem) -> Batch:
    """The training examples whose loss is reported, with a key that never changes."""
    count, data = problem.scenario.curve_examples, problem.train
    if count is not None and count < problem.examples:
        rows = np.linspace(0, problem.examples - 1, count).astype(int)
        data = jax.tree.map(lambda leaf: leaf[rows], data)
    return problem.scenario.with_key(data, jax.random.key(0))


def _context(problem: Problem, sample: Batch) -> Batch:
    """What `Scenario.predict` may look at: training examples and a key."""
    return sample | {"key": jax.random.key(0)}


def _score(
    problem: Problem,
) -> Callable[[Params, Batch, Batch], tuple[jax.Array, jax.Array]]:
    scenario = problem.scenario

    def score(
        params: Params, data: Batch, context: Batch
    ) -> tuple[jax.Array, jax.Array]:
        if scenario.predict is None:
            key = context["key"]
            outputs = scenario.outputs(params, scenario.with_key(data, key))
        else:
            outputs = scenario.predict(params, data["x"], context)
        return scenario.loss(outputs, data["y"]), scenario.metric(outputs, data["y"])

    return score
