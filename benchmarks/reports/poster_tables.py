"""The poster's table with our numbers in it: for the terminal and for the README."""

import math
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from rich.markup import escape
from rich.table import Table

from benchmarks.reports.poster import (
    ADDED,
    COLUMNS,
    ROWS,
    RULE,
    Cell,
    Line,
    summary,
)
from benchmarks.reports.poster_scaling import Scaling
from benchmarks.reports.scaling import table
from benchmarks.reports.tables import floor, make_table, number
from benchmarks.scaling.prediction import POSTER_DEVICES

BEGIN, END = "<!-- poster-table:begin -->", "<!-- poster-table:end -->"
NOT_RUN = "not run"
HEADINGS = {
    "Newton-CG": "Newton-CG, our presets",
    "the poster's method": "the poster's own method",
    "kronecker_adam": "kronecker_adam, for mini-batches",
}
NOTE = (
    "Training loss at the end of the budget: median (best – worst) over the seeds. "
    "Below it the held-out score, and what it took to get as low as the better of Adam "
    "and SGD at the end: gradients, seconds. Of full-batch and mini-batch runs of an "
    "optimizer, the one with the lower loss stands here."
)


class Style(NamedTuple):
    """How the same cells are written for rich and in Markdown, as format strings."""

    mark: str
    poster: str
    not_run: str
    title: str
    between: str


RICH = Style("[bold]{}[/]  ", "poster {}", "[dim]{}[/]\n", "{} {}\n[dim]{}[/]", "\n")
MARKDOWN = Style("**`{}`** ", "(poster `{}`)", "{} ", "{}. {}<br>`{}`", "<br>")


def heading(column: str) -> str:
    return HEADINGS.get(column, f"{column}, tuned")


def loss_text(cell: Cell) -> str:
    values = (number(value, floor(cell.record)) for value in cell.loss)
    return "{} ({} – {})".format(*values)


def examined_text(cell: Cell) -> str:
    """Medians of the further scores of trained parameters, such as BLEU."""
    found: dict[str, list[float]] = {}
    for run in cell.record["runs"]:
        for name, value in run.get("examined", {}).items():
            found.setdefault(name, []).append(math.inf if value is None else value)
    return ", ".join(f"{name} {number(median(v))}" for name, v in found.items())


def cost_text(cell: Cell) -> str:
    """The cost of reaching the level of the better baseline."""
    if cell.units is None:
        return "nothing to compare with"
    if math.isinf(cell.units):
        return "never as low"
    return f"{cell.units:.3g} gradients, {cell.seconds:.3g} s"


def setup_parts(line: Line) -> list[str]:
    """Data, seeds, budget and remark of a line."""
    counts = sorted({len(record["runs"]) for record in line.records})
    seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    parts = (
        line.data,
        f"{seeds} seed{'' if counts == [1] else 's'}",
        f"{line.budget:g} gradient{'' if line.budget == 1 else 's'}",
        line.remark,
    )
    return [part for part in parts if part]


def _row(line: Line, style: Style) -> list[str]:
    """The cells of a line."""
    rich = style is RICH
    setup = NOT_RUN
    if line.cells:
        text = ("\n" if rich else "; ").join(setup_parts(line))
        setup = escape(text) if rich else text

    def entry(column: str) -> str:
        mark = line.row.poster_mark(column)
        poster = style.poster.format(mark) if mark else ""
        if column not in line.cells:
            return style.not_run.format(NOT_RUN) + poster
        cell = line.cells[column]
        name = cell.record["optimizer"]
        own = style.mark.format(cell.mark) if cell.mark else "no mark "
        score = f"{cell.record['metric']} {number(cell.held_out_metric)}"
        parts = [(own + poster).rstrip(), loss_text(cell), score]
        parts += [escape(examined_text(cell))] if rich else []
        parts += [cost_text(cell), f"[dim]{name}[/]" if rich else f"`{name}`"]
        return style.between.join(filter(None, parts))

    title = style.title.format(line.row.number, line.row.title, line.scenario)
    return [title, setup, *map(entry, COLUMNS)]


def rich_table(lines: Sequence[Line]) -> Table:
    """The ten rows of training problems."""
    headings = ("problem", "data, seeds, budget", *map(heading, COLUMNS))
    shown = make_table(
        headings,
        len(headings),
        title="The poster's table, measured",
        caption=NOTE,
        show_lines=True,
    )
    for line in lines:
        shown.add_row(*_row(line, RICH))
    return shown


def scaling_table(found: Sequence[Scaling]) -> Table:
    """The row of the scaling over devices."""
    title = f"{ROWS[-1].number} {ROWS[-1].title}: parallel efficiency"
    headings = ("what", "model, hardware", *map(str, POSTER_DEVICES))
    shown = make_table(headings, 2, title=title, show_lines=True)
    for scaling in found:
        cells = map(scaling.efficiency_text, POSTER_DEVICES)
        shown.add_row(scaling.what, scaling.where, *cells)
    return shown


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
        f"{found.held_out} of {n}." + _added_text(lines)
    )


def _added_text(lines: Sequence[Line]) -> str:
    """The same counts for the optimizer that is not on the poster."""
    found = summary(lines, ADDED)
    if not found.compared:
        return ""
    return (
        f" {ADDED}, without tuning either, which is not Newton-CG: {found.loss}, "
        f"{found.seconds} and {found.held_out} of {found.compared}."
    )


def tuning_text(lines: Sequence[Line]) -> str:
    """The data by which learning rates and schedules were chosen."""
    records = [record for line in lines for record in line.records if record["grid"]]
    chosen = {record.get("tuned_on") or "training" for record in records}
    if not chosen:
        return ""
    where = " or ".join(sorted(chosen))
    return f"Adam and SGD were tuned over a grid by their loss on {where} data."


def not_run(lines: Sequence[Line]) -> str:
    """The scenarios and optimizers that are missing."""
    gaps = [
        f"{line.row.number} {line.row.title} ({line.scenario}"
        + (f": {', '.join(missing)})" if line.cells else ")")
        for line in lines
        for missing in [[name for name in COLUMNS if name not in line.cells]]
        if missing
    ]
    return f"Not run: {'; '.join(gaps)}." if gaps else "Every row was run."


def notes(lines: Sequence[Line]) -> list[str]:
    """The text below the table."""
    found = [headline(lines), tuning_text(lines), not_run(lines), RULE]
    return [note for note in found if note]


def markdown(lines: Sequence[Line], scaling: Sequence[Scaling]) -> str:
    """Both tables and the notes, for a README."""
    headings = ["problem", "data, seeds, budget", *map(heading, COLUMNS)]
    devices = [f"on {count}" for count in POSTER_DEVICES]
    efficiencies = [
        [s.what, s.where, *map(s.efficiency_text, POSTER_DEVICES)] for s in scaling
    ]
    last = f"{ROWS[-1].number}. {ROWS[-1].title}, parallel efficiency"
    parts = [
        headline(lines),
        table(headings, [_row(line, MARKDOWN) for line in lines], left=6),
        NOTE,
        table([last, "model, hardware", *devices], efficiencies, left=2),
        *notes(lines)[1:],
    ]
    return "\n\n".join(parts)
