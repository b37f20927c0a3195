"""Tunes a first-order method on one seed, by its final loss."""

import functools
import math
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.peers import Competitor, Problem, Setting
from benchmarks.training.resume import Checkpoint, Journal
from benchmarks.training.run import POINTS, Compiled, compile_method, finite, train

MIDDLE = 3  # learning rates that a bracket begins with
EXTENSIONS = 8  # half decades a row may grow by on each side
SET_ASIDE = 0.1  # of the training examples, where these judge the tuning


class Grid(StrEnum):
    """How much is tried."""

    FULL = "full"  # every batch size and schedule, many learning rates
    BRACKET = "bracket"  # the smallest batch size, every schedule, few learning rates
    COARSE = "coarse"  # one batch size and schedule, every other learning rate


class Trial(NamedTuple):
    """A cell of the grid: a setting and what it led to."""

    setting: Setting  # what was tried
    loss: float  # the final training loss, infinite after a divergence
    # the loss of the examples that were set aside, where they stop the run (each half
    # of them is scored where the other is best); ``None`` if none were set aside
    validation_loss: float | None = None

    @property
    def score(self) -> float:
        """What is tuned: the smaller, the better."""
        if self.validation_loss is None or math.isinf(self.loss):
            return self.loss
        return self.validation_loss


class Tuned(NamedTuple):
    """The grid and its winner."""

    trials: list[Trial]
    best: Trial


def rows(
    competitor: Competitor, problem: Problem, grid: Grid
) -> list[tuple[int | None, str]]:
    """Batch sizes and schedules to try."""
    sizes: tuple[int | None, ...] = (competitor.batch,)
    if competitor.minibatch and competitor.batch is None:
        sizes = problem.scenario.batch_sizes
        if grid == Grid.BRACKET:
            sizes = (min(problem.scenario.batch_sizes),)
    schedules = competitor.schedules or problem.scenario.schedules
    found = [(size, schedule) for size in sizes for schedule in schedules]
    return found[:1] if grid == Grid.COARSE else found


def first_rates(competitor: Competitor, grid: Grid) -> list[int]:
    """The exponents of the learning rates that a row begins with."""
    exponents = list(competitor.exponents)
    if grid == Grid.COARSE:
        return exponents[::2]
    start = (len(exponents) - MIDDLE) // 2
    bracket = grid == Grid.BRACKET
    return exponents[start : start + MIDDLE] if bracket else exponents


def set_aside(problem: Problem) -> Problem:
    """The training examples alone: most to train on, the others to be judged by.

    Raises:
        ValueError: if the examples cannot be divided.
    """
    name, examples = problem.scenario.name, problem.examples
    count = max(round(SET_ASIDE * examples), 1)
    if not problem.scenario.batch_sizes or count == examples:
        raise ValueError(
            f"the examples of {name} cannot be divided, so that its optimizers can "
            "only be tuned on the training loss: --tune-on training."
        )
    order = np.random.default_rng(0).permutation(examples)
    # In their old order: it may mean something, and drawing takes care of the rest.
    aside, rest = (np.sort(part) for part in np.split(order, [count]))

    def take(rows: np.ndarray) -> dict:
        return jax.tree.map(lambda leaf: leaf[rows], problem.train)

    return problem._replace(train=take(rest), held_out=take(aside))


def tune(
    competitor: Competitor,
    problem: Problem,
    journal: Journal,
    grid: Grid = Grid.FULL,
    validate: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    row_done: Callable[[Trial], None] = lambda best: None,
) -> Tuned:
    """Tries every learning rate, batch size and schedule at the full budget on seed 0.

    Every row of the grid (a batch size and a schedule) grows by half decades until its
    best learning rate lies inside, so that no winner sits at an edge; but the row of a
    coarse grid does not grow. With ``validate`` a tenth of the training examples is set
    aside, and their lowest loss decides; the budget buys as many passes through the
    others. ``progress`` gets the numbers of cells done and known, ``row_done`` the best
    cell of every row.
    """
    trials: list[Trial] = []
    exponents = first_rates(competitor, grid)
    growth = 0 if grid == Grid.COARSE else EXTENSIONS
    plan = rows(competitor, problem, grid)
    known = set_aside(problem) if validate else problem

    for index, (batch, schedule) in enumerate(plan):
        first, pending = len(trials), (len(plan) - index - 1) * len(exponents)
        trial = _trainer(competitor, known, batch, schedule, journal, validate)
        for exponent, _ in search(
            lambda e, trial=trial: trial(e).score, exponents, growth
        ):
            trials.append(trial(exponent))
            progress(
                len(trials), max(len(trials) + pending, len(plan) * len(exponents))
            )
        row_done(_best(trials[first:]))

    return Tuned(trials, _best(trials))


def _best(trials: list[Trial]) -> Trial:
    return min(trials, key=lambda trial: trial.score)


def _trainer(
    competitor: Competitor,
    problem: Problem,
    batch: int | None,
    schedule: str,
    journal: Journal,
    validate: bool,
) -> Callable[[int], Trial]:
    """Trains with the learning rates of a row, each once, all by the same executables.

    These are large, and compiled only if there is something left to do.
    """

    @functools.cache
    def compiled() -> Compiled:
        method = competitor.build(problem, Setting(batch, schedule, 0))
        return compile_method(method, problem)

    @functools.cache
    def trial(exponent: int) -> Trial:
        setting = Setting(batch, schedule, exponent)

        def losses(checkpoint: Checkpoint) -> tuple[float, float | None]:
            rate = setting.learning_rate
            points = POINTS if validate else 8
            run = train(
                compiled(), problem, 0, rate, points=points, checkpoint=checkpoint
            )
            stopped = run.validated.loss if run.validated else run.held_out_loss
            return run.loss, finite(stopped) if validate else None

        return Trial(setting, *journal.once(str(setting), losses))

    return trial


def search(
    loss: Callable[[int], float], exponents: list[int], extensions: int
) -> Iterator[tuple[int, float]]:
    """Evaluates a row and grows it while its minimum lies at one of its edges."""
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
