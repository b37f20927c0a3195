"""The poster's rows in one figure: a small picture for each, all alike."""

import math
import pathlib
from collections.abc import Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from benchmarks.reports import curves as plots
from benchmarks.reports.figures import open_frame, save
from benchmarks.reports.poster import COLUMNS, ROWS, Line
from benchmarks.reports.poster_scaling import Scaling
from benchmarks.reports.poster_tables import NOT_RUN, heading
from benchmarks.scaling.prediction import POSTER_DEVICES

# Of the colours of plots.STYLES. Every line has its own dashes, for print.
STYLES = {
    "Adam": {"color": "#009E73", "ls": "--"},
    "SGD": {"color": "#CC79A7", "ls": "-."},
    "Newton-CG": {"color": "#0072B2", "ls": "-"},
    "the poster's method": {"color": "#D55E00", "ls": ":"},
    "kronecker_adam": {"color": "#56B4E9", "ls": (0, (5, 1))},
}
COLOURS = ("#444444", "#009E73", "#D55E00", "#0072B2", "#56B4E9", "#E69F00", "#CC79A7")
SHORT = ("Adam", "SGD", "Newton-CG", "poster", "kronecker_adam")
NAMES = dict(zip(COLUMNS, SHORT, strict=True))
MINUS = "\N{MINUS SIGN}"  # wider than a hyphen
ACROSS = 4
GREY = "#777777"


def overview(
    lines: Sequence[Line], scaling: Sequence[Scaling], path: pathlib.Path
) -> pathlib.Path:
    """Draws loss against gradients for all rows, and the efficiency of the last one.

    The pictures of rows that were not run stay empty.
    """
    down = math.ceil((len(lines) + 1) / ACROSS)
    figure, grid = plt.subplots(down, ACROSS, figsize=(13, 2.75 * down + 0.9))
    axes = list(grid.flat)
    for axis, line in zip(axes, lines, strict=False):
        _problem(axis, line)
    _scaling(axes[len(lines)], scaling)
    for axis in axes[len(lines) + 1 :]:
        axis.set_axis_off()
    figure.suptitle(
        "The poster's rows: training loss against gradient-equivalents, with our marks",
        fontsize=13,
    )
    figure.legend(
        handles=[
            Line2D([], [], lw=2, label=heading(column), **style)
            for column, style in STYLES.items()
        ],
        loc="lower center",
        ncols=len(COLUMNS),
        frameon=False,
        fontsize=11,
    )
    figure.tight_layout(rect=(0, 0.5 / figure.get_figheight(), 1, 0.99))
    return save(figure, path)


def _frame(axis: Axes, title: str, subtitle: str) -> None:
    axis.set_title(title, fontsize=10, loc="left", pad=16)
    axis.text(0, 1.03, subtitle, transform=axis.transAxes, fontsize=8, color=GREY)
    axis.grid(which="major", color="#e4e4e4", linewidth=0.8)
    open_frame(axis)
    axis.tick_params(labelsize=8)
    axis.tick_params(which="minor", labelsize=7)


def _problem(axis: Axes, line: Line) -> None:
    _frame(axis, f"{line.row.number}  {line.row.title}", line.scenario)
    if not line.cells:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        centre = {"transform": axis.transAxes, "ha": "center"}
        axis.text(0.5, 0.5, NOT_RUN, color=GREY, **centre)
        return
    logarithmic = all(map(plots.positive, line.records))
    for column, cell in line.cells.items():
        style = STYLES[column]
        plots.draw(axis, cell.record, "units", logarithmic, True, **style)
    plots.loss_axis(axis, line.records, logarithmic)
    axis.set_xlim(0, line.budget)
    for place, (column, cell) in enumerate(line.cells.items()):
        text = f"{NAMES[column]} {(cell.mark or '').replace('-', MINUS)}"
        style = {"color": STYLES[column]["color"], "fontweight": "bold", "fontsize": 8}
        box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1}
        style |= {"transform": axis.transAxes, "ha": "right", "va": "top"}
        axis.text(0.99, 0.98 - 0.1 * place, text, bbox=box, **style)


def _scaling(axis: Axes, scaling: Sequence[Scaling]) -> None:
    """Efficiency against devices: the poster's, what we measured and predict."""
    row = ROWS[-1]
    _frame(axis, f"{row.number}  {row.title}", "parallel efficiency against devices")
    shown = [found for found in scaling if found.efficiency]
    for place, (found, colour) in enumerate(zip(shown, cycle(COLOURS), strict=False)):
        counts = [n for n in POSTER_DEVICES if n in found.efficiency]
        bounds = [found.efficiency[count] for count in counts]
        low, high = np.transpose(bounds)
        if found.measured:
            axis.plot(counts, low, color=colour, label=found.what, marker="o", ms=4)
            continue
        beside = np.array(counts) * 1.05 ** (place - len(shown))  # side by side
        middle, half = (low + high) / 2, (high - low) / 2
        style = {"color": colour, "label": found.what, "ls": "none", "capsize": 4}
        axis.errorbar(beside, middle, half, **style)
    axis.set_xscale("log", base=2)
    axis.set_xticks(POSTER_DEVICES, map(str, POSTER_DEVICES))
    axis.set_ylim(0, 1.1)
    # There is room on the right: this is the last picture.
    legend = axis.legend(frameon=False, fontsize=8, bbox_to_anchor=(1.02, 1), loc=2)
    legend.set_in_layout(False)
