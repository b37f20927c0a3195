"""Messages of level INFO on the logger "ncg_optax" before and after a compilation."""

import logging
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer

_LOGGER = logging.getLogger("ncg_optax")


class LoggedJit:
    """``jax.jit(function, **options)`` with a message when a call compiles it.

    While another function is traced, which compiles it, and if jit is disabled nothing
    is said.

    Args:
      who: whose compilation it is.
      function: the function.
      options: of `jax.jit`.
    """

    def __init__(self, who: str, function: Callable[..., Any], **options: Any):
        self._who = who
        self._silent = True
        self._start: float | None = None  # of the compilation of the present call

        def announced(*args):
            # This runs while JAX traces the function, before a compilation.
            if not self._silent:
                _LOGGER.info("%s: compiling", who)
                self._start = time.perf_counter()
            return function(*args)

        self._jitted = jax.jit(announced, **options)

    def __call__(self, *args: Any) -> Any:
        """The result of the function, as of a jitted one."""
        traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(args))
        # pyright does not know the options.
        self._silent = traced or jax.config.jax_disable_jit  # pyright: ignore
        try:
            result = self._jitted(*args)
            if self._start is not None:
                seconds = time.perf_counter() - self._start
                _LOGGER.info("%s: compiled in %.1f s", self._who, seconds)
            return result
        finally:
            self._silent, self._start = True, None

    def lower(self, *args: Any, before_a_call: bool = False) -> jax.stages.Lowered:
        """The lowered function.

        Args:
          args: arguments of the function; `jax.ShapeDtypeStruct` will do.
          before_a_call: whether a call follows, which compiles what is traced here.
        """
        self._silent = not before_a_call
        try:
            return self._jitted.lower(*args)
        finally:
            self._silent = True
