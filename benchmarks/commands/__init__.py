"""The command line; the commands of the poster and of scaling have their own files."""

import pathlib
from collections.abc import Iterator
from typing import Annotated

import jax
import optax
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from benchmarks.commands import poster as poster_cli
from benchmarks.commands import scaling as scaling_cli
from benchmarks.measurements import overhead as overheads
from benchmarks.measurements import preconditioners as preconditioning
from benchmarks.peers.registry import CONTENDERS, Contender, Problem
from benchmarks.reports import curves as plots
from benchmarks.reports import lead as leading
from benchmarks.reports import poster, records
from benchmarks.reports import poster_tables as poster_report
from benchmarks.reports import tables as report
from benchmarks.scenarios import SCENARIOS, Scenario
from benchmarks.training import tuning
from benchmarks.training.competition import Entry, TuneOn, compete, open_journal
from benchmarks.training.resume import Journal

COMMITTED = pathlib.Path(__file__).parent.parent / "results"
QUICK_BUDGET = 100.0

app = typer.Typer(
    help="Newton-CG against tuned first-order methods, on real data.\n\n"
    "All optimizers start from the same parameters and spend the same budget, counted "
    "in full-batch gradients. Begin with: python -m benchmarks run boston --quick",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)
scaling_cli.register(app)  # scaling, memory, precision
poster_cli.register(app)  # poster


def _one_of(name: str, known: dict[str, object], what: str) -> str:
    if name not in known:
        raise typer.BadParameter(f"no {what} {name!r}; there are {', '.join(known)}.")
    return name


def _scenarios(name: str) -> list[Scenario]:
    if name == "all":
        return list(SCENARIOS.values())
    if name == "poster":
        names = dict.fromkeys(s for row in poster.ROWS for s in row.scenarios)
        return [SCENARIOS[_one_of(s, SCENARIOS, "scenario")] for s in names]
    return [SCENARIOS[_one_of(name, SCENARIOS, "scenario")]]


def _contenders(names: str) -> list[Contender]:
    wanted = dict.fromkeys(name.strip() for name in names.split(","))
    return [CONTENDERS[_one_of(name, CONTENDERS, "optimizer")] for name in wanted]


def _positive(budget: float | None) -> float | None:
    if budget is not None and not 0 < budget < float("inf"):
        raise typer.BadParameter(f"a budget is a positive number, not {budget:g}.")
    return budget


@app.command("list")
def list_() -> None:
    """Show the scenarios and the optimizers."""
    for table in report.listing():
        report.console().print(table)


@app.command()
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
    ] = ",".join(CONTENDERS),
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
            callback=_positive,
            metavar="UNITS",
            help="Full-batch gradients a run may spend.",
            show_default="the scenario's own",
        ),
    ] = None,
    output: Annotated[
        pathlib.Path, typer.Option(metavar="DIR", help="Where results are written.")
    ] = pathlib.Path("results"),
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help=f"A look in seconds: {QUICK_BUDGET:g} units, a coarse tuning grid.",
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
            "--fresh", help="Begin anew, whatever is left of an interrupted command."
        ),
    ] = False,
) -> None:
    """Train, and compare what the same number of gradients buys.

    First-order methods are tuned, on seed 0 and at the full budget: learning rate and
    schedule. The others run as they come. Writes one JSON file per optimizer
    and a PNG per scenario.

    It can be stopped at any time, and the same command goes on from there: what is done
    lies in a folder OPTIMIZER.partial beside the results, until the command is through.
    """
    chosen, competing = _scenarios(scenario), _contenders(optimizers)
    command = f"python -m benchmarks run {scenario} --optimizers {optimizers}"
    command += f" --seeds {seeds}" if seeds else ""
    command += f" --budget {budget:g}" if budget else ""
    command += " --quick" if quick else ""
    command += f" --tune-on {tune_on}" if tune_on != TuneOn.TRAINING else ""
    console, journals = report.console(), []
    for item in chosen:
        units = budget or (min(QUICK_BUDGET, item.budget) if quick else item.budget)
        fitting = [contender for contender in competing if contender.fits(item)]
        for contender in competing:
            if contender not in fitting:
                console.print(f"{item.name} is not for {contender.name}: left out.")
        if not fitting:
            continue
        with jax.enable_x64(item.x64):
            try:
                data = item.load()
                problem = Problem(item, data.train, data.held_out, units)
                if tune_on == TuneOn.VALIDATION and any(c.exponents for c in fitting):
                    tuning.set_aside(problem)  # says at once if that is impossible
            except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
                _skip(error, console, skip=len(chosen) > 1)
                continue
            entries = [
                Entry(
                    contender,
                    problem,
                    data.note,
                    seeds or item.seeds,
                    quick,
                    tune_on,
                    output / item.name / contender.name,
                )
                for contender in fitting
            ]
            try:
                stored = []
                for record, journal in _results(
                    entries, console, fresh, skip=len(competing) > 1
                ):
                    records.save(record | {"command": command}, output)
                    stored.append(record)
                    journals.append(journal)
            except KeyboardInterrupt:
                console.print("Stopped: the same command goes on from here.")
                raise typer.Exit(130) from None
        if not stored:
            continue
        for record in stored:
            if record["grid"]:
                console.print(report.grid_table(record))
        console.print(report.result_table(stored))
        if data.note:
            console.print(f"Data: {data.note}")
        path = _plot(records.load_all(output, item.name), output / item.name)
        console.print(f"Results and plot: {path.parent}")
    # Not before: a command that is interrupted finds all that it did.
    for journal in journals:
        journal.remove()


@app.command()
def plot(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TARGETS",
            help="A scenario, or JSON files that `run` wrote.",
            show_default="every stored scenario",
        ),
    ] = None,
    output: Annotated[
        pathlib.Path,
        typer.Option(metavar="DIR", help="Where `run` wrote its results."),
    ] = pathlib.Path("results"),
) -> None:
    """Draw loss against gradients, steps and seconds, from stored results.

    The PNG is written beside the results it shows, one per scenario.
    """
    files = [
        pathlib.Path(target) for target in targets or [] if target.endswith(".json")
    ]
    names = [target for target in targets or [] if not target.endswith(".json")]
    for name in names:
        _one_of(name, SCENARIOS, "scenario")
    try:
        loaded = [(path.parent, records.load(path)) for path in files]
        for name in names or ([] if files else SCENARIOS):
            found = records.load_all(output, name)
            if name in names and not found:
                raise ValueError(f"no results of {name} in {output}: run it first.")
            loaded += [(output / name, record) for record in found]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if not loaded:
        raise typer.BadParameter(f"no results in {output}: `run` something first.")
    groups: dict[str, list[tuple[pathlib.Path, records.Record]]] = {}
    for folder, record in loaded:
        groups.setdefault(record["scenario"], []).append((folder, record))
    for group in groups.values():
        path = _plot([record for _, record in group], group[0][0])
        typer.echo(f"Wrote {path}")


@app.command()
def table(
    directory: Annotated[
        pathlib.Path,
        typer.Argument(
            help="Where stored results lie.", show_default="benchmarks/results"
        ),
    ] = COMMITTED,
    readme: Annotated[
        pathlib.Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Write the tables into this file, each between its two marks: "
            f"`{report.BEGIN}` and `{report.END}`, `{poster_report.BEGIN}` and "
            f"`{poster_report.END}`.",
        ),
    ] = None,
) -> None:
    """Build Markdown tables from stored results: final losses, the poster's rows.

    The second one is built from DIRECTORY/poster, if that is there.
    """
    try:
        stored = records.load_all(directory)
        rows = poster_cli.text(directory / poster_cli.FOLDER, directory)
        if not stored and rows is None:
            raise ValueError(f"no results in {directory}: `run` something first.")
        tables = [
            (report.markdown(stored) if stored else None, report.BEGIN, report.END),
            (rows, poster_report.BEGIN, poster_report.END),
        ]
        for text, begin, end in tables:
            if text is None:
                continue
            if readme is None:
                typer.echo(f"{text}\n")
            else:
                report.write_into(readme, text, begin, end)
                typer.echo(f"Wrote the table into {readme}")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@app.command()
def lead(
    directory: Annotated[
        pathlib.Path,
        typer.Argument(
            help="Where stored results lie.", show_default="benchmarks/results"
        ),
    ] = COMMITTED,
    optimizer: Annotated[str, typer.Option(help="Whose lead it is.")] = "hessian_free",
) -> None:
    """Show how much earlier an optimizer was where each other one ended.

    From stored results: units and processor seconds until its loss was as low.
    """
    _one_of(optimizer, CONTENDERS, "optimizer")
    found = leading.leads(records.load_all(directory), optimizer)
    if not found:
        raise typer.BadParameter(
            f"nothing to compare {optimizer} with in {directory}: `run` it and others."
        )
    report.console().print(leading.table(found, optimizer))


@app.command()
def overhead() -> None:
    """Time a step of 20 parameters, where nothing but the overhead counts."""
    micros = overheads.measure()
    for name, taken in micros.items():
        typer.echo(f"{name:12} {taken:7.0f} microseconds a step")
    ratio = micros["newton_cg"] / micros["optax.lbfgs"]
    typer.echo(f"ratio        {ratio:7.2f}")


@app.command()
def preconditioners(
    scenarios: Annotated[
        list[str] | None,
        typer.Argument(help="Scenarios of `list`.", show_default="digits_autoencoder"),
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="How often every step is timed.")
    ] = 5,
    output: Annotated[
        pathlib.Path,
        typer.Option(
            metavar="DIR",
            help="Where the result is written.",
            show_default="benchmarks/results",
        ),
    ] = COMMITTED,
) -> None:
    """Measure what a preconditioner takes of a step: seconds, products, memory.

    Writes preconditioners.json. Seconds want a machine that does nothing else: where
    others compute, the threads of a decomposition wait for each other, many times
    longer than they work. `taskset -c 0` in front of the command prevents that.
    """
    names = list(dict.fromkeys(scenarios or ["digits_autoencoder"]))
    chosen = [SCENARIOS[_one_of(name, SCENARIOS, "scenario")] for name in names]
    command = f"python -m benchmarks preconditioners {' '.join(names)}"
    console = report.console()
    found = {}
    for item in chosen:
        with jax.enable_x64(item.x64):
            try:
                data = item.load().train
            except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
                raise typer.BadParameter(str(error)) from error
            with _progress(console) as progress:
                task = progress.add_task(item.name, total=None)
                measured = preconditioning.measure(
                    item,
                    data,
                    repeats,
                    lambda name, title=item.name, task=task, progress=progress: (
                        progress.update(task, description=f"{title} · {name}")
                    ),
                )
            parameters = optax.tree.size(item.init(0))
        title = f"{item.name}, {parameters} parameters, {len(data['y'])} examples"
        for table in preconditioning.tables(title, measured):
            console.print(table)
        found[item.name] = {
            "parameters": parameters,
            "examples": len(data["y"]),
            "preconditioners": preconditioning.as_record(measured),
        }
    record = {
        "command": f"{command} --repeats {repeats}",
        "versions": records.versions(),
        "machine": records.machine(),
        "scenarios": found,
    }
    console.print(f"Result: {records.write(record, output / 'preconditioners.json')}")


def _skip(error: Exception, console: Console, skip: bool) -> None:
    """Goes on without what cannot be had, if there is something else to run."""
    if not skip:
        raise typer.BadParameter(str(error)) from error
    console.print(f"Left out: {error}")


def _results(
    entries: list[Entry], console: Console, fresh: bool, skip: bool
) -> Iterator[tuple[records.Record, Journal]]:
    """Lets everybody compete: their records, and where what they did is kept."""
    with _progress(console) as progress:
        for entry in entries:

            def say(text: str, title: str = entry.title) -> None:
                console.print(f"{title}: {text}", markup=False)

            journal = open_journal(entry, fresh, say)
            # Where a bar moves, a line for every step of the way is too much.
            log = _silent if console.is_terminal else say
            try:
                record = compete(entry, journal, progress, say, log)
            except ModuleNotFoundError as error:
                journal.remove()
                _skip(error, console, skip)
                continue
            yield record, journal


def _silent(text: str) -> None:
    """Says nothing."""


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


def _plot(stored: list[records.Record], folder: pathlib.Path) -> pathlib.Path:
    return plots.plot(stored, folder / "curves.png")
