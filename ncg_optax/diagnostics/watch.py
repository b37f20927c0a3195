"""Watching a run: numbers for a logger, a live table, a plot.

Import it by name, ``from ncg_optax import watch``. :func:`to_dict` needs nothing else;
:func:`live_table` needs rich and :func:`plot` matplotlib, which come with ``pip install
"ncg_optax[watch]"`` and are imported when they are used. What the numbers say about a
run is told by :func:`ncg_optax.diagnose`.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ncg_optax._utils import validate
from ncg_optax._utils.status import Status, explain
from ncg_optax.diagnostics import read_infos as _history
from ncg_optax.step.info import NewtonCGInfo

if TYPE_CHECKING:
    import rich.console
    import rich.table
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PyTree = Any


def to_dict(
    state: PyTree, prefix: str = "", words: bool = False
) -> dict[str, float | str]:
    """What the last step measured as a flat dictionary, for a logger.

    All numbers come to the host in one transfer, which waits for the step to be done.

    Args:
      state: an optimizer state that contains a :class:`NewtonCGInfo`, or an info; of
        ``pmap`` too if the devices agree.
      prefix: put before each name, such as ``"newton_cg/"``.
      words: add ``status_name`` and ``solver_status_name``, such as ``"SHORTENED"``,
        for loggers that take text (``wandb.log`` does, TensorBoard's ``add_scalar``
        does not).

    Returns:
      The fields of the :class:`NewtonCGInfo` by name, as Python floats; status codes
      too. The names are the same at every step.

    Raises:
      TypeError: if it is called under jit.
      ValueError: if there is no info, more than one, or one of several steps; if the
        devices disagree.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> from ncg_optax import watch
      >>> f = lambda w: jnp.sum((w - 1.0) ** 2)
      >>> tx, w = ncg.newton_cg(damping=0.0), jnp.zeros(2)
      >>> _, state = tx.update(-2.0 * jnp.ones(2), tx.init(w), w, value_fn=f)
      >>> numbers = watch.to_dict(state, prefix="newton_cg/")
      >>> numbers["newton_cg/loss"], numbers["newton_cg/cg_iterations"]
      (2.0, 1.0)
      >>> watch.to_dict(state, words=True)["status_name"]
      'ACCEPTED'

      With TensorBoard, ``for name, x in watch.to_dict(state).items():
      writer.add_scalar(name, x, step)``; with Weights & Biases,
      ``wandb.log(watch.to_dict(state, words=True), step)``.
    """
    info = _history.read_one("watch.to_dict", state)
    numbers = {name: float(x) for name, x in info._asdict().items()}
    if words:
        for name in ("status", "solver_status"):
            numbers[f"{name}_name"] = Status(int(getattr(info, name))).name
    return {f"{prefix}{name}": x for name, x in numbers.items()}


def _import(module: str, who: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"watch.{who} needs {package}, which cannot be imported: "
            'pip install "ncg_optax[watch]"'
        ) from error


# The live table.


@contextlib.contextmanager
def live_table(
    rows: int = 12, every: int = 1, console: "rich.console.Console | None" = None
) -> Iterator[Callable[[PyTree], None]]:
    """A table of the last steps that is redrawn in the terminal while training.

    A context that yields a function: call it with the state (or the info) after every
    step. Below the table stands in words how the last step went. Where the output is no
    terminal the table is printed once, at the end.

    Showing a step waits until it is done, and fetches its numbers in one transfer. If
    steps take less than some milliseconds show only ``every`` so many.

    Args:
      rows: how many steps to show.
      every: show each ``every``-th step; the others are counted but not fetched.
      console: a ``rich.console.Console`` to print to; None for the standard output.

    Yields:
      ``show(state)``.

    Raises:
      ImportError: if rich is not installed.
      TypeError: if a setting is not an integer; in ``show``, if it is called under jit
        (there, ``jax.debug.callback(show, info)`` works).
      ValueError: if a setting is below 1; in ``show``, as :func:`to_dict`.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> import ncg_optax as ncg
      >>> from ncg_optax import watch
      >>> f = lambda w: jnp.sum(jnp.cosh(w))
      >>> tx, w = ncg.newton_cg(), jnp.array([2.0, 1.0])
      >>> step = jax.jit(lambda w, s: tx.update(jax.grad(f)(w), s, w, value_fn=f))
      >>> state = tx.init(w)
      >>> with watch.live_table() as show:
      ...     for _ in range(4):
      ...         updates, state = step(w, state)
      ...         w = optax.apply_updates(w, updates)
      ...         show(state)
       step       loss   gradient   damping ...
      ...
    """
    validate.integer("watch.live_table: rows", rows, low=1)
    validate.integer("watch.live_table: every", every, low=1)
    live = _import("rich.live", "live_table")
    # Replaced as a whole, since another thread draws them.
    seen: tuple[tuple[int, NewtonCGInfo], ...] = ()
    calls = 0

    def show(state: PyTree) -> None:
        nonlocal seen, calls
        calls += 1
        if calls % every == 0:
            info = _history.read_one("watch.live_table", state)
            seen = (*seen, (calls, info))[-rows:]

    with live.Live(get_renderable=lambda: _table(seen), console=console):
        yield show


# What became of a step, and of its solve, in 10 letters; and in which style.
_WORDS = {
    Status.NOT_STARTED: ("none yet", ""),
    Status.ACCEPTED: ("accepted", "green"),
    Status.SHORTENED: ("shortened", "yellow"),
    Status.NOT_EVALUATED: ("taken", ""),
    Status.STEEPEST_DESCENT: ("steepest", "yellow"),
    Status.REJECTED_NO_DECREASE: ("rejected", "red"),
    Status.REJECTED_NON_FINITE: ("not finite", "bold red"),
    Status.ZERO_GRADIENT: ("gradient 0", ""),
    Status.SUMMED_LOSS: ("summed", "bold red"),
    Status.RESIDUAL_CONVERGED: ("solved", ""),
    Status.PROGRESS_STALLED: ("stalled", ""),
    Status.MAX_ITERATIONS: ("at its cap", ""),
    Status.NEGATIVE_CURVATURE: ("neg. curv.", "yellow"),
    Status.TRUST_REGION_BOUNDARY: ("boundary", ""),
    Status.ZERO_RIGHT_HAND_SIDE: ("gradient 0", ""),
    Status.ZERO_CURVATURE: ("flat", "red"),
    Status.INDEFINITE_PRECONDITIONER: ("indefinite", "red"),
    Status.SOLVER_NON_FINITE: ("not finite", "bold red"),
    Status.ONE_STEP: ("one step", ""),
    Status.LONGEST_STEP: ("longest", ""),
}


def _table(seen: tuple[tuple[int, NewtonCGInfo], ...]) -> "rich.table.Table":
    from rich.table import Table
    from rich.text import Text

    # Narrow enough for 80 columns.
    table = Table(
        box=None, padding=(0, 1, 0, 0), header_style="bold", caption_justify="left"
    )
    numbers = ("step", "loss", "gradient", "damping", "cg", "prod", "ratio", "size")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("solver", no_wrap=True)
    for step, info in seen:
        ratio = f"{info.reduction_ratio:.2f}" if info.evaluations > 0 else "-"
        table.add_row(
            f"{step:4}",
            f"{info.loss:.4e}",
            f"{info.gradient_norm:.2e}",
            f"{info.damping:.1e}",
            f"{info.cg_iterations:3}",
            f"{info.products:4}",
            f"{ratio:>5}",
            f"{info.step_size:6.2g}",
            *(
                Text(*_WORDS.get(int(code), (str(code), "")))
                for code in (info.status, info.solver_status)
            ),
        )
    if seen:
        last = seen[-1][1]
        table.caption = Text(f"{explain(last.status)} {explain(last.solver_status)}")
    return table


# The plot.

# Okabe and Ito's colours, which people with any kind of colour vision tell apart.
_BLUE, _ORANGE, _GREEN, _RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
_GREY = "#888888"
# What the mark of a step looks like: label, statuses, colour, marker.
_MARKS = (
    ("accepted", (Status.ACCEPTED, Status.NOT_EVALUATED), _GREEN, "."),
    ("shortened", (Status.SHORTENED,), _ORANGE, "v"),
    ("steepest descent", (Status.STEEPEST_DESCENT,), _BLUE, "s"),
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

    Six small panels over the steps. Beside the damping stands the curvature along the
    steps: where the damping is far above, steps are short. The band in the panel of the
    ratios is where :func:`ncg_optax.levenberg_marquardt` leaves the damping alone;
    ratios that leave the panel are drawn at its edge.

    Args:
      history: states or infos, oldest first, or an info stacked along a first axis of
        steps: all that :func:`ncg_optax.diagnose` takes.
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
    info = _history.read("watch.plot", history)
    started = info.status != Status.NOT_STARTED
    if not started.any():
        raise ValueError("watch.plot: no step has been taken yet, nothing to draw.")
    if figure is None:
        new_figure = _import("matplotlib.figure", "plot").Figure
        figure = new_figure(figsize=(10, 5.5), layout="constrained")
    steps = 1 + np.flatnonzero(started)
    info = NewtonCGInfo(*(np.asarray(x[started], np.float64) for x in info))
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


def _line(ax: "Axes", steps: np.ndarray, y: np.ndarray, **style: Any) -> None:
    # A run of one step has no line.
    marker = "." if len(steps) < 40 else None
    ax.plot(steps, y, linewidth=1.2, marker=marker, markersize=4, **style)


def _positive(y: np.ndarray) -> np.ndarray:
    """What a logarithmic axis can show."""
    return np.where(y > 0, y, np.nan)


def _losses(ax: "Axes", steps: np.ndarray, info: NewtonCGInfo) -> None:
    finite = info.loss[np.isfinite(info.loss)]
    if len(finite) and np.all(finite >= 0) and np.any(finite > 0):
        ax.set_yscale("log")
        _line(ax, steps, _positive(info.loss), color=_BLUE)
    else:
        _line(ax, steps, info.loss, color=_BLUE)
    if not len(finite):
        ax.text(0.5, 0.5, "not finite", ha="center", transform=ax.transAxes)
    ax.set_title("loss")


def _gradients(ax: "Axes", steps: np.ndarray, info: NewtonCGInfo) -> None:
    if np.any(info.gradient_norm > 0):
        ax.set_yscale("log")
    _line(ax, steps, _positive(info.gradient_norm), color=_BLUE)
    ax.set_title("gradient norm")


def _dampings(ax: "Axes", steps: np.ndarray, info: NewtonCGInfo) -> None:
    if np.any(info.damping > 0) or np.any(info.curvature > 0):
        ax.set_yscale("log")
    curvature = _positive(info.curvature)
    ax.plot(steps, curvature, ".", color=_GREY, markersize=3, label="curvature")
    _line(ax, steps, _positive(info.damping), color=_BLUE, label="damping")
    ax.set_title("damping")
    ax.legend(fontsize="x-small")


def _ratios(ax: "Axes", steps: np.ndarray, info: NewtonCGInfo) -> None:
    low, high = -0.5, 2.0
    tried = (info.evaluations > 0) & (info.step_size > 0)
    ratio = np.clip(info.reduction_ratio[tried], low, high)
    ax.axhspan(0.25, 0.75, color=_GREY, alpha=0.2, linewidth=0)
    ax.axhline(1.0, color=_GREY, linewidth=0.8)
    ax.plot(steps[tried], ratio, ".", color=_BLUE, markersize=5)
    ax.set_ylim(low - 0.1, high + 0.1)
    ax.set_title("reduction ratio" if tried.any() else "reduction ratio (not measured)")


def _work(ax: "Axes", steps: np.ndarray, info: NewtonCGInfo) -> None:
    _line(ax, steps, info.products, color=_GREY, label="curvature products")
    _line(ax, steps, info.cg_iterations, color=_BLUE, label="iterations")
    ax.set_ylim(bottom=0)
    ax.set_title("work")
    ax.legend(fontsize="x-small")


def _step_sizes(ax: "Axes", steps: np.ndarray, info: NewtonCGInfo) -> None:
    taken = info.step_size[info.step_size > 0]
    bottom = 0.5 * np.min(taken, initial=0.2)
    ax.set_yscale("log")
    for label, statuses, colour, marker in _MARKS:
        at = np.isin(info.status, statuses)
        if at.any():
            # Rejected steps have no size: at the bottom.
            size = np.maximum(info.step_size[at], bottom)
            ax.plot(steps[at], size, marker, color=colour, markersize=5, label=label)
    ax.set_ylim(0.8 * bottom, 2 * np.max(taken, initial=1.0))
    ax.set_title("step size")
    if ax.lines:
        ax.legend(fontsize="x-small")
