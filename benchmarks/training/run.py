"""Runs a method on a problem: compile first, then step until the budget is spent."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import Method, Problem
from benchmarks.scenarios._base import Batch, Params
from benchmarks.training.resume import Checkpoint
from benchmarks.training.validation import Score, Validated, halves, validated

POINTS = 128  # at most so many points of a curve are kept, evenly spaced in units
SCORED = 4  # of so many points one is scored on held-out examples


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


class Spent(NamedTuple):
    """The cost of a run so far: the columns of a `Curve` but for the loss."""

    steps: int = 0
    units: float = 0.0
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0


class Run(NamedTuple):
    """One training run: its curve and how well it does on held-out examples."""

    seed: int
    curve: Curve
    held_out_loss: float
    held_out_metric: float
    params: Params
    validated: Validated | None = None  # None if held-out examples cannot be divided

    @property
    def loss(self) -> float:
        """The final training loss; infinite after a divergence."""
        return finite(self.curve.loss[-1])


def finite(loss: float) -> float:
    """A loss that can be compared: infinite if it is not a number."""
    return loss if math.isfinite(loss) else math.inf


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

    # The first call allocates memory and starts threads: it is not timed.
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
    checkpoint: Checkpoint = Checkpoint(None),
) -> Run:
    """Trains from the seed's initial parameters until the budget is spent.

    The step that would exceed the budget does not count. A run ends early when its loss
    is no longer finite. At most ``points`` points of the curve are kept. An interrupted
    run continues from its checkpoint, to the same curve but for the seconds; methods
    that compile by themselves start again instead.
    """
    if compiled.method.compiles:
        checkpoint = Checkpoint(None)
    data = _sample(problem)
    params = problem.scenario.init(seed)
    state = compiled.init(params, jnp.int32(seed), jnp.float32(learning_rate))
    context = data | {"key": jax.random.key(0)}
    parts = halves(problem)

    def scores(params: Params, units: float) -> list[Score]:
        found = (compiled.score(params, part, context) for part in parts)
        return [Score(units, *map(float, pair)) for pair in found]

    spent, due = Spent(), problem.budget / points
    rows = [(*spent, float(compiled.value(params, data)))]
    kept = (spent, due, rows, [scores(params, 0.0)])
    (params, state), numbers = checkpoint.restore((params, state), kept)
    spent, due, rows, scored = Spent(*numbers[0]), *numbers[1:]
    progress(spent.units)

    while math.isfinite(rows[-1][-1]):
        wall, cpu = time.perf_counter(), time.process_time()
        following, state = jax.block_until_ready(
            compiled.advance(params, state, problem.train)
        )
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        units = spent.units + compiled.method.spent(state)
        if units > problem.budget * (1 + 1e-9):
            break
        params = following
        spent = Spent(
            spent.steps + compiled.method.steps,
            units,
            spent.wall_seconds + wall,
            spent.cpu_seconds + cpu,
        )
        if units >= due:
            rows.append((*spent, float(compiled.value(params, data))))
            due = units + problem.budget / points
            if len(rows) % SCORED == 0:
                scored.append(scores(params, units))
            progress(units)
        checkpoint.offer((params, state), (spent, due, rows, scored))

    if rows[-1][0] != spent.steps:
        rows.append((*spent, float(compiled.value(params, data))))
    scored.append(scores(params, spent.units))
    progress(problem.budget)
    held_out = compiled.score(params, problem.held_out, context)
    curve = Curve(*map(list, zip(*rows, strict=True)))
    return Run(seed, curve, *map(float, held_out), params, validated(scored))


def _sample(problem: Problem) -> Batch:
    """The training examples whose loss is reported, with a key that never changes."""
    count, data = problem.scenario.curve_examples, problem.train
    if count is not None and count < problem.examples:
        rows = np.linspace(0, problem.examples - 1, count).astype(int)
        data = jax.tree.map(lambda leaf: leaf[rows], data)
    return problem.scenario.with_key(data, jax.random.key(0))


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
