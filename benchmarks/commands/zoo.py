"""The command that lists trained networks."""

import pathlib
import shlex
from typing import Annotated

import typer

from benchmarks.commands import options
from benchmarks.reports import tables
from benchmarks.zoo.checkpoint import CARD, read_card
from benchmarks.zoo.entries import ENTRIES


def zoo(
    directory: Annotated[
        pathlib.Path,
        typer.Argument(
            metavar="[DIR]", help="Where `train` wrote.", show_default="zoo"
        ),
    ] = pathlib.Path("zoo"),
) -> None:
    """List trained networks: those in DIR, and the command for each that is not.

    Weights are not part of the repository: the commands make them.
    """
    if directory.is_file():
        raise options.UsageError(f"{directory} is a file, not a folder.")
    console = tables.console()
    found = {}
    with options.explained(ValueError):
        for path in sorted(directory.glob(f"*/*/{CARD}")):
            card = read_card(path.parent)
            found[card["scenario"], card["optimizer"]] = card
    table = tables.make_table(
        ("scenario", "optimizer", "setting", "score", "value", "loss", "sha256"),
        4,
        title=f"Checkpoints in {directory}",
    )
    for (scenario, optimizer), card in found.items():
        score, loss = map(tables.number, (card["held_out_metric"], card["loss"]))
        row = scenario, optimizer, card["setting"], card["metric"], score, loss
        table.add_row(*row, card["sha256"][:12])
    if found:
        console.print(table)
    missing = [e for e in ENTRIES if (e.scenario, e.optimizer) not in found]
    if missing:
        console.print(f"Not in {directory} yet, and what makes them:", markup=False)
    where = (
        ""
        if directory == pathlib.Path("zoo")
        else f" --checkpoint {shlex.quote(str(directory))}"
    )
    for entry in missing:
        typer.echo(f"  python -m benchmarks train {entry.arguments}{where}")
