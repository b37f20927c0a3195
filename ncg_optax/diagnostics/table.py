"""A table of the last steps in the terminal."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ncg_optax._utils import validate
from ncg_optax._utils.status import Status, explain
from ncg_optax.diagnostics.optional import import_optional
from ncg_optax.diagnostics.read_infos import read_info
from ncg_optax.step.info import NewtonCGInfo

if TYPE_CHECKING:
    import rich.console
    import rich.table

PyTree = Any


@contextlib.contextmanager
def live_table(
    rows: int = 12, every: int = 1, console: "rich.console.Console | None" = None
) -> Iterator[Callable[[PyTree], None]]:
    """A table of the last steps that is redrawn in the terminal while training.

    A context manager that yields a function: call it with the state (or the info) after
    every step. A sentence below the table explains the status of the last step. If the
    output is not a terminal the table is printed once, at the end.

    To show a step waits until it is done, and fetches its numbers in one transfer. If
    steps take only a few milliseconds use ``every``.

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
    live = import_optional("rich.live", "live_table")
    # Replaced as a whole, because another thread reads it.
    seen: tuple[tuple[int, NewtonCGInfo], ...] = ()
    calls = 0

    def show(state: PyTree) -> None:
        nonlocal seen, calls
        calls += 1
        if calls % every == 0:
            info = read_info("watch.live_table", state)
            seen = (*seen, (calls, info))[-rows:]

    with live.Live(get_renderable=lambda: _table(seen), console=console):
        yield show


# The status of a step, or of its solve, in at most 10 letters; and the style.
_WORDS: dict[int, tuple[str, str]] = {
    Status.NOT_STARTED: ("none yet", ""),
    Status.ACCEPTED: ("accepted", "green"),
    Status.SHORTENED: ("shortened", "yellow"),
    Status.NOT_EVALUATED: ("taken", ""),
    Status.STEEPEST_DESCENT: ("steepest", "yellow"),
    Status.REJECTED_NO_DECREASE: ("rejected", "red"),
    Status.REJECTED_NON_FINITE: ("not finite", "bold red"),
    Status.ZERO_GRADIENT: ("gradient 0", ""),
    Status.SUMMED_LOSS: ("summed", "bold red"),
    Status.NON_FINITE_CURVATURE: ("gradient", "yellow"),
    Status.CLIPPED_GRADIENT: ("clipped", "yellow"),
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

    # At most 80 columns.
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
