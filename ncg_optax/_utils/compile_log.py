"""Messages of level INFO on the logger "ncg_optax" before and after a compilation."""

import logging
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer

_LOGGER = logging.getLogger("ncg_optax")


def log_start(who: str) -> float:
    """Says that ``who`` compiles, and returns the time for :func:`log_end`."""
    _LOGGER.info("%s: compiling", who)
    return time.perf_counter()


def log_end(who: str, start: float) -> None:
    """Says how many seconds the compilation has taken, tracing included."""
    _LOGGER.info("%s: compiled in %.1f s", who, time.perf_counter() - start)


def compiled(who: str, jitted: Any, *arguments: Any) -> Callable:
    """``jitted`` compiled for these arguments, with both messages.

    It is returned as it is while another function is traced, which compiles it, and if
    jit is disabled.
    """
    traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(arguments))
    # pyright does not know the options.
    if traced or jax.config.jax_disable_jit:  # pyright: ignore
        return jitted
    start = log_start(who)
    result = jitted.lower(*arguments).compile()
    log_end(who, start)
    return result
