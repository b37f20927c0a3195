"""The relative tolerance of the linear solve in each step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import validate

RULES = (None, "eisenstat_walker")


class Forcing(NamedTuple):
    """State of the Eisenstat-Walker sequence; scalars of shape=().

    Attributes:
      gradient_norm: norm of the gradient at the last step; 0 before the first step.
      tolerance: relative tolerance of the last step; 0 before the first step.
    """

    gradient_norm: jax.Array
    tolerance: jax.Array


def check_tolerance(who: str, rtol: float, forcing: str | None) -> None:
    """Raises unless ``rtol`` is a number in [0, 1] and ``forcing`` is a rule.

    ``who`` is the name of the solver in the message.
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

    (choice 2 of Eisenstat and Walker 1996). By their safeguard :math:`\eta_k` is at
    least :math:`\gamma \eta_{k-1}^\alpha` if this bound is above 0.1.

    Args:
      rtol: the largest tolerance; without a state, the tolerance.
      state: None with a fixed tolerance.
      norm: norm of the gradient, shape=().
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


def progress_stalled(
    history: jax.Array, decrease: jax.Array, k: jax.Array, progress_tol: float
) -> jax.Array:
    """Martens' stopping test; see ``conjugate_gradient``.

    Args:
      history: the decreases of the model per iteration, shape=(maxiter + 1,).
      decrease: that of iteration ``k``, shape=().
      k: number of iterations, int32, shape=().
      progress_tol: smallest relative progress per iteration.
    """
    window = jnp.maximum(10, k // 10)
    gain = decrease - history[jnp.maximum(k - window, 0)]
    slow = gain < window.astype(gain.dtype) * progress_tol * decrease
    return (k > window) & (decrease > 0) & slow
