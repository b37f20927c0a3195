"""Tables of training results: for the terminal with rich, for pages in Markdown."""

import math
import pathlib
import sys
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from benchmarks.peers import COMPETITORS
from benchmarks.reports.records import Record, spread
from benchmarks.reports.scaling import table as markdown_table
from benchmarks.scenarios import SCENARIOS

BEGIN, END = "<!-- benchmark-table:begin -->", "<!-- benchmark-table:end -->"
FLOOR = 1e-7  # a mean of float32 terms below this is rounding: such losses are equal
FLOOR_X64 = 1e-15
ALWAYS = ("optimizer", "loss", "units", "seconds")  # columns that are never left out


def console() -> Console:
    """Where tables are printed."""
    # A table squeezed into the 80 columns of a log file cannot be read.
    found = Console(file=sys.stdout)
    return found if found.is_terminal else Console(file=sys.stdout, width=160)


def make_table(headings: Sequence[str], left: int = 1, **options: str) -> Table:
    """A table for rich, the first columns to the left, the others to the right."""
    table = Table(**options)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < left else "right")
    return table


def floor(record: Record) -> float:
    """Below this the losses of a record are rounding."""
    return FLOOR_X64 if record.get("x64") else FLOOR


def number(value: float | None, floor: float = FLOOR) -> str:
    """Three significant digits, down to what float32 can tell from zero."""
    if value is None or not math.isfinite(value):
        return "diverged"
    if 0 <= value < floor:
        return f"< {floor:.0e}"
    return f"{value:.2e}" if abs(value) < 1e-3 else f"{value:#.3g}".rstrip(".")


def listing() -> tuple[Table, Table]:
    """The scenarios and the optimizers."""
    scenarios = Table("scenario", "what", "budget", title="Scenarios")
    for scenario in SCENARIOS.values():
        scenarios.add_row(scenario.name, scenario.description, f"{scenario.budget:g}")
    optimizers = Table("optimizer", "what", title="Optimizers")
    for competitor in COMPETITORS.values():
        optimizers.add_row(competitor.name, competitor.description)
    return scenarios, optimizers


def grid_table(record: Record) -> Table:
    """The tuning grid of a first-order method: the losses, with the best marked."""
    cells = {(c["batch"], c["schedule"], c["learning_rate"]): c for c in record["grid"]}
    rates = sorted({rate for *_, rate in cells})
    tuned_on = record.get("tuned_on", "training")
    title = (
        f"{record['optimizer']} on {record['scenario']}: "
        f"{tuned_on} loss by learning rate"
    )
    headings = ("batch", "schedule", *(f"{rate:.1e}" for rate in rates))
    table = make_table(headings, 2, title=title, caption="★ the winner, on seed 0")
    for batch, schedule in dict.fromkeys((b, s) for b, s, _ in cells):
        row = [cells.get((batch, schedule, rate)) for rate in rates]
        cells_of_row = (_cell(cell, floor(record)) for cell in row)
        table.add_row(str(batch or "full"), schedule, *cells_of_row)
    return table


def _cell(cell: Record | None, floor: float) -> str:
    if cell is None:
        return "·"
    judged = cell.get("validation_loss")
    text = number(cell["loss"] if judged is None else judged, floor)
    return f"[bold green]★ {text}[/]" if cell["winner"] else text


def result_table(records: Sequence[Record], width: int = 160) -> Table:
    """The losses that were reached within the budget, medians over the seeds.

    Columns that the width, in characters, has no room for are left out, apart from
    those of `ALWAYS`, whose text is always whole.
    """
    first = records[0]
    rows = [_result_row(record) for record in records]
    chosen = _columns(rows, width)
    table = make_table(
        chosen,
        title=f"{first['scenario']}: training loss within {first['budget']:g} units",
        caption="Medians over seeds. A unit is a full-batch gradient. "
        "Seconds are of the processor, wall s of the clock, for the steps alone.",
    )
    for column in table.columns:
        column.no_wrap = True
    lowest = min(_losses(record)[0] for record in records)
    for record, row in zip(records, rows, strict=True):
        style = "bold" if _losses(record)[0] == lowest else None
        table.add_row(*(row[name] for name in chosen), style=style)
    return table


def print_result(records: Sequence[Record], console: Console) -> None:
    """Prints `result_table`; a line longer than the console's is not cut."""
    table = result_table(records, console.width)
    headings = [str(column.header) for column in table.columns]
    columns = zip(headings, (column.cells for column in table.columns), strict=True)
    table.width = _width([[heading, *cells] for heading, cells in columns])
    console.print(table, width=max(console.width, table.width), crop=False)


def _result_row(record: Record) -> dict[str, str]:
    """The columns of a record, those that matter most first."""
    losses = [number(value, floor(record)) for value in _losses(record)]

    def last(column: str) -> float:
        return spread(record, lambda run: run["curve"][column][-1])[0]

    metric = spread(record, lambda run: run["held_out_metric"])[0]
    return {
        "optimizer": record["optimizer"],
        "loss": losses[0],
        "units": f"{last('units'):.4g}",
        "seconds": f"{last('cpu_seconds'):.2f}",
        "best … worst": " … ".join(losses[1:]),
        f"held-out {record['metric']}": number(metric),
        "setting": record["setting"],
        "steps": f"{last('steps'):.0f}",
        "wall s": f"{last('wall_seconds'):.2f}",
        "compile s": f"{record['compile_seconds']:.1f}",
    }


def _columns(rows: Sequence[dict[str, str]], width: int) -> list[str]:
    """The columns that there is room for."""
    chosen: list[str] = []
    for name in rows[0]:
        more = [*chosen, name]
        texts = [[heading, *(row[heading] for row in rows)] for heading in more]
        if name in ALWAYS or _width(texts) <= width:
            chosen = more
    return chosen


def _width(columns: Sequence[Sequence[str]]) -> int:
    """Characters in a line of a table: a space on both sides of a cell, and lines."""
    return 1 + sum(3 + max(map(cell_len, column)) for column in columns)


def _losses(record: Record) -> tuple[float, float, float]:
    """Median, smallest and largest final loss, those below the floor all the same.

    A loss that is less than zero is one: a log-density has no floor.
    """
    lowest = floor(record)

    def loss(run: Record) -> float | None:
        value = run["loss"]
        return value if value is None or abs(value) >= lowest else lowest / 2

    return spread(record, loss)


def markdown(records: Sequence[Record]) -> str:
    """A Markdown table of final losses: scenarios down, optimizers across."""
    by_cell = {(r["scenario"], r["optimizer"]): r for r in records}
    scenarios = [name for name in SCENARIOS if any(s == name for s, _ in by_cell)]
    names = [name for name in COMPETITORS if any(o == name for _, o in by_cell)]
    headings = ["Training loss", "budget"]
    headings += [
        f"{name} (tuned)" if COMPETITORS[name].exponents else name for name in names
    ]
    rows = []
    for scenario in scenarios:
        row = [by_cell.get((scenario, name)) for name in names]
        present = [record for record in row if record]
        lowest = min(_losses(record)[0] for record in present)
        budget = f"{present[0]['budget']:g}"
        rows.append([scenario, budget, *(_entry(record, lowest) for record in row)])
    return f"{markdown_table(headings, rows)}\n\n{_footnote(records)}"


def _entry(record: Record | None, lowest: float) -> str:
    if record is None:
        return ""
    values = _losses(record)
    text, low, high = (number(value, floor(record)) for value in values)
    text = f"**{text}**" if values[0] == lowest else text
    return f"{text} ({low} – {high})"


def _footnote(records: Sequence[Record]) -> str:
    seeds = sorted({len(record["runs"]) for record in records})
    numbers = (
        f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 2 else " or ".join(map(str, seeds))
    )
    version = records[0]["versions"]
    return (
        f"Median (best – worst) over {numbers} seeds; the budget "
        "is in full-batch gradients, counted in XLA's floating-point operations. "
        "Learning rate and schedule of the tuned methods are the best of a grid. "
        f"jax {version['jax']}, optax {version['optax']}."
    )


def write_into(
    readme: pathlib.Path, table: str, begin_mark: str = BEGIN, end_mark: str = END
) -> None:
    """Replaces the text between two marks of a Markdown file.

    Raises:
        ValueError: if the file does not have both marks, in order.
    """
    text = readme.read_text(encoding="utf8")
    before, begin, rest = text.partition(begin_mark)
    _, end, after = rest.partition(end_mark)
    if not (begin and end):
        raise ValueError(f"{readme} needs the lines {begin_mark} and {end_mark}.")
    readme.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf8")
