"""The command that compares `bayesian_fit` with a tuned Adam on small data."""

import json
import pathlib
from typing import Annotated

import jax
import typer

from benchmarks.commands import options
from benchmarks.reports import records, tables
from benchmarks.small_data import adam, comparison
from benchmarks.small_data.sets import SETS

FILE = "small_data.json"


def small_data(
    sets: Annotated[str, typer.Option(help="Which, separated by commas.")] = ",".join(
        SETS
    ),
    splits: Annotated[int, typer.Option(min=1, help="Of each set.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Of Adam, at most.")] = adam.EPOCHS,
    readme: Annotated[
        pathlib.Path | None, options.readme_option(comparison.MARKS)
    ] = None,
    output: options.CommittedOutput = options.COMMITTED,
) -> None:
    """Small data: bayesian_fit against Adam with validation. Writes small_data.json.

    Other sets in the file are kept if it is of the same versions and machine. With
    --readme nothing is run: the stored table is written into a page.
    """
    path = output / FILE
    if readme is not None:
        with options.explained(ValueError):
            stored = json.loads(path.read_text(encoding="utf8"))
            tables.write_into(readme, comparison.markdown(stored), *comparison.MARKS)
        typer.echo(f"Wrote the table into {readme}")
        return
    names = options.names_of(sets, SETS, "data set")
    options.check_output(output)
    stored = json.loads(path.read_text(encoding="utf8")) if path.exists() else {}
    record = {
        "command": f"python -m benchmarks small-data --splits {splits}"
        f" --epochs {epochs}",
        "versions": records.versions(),
        "machine": records.machine(),
    }
    same = all(stored.get(key) == value for key, value in record.items())
    found = stored["sets"] if same else {}
    for name in names:
        with jax.enable_x64(True), options.explained(*options.UNAVAILABLE):
            found[name] = comparison.compare(name, splits, epochs, typer.echo)
        records.write(record | {"sets": found}, path)
    typer.echo(f"Result: {path}")
    typer.echo(comparison.markdown(record | {"sets": found}))
