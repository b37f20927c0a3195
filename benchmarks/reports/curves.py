"""Loss against steps, seconds and gradient-equivalents, as one PNG per scenario."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter, NullFormatter

from benchmarks.reports import ablation
from benchmarks.reports.figures import open_frame, save
from benchmarks.reports.records import Record
from benchmarks.reports.tables import floor

# Okabe and Ito's colours, which people with any kind of colour vision tell apart, and
# two browns for the others; the dashes help in print.
STYLES: dict[str, tuple[str, Any]] = {
    "newton_cg": ("#D55E00", "-"),
    "hessian_free": ("#0072B2", "-"),
    "residual_space": ("#5D4037", "-"),
    "adam": ("#009E73", "--"),
    "sgd": ("#CC79A7", "-."),
    "lbfgs": ("#444444", ":"),
    "adamw": ("#56B4E9", "--"),
    "muon": ("#E69F00", "--"),
    "soap": ("#8C564B", "--"),
    "kfac": ("#000000", "-"),
    "stochastic_hessian_free": ("#0072B2", (0, (1, 1))),
    "kronecker_adam": ("#56B4E9", "-"),
    "sgd_then_hessian_free": ("#0072B2", "-."),
    "poster": ("#D55E00", ":"),
}
STYLES |= {
    f"{name}_minibatch": (STYLES[name][0], (0, (1, 1)))
    for name in ("adam", "sgd", "adamw", "muon", "soap")
} | {
    f"{name}_averaged": (STYLES[name][0], (0, (4, 1, 1, 1)))
    for name in ("adam", "soap")
}
STYLES |= {
    name: (colour, (0, (3, 1, 1, 1, 1, 1)))
    for name, colour in zip(
        ablation.CHANGES,
        ("#009E73", "#D55E00", "#0072B2", "#E69F00", "#CC79A7"),
        strict=True,
    )
}
CEILING = 1e30  # where a run that diverged is drawn
TUNED = ("adam", "sgd", "adamw", "muon", "soap")
LABELS = {
    label: name
    + (", mini-batches" if batches else "")
    + (" (tuned)" if name in TUNED else "")
    for label in STYLES
    for name, batches, _ in [label.partition("_minibatch")]
    if batches or name in TUNED
} | {
    "stochastic_hessian_free": "stochastic_hessian_free, mini-batches",
    "kronecker_adam": "kronecker_adam, mini-batches",
    "sgd_then_hessian_free": "sgd (tuned), then hessian_free",
    "adam_averaged": "adam, averaged, mini-batches (tuned)",
    "soap_averaged": "soap, averaged, mini-batches (tuned)",
    **{name: f"kronecker_adam, {what}" for name, what in ablation.CHANGES.items()},
}
ABREAST = 4  # names of optimizers that fit side by side
PANELS = (
    ("units", "gradient-equivalents", "linear"),
    ("steps", "steps", "log"),
    ("cpu_seconds", "processor seconds, compilation apart", "log"),
)


def plot(records: Sequence[Record], path: pathlib.Path) -> pathlib.Path:
    """Draws a scenario: medians over the seeds, and bands from best to worst."""
    order = list(STYLES)
    ranked = sorted(records, key=lambda r: order.index(r["optimizer"]))
    logarithmic = all(map(positive, ranked))
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), sharey=True)
    for axis, (column, label, scale) in zip(axes, PANELS, strict=True):
        for record in ranked:
            name = record["optimizer"]
            colour, dashes = STYLES[name]
            style = {"color": colour, "ls": dashes, "label": LABELS.get(name, name)}
            draw(axis, record, column, logarithmic, scale == "linear", **style)
        axis.set(xlabel=label, xscale=scale)
        if scale == "log":
            # Labels of minor ticks overlap where there are few decades.
            axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(which="major", color="#e4e4e4", linewidth=0.8)
        open_frame(axis)
    loss_axis(axes[0], ranked, logarithmic)
    axes[0].set_ylabel("training loss")
    axes[0].set_xlim(left=0)
    seeds = max(len(record["runs"]) for record in ranked)
    note = "1 seed" if seeds == 1 else f"median, best and worst of {seeds} seeds"
    figure.suptitle(f"{ranked[0]['description']} ({note})", fontsize=11)
    style = {"loc": "lower center", "ncols": min(len(ranked), ABREAST)}
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, **style)
    rows = math.ceil(len(ranked) / ABREAST)
    figure.tight_layout(rect=(0, 0.02 + 0.05 * rows, 1, 1))
    return save(figure, path)


def draw(
    axis: Axes,
    record: Record,
    column: str,
    logarithmic: bool,
    from_zero: bool,
    color: str,
    **style: Any,
) -> None:
    """Draws the median over the seeds, and a band from the best to the worst.

    The loss of a record against one of the columns of its curves; ``from_zero`` says
    that the axis of the column begins at zero, so it is not logarithmic.
    """
    x, losses = _common_grid(record, column, logarithmic, from_zero)
    axis.plot(x, np.median(losses, 0), color=color, lw=1.8, zorder=3, **style)
    if len(losses) > 1:
        low, high = losses.min(0), losses.max(0)
        axis.fill_between(x, low, high, color=color, alpha=0.15, lw=0)


def loss_axis(axis: Axes, records: Sequence[Record], logarithmic: bool) -> None:
    """Limits the axis, so that an early excursion does not squeeze the rest."""
    low, high = _range(records)
    if not logarithmic:
        room = 0.05 * (high - low) or 1.0
        axis.set_ylim(low - room, high + room)
        return
    low, high = (max(value, floor(records[0])) for value in (low, high))
    room = max((high / low) ** 0.08, 1.05)
    axis.set_yscale("log")
    axis.set_ylim(low / room, high * room)
    # Plain numbers: a loss between 14 and 45 reads badly in powers of ten.
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.4)))


def positive(record: Record) -> bool:
    """Whether all losses of a record have a logarithm, but for rounding."""
    losses = (loss for run in record["runs"] for loss in run["curve"]["loss"])
    return all(loss >= -floor(record) for loss in losses if loss is not None)


def _common_grid(
    record: Record, column: str, logarithmic: bool, from_zero: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The curves of all seeds at the same abscissae, interpolated as they are drawn."""
    curves = [run["curve"] for run in record["runs"]]
    # Start where every seed has a point (the first one is at zero, which a logarithmic
    # axis lacks) and stop where the shortest run ends. Those that diverged never come
    # back.
    first = max(curve[column][min(1, len(curve[column]) - 1)] for curve in curves)
    start = 0.0 if from_zero else first
    ends = [curve[column][-1] for curve in curves if curve["loss"][-1] is not None]
    stop = min(ends, default=max(curve[column][-1] for curve in curves))
    space = np.geomspace if start > 0 else np.linspace
    x = space(start, max(stop, start), 400)
    losses = np.array(
        [np.interp(x, c[column], _scaled(c, record, logarithmic)) for c in curves]
    )
    if logarithmic:
        return x, np.exp(losses)
    low, high = _range([record])
    return x, np.minimum(losses, high + (high - low) + 1)


def _scaled(curve: dict[str, Any], record: Record, logarithmic: bool) -> np.ndarray:
    """Losses as the axis has them: zero leaves it below, divergence above."""
    losses = np.array([np.inf if loss is None else loss for loss in curve["loss"]])
    losses = np.minimum(losses, CEILING)
    return np.log(np.maximum(losses, floor(record) / 10)) if logarithmic else losses


def _range(records: Sequence[Record]) -> tuple[float, float]:
    """The lowest loss at an end or a start, and the highest at a start."""
    runs = [run for record in records for run in record["runs"]]
    starts = [run["curve"]["loss"][0] for run in runs]
    starts = [loss for loss in starts if loss is not None] or [1.0]
    ends = [run["loss"] for run in runs if run["loss"] is not None]
    return min(starts + ends), max(starts)
