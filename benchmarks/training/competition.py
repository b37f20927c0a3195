"""One optimizer on one scenario: tuned, run on every seed, examined, recorded."""

import functools
import pathlib
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from rich.progress import Progress

from benchmarks.peers import Competitor, Problem
from benchmarks.reports import records
from benchmarks.reports.tables import number
from benchmarks.scenarios import Dataset
from benchmarks.training import tuning
from benchmarks.training.resume import Checkpoint, Journal, Say
from benchmarks.training.run import Compiled, Run, compile_method, train


class TuneOn(StrEnum):
    """Which loss the tuning goes by."""

    TRAINING = "training"
    VALIDATION = "validation"


class Entry(NamedTuple):
    """Who competes, on what, and how."""

    competitor: Competitor  # the optimizer
    problem: Problem  # the scenario and its budget
    note: str  # of its data, see `Dataset`
    seeds: int  # how many runs
    grid: tuning.Grid  # how much the tuning tries
    tune_on: TuneOn  # which loss the tuning goes by
    stem: pathlib.Path  # of the files of the results, without suffix

    @property
    def title(self) -> str:
        return f"{self.problem.scenario.name} · {self.competitor.name}"


def open_journal(entry: Entry, fresh: bool, say: Say) -> Journal:
    """What there is already of the entry's results, in a folder ``STEM.partial``."""
    folder = entry.stem.with_name(f"{entry.stem.name}.partial")
    machine = {"versions": records.versions(), "machine": records.machine()}
    identity = _identity(entry) | {"examples": entry.problem.examples} | machine
    return Journal(folder, identity, fresh, say)


def compete(
    entry: Entry, journal: Journal, progress: Progress, say: Say, log: Say
) -> records.Record:
    """Tunes an optimizer if it has something to tune, then runs it on every seed.

    Finished parts are kept in the journal. ``say`` gets what the user has to know,
    ``log`` a line for every row of the tuning and every seed.
    """
    problem = entry.problem
    task = progress.add_task(entry.title, total=None)

    def show(what: str) -> None:
        progress.update(task, description=f"{entry.title} · {what}")

    def count(done: float, total: float) -> None:
        progress.update(task, completed=done, total=total)

    show("tuning")
    tuned = _tuned(entry, journal, count, log) if entry.competitor.exponents else None
    setting = tuned.best.setting if tuned else None

    @functools.cache  # once, and only if there is something left to run
    def compiled() -> Compiled:
        show("compiling")
        return compile_method(entry.competitor.build(problem, setting), problem)

    def cost(_: Checkpoint) -> records.Record:
        prices = compiled().method.prices
        prices = prices._asdict() if prices else None
        return {"compile_seconds": compiled().seconds, "prices": prices}

    costs, total = journal.once("compiling", cost), problem.budget * entry.seeds
    count(0, total)

    def run(seed: int, checkpoint: Checkpoint) -> records.Record:
        executables = compiled()
        show("training")
        found = train(
            executables,
            problem,
            seed,
            setting.learning_rate if setting else 0.0,
            progress=lambda units: count(seed * problem.budget + units, total),
            checkpoint=checkpoint,
        )
        log(f"seed {seed} has a loss of {number(found.loss)}")
        examined = _examined(entry, found, say) if seed == 0 else {}
        return records.as_record(found) | examined

    runs = [
        journal.once(f"seed {seed}", functools.partial(run, seed))
        for seed in range(entry.seeds)
    ]
    about = {
        "setting": str(setting or "none needed"),
        "x64": problem.scenario.x64,
        "metric": problem.scenario.metric_name,
    }
    machine = {"versions": records.versions(), "machine": records.machine()}
    results = {"grid": records.grid(tuned), "runs": runs}
    return _identity(entry) | about | costs | machine | results


def _tuned(
    entry: Entry, journal: Journal, count: Callable[[float, float], None], log: Say
) -> tuning.Tuned:
    return tuning.tune(
        entry.competitor,
        entry.problem,
        journal,
        entry.grid,
        validate=entry.tune_on == TuneOn.VALIDATION,
        progress=count,
        row_done=lambda best: log(
            f"of its row, {best.setting} is the best: loss {number(best.score)}"
        ),
    )


def _identity(entry: Entry) -> records.Record:
    """What was run, as far as its results depend on it."""
    scenario = entry.problem.scenario
    return {
        "scenario": scenario.name,
        "description": scenario.description,
        "data": entry.note,
        "optimizer": entry.competitor.name,
        "budget": entry.problem.budget,
        "quick": entry.grid == tuning.Grid.COARSE,
        "tuning": str(entry.grid) if entry.competitor.exponents else None,
        "tuned_on": str(entry.tune_on) if entry.competitor.exponents else None,
    }


def _examined(entry: Entry, run: Run, say: Say) -> records.Record:
    """What the scenario sees in trained parameters, or why it does not."""
    problem = entry.problem
    examine = problem.scenario.examine
    if examine is None:
        return {}
    data = Dataset(problem.train, problem.held_out, entry.note)
    try:
        scores = examine(run.params, data, entry.stem)
        return {"examined": {name: float(value) for name, value in scores.items()}}
    # The run took long, so it is kept even if its pictures cannot be drawn.
    except Exception as error:
        say(f"could not be examined: {error!r}")
        # What the error says may be a path of this machine, so it is not stored.
        return {"examined": {}, "examine_error": type(error).__name__}
