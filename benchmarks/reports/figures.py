"""Figures: drawn without a display, and saved."""

import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def save(figure: Figure, path: pathlib.Path | str, dpi: int = 120) -> pathlib.Path:
    """Writes a PNG, and the folders above it, and closes the figure."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the software tag the same data give the same bytes.
    figure.savefig(path, dpi=dpi, metadata={"Software": None})
    plt.close(figure)
    return path


def open_frame(*axes: Axes) -> None:
    """Leaves out the lines above and to the right."""
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
