"""The command line of ``python -m benchmarks``."""

import typer

from benchmarks.commands import measure, results
from benchmarks.commands.options import Commands
from benchmarks.commands.pinn import pinn
from benchmarks.commands.run import run
from benchmarks.commands.small_data import small_data
from benchmarks.commands.train import train
from benchmarks.commands.zoo import zoo

app = typer.Typer(
    cls=Commands,
    help="Newton-CG against tuned first-order methods, on real data.\n\n"
    "All optimizers start from the same parameters and spend the same budget, counted "
    "in full-batch gradients. Begin with: python -m benchmarks run boston --quick",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)
app.command("list")(results.list_)
for command in (
    run,
    train,
    zoo,
    results.plot,
    results.table,
    results.poster,
    results.lead,
    measure.scaling,
    measure.memory,
    measure.precision,
    measure.preconditioners,
    measure.gpu,
    small_data,
    pinn,
):
    app.command()(command)
