"""The command that prints the poster's table from stored results."""

import pathlib
from typing import Annotated

import typer

from benchmarks.reports import poster as rows
from benchmarks.reports import poster_scaling, records
from benchmarks.reports import poster_tables as poster_report
from benchmarks.reports import tables as report

FOLDER = "poster"  # within a directory of results: those for the poster's table
STORED = poster_scaling.RESULTS / FOLDER


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(poster)


def text(directory: pathlib.Path, scaling: pathlib.Path) -> str | None:
    """The poster's table in Markdown; ``None`` if no row has a result."""
    lines = rows.lines(records.load_all(directory))
    if not any(line.cells for line in lines):
        return None
    return poster_report.markdown(lines, poster_scaling.stored(scaling))


def poster(
    directory: Annotated[
        pathlib.Path,
        typer.Argument(
            help="Where `run ... --output` wrote its results.",
            show_default="benchmarks/results/poster",
        ),
    ] = STORED,
    scaling: Annotated[
        pathlib.Path,
        typer.Option(
            metavar="DIR",
            help="Where `scaling` wrote its results.",
            show_default="benchmarks/results",
        ),
    ] = poster_scaling.RESULTS,
    readme: Annotated[
        pathlib.Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Write the table into this file, between its two marks "
            f"`{poster_report.BEGIN}` and `{poster_report.END}`.",
        ),
    ] = None,
    figures: Annotated[
        bool, typer.Option("--figures/--no-figures", help="Draw the curves anew.")
    ] = True,
) -> None:
    """Print the poster's table: its marks, and what was measured here beside them.

    A row that was not run says so. Draws the curves of every row that was, and
    overview.png with all of them.
    """
    console = report.console()
    try:
        stored = records.load_all(directory)
        lines = rows.lines(stored)
        measured = poster_scaling.stored(scaling)
        console.print(poster_report.rich_table(lines))
        console.print(poster_report.scaling_table(measured))
        for note in poster_report.notes(lines):
            console.print(f"\n{note}", highlight=False)
        if readme is not None:
            table = poster_report.markdown(lines, measured)
            report.write_into(readme, table, poster_report.BEGIN, poster_report.END)
            console.print(f"\nWrote the table into {readme}")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if figures and any(line.cells for line in lines):
        _draw(lines, stored, measured, directory)
        console.print(f"\nFigures: {directory}")


def _draw(
    lines: list[rows.Line],
    stored: list[records.Record],
    scaling: list[poster_scaling.Scaling],
    directory: pathlib.Path,
) -> None:
    from benchmarks.reports import curves as plots
    from benchmarks.reports import poster_figure as poster_plots

    for line in lines:
        of_line = [record for record in stored if record["scenario"] == line.scenario]
        if of_line:
            plots.plot(of_line, directory / line.scenario / "curves.png")
    poster_plots.overview(lines, scaling, directory / "overview.png")
