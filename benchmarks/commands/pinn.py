"""The command that compares methods on physics-informed networks and their like."""

import json
import pathlib
from typing import Annotated, Any

import jax
import typer

from benchmarks.commands import options
from benchmarks.reports import records, tables

# The files of the two tables, and the marks between which these stand.
FILES = {False: "pinn.json", True: "pinn_recommended.json"}
MARKS = ("<!-- pinn-table:begin -->", "<!-- pinn-table:end -->")
RECOMMENDED_MARKS = (
    "<!-- pinn-recommended-table:begin -->",
    "<!-- pinn-recommended-table:end -->",
)


def pinn(
    problems: Annotated[
        str | None,
        typer.Option(help="Which, separated by commas.", show_default="all"),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Which, separated by commas.", show_default="all that are installed"
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="Processor seconds of a run, compilation apart.")
    ] = 20.0,
    seeds: Annotated[int, typer.Option(min=1, help="Of each method.")] = 1,
    float32: Annotated[
        bool, typer.Option("--float32", help="Instead of float64.")
    ] = False,
    recommended: Annotated[
        bool,
        typer.Option(
            "--recommended",
            help="More points than parameters, spread evenly. Has a file of its own.",
        ),
    ] = False,
    resume: options.Resume = False,
    readme: Annotated[
        pathlib.Path | None, options.readme_option(MARKS, RECOMMENDED_MARKS)
    ] = None,
    plot: Annotated[
        pathlib.Path | None,
        typer.Option(metavar="FILE", help="Draw the stored curves into this PNG."),
    ] = None,
    output: options.CommittedOutput = options.COMMITTED,
) -> None:
    """Solve equations by networks, at equal seconds.

    Writes pinn.json, or pinn_recommended.json.

    The file is written after every run: stop and --resume. With --readme or --plot
    nothing is run: the stored results are written into a page, or drawn.
    """
    from benchmarks.pinn import comparison
    from benchmarks.pinn.tasks import settings

    path = output / FILES[recommended]
    if readme is not None or plot is not None:
        with options.explained(ValueError, FileNotFoundError):
            stored = json.loads(path.read_text(encoding="utf8"))
            if readme is not None:
                marks = RECOMMENDED_MARKS if recommended else MARKS
                tables.write_into(readme, comparison.markdown(stored), *marks)
                typer.echo(f"Wrote the table into {readme}")
            if plot is not None:
                typer.echo(f"Wrote {comparison.draw(stored, plot)}")
        return
    known = settings(recommended)
    chosen_tasks = options.names_of(problems or ",".join(known), known, "problem")
    chosen = options.names_of(
        methods or ",".join(comparison.METHODS), comparison.METHODS, "method"
    )
    missing = {name: why for name in chosen if (why := comparison.missing(name))}
    if methods is not None and missing:
        raise options.UsageError("; ".join(missing.values()) + ".")
    for why in missing.values():
        typer.echo(f"Left out: {why}")
    seconds = options.positive(seconds) or seconds
    options.check_output(output)
    record = header(seconds, float32, recommended) | {"missing": missing}
    if resume and path.exists():
        record = resumed(json.loads(path.read_text(encoding="utf8")), record)
    with jax.enable_x64(not float32), options.explained(*options.UNAVAILABLE):
        for seed in range(seeds):
            for problem in chosen_tasks:
                present = [name for name in chosen if name not in missing]
                for _ in comparison.compete(record, problem, present, seed, typer.echo):
                    records.write(record, path)
    typer.echo(f"Result: {path}")
    tables.console().print(comparison.markdown(record), markup=False)


def header(seconds: float, float32: bool, recommended: bool) -> dict[str, Any]:
    """A record without runs."""
    command = f"python -m benchmarks pinn --seconds {seconds:g}"
    command += " --float32" if float32 else ""
    return {
        "command": command + (" --recommended" if recommended else ""),
        "recommended": recommended,
        "versions": records.versions() | _contenders(),
        "machine": records.machine(),
        "seconds": seconds,
        "dtype": "float32" if float32 else "float64",
        "tuned": {},
        "runs": [],
    }


def _contenders() -> dict[str, str]:
    """Versions of the foreign contenders."""
    names = "optimistix", "equinox", "ssbroyden-optimistix", "jinns"
    return {name: records.version(name) for name in names}


def resumed(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The new header with the runs of the old file.

    The versions of packages that are not installed here are kept.

    Raises:
        UsageError: if these were made with other seconds or another dtype.
    """
    for key in ("seconds", "dtype"):
        if old.get(key) != new[key]:
            raise options.UsageError(
                f"the output file was made with {key} {old.get(key)}, not {new[key]}."
            )
    here = {k: v for k, v in new["versions"].items() if v != records.NOT_INSTALLED}
    versions = new["versions"] | old["versions"] | here
    kept = {"runs": old["runs"], "tuned": old["tuned"], "versions": versions}
    return new | kept
