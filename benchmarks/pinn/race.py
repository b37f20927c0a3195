"""A run of a method on a task: for so many processor seconds, compilation apart."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.pinn.methods import RATES, Method, Phase
from benchmarks.pinn.tasks import Params, Rows, Task
from benchmarks.reports.records import Record

# Steps are made in chunks on the device. A chunk is to last this share of the seconds
# so far, but at least and at most these shares of all seconds.
GROWTH, SHORTEST, LONGEST = 0.15, 0.004, 0.04
EXTENSIONS = 3  # of the bracket of learning rates, at most
Say = Callable[[str], None]


class Race:
    """A method on a task; what was compiled serves all seeds and rates."""

    def __init__(self, task: Task, method: Method):
        self._task, self._method = task, method
        self._compiled: dict[int, Any] = {}
        self._loss = jax.jit(lambda params, rows: task.loss(rows)(params))

    def run(self, seed: int, seconds: float, rate: float = math.nan) -> Record:
        """The curve of a run, and what it ended with."""
        rows = jax.tree.map(jnp.asarray, self._task.rows(seed))
        params = self._task.init(seed)
        spent, until, gradients = 0.0, 0.0, 0.0
        points = [self._point(params, rows, 0.0, 0.0)]
        for index, phase in enumerate(self._method.phases):
            begin, until = until, until + phase.share * seconds
            state, advance = self._begin(index, phase, params, rows, rate)
            count, finite = 1, True
            while spent < until and finite:
                left = jnp.asarray((until - spent) / (until - begin))
                start = time.process_time()
                params, state, cost = jax.block_until_ready(
                    advance(params, state, rows, jnp.asarray(count), left)
                )
                used = time.process_time() - start
                spent += used
                gradients += float(cost)
                points.append(self._point(params, rows, spent, gradients))
                finite = math.isfinite(points[-1]["loss"])
                chunk = min(max(GROWTH * spent, SHORTEST * seconds), LONGEST * seconds)
                chunk = min(chunk, max(until - spent, 0))
                count = max(1, min(int(chunk * count / used), 4 * count))
        return summary(points)

    def _point(
        self, params: Params, rows: Rows, seconds: float, gradients: float
    ) -> Record:
        loss = float(self._loss(params, rows))
        errors = self._task.errors(params)
        return {"seconds": seconds, "gradients": gradients, "loss": loss} | errors

    def _begin(
        self, index: int, phase: Phase, params: Params, rows: Rows, rate: float
    ) -> tuple[Any, Any]:
        """The first state of a phase, and its compiled chunk of steps."""
        state, step = phase.begin(self._task, params, rows, rate)

        def advance(params, state, rows, count, left):
            def body(now):
                k, params, state, total = now
                params, state, cost = step(params, state, rows, left)
                return k + 1, params, state, total + cost.astype(total.dtype)

            begin = jnp.zeros_like(count), params, state, jnp.zeros(())
            end = jax.lax.while_loop(lambda now: now[0] < count, body, begin)
            return end[1:]

        if index not in self._compiled:
            examples = params, state, rows, jnp.asarray(1), jnp.asarray(1.0)
            self._compiled[index] = jax.jit(advance).lower(*examples).compile()
        return state, self._compiled[index]


def summary(points: list[Record]) -> Record:
    """The curve as columns, the last point, and the one with the lowest loss."""
    finite = [p for p in points if math.isfinite(p["loss"])]
    best = min(finite, key=lambda p: p["loss"])
    columns = {key: [p[key] for p in points] for key in points[0]}
    return {"final": points[-1], "best": best, "curve": columns}


def tune(race: Race, seed: int, seconds: float, say: Say) -> tuple[Record, Record]:
    """The learning rate with the lowest loss, its run, and the losses of all rates.

    The bracket grows until the best rate is not at its edge, and three times at most.
    """
    found: dict[int, Record] = {}
    wanted = list(RATES)
    for _ in range(EXTENSIONS + 1):
        for exponent in wanted:
            rate = 10 ** (exponent / 2)
            found[exponent] = race.run(seed, seconds, rate)
            say(f"rate {rate:.1e}: loss {found[exponent]['best']['loss']:.2e}")
        best = min(found, key=lambda k: found[k]["best"]["loss"])
        wanted = [k for k in (best - 1, best + 1) if k not in found]
        if not wanted:
            break
    losses = {f"{10 ** (k / 2):.3g}": found[k]["best"]["loss"] for k in sorted(found)}
    tuned = {"rate": 10 ** (best / 2), "losses": losses, "inside": not wanted}
    return tuned, found[best]
