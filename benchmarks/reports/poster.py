"""The poster's eleven rows, and the marks that our measurements earn.

The rule of the marks. An optimizer is judged by the curve of its median loss over the
seeds against gradient-equivalents. If it ends as low as the best of its rivals, its
score is the whole budget over the part of it that it took to get as low as that rival.
If it ends higher, its score is the part of the budget that the fastest of its rivals
took to get as low as it ended, over the whole budget. A score of 4 or more is ++, of 2
or more +, of 1/2 or less -, of 1/4 or less --, and o lies between. Losses that differ
by less than a thousandth of the descent from the start to the lowest end count as
equal. Stability counts as well: an optimizer that diverged on any seed, or ended no
lower than it began, has --, and one whose worst seed alone would have a mark two or
more lower loses one mark.

So a mark says how many times faster or slower a competitor was than the best of the
others, and neither the unit of a loss nor what it counts from has any part in it. The
poster (arXiv 2208.02017) says of its own marks "loss, stability, epochs", not how they
came about.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

import numpy as np

from benchmarks.reports.records import Record, spread

RULE = " ".join((__doc__ or "").split("\n\n")[1].split())
MARKS = ("--", "-", "o", "+", "++")  # the poster's own, from worst to best
EQUAL = 1e-3  # of the descent: losses that differ by less are the same

# Who stands for a column of the poster. The method that the poster calls Newton-CG runs
# beside ours, which has that column.
COLUMNS = {
    "Adam": ("adam", "adam_minibatch"),
    "SGD": ("sgd", "sgd_minibatch"),
    "Newton-CG": ("hessian_free", "stochastic_hessian_free"),
    "the poster's method": ("poster",),
    "kronecker_adam": ("kronecker_adam",),
}
BASELINES = ("Adam", "SGD")
OURS = "Newton-CG"
# Not on the poster, and so no rival of those that are: their marks do not change.
ADDED = "kronecker_adam"


class Row(NamedTuple):
    """A row of the poster's table."""

    number: int  # counted from the top
    title: str  # what was trained
    # of Adam, SGD and Newton-CG, as they are printed on the poster
    poster_marks: tuple[str, ...]
    scenarios: tuple[str, ...]  # that the row is measured on here

    def poster_mark(self, column: str) -> str | None:
        """The poster's mark in one of `COLUMNS`; None if that is not on the poster."""
        if column == ADDED:
            return None
        of_method = dict(zip((*BASELINES, OURS), self.poster_marks, strict=True))
        return of_method.get(column, of_method[OURS])


ROWS = (
    Row(1, "Life expectancy, regression", ("-", "--", "++"), ("life",)),
    Row(
        2, "Boston housing, regression", ("+", "--", "++"), ("boston_linear", "boston")
    ),
    Row(3, "Variational autoencoder, MNIST", ("+", "+", "o"), ("mnist_vae",)),
    Row(4, "Bayesian network, MNIST", ("o", "+", "+"), ("mnist_bayesian",)),
    Row(5, "Bayesian network, Wisconsin", ("++", "+", "o"), ("wisconsin_bayesian",)),
    Row(6, "Bayesian network, BreakHis", ("-", "-", "++"), ("breakhis",)),
    Row(7, "Simple CNN, MNIST", ("o", "o", "+"), ("mnist_cnn",)),
    Row(8, "ResNet-50, ImageNet", ("o", "o", "o"), ("resnet50", "resnet50_narrow")),
    Row(
        9, "MobileNet, ImageNet", ("+", "o", "-"), ("mobilenet", "mobilenet_last_layer")
    ),
    Row(
        10,
        "Transformer, Portuguese to English",
        ("o", "o", "+"),
        ("translation", "translation_continued"),
    ),
    Row(11, "Scaling of ResNet-50 over GPUs", (), ()),
)


class Curve(NamedTuple):
    """The median loss over some runs: from each x on, the loss beside it."""

    x: np.ndarray
    loss: np.ndarray

    @property
    def end(self) -> float:
        return float(self.loss[-1])

    def reach(self, level: float) -> float:
        """Where the loss is first as low as a level; infinite if it never is."""
        low = self.loss <= level
        return float(self.x[low.argmax()]) if low.any() else math.inf


def losses_at(run: Record, column: str, x: np.ndarray) -> np.ndarray:
    """The loss that a run had reached at each x; infinite after a divergence.

    Steps of Newton's method are long: between two of them there is nothing, so the loss
    is what it was after the last.
    """
    curve = run["curve"]
    losses = np.array([math.inf if loss is None else loss for loss in curve["loss"]])
    return losses[np.searchsorted(curve[column], x, side="right") - 1]


def median_curve(runs: Sequence[Record], column: str, stop: float = math.inf) -> Curve:
    """The median loss of some runs against a column of their curves, as far as `stop`.

    A run that has ended keeps its last loss.
    """
    x = np.unique(np.concatenate([run["curve"][column] for run in runs]))
    x = x[x <= stop * (1 + 1e-9)]
    return Curve(x, np.median([losses_at(run, column, x) for run in runs], axis=0))


def score(mine: Curve, rivals: Sequence[Curve], budget: float, margin: float) -> float:
    """How many times faster a curve is than its best rival, by the rule."""
    lowest = min(rival.end for rival in rivals) + margin
    if mine.end <= lowest:
        took = mine.reach(lowest)
        return budget / took if took else math.inf
    return min(rival.reach(mine.end) for rival in rivals) / budget


def grade(score: float) -> int:
    """The place of a score's mark in `MARKS`."""
    return (score > 1 / 4) + (score > 1 / 2) + (score >= 2) + (score >= 4)


def margin(curves: Sequence[Curve]) -> float:
    """Losses that differ by no more are equal."""
    start, end = max(c.loss[0] for c in curves), min(c.end for c in curves)
    return EQUAL * max(float(start) - end, 0.0)


def marks(
    competitors: Mapping[str, Sequence[Record]], budget: float
) -> dict[str, str | None]:
    """The mark of every competitor, by the rule; ``None`` for one that is alone."""
    curves = {
        name: median_curve(runs, "units", budget) for name, runs in competitors.items()
    }
    equal = margin(list(curves.values()))

    def mark(name: str) -> str | None:
        rivals = [c for other, c in curves.items() if other not in (name, ADDED)]
        if not rivals:
            return None
        seeds = [median_curve([run], "units", budget) for run in competitors[name]]
        if any(math.isinf(seed.end) for seed in seeds):
            return MARKS[0]
        if curves[name].end >= curves[name].loss[0]:
            return MARKS[0]
        found = grade(score(curves[name], rivals, budget, equal))
        worst = max(seeds, key=lambda seed: seed.end)
        unstable = grade(score(worst, rivals, budget, equal)) <= found - 2
        return MARKS[found - unstable]

    return {name: mark(name) for name in competitors}


class Cell(NamedTuple):
    """What stands for a column on a scenario."""

    record: Record  # of the competitor, as it is stored
    mark: str | None  # that it earns; ``None`` if there is nobody to compare it with
    loss: tuple[float, float, float]  # its final training loss: median, best, worst
    # Gradients until it was as low as the better baseline at the end, or infinite.
    units: float | None
    seconds: float | None  # the same, in seconds
    held_out_loss: float  # median
    held_out_metric: float  # median


class Line(NamedTuple):
    """A scenario of a row: what was measured on it, or that nothing was."""

    row: Row  # of the poster
    scenario: str  # its name
    cells: dict[str, Cell]  # by column, without those that were not run
    budget: float = math.nan  # the gradients that every competitor is compared at
    clock: str = "cpu_seconds"  # or "wall_seconds", on an accelerator
    margin: float = 0.0  # training losses that differ by no more are equal
    remark: str = ""  # what a reader has to know, or nothing

    @property
    def records(self) -> list[Record]:
        return [cell.record for cell in self.cells.values()]

    @property
    def data(self) -> str:
        """What it was run on, and what one should know of the data, if anything."""
        record = self.records[0]
        return "; ".join(filter(None, (record["description"], record.get("data"))))


def representative(records: Sequence[Record], column: str) -> Record | None:
    """The lowest median final training loss among those that stand for a column."""
    standing = [r for r in records if r["optimizer"] in COLUMNS[column]]
    if not standing:
        return None
    return min(standing, key=lambda record: spread(record, lambda run: run["loss"])[0])


def line(row: Row, scenario: str, records: Sequence[Record]) -> Line:
    """Everything about a scenario, from its stored results, if there are any."""
    found = {column: representative(records, column) for column in COLUMNS}
    chosen = {column: record for column, record in found.items() if record}
    if not chosen:
        return Line(row, scenario, {})
    budgets = {record["budget"] for record in chosen.values()}
    budget = min(budgets)
    runs = {column: record["runs"] for column, record in chosen.items()}
    curves = {name: median_curve(r, "units", budget) for name, r in runs.items()}
    equal, earned = margin(list(curves.values())), marks(runs, budget)
    baselines = [curves[name].end for name in BASELINES if name in curves]
    level = min(baselines) + equal if baselines else None
    on_cpu = all(r["machine"].get("device") == "cpu" for r in chosen.values())
    clock = "cpu_seconds" if on_cpu else "wall_seconds"

    def cell(column: str, record: Record) -> Cell:
        ends = [median_curve([run], "units", budget).end for run in runs[column]]
        costs = (
            None if level is None else median_curve(runs[column], by).reach(level)
            for by in ("units", clock)
        )
        held_out = (
            spread(record, lambda run, key=key: run[key])[0]
            for key in ("held_out_loss", "held_out_metric")
        )
        loss = median(ends), min(ends), max(ends)
        return Cell(record, earned[column], loss, *costs, *held_out)

    cells = {column: cell(column, record) for column, record in chosen.items()}
    remarks = []
    if len(budgets) > 1:
        remarks.append(
            f"budgets differ ({', '.join(f'{b:g}' for b in sorted(budgets))}): "
            f"compared at {budget:g} gradients"
        )
    if any(record.get("quick") and record["grid"] for record in chosen.values()):
        remarks.append("a quick run, with a coarse tuning grid")
    elif any(record.get("tuning") == "bracket" for record in chosen.values()):
        remarks.append("tuned on the smallest batches, with every schedule")
    return Line(row, scenario, cells, budget, clock, equal, "; ".join(remarks))


def lines(records: Sequence[Record]) -> list[Line]:
    """The poster's rows of training problems, a line for each of their scenarios."""
    return [
        line(row, name, [record for record in records if record["scenario"] == name])
        for row in ROWS
        for name in row.scenarios
    ]


class Summary(NamedTuple):
    """On how many of the lines that can be compared a column is as good, or ahead."""

    compared: int
    loss: int
    seconds: int
    held_out: int


def summary(measured: Sequence[Line], column: str = OURS) -> Summary:
    """A column against the better of Adam and SGD."""
    compared = loss = seconds = held_out = 0
    for line in measured:
        theirs = [line.cells[name] for name in BASELINES if name in line.cells]
        if column not in line.cells or not theirs:
            continue
        ours, compared = line.cells[column], compared + 1
        best = min(cell.loss[0] for cell in theirs) + line.margin
        loss += math.isfinite(ours.loss[0]) and ours.loss[0] <= best
        seconds += ours.seconds < min(cell.seconds for cell in theirs)
        best = min(cell.held_out_loss for cell in theirs)
        held_out += math.isfinite(ours.held_out_loss) and ours.held_out_loss <= best
    return Summary(compared, loss, seconds, held_out)
