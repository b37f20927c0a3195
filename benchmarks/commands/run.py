"""The command that trains."""

import pathlib
from collections.abc import Iterator
from typing import Annotated

import jax
import typer
from rich.console import Console

from benchmarks.commands import options
from benchmarks.peers import COMPETITORS, Competitor, Problem
from benchmarks.reports import curves, poster, records, tables
from benchmarks.scenarios import SCENARIOS, Scenario
from benchmarks.training import tuning
from benchmarks.training.competition import Entry, TuneOn, compete, open_journal
from benchmarks.training.resume import Journal

QUICK_BUDGET = 100.0
UNAVAILABLE = (FileNotFoundError, ModuleNotFoundError, ValueError)


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
    ] = ",".join(COMPETITORS),
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Runs of each, from different parameters.",
            show_default="the scenario's own",
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            metavar="UNITS",
            help="Full-batch gradients a run may spend.",
            show_default="the scenario's own",
        ),
    ] = None,
    output: options.Output = pathlib.Path("results"),
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help=f"Seconds instead of minutes: {QUICK_BUDGET:g} units, a coarse grid.",
        ),
    ] = False,
    tune_on: Annotated[
        TuneOn,
        typer.Option(
            help="Which loss the tuning goes by. `validation` sets a tenth of the "
            "training examples aside meanwhile."
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
    competing = options.names_of(optimizers, COMPETITORS, "optimizer")
    options.positive(budget)
    options.check_output(output)
    command = f"python -m benchmarks run {scenario} --optimizers {optimizers}"
    command += f" --seeds {seeds}" if seeds else ""
    command += f" --budget {budget:g}" if budget else ""
    command += " --quick" if quick else ""
    command += f" --tune-on {tune_on}" if tune_on != TuneOn.TRAINING else ""
    console, journals = tables.console(), []
    for item in chosen:
        units = budget or (min(QUICK_BUDGET, item.budget) if quick else item.budget)
        fitting = _fitting(item, [COMPETITORS[name] for name in competing], console)
        if not fitting:
            continue
        with jax.enable_x64(item.x64):
            try:
                data = item.load()
                problem = Problem(item, data.train, data.held_out, units)
                if tune_on == TuneOn.VALIDATION and any(c.exponents for c in fitting):
                    tuning.set_aside(problem)  # says at once if that is impossible
            except UNAVAILABLE as error:
                _skip(error, console, skip=len(chosen) > 1)
                continue
            how = data.note, seeds or item.seeds, quick, tune_on
            entries = [
                Entry(competitor, problem, *how, output / item.name / competitor.name)
                for competitor in fitting
            ]
            stored = []
            try:
                for record, journal in _results(
                    entries, console, fresh, skip=len(competing) > 1
                ):
                    records.save(record | {"command": command}, output)
                    stored.append(record)
                    journals.append(journal)
            except KeyboardInterrupt:
                console.print("Stopped: the same command goes on from here.")
                raise typer.Exit(130) from None
        _show(stored, output, console)
    # Not before: a command that is interrupted finds all that it did.
    for journal in journals:
        journal.remove()


def _scenarios(name: str) -> list[Scenario]:
    if name == "all":
        return list(SCENARIOS.values())
    if name == "poster":
        names = dict.fromkeys(s for row in poster.ROWS for s in row.scenarios)
        return [SCENARIOS[options.one_of(s, SCENARIOS, "scenario")] for s in names]
    return [SCENARIOS[options.one_of(name, SCENARIOS, "scenario")]]


def _fitting(
    scenario: Scenario, competing: list[Competitor], console: Console
) -> list[Competitor]:
    """Those that can run on a scenario; the others are named."""
    for competitor in competing:
        if not competitor.fits(scenario):
            console.print(f"{scenario.name} is not for {competitor.name}: left out.")
    return [competitor for competitor in competing if competitor.fits(scenario)]


def _skip(error: Exception, console: Console, skip: bool) -> None:
    """Continues without missing data or a missing package if there is more to run."""
    if not skip:
        raise options.UsageError(str(error)) from error
    console.print(f"Left out: {error}")


def _results(
    entries: list[Entry], console: Console, fresh: bool, skip: bool
) -> Iterator[tuple[records.Record, Journal]]:
    """Runs all entries: their records, and where their finished parts are kept."""
    with options.progress_bar(console) as progress:
        for entry in entries:

            def say(text: str, title: str = entry.title) -> None:
                console.print(f"{title}: {text}", markup=False)

            journal = open_journal(entry, fresh, say)
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
