"""How accurately to solve: the relative tolerance of the linear solve, step by step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import validate


class Forcing(NamedTuple):
    """State of the Eisenstat-Walker sequence; scalars of shape=().

    Attributes:
      gradient_norm: at the last step; 0 before the first.
      tolerance: the relative tolerance used there.
    """

    gradient_norm: jax.Array
    tolerance: jax.Array


class Tolerance(NamedTuple):
    """A rule for the relative tolerance of the residual.

    Attributes:
      init: ``init(dtype) -> state``.
      next: ``next(state, norm) -> (tolerance, state)``, with ``norm`` that of the
        gradient.
    """

    init: Callable[[Any], Any]
    next: Callable[[Any, jax.Array], tuple[Any, Any]]


def tolerance_rule(who: str, rtol: float, forcing: str | None) -> Tolerance:
    """The fixed tolerance ``rtol``, or a sequence that stays below it.

    Args:
      who: whose settings these are, for the error message.
      rtol: relative tolerance; with ``forcing`` the largest one.
      forcing: ``"eisenstat_walker"``, choice 2 of Eisenstat and Walker (1996) with its
        safeguard, or None for the fixed one.

    Raises:
      TypeError: if ``rtol`` is not a number.
      ValueError: if it is negative or NaN, or ``forcing`` unknown.
    """
    validate.number(f"{who}: rtol", rtol, low=0.0)
    validate.choice(f"{who}: forcing", forcing, (None, "eisenstat_walker"))
    if forcing is None:
        return Tolerance(lambda dtype: None, lambda state, norm: (rtol, state))

    def init(dtype):
        zero = jnp.zeros((), dtype)
        return Forcing(gradient_norm=zero, tolerance=zero)

    def advance(state, norm):
        gamma, alpha = 0.9, (1 + 5**0.5) / 2
        known = (state.gradient_norm > 0) & jnp.isfinite(state.gradient_norm)
        ratio = norm / jnp.where(known, state.gradient_norm, 1)
        floor = gamma * state.tolerance**alpha
        eta = gamma * ratio**alpha
        eta = jnp.where(floor > 0.1, jnp.maximum(eta, floor), eta)
        eta = jnp.where(known, jnp.minimum(eta, rtol), rtol)
        return eta, Forcing(norm, eta)

    return Tolerance(init, advance)
