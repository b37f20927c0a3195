"""The table of what each part of `kronecker_adam` buys."""

from collections.abc import Sequence

from benchmarks.reports.minibatch import OURS
from benchmarks.reports.records import Record, spread
from benchmarks.reports.scaling import table
from benchmarks.reports.tables import floor, number

BEGIN, END = "<!-- ablation-table:begin -->", "<!-- ablation-table:end -->"
# Each with the name of its column.
CHANGES = {
    "kronecker_adam_last": "at the last iterate",
    "kronecker_adam_unrotated": "without bases",
    "kronecker_adam_blocks": "long sides in blocks",
    "kronecker_adam_tuned": "constant rate, tuned",
    "kronecker_adam_curvature": "curvature products in the bases",
}
NOTE = (
    "Training loss at the end; below it the lowest held-out loss, as validation data "
    "find it. Medians over the seeds, the lowest of a row bold. *Without bases* it is "
    "Adam at the rate that is found, with the same average. The tuned rate is the best "
    "of those half a decade apart by the training loss of seed 0, and it stands below."
)


def grouped(records: Sequence[Record]) -> dict[str, dict[str, Record]]:
    """The preset and its changes, by scenario and optimizer.

    Scenarios without the preset or without a change are left out.
    """
    found: dict[str, dict[str, Record]] = {}
    for record in records:
        if record["optimizer"] in (OURS, *CHANGES):
            found.setdefault(record["scenario"], {})[record["optimizer"]] = record
    return {name: g for name, g in found.items() if OURS in g and len(g) > 1}


def markdown(groups: dict[str, dict[str, Record]]) -> str:
    """The table and the note."""
    columns = {OURS: OURS} | CHANGES
    rows = []
    for name, group in groups.items():
        losses = {optimizer: _losses(record) for optimizer, record in group.items()}
        lowest = [min(values) for values in zip(*losses.values(), strict=True)]
        budget, seeds = group[OURS]["budget"], len(group[OURS]["runs"])
        cells = [_cell(group[o], lowest) if o in group else "not run" for o in columns]
        rows.append([f"`{name}`<br>{budget:g} gradients, {seeds} seeds", *cells])
    return table(["problem", *columns.values()], rows) + "\n\n" + NOTE


def _losses(record: Record) -> tuple[float, float]:
    """Medians of the training loss at the end and of the validated held-out loss."""
    training = spread(record, lambda run: run["loss"])[0]
    return training, spread(record, lambda run: run["validated"]["loss"])[0]


def _cell(record: Record, lowest: Sequence[float]) -> str:
    texts = [number(value, floor(record)) for value in _losses(record)]
    shown = [
        f"**{text}**" if value == best else text
        for text, value, best in zip(texts, _losses(record), lowest, strict=True)
    ]
    rates = [cell["learning_rate"] for cell in record["grid"] if cell["winner"]]
    return "<br>".join([*shown, *(f"rate {number(rate)}" for rate in rates)])
