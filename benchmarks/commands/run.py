"""The command that trains."""

import pathlib
from collections.abc import Iterator
from typing import Annotated, NamedTuple

import jax
import typer
from rich.console import Console

from benchmarks.commands import options
from benchmarks.peers import COMPETITORS, Problem
from benchmarks.reports import curves, poster, records, tables
from benchmarks.scenarios import SCENARIOS, Scenario
from benchmarks.training import tuning
from benchmarks.training.competition import Entry, TuneOn, compete, open_journal
from benchmarks.training.resume import Journal

QUICK_BUDGET = 100.0


def run(
    scenario: Annotated[
        str,
        typer.Argument(
            help="A scenario of `list`, or `all`, or `poster` for those of the poster.",
            show_default=False,
        ),
    ],
    optimizers: Annotated[
        str, typer.Option(help="Which optimizers, separated by commas.")
    ] = ",".join(name for name, c in COMPETITORS.items() if not c.named_only),
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Runs of each, from different parameters.",
            show_default="the scenario's own",
        ),
    ] = None,
    budget: Annotated[float | None, options.budget("the scenario's own")] = None,
    output: options.Output = pathlib.Path("results"),
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help=f"Seconds instead of minutes: {QUICK_BUDGET:g} units, a coarse grid.",
        ),
    ] = False,
    grid: Annotated[
        tuning.Grid,
        typer.Option(
            help="What the tuning tries. `bracket`: the smallest batches, every "
            "schedule, three learning rates and more until the best is inside.",
            show_default="full, and coarse with --quick",
        ),
    ] = tuning.Grid.FULL,
    tune_on: Annotated[
        TuneOn,
        typer.Option(
            help="Which loss the tuning goes by. `validation` sets a tenth of the "
            "training examples aside, whose lowest loss in a run counts."
        ),
    ] = TuneOn.TRAINING,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Begin anew, and remove the rest of an interrupted command."
        ),
    ] = False,
) -> None:
    """Train, and compare the losses after the same number of gradients.

    First-order methods are tuned, on seed 0 and at the full budget: learning rate and
    schedule. The others run with their defaults. Writes one JSON file per optimizer
    and a PNG per scenario.

    It can be stopped at any time, and the same command continues: finished parts lie in
    a folder OPTIMIZER.partial beside the results until the command ends.
    """
    chosen = _scenarios(scenario)
    names = options.names_of(optimizers, COMPETITORS, "optimizer")
    options.positive(budget)
    options.check_output(output)
    command = f"python -m benchmarks run {scenario} --optimizers {optimizers}"
    command += f" --seeds {seeds}" if seeds else ""
    command += f" --budget {budget:g}" if budget else ""
    command += " --quick" if quick else ""
    command += f" --grid {grid}" if grid != tuning.Grid.FULL else ""
    command += f" --tune-on {tune_on}" if tune_on != TuneOn.TRAINING else ""
    if quick and grid == tuning.Grid.FULL:
        grid = tuning.Grid.COARSE
    how = _How(tables.console(), seeds, budget, quick, grid, tune_on, fresh, output)
    journals: list[Journal] = []
    for item in chosen:
        stored = []
        with jax.enable_x64(item.x64):
            try:
                entries = _entries(item, names, how, skip=len(chosen) > 1)
                for record, journal in _results(entries, how, skip=len(names) > 1):
                    records.save(record | {"command": command}, output)
                    stored.append(record)
                    journals.append(journal)
            except KeyboardInterrupt:
                how.console.print("Stopped: the same command goes on from here.")
                raise typer.Exit(130) from None
        _show(stored, output, how.console)
    # Not before: a command that is interrupted finds all that it did.
    for journal in journals:
        journal.remove()


class _How(NamedTuple):
    """The options of the command that all scenarios share."""

    console: Console
    seeds: int | None
    budget: float | None
    quick: bool
    grid: tuning.Grid
    tune_on: TuneOn
    fresh: bool
    output: pathlib.Path


def _scenarios(name: str) -> list[Scenario]:
    of_poster = dict.fromkeys(s for row in poster.ROWS for s in row.scenarios)
    names = {"all": SCENARIOS, "poster": of_poster}.get(name, [name])
    return [SCENARIOS[options.one_of(s, SCENARIOS, "scenario")] for s in names]


def _entries(
    scenario: Scenario, names: list[str], how: _How, skip: bool
) -> list[Entry]:
    """Every optimizer that fits a scenario, with its data; the others are named."""
    fitting = []
    for competitor in (COMPETITORS[name] for name in names):
        if competitor.fits(scenario):
            fitting.append(competitor)
        else:
            how.console.print(
                f"{scenario.name} is not for {competitor.name}: left out."
            )
    if not fitting:
        return []
    least = min(QUICK_BUDGET, scenario.budget) if how.quick else scenario.budget
    try:
        data = scenario.load()
        problem = Problem(scenario, data.train, data.held_out, how.budget or least)
        if how.tune_on == TuneOn.VALIDATION and any(c.exponents for c in fitting):
            tuning.set_aside(problem)  # says at once if that is impossible
    except options.UNAVAILABLE as error:
        _skip(error, how.console, skip)
        return []
    seeds, folder = how.seeds or scenario.seeds, how.output / scenario.name
    given = data.note, seeds, how.grid, how.tune_on
    return [Entry(c, problem, *given, folder / c.name) for c in fitting]


def _skip(error: Exception, console: Console, skip: bool) -> None:
    """Continues without missing data or a missing package if there is more to run."""
    if not skip:
        raise options.UsageError(str(error)) from error
    console.print(f"Left out: {error}")


def _results(
    entries: list[Entry], how: _How, skip: bool
) -> Iterator[tuple[records.Record, Journal]]:
    """Runs all entries: their records, and where their finished parts are kept."""
    console = how.console
    with options.progress_bar(console) as progress:
        for entry in entries:

            def say(text: str, title: str = entry.title) -> None:
                console.print(f"{title}: {text}", markup=False)

            journal = open_journal(entry, how.fresh, say)
            # Where a bar moves, a line for every part of the work is too much.
            log = (lambda text: None) if console.is_terminal else say
            try:
                record = compete(entry, journal, progress, say, log)
            except ModuleNotFoundError as error:
                journal.remove()
                _skip(error, console, skip)
                continue
            yield record, journal


def _show(stored: list[records.Record], output: pathlib.Path, console: Console) -> None:
    """Prints the tables of a scenario and draws its curves."""
    if not stored:
        return
    for record in stored:
        if record["grid"]:
            console.print(tables.grid_table(record))
    tables.print_result(stored, console)
    if stored[0]["data"]:
        console.print(f"Data: {stored[0]['data']}")
    name = stored[0]["scenario"]
    found = records.load_all(output, name)
    path = curves.plot(found, output / name / "curves.png")
    console.print(f"Results and plot: {path.parent}")
