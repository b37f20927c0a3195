"""How accurately to solve: the relative tolerance of the linear solve, step by step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import validate

RULES = (None, "eisenstat_walker")


class Forcing(NamedTuple):
    """State of the Eisenstat-Walker sequence; scalars of shape=().

    Attributes:
      gradient_norm: at the last step; 0 before the first.
      tolerance: the relative tolerance used there.
    """

    gradient_norm: jax.Array
    tolerance: jax.Array


def check_tolerance(who: str, rtol: float, forcing: str | None) -> None:
    """Raises unless ``rtol`` is a number in [0, 1] and ``forcing`` a rule.

    ``who`` is the solver whose settings these are, for the message.
    """
    validate.number(f"{who}: rtol", rtol, low=0.0, high=1.0)
    validate.choice(f"{who}: forcing", forcing, RULES)


def first_forcing(forcing: str | None, dtype: Any) -> Forcing | None:
    """The state before the first step; None with a fixed tolerance."""
    if forcing is None:
        return None
    return Forcing(jnp.zeros((), dtype), jnp.zeros((), dtype))


def relative_tolerance(
    rtol: float, state: Forcing | None, norm: jax.Array
) -> tuple[jax.Array | float, Forcing | None]:
    r"""The relative tolerance of this solve, at most ``rtol``, and the next state.

    .. math::
      \eta_k = \gamma \left(\frac{|g_k|}{|g_{k-1}|}\right)^\alpha,
      \qquad \gamma = 0.9, \quad \alpha = \tfrac{1 + \sqrt 5}{2}

    and no less than :math:`\gamma \eta_{k-1}^\alpha` where that is above 0.1 (choice 2
    of Eisenstat and Walker 1996, with its safeguard).

    Args:
      rtol: the largest tolerance, and the fixed one without a state.
      state: None with a fixed tolerance.
      norm: that of the gradient, shape=().
    """
    if state is None:
        return rtol, None
    gamma, alpha = 0.9, (1 + 5**0.5) / 2
    known = (state.gradient_norm > 0) & jnp.isfinite(state.gradient_norm)
    ratio = norm / jnp.where(known, state.gradient_norm, 1)
    floor = gamma * state.tolerance**alpha
    eta = gamma * ratio**alpha
    eta = jnp.where(floor > 0.1, jnp.maximum(eta, floor), eta)
    eta = jnp.where(known, jnp.minimum(eta, rtol), rtol)
    return eta, Forcing(norm, eta)
