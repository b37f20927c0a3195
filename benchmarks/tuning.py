"""Tunes a first-order method on one seed, by its final training loss."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from benchmarks.contenders import Contender, Problem, Setting
from benchmarks.training import Compiled, compile_method, train

EXTENSIONS = 8  # half decades a row may grow by on each side


class Trial(NamedTuple):
    """A cell of the grid: a setting and the final training loss it led to."""

    setting: Setting
    loss: float


class Tuned(NamedTuple):
    """The grid, the winner, and the winner's executables."""

    trials: list[Trial]
    best: Trial
    compiled: Compiled


def rows(
    contender: Contender, problem: Problem, quick: bool
) -> list[tuple[int | None, str]]:
    """Batch sizes and schedules to try; a quick run makes do with one of each."""
    sizes = problem.scenario.batch_sizes if contender.minibatch else (None,)
    grid = [
        (size, schedule) for size in sizes for schedule in problem.scenario.schedules
    ]
    return grid[:1] if quick else grid


def tune(
    contender: Contender,
    problem: Problem,
    quick: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tuned:
    """Tries every learning rate, batch size and schedule at the full budget on seed 0.

    Every row of the grid (a batch size and a schedule) grows by half decades until its
    best learning rate lies inside, so that no winner sits at an edge.

    Args:
        contender: the method to tune.
        problem: data, model, budget.
        quick: every other learning rate, a single row, and no growth.
        progress: called with the numbers of cells done and known.
    """
    trials: list[Trial] = []
    best: Trial | None = None
    exponents = list(contender.exponents)[:: 2 if quick else 1]
    plan = rows(contender, problem, quick)

    for index, (batch, schedule) in enumerate(plan):
        method = contender.build(problem, Setting(batch, schedule, 0))
        compiled = compile_method(method, problem)

        def loss(exponent: int, compiled: Compiled = compiled) -> float:
            rate = 10.0 ** (exponent / 2)
            return train(compiled, problem, 0, rate, points=8).loss

        for exponent, value in search(loss, exponents, 0 if quick else EXTENSIONS):
            trial = Trial(Setting(batch, schedule, exponent), value)
            trials.append(trial)
            # Executables are large; only the best row's are kept.
            if best is None or trial.loss < best.loss:
                best, winner = trial, compiled
            pending = (len(plan) - index - 1) * len(exponents)
            progress(
                len(trials), max(len(trials) + pending, len(plan) * len(exponents))
            )

    assert best is not None
    return Tuned(trials, best, winner)


def search(
    loss: Callable[[int], float], exponents: list[int], extensions: int
) -> Iterator[tuple[int, float]]:
    """Evaluates a row and grows it while its minimum lies at one of its edges.

    Example:
        >>> [exponent for exponent, _ in search(lambda e: (e - 3) ** 2, [0, 1], 8)]
        [0, 1, 2, 3, 4]
    """
    found: dict[int, float] = {}

    def visit(exponent: int) -> tuple[int, float]:
        found[exponent] = loss(exponent)
        return exponent, found[exponent]

    for exponent in exponents:
        yield visit(exponent)
    low, high = exponents[0] - extensions, exponents[-1] + extensions
    while True:
        first, last = min(found), max(found)
        smallest = min(found.values())
        if (found[first] == smallest or math.isinf(smallest)) and first > low:
            yield visit(first - 1)
        elif found[last] == smallest and not math.isinf(smallest) and last < high:
            yield visit(last + 1)
        else:
            return
