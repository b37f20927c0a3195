"""A minimisation that is watched and stopped from the host, in chunks of steps."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from ncg_optax._utils.status import Status
from ncg_optax.minimization.loop import Loop
from ncg_optax.minimization.result import MinimizeResult

PyTree = Any
Callback = Callable[[PyTree, Any, MinimizeResult], Any]

_LOGGER = logging.getLogger("ncg_optax")
# Seconds between two messages on the logger.
LOG_PERIOD = 1.0


def steer(
    loop: Loop,
    advance: Callable[[Loop, jax.Array], Loop],
    *,
    begin: float,
    callback: Callback | None,
    max_seconds: float | None,
    progress: bool,
    every: int,
) -> Loop:
    """Runs the loop to its end, ``every`` updates at a time.

    Args:
      loop: the loop before the first update.
      advance: ``advance(loop, until)`` goes on until there were ``until`` updates.
      begin: when the call began, by `time.perf_counter`.
      callback: called after each chunk; a true value stops.
      max_seconds: stops after the chunk in which this time is over.
      progress: whether to show a line in the terminal.
      every: number of updates in a chunk.
    """
    with _shown(progress) as show:
        while loop.status == Status.RUNNING:
            loop = advance(loop, loop.k + every)
            result = loop.result()
            show(result)
            if callback is not None and callback(loop.params, loop.state, result):
                loop = _ended(loop, Status.STOPPED)
            elif max_seconds is not None and (
                time.perf_counter() - begin >= max_seconds
            ):
                loop = _ended(loop, Status.OUT_OF_TIME)
    return loop


def _ended(loop: Loop, status: Status) -> Loop:
    """The loop with this status, if it has not ended by itself."""
    if loop.status != Status.RUNNING:
        return loop
    return loop._replace(status=jnp.asarray(status, jnp.int32))


@contextlib.contextmanager
def _shown(progress: bool) -> Iterator[Callable[[MinimizeResult], None]]:
    """A function that shows a result: in the terminal by rich, or on the logger."""
    last = time.perf_counter()

    def log(result):
        nonlocal last
        if time.perf_counter() - last >= LOG_PERIOD:
            last = time.perf_counter()
            _LOGGER.info("minimize: %s", _line(result))

    if not progress:
        yield log
        return
    try:
        from rich.live import Live
    except ImportError:
        yield lambda result: print(_line(result))
        return
    with Live() as live:
        yield lambda result: live.update(_line(result))
    if not live.console.is_terminal:
        live.console.line()  # it ends no line in a file


def _line(result: MinimizeResult) -> str:
    """One line about the best point so far."""
    found = jax.device_get(result)
    return (
        f"step {found.iterations}: value {found.value:.6g}, "
        f"gradient {found.gradient_norm:.2g}"
    )
