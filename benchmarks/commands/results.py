"""The commands that show stored results: list, plot, table, poster, lead."""

import pathlib
from typing import Annotated

import typer

from benchmarks.commands import options
from benchmarks.commands.options import UsageError
from benchmarks.peers import COMPETITORS
from benchmarks.reports import (
    ablation,
    curves,
    minibatch,
    poster_figure,
    poster_scaling,
    poster_tables,
    records,
    tables,
)
from benchmarks.reports import lead as leading
from benchmarks.reports import poster as rows
from benchmarks.scenarios import SCENARIOS

MAIN_MARKS = tables.BEGIN, tables.END
POSTER_MARKS = poster_tables.BEGIN, poster_tables.END
MINIBATCH_MARKS = minibatch.BEGIN, minibatch.END
ABLATION_MARKS = ablation.BEGIN, ablation.END
# Within a directory of results: those for the poster's table, and for the other one,
# tuned by the training loss and by a validation loss.
POSTER, MINIBATCH, VALIDATION = "poster", "minibatch", "minibatch_validation"


def list_() -> None:
    """Show the scenarios and the optimizers."""
    for table in tables.listing():
        tables.console().print(table)


def plot(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TARGETS",
            help="A scenario, or JSON files that `run` wrote.",
            show_default="every stored scenario",
        ),
    ] = None,
    output: options.Output = pathlib.Path("results"),
) -> None:
    """Draw loss against gradients, steps and seconds, from stored results.

    The PNG is written beside the results it shows, one per scenario.
    """
    loaded: list[tuple[pathlib.Path, records.Record]] = []
    groups: dict[str, tuple[pathlib.Path, list[records.Record]]] = {}
    with options.explained(ValueError):
        for target in targets or SCENARIOS:
            if target.endswith(".json"):
                path = pathlib.Path(target)
                loaded.append((path.parent, records.load(path)))
                continue
            options.one_of(target, SCENARIOS, "scenario")
            found = records.load_all(output, target)
            if targets and not found:
                raise UsageError(f"no results of {target} in {output}: run it first.")
            loaded += [(output / target, record) for record in found]
    if not loaded:
        raise UsageError(f"no results in {output}: `run` something first.")
    for folder, record in loaded:
        groups.setdefault(record["scenario"], (folder, []))[1].append(record)
    for folder, group in groups.values():
        typer.echo(f"Wrote {curves.plot(group, folder / 'curves.png')}")


def table(
    directory: options.Stored = options.COMMITTED,
    readme: Annotated[
        pathlib.Path | None,
        options.readme_option(
            MAIN_MARKS, POSTER_MARKS, MINIBATCH_MARKS, ABLATION_MARKS
        ),
    ] = None,
) -> None:
    """Build Markdown tables from stored results: final losses, poster, mini-batches.

    Those after the first are built from DIRECTORY/poster, DIRECTORY/minibatch and
    DIRECTORY/minibatch_validation, if these are there.
    """
    with options.explained(ValueError):
        stored = records.load_all(directory)
        lines = rows.lines(records.load_all(directory / POSTER))
        has_poster = any(line.cells for line in lines)
        on_batches = records.load_all(directory / MINIBATCH)
        validated = records.load_all(directory / VALIDATION)
        small = minibatch.grouped(on_batches, validated)
        ablations = ablation.grouped(on_batches)
        if not (stored or has_poster or small):
            raise UsageError(f"no results in {directory}: `run` something first.")
        made = {}
        if stored:
            made[MAIN_MARKS] = tables.markdown(stored)
        if has_poster:
            measured = poster_scaling.stored(directory)
            made[POSTER_MARKS] = poster_tables.markdown(lines, measured)
        if small:
            made[MINIBATCH_MARKS] = minibatch.markdown(small)
        if ablations:
            made[ABLATION_MARKS] = ablation.markdown(ablations)
        # A file may have the marks of one table only. Without any it is an error.
        content = "" if readme is None else readme.read_text("utf8")
        wanted = [marks for marks in made if marks[0] in content] or list(made)
        for marks in wanted:
            _put(made[marks], marks, readme)


def _put(text: str, marks: tuple[str, str], readme: pathlib.Path | None) -> None:
    """Prints a table, or writes it between two marks of a file."""
    if readme is None:
        typer.echo(f"{text}\n")
    else:
        tables.write_into(readme, text, *marks)
        typer.echo(f"Wrote the table into {readme}")


def poster(
    directory: Annotated[
        pathlib.Path,
        typer.Argument(
            help="Where `run ... --output` wrote its results.",
            show_default=f"{options.SHOWN}/{POSTER}",
        ),
    ] = options.COMMITTED / POSTER,
    scaling: Annotated[
        pathlib.Path,
        typer.Option(
            metavar="DIR",
            help="Where `scaling` wrote its results.",
            show_default=options.SHOWN,
        ),
    ] = options.COMMITTED,
    readme: Annotated[pathlib.Path | None, options.readme_option(POSTER_MARKS)] = None,
    figures: Annotated[
        bool, typer.Option("--figures/--no-figures", help="Draw the curves anew.")
    ] = True,
) -> None:
    """Print the poster's table: its marks, and what was measured here beside them.

    A row that was not run says so. Draws the curves of every row that was, and
    overview.png with all of them.
    """
    console = tables.console()
    with options.explained(ValueError):
        stored = records.load_all(directory)
        lines = rows.lines(stored)
        measured = poster_scaling.stored(scaling)
        console.print(poster_tables.rich_table(lines))
        console.print(poster_tables.scaling_table(measured))
        for note in poster_tables.notes(lines):
            console.print(f"\n{note}", highlight=False)
        if readme is not None:
            _put(poster_tables.markdown(lines, measured), POSTER_MARKS, readme)
    if figures and any(line.cells for line in lines):
        for line in lines:
            name = line.scenario
            if found := [record for record in stored if record["scenario"] == name]:
                curves.plot(found, directory / name / "curves.png")
        poster_figure.overview(lines, measured, directory / "overview.png")
        console.print(f"\nFigures: {directory}")


def lead(
    directory: options.Stored = options.COMMITTED,
    optimizer: Annotated[
        str, typer.Option(help="The optimizer that is compared with the others.")
    ] = "hessian_free",
) -> None:
    """Show how much earlier an optimizer had the loss that each other one ended with.

    From stored results: units and processor seconds until its loss was as low.
    """
    options.one_of(optimizer, COMPETITORS, "optimizer")
    with options.explained(ValueError):
        found = leading.leads(records.load_all(directory), optimizer)
    if not found:
        raise UsageError(
            f"nothing to compare {optimizer} with in {directory}: `run` it and others."
        )
    tables.console().print(leading.table(found, optimizer))
