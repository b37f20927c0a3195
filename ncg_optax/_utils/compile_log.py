"""Messages of level INFO on the logger "ncg_optax" before and after a compilation."""

import logging
import time

_LOGGER = logging.getLogger("ncg_optax")


def log_start(who: str) -> float:
    """Says that ``who`` compiles, and returns the time for :func:`log_end`."""
    _LOGGER.info("%s: compiling", who)
    return time.perf_counter()


def log_end(who: str, start: float) -> None:
    """Says how many seconds the compilation has taken, tracing included."""
    _LOGGER.info("%s: compiled in %.1f s", who, time.perf_counter() - start)
