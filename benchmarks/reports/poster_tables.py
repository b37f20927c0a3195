"""The poster's table with our numbers in it: for the terminal and for the README."""

import math
from collections.abc import Sequence
from statistics import median

from rich.markup import escape
from rich.table import Table

from benchmarks.reports.poster import COLUMNS, ROWS, RULE, Cell, Line, summary
from benchmarks.reports.poster_scaling import Scaling
from benchmarks.reports.tables import floor, number
from benchmarks.scaling.prediction import POSTER_DEVICES

BEGIN, END = "<!-- poster-table:begin -->", "<!-- poster-table:end -->"
NOT_RUN = "not run"
HEADINGS = {
    "Newton-CG": "Newton-CG, our presets",
    "the poster's method": "the poster's own method",
}
NOTE = (
    "Training loss at the end of the budget: median (best – worst) over the seeds. "
    "Below it the held-out score, and what it took to get as low as the better of Adam "
    "and SGD at the end: gradients, seconds. Of full-batch and mini-batch runs of an "
    "optimizer, the one with the lower loss stands here."
)


def heading(column: str) -> str:
    return HEADINGS.get(column, f"{column}, tuned")


def loss_text(cell: Cell) -> str:
    values = (number(value, floor(cell.record)) for value in cell.loss)
    return "{} ({} – {})".format(*values)


def held_out_text(cell: Cell) -> str:
    return f"{cell.record['metric']} {number(cell.held_out_metric)}"


def examined_text(cell: Cell) -> str:
    """Medians of what the scenario says of trained parameters besides, such as BLEU."""
    found: dict[str, list[float]] = {}
    for run in cell.record["runs"]:
        for name, value in run.get("examined", {}).items():
            found.setdefault(name, []).append(math.inf if value is None else value)
    return ", ".join(f"{name} {number(median(v))}" for name, v in found.items())


def cost_text(cell: Cell) -> str:
    """What it took to reach the level of the better baseline.

    Example:
        >>> cost_text(Cell({}, "o", (1.0, 1.0, 1.0), math.inf, math.inf, 1.0, 1.0))
        'never as low'
    """
    if cell.units is None:
        return "nothing to compare with"
    if math.isinf(cell.units):
        return "never as low"
    return f"{cell.units:.3g} gradients, {cell.seconds:.3g} s"


def seeds_text(line: Line) -> str:
    counts = sorted({len(record["runs"]) for record in line.records})
    seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    return f"{seeds} seed{'' if counts == [1] else 's'}"


def budget_text(line: Line) -> str:
    return f"{line.budget:g} gradient{'' if line.budget == 1 else 's'}"


def rich_table(lines: Sequence[Line]) -> Table:
    """The ten rows of training problems."""
    table = Table(title="The poster's table, measured", caption=NOTE, show_lines=True)
    for name in ("problem", "data, seeds, budget", *map(heading, COLUMNS)):
        table.add_column(name)

    def entry(line: Line, column: str) -> str:
        poster = f"poster {line.row.poster_mark(column)}"
        if column not in line.cells:
            return f"[dim]{NOT_RUN}[/]\n{poster}"
        cell = line.cells[column]
        parts = [
            f"[bold]{cell.mark or 'no mark'}[/]  {poster}",
            loss_text(cell),
            held_out_text(cell),
            escape(examined_text(cell)),
            cost_text(cell),
            f"[dim]{cell.record['optimizer']}[/]",
        ]
        return "\n".join(filter(None, parts))

    for line in lines:
        what = f"{line.row.number} {line.row.title}\n[dim]{line.scenario}[/]"
        how = f"[dim]{NOT_RUN}[/]"
        if line.cells:
            parts = [line.data, seeds_text(line), budget_text(line), line.remark]
            how = escape("\n".join(filter(None, parts)))
        table.add_row(what, how, *(entry(line, column) for column in COLUMNS))
    return table


def scaling_table(found: Sequence[Scaling]) -> Table:
    """The row of the scaling over devices."""
    table = Table(
        title=f"{ROWS[-1].number} {ROWS[-1].title}: parallel efficiency",
        show_lines=True,
    )
    table.add_column("what")
    table.add_column("model, hardware")
    for devices in POSTER_DEVICES:
        table.add_column(f"{devices}", justify="right")
    for scaling in found:
        cells = map(scaling.efficiency_text, POSTER_DEVICES)
        table.add_row(scaling.what, scaling.where, *cells)
    return table


def headline(lines: Sequence[Line]) -> str:
    """On how many problems Newton-CG is as good as tuned Adam and SGD."""
    found = summary(lines)
    if not found.compared:
        return "Nothing to compare: no problem has been run with Newton-CG and Adam."
    n = found.compared
    clocks = {line.clock for line in lines if line.cells}
    seconds = "processor seconds" if clocks == {"cpu_seconds"} else "seconds"
    return (
        "Against the better of tuned Adam and SGD, at the same number of gradients, "
        f"Newton-CG without tuning ends at least as low in training loss on "
        f"{found.loss} of {n} problems; it takes fewer {seconds} to where they end on "
        f"{found.seconds} of {n}; its held-out loss is not higher on "
        f"{found.held_out} of {n}."
    )


def tuning_text(lines: Sequence[Line]) -> str:
    """What the learning rates and schedules were chosen by."""
    chosen = {
        record.get("tuned_on") or "training"
        for line in lines
        for record in line.records
        if record.get("grid")
    }
    if not chosen:
        return ""
    where = " or ".join(sorted(chosen))
    return f"Adam and SGD were tuned over a grid by their loss on {where} data."


def not_run(lines: Sequence[Line]) -> str:
    """What is missing."""
    gaps = [
        f"{line.row.number} {line.row.title} ({line.scenario}"
        + (f": {', '.join(missing)})" if line.cells else ")")
        for line in lines
        for missing in [[name for name in COLUMNS if name not in line.cells]]
        if missing
    ]
    return f"Not run: {'; '.join(gaps)}." if gaps else "Every row was run."


def notes(lines: Sequence[Line]) -> list[str]:
    """What has to be said below the table."""
    found = [headline(lines), tuning_text(lines), not_run(lines), RULE]
    return [note for note in found if note]


def markdown(lines: Sequence[Line], scaling: Sequence[Scaling]) -> str:
    """Both tables and the notes, for a README."""

    def entry(line: Line, column: str) -> str:
        poster = f"`{line.row.poster_mark(column)}`"
        if column not in line.cells:
            return f"{NOT_RUN} (poster {poster})"
        cell = line.cells[column]
        mark = f"**`{cell.mark}`**" if cell.mark else "no mark"
        parts = [f"{mark} (poster {poster})", loss_text(cell), held_out_text(cell)]
        name = f"`{cell.record['optimizer']}`"
        return "<br>".join([*parts, cost_text(cell), name])

    def row(line: Line) -> list[str]:
        how = NOT_RUN
        if line.cells:
            parts = [line.data, seeds_text(line), budget_text(line), line.remark]
            how = "; ".join(filter(None, parts))
        what = f"{line.row.number}. {line.row.title}<br>`{line.scenario}`"
        return [what, how, *(entry(line, column) for column in COLUMNS)]

    headings = ["problem", "data, seeds, budget", *map(heading, COLUMNS)]
    devices = [f"on {count}" for count in POSTER_DEVICES]
    efficiencies = [
        [s.what, s.where, *map(s.efficiency_text, POSTER_DEVICES)] for s in scaling
    ]
    last = f"{ROWS[-1].number}. {ROWS[-1].title}, parallel efficiency"
    parts = [
        headline(lines),
        _table(headings, [row(line) for line in lines]),
        NOTE,
        _table([last, "model, hardware", *devices], efficiencies),
        *notes(lines)[1:],
    ]
    return "\n\n".join(parts)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table. A bar within a cell would end it."""
    cells = [headings, ["---"] * len(headings), *rows]
    clean = ([cell.replace("|", "\\|") for cell in row] for row in cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in clean)
