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


def logged_jit(who: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``jax.jit(function)`` with both messages for each call that compiles it.

    While another function is traced, which compiles it, and if jit is disabled nothing
    is said.
    """
    started: list[float] = []

    def announced(*args):
        started.append(log_start(who))
        return function(*args)

    logged, silent = jax.jit(announced), jax.jit(function)

    def call(*args):
        traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(args))
        # pyright does not know the options.
        if traced or jax.config.jax_disable_jit:  # pyright: ignore
            return silent(*args)
        try:
            result = logged(*args)
            if started:
                log_end(who, started[0])
            return result
        finally:
            started.clear()

    return call
