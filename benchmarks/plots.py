"""Loss against steps, seconds and gradient-equivalents, as one PNG per scenario."""

import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")  # a file is all we draw; no display is needed
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter

from benchmarks.records import Record
from benchmarks.report import floor

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
    "hessian_free_minibatch": ("#0072B2", (0, (1, 1))),
    "poster": ("#D55E00", ":"),
    "adam_minibatch": ("#009E73", (0, (1, 1))),
    "sgd_minibatch": ("#CC79A7", (0, (1, 1))),
    "adamw_minibatch": ("#56B4E9", (0, (1, 1))),
    "muon_minibatch": ("#E69F00", (0, (1, 1))),
    "soap_minibatch": ("#8C564B", (0, (1, 1))),
}
TUNED = ("adam", "sgd", "adamw", "muon", "soap")
LABELS = {
    label: name
    + (", mini-batches" if batches else "")
    + (" (tuned)" if name in TUNED else "")
    for label in STYLES
    for name, batches, _ in [label.partition("_minibatch")]
    if batches or name in TUNED
}
PANELS = (
    ("units", "gradient-equivalents", "linear"),
    ("steps", "steps", "log"),
    ("cpu_seconds", "processor seconds, compilation apart", "log"),
)


def plot(records: Sequence[Record], path: pathlib.Path) -> pathlib.Path:
    """Draws the results of one scenario: medians over seeds, bands from best to worst.

    Args:
        records: one per contender, all of the same scenario.
        path: the PNG to write.
    """
    order = list(STYLES)
    ranked = sorted(records, key=lambda r: order.index(r["optimizer"]))
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), sharey=True)
    for axis, (column, label, scale) in zip(axes, PANELS, strict=True):
        for record in ranked:
            _draw(axis, record, column, positive=scale == "log")
        axis.set(xlabel=label, xscale=scale, yscale="log")
        axis.grid(which="major", color="#e4e4e4", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    _limit(axes[0], ranked)
    axes[0].set_ylabel("training loss")
    # Plain numbers: a loss between 14 and 45 reads badly in powers of ten.
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.4)))
    axes[0].set_xlim(left=0)
    seeds = max(len(record["runs"]) for record in ranked)
    note = "1 seed" if seeds == 1 else f"median, best and worst of {seeds} seeds"
    figure.suptitle(f"{ranked[0]['description']} ({note})", fontsize=11)
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="lower center",
        ncols=min(len(ranked), 5),
        frameon=False,
    )
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the software tag the same data give the same bytes.
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)
    return path


def _draw(axis: Axes, record: Record, column: str, positive: bool) -> None:
    name = record["optimizer"]
    x, losses = _common_grid(record, column, positive)
    colour, dashes = STYLES[name]
    label = LABELS.get(name, name)
    middle = np.median(losses, 0)
    axis.plot(x, middle, ls=dashes, color=colour, label=label, lw=1.8, zorder=3)
    if len(losses) > 1:
        low, high = losses.min(0), losses.max(0)
        axis.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)


def _common_grid(
    record: Record, column: str, positive: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The curves of all seeds at the same abscissae, interpolated in the logarithm."""
    curves = [run["curve"] for run in record["runs"]]
    # Start where every seed has a point (the first one is at zero, which a logarithmic
    # axis lacks) and stop where the shortest run ends.
    first = max(curve[column][min(1, len(curve[column]) - 1)] for curve in curves)
    start = first if positive else 0.0
    stop = min(curve[column][-1] for curve in curves)
    space = np.geomspace if positive and start > 0 else np.linspace
    x = space(start, max(stop, start), 400)
    losses = [
        np.exp(np.interp(x, curve[column], np.log(_positive(curve["loss"], record))))
        for curve in curves
    ]
    return x, np.array(losses)


def _positive(losses: Sequence[float | None], record: Record) -> np.ndarray:
    """Losses for a logarithmic axis: zero leaves it below, divergence above."""
    values = np.array([np.inf if loss is None else loss for loss in losses], float)
    return np.clip(values, floor(record) / 10, 1e30)


def _limit(axis: Axes, records: Sequence[Record]) -> None:
    """Limits the loss axis, so that an early excursion does not squeeze the rest."""
    starts = [run["curve"]["loss"][0] for r in records for run in r["runs"]]
    finals = [run["loss"] for r in records for run in r["runs"] if run["loss"]]
    lowest = floor(records[0])
    low = max(min(finals, default=lowest), lowest)
    axis.set_ylim(low / 1.5, max(starts) * 1.5)
