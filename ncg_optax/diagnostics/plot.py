"""A plot of a run: six panels over the steps."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ncg_optax._utils.status import Status
from ncg_optax.diagnostics.base import Array
from ncg_optax.diagnostics.optional import import_optional
from ncg_optax.diagnostics.read_infos import read_infos
from ncg_optax.step.info import NewtonCGInfo

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which can be distinguished with any kind of colour vision.
_BLUE, _ORANGE, _GREEN, _RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
_GREY = "#888888"
# The markers of the steps: label, statuses, colour, marker.
_MARKS = (
    ("accepted", (Status.ACCEPTED, Status.NOT_EVALUATED), _GREEN, "."),
    ("shortened", (Status.SHORTENED,), _ORANGE, "v"),
    (
        "steepest descent",
        (Status.STEEPEST_DESCENT, Status.NON_FINITE_CURVATURE),
        _BLUE,
        "s",
    ),
    (
        "rejected",
        (
            Status.REJECTED_NO_DECREASE,
            Status.REJECTED_NON_FINITE,
            Status.SUMMED_LOSS,
        ),
        _RED,
        "x",
    ),
)


def plot(
    history: Any, title: str | None = None, figure: "Figure | None" = None
) -> "Figure":
    """Draws a run: loss, gradient, damping, ratio, work and step sizes.

    Six panels over the steps. The panel of the damping also shows the curvature along
    the steps: if the damping is far above it, steps are short. The band in the panel of
    the ratios is where :func:`ncg_optax.levenberg_marquardt` does not change the
    damping; ratios outside the panel are drawn at its edge.

    Args:
      history: states or infos, oldest first, or an info stacked along a first axis of
        steps, as :func:`ncg_optax.diagnose` takes them.
      title: of the figure.
      figure: an empty ``matplotlib.figure.Figure`` to draw into; None makes one without
        pyplot, which needs no display. In a notebook that does not show it, pass
        ``plt.figure(figsize=(10, 5.5), layout="constrained")``.

    Returns:
      The ``matplotlib.figure.Figure``; ``savefig`` writes it to a file.

    Raises:
      ImportError: if matplotlib is not installed.
      TypeError: if it is called under jit.
      ValueError: if no step has been taken yet, or as :func:`ncg_optax.diagnose`.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> import ncg_optax as ncg
      >>> from ncg_optax import watch
      >>> f = lambda w: jnp.sum(jnp.cosh(w))
      >>> tx, w = ncg.newton_cg(), jnp.array([2.0, 1.0])
      >>> def step(carry, _):
      ...     w, state = carry
      ...     updates, state = tx.update(jax.grad(f)(w), state, w, value_fn=f)
      ...     return (optax.apply_updates(w, updates), state), ncg.get_info(state)
      >>> _, infos = jax.lax.scan(step, (w, tx.init(w)), length=6)
      >>> figure = watch.plot(infos, title="a bowl")
      >>> [axes.get_title() for axes in figure.axes][:3]
      ['loss', 'gradient norm', 'damping']
    """
    info = read_infos("watch.plot", history)
    started = info.status != Status.NOT_STARTED
    if not started.any():
        raise ValueError("watch.plot: no step has been taken yet, nothing to draw.")
    figure = _new_figure() if figure is None else figure
    steps = 1 + np.flatnonzero(started)
    info = NewtonCGInfo._make(np.asarray(x[started], np.float64) for x in info)
    axes = figure.subplots(2, 3, sharex=True).ravel()
    panels = (_losses, _gradients, _dampings, _ratios, _work, _step_sizes)
    for ax, panel in zip(axes, panels, strict=True):
        panel(ax, steps, info)
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[3:]:
        ax.set_xlabel("step")
        ax.xaxis.get_major_locator().set_params(integer=True)
    if title:
        figure.suptitle(title)
    return figure


def _new_figure() -> "Figure":
    figure = import_optional("matplotlib.figure", "plot")
    return figure.Figure(figsize=(10, 5.5), layout="constrained")


def _line(ax: "Axes", steps: Array, y: Array, **style: Any) -> None:
    # A run of one step has no line, so it needs a marker.
    marker = "." if len(steps) < 40 else None
    ax.plot(steps, y, linewidth=1.2, marker=marker, markersize=4, **style)


def _positive(y: Array) -> Array:
    """``y`` without what a logarithmic axis cannot show."""
    return np.where(y > 0, y, np.nan)


def _losses(ax: "Axes", steps: Array, info: NewtonCGInfo) -> None:
    finite = info.loss[np.isfinite(info.loss)]
    if len(finite) and np.all(finite >= 0) and np.any(finite > 0):
        ax.set_yscale("log")
        _line(ax, steps, _positive(info.loss), color=_BLUE)
    else:
        _line(ax, steps, info.loss, color=_BLUE)
    if not len(finite):
        ax.text(0.5, 0.5, "not finite", ha="center", transform=ax.transAxes)
    ax.set_title("loss")


def _gradients(ax: "Axes", steps: Array, info: NewtonCGInfo) -> None:
    if np.any(info.gradient_norm > 0):
        ax.set_yscale("log")
    _line(ax, steps, _positive(info.gradient_norm), color=_BLUE)
    ax.set_title("gradient norm")


def _dampings(ax: "Axes", steps: Array, info: NewtonCGInfo) -> None:
    if np.any(info.damping > 0) or np.any(info.curvature > 0):
        ax.set_yscale("log")
    curvature = _positive(info.curvature)
    ax.plot(steps, curvature, ".", color=_GREY, markersize=3, label="curvature")
    _line(ax, steps, _positive(info.damping), color=_BLUE, label="damping")
    ax.set_title("damping")
    ax.legend(fontsize="x-small")


def _ratios(ax: "Axes", steps: Array, info: NewtonCGInfo) -> None:
    low, high = -0.5, 2.0
    tried = (info.evaluations > 0) & (info.step_size > 0)
    ratio = np.clip(info.reduction_ratio[tried], low, high)
    ax.axhspan(0.25, 0.75, color=_GREY, alpha=0.2, linewidth=0)
    ax.axhline(1.0, color=_GREY, linewidth=0.8)
    ax.plot(steps[tried], ratio, ".", color=_BLUE, markersize=5)
    ax.set_ylim(low - 0.1, high + 0.1)
    ax.set_title("reduction ratio" if tried.any() else "reduction ratio (not measured)")


def _work(ax: "Axes", steps: Array, info: NewtonCGInfo) -> None:
    _line(ax, steps, info.products, color=_GREY, label="curvature products")
    _line(ax, steps, info.cg_iterations, color=_BLUE, label="iterations")
    ax.set_ylim(bottom=0)
    ax.set_title("work")
    ax.legend(fontsize="x-small")


def _step_sizes(ax: "Axes", steps: Array, info: NewtonCGInfo) -> None:
    taken = info.step_size[info.step_size > 0]
    bottom = 0.5 * np.min(taken, initial=0.2)
    ax.set_yscale("log")
    for label, statuses, colour, marker in _MARKS:
        at = np.isin(info.status, statuses)
        if at.any():
            # Rejected steps have size 0: they are drawn at the bottom.
            size = np.maximum(info.step_size[at], bottom)
            ax.plot(steps[at], size, marker, color=colour, markersize=5, label=label)
    ax.set_ylim(0.8 * bottom, 2 * np.max(taken, initial=1.0))
    ax.set_title("step size")
    if ax.lines:
        ax.legend(fontsize="x-small")
