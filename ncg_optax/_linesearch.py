"""Backtracking line search; its trial value is the damping rule's as well."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax import _validate


class SearchResult(NamedTuple):
    """The outcome of a line search; scalars of shape=().

    Attributes:
      step_size: the factor on the direction; 0 if no step was good enough.
      loss: the loss there (at the start if there was none).
      evaluations: of the loss, int32.
      accepted: whether a step was found, bool.
    """

    step_size: jax.Array
    loss: jax.Array
    evaluations: jax.Array
    accepted: jax.Array


class LineSearch(NamedTuple):
    """A line search.

    Attributes:
      search: ``search(loss_at, loss, slope, rounding) -> SearchResult``, with
        ``loss_at(step_size)`` the loss along the direction, ``loss`` that at 0,
        ``slope = g.d < 0`` and ``rounding`` the error to expect in a loss.
    """

    search: Callable[..., SearchResult]


def rounding_level(loss: jax.Array) -> jax.Array:
    """The error that rounding leaves in ``loss``: ten units in its last place."""
    return 10 * jnp.finfo(loss.dtype).eps * jnp.abs(loss)


def single_trial(
    loss_at: Callable[[Any], jax.Array],
    loss: jax.Array,
    slope: jax.Array,
    rounding: jax.Array,
) -> SearchResult:
    """Tries the full step and takes it unless the loss rises."""
    trial = loss_at(jnp.ones((), loss.dtype))
    accepted = trial <= loss + rounding  # False for NaN
    return SearchResult(
        step_size=accepted.astype(loss.dtype),
        loss=jnp.where(accepted, trial, loss),
        evaluations=jnp.ones((), jnp.int32),
        accepted=accepted,
    )


def armijo(c: float = 1e-4, shrink: float = 0.5, maxiter: int = 20) -> LineSearch:
    r"""Backtracking to sufficient decrease, from the full step.

    The step size :math:`s` shrinks from 1 until

    .. math::
      f(\theta + s d) \le f(\theta) + c\, s\, g^T d

    up to the rounding of :math:`f` (Armijo 1966; Nocedal and Wright 2006, algorithm
    3.1). The next trial is the minimiser of the parabola through the three numbers
    known, kept between a tenth of and ``shrink`` times the last one (section 3.5
    there). Costs one evaluation of the loss if the full step is good.

    Args:
      c: share of the decrease promised by the slope, in (0, 1).
      shrink: largest factor from one trial to the next, in [0.1, 1).
      maxiter: largest number of trials; then the step is rejected.

    Returns:
      A :class:`LineSearch`.

    Raises:
      TypeError: if a setting is not a number, or ``maxiter`` not an integer.
      ValueError: if one is out of range or NaN.

    Examples:
      >>> import ncg_optax as ncg
      >>> tx = ncg.newton_cg(linesearch=ncg.armijo(c=1e-2, shrink=0.8))
    """
    _validate.number("armijo: c", c, low=0.0, high=1.0)
    _validate.number("armijo: shrink", shrink, low=0.1, high=0.999)
    _validate.integer("armijo: maxiter", maxiter, low=1)

    def search(loss_at, loss, slope, rounding):
        class Trial(NamedTuple):
            step: jax.Array
            loss: jax.Array
            accepted: jax.Array
            k: jax.Array

        def evaluate(step, k):
            trial = loss_at(step)
            accepted = trial <= loss + c * step * slope + rounding  # False for NaN
            return Trial(step, trial, accepted, k + 1)

        def next_step(trial):
            step = trial.step
            excess = trial.loss - loss - slope * step
            parabola = -0.5 * slope * step**2 / jnp.where(excess > 0, excess, 1)
            known = jnp.isfinite(excess) & (excess > 0)
            return jnp.clip(
                jnp.where(known, parabola, 0.1 * step), 0.1 * step, shrink * step
            )

        def keep_going(trial):
            more = jnp.isfinite(loss) & (trial.k < maxiter)
            return jnp.logical_not(trial.accepted) & more

        def body(trial):
            first = trial.k == 0
            step = jnp.where(first, trial.step, next_step(trial))
            return evaluate(step, trial.k)

        # The first trial is made inside the loop: the loss is compiled once.
        start = Trial(
            step=jnp.ones((), loss.dtype),
            loss=loss,
            accepted=jnp.zeros((), bool),
            k=jnp.zeros((), jnp.int32),
        )
        end = jax.lax.while_loop(keep_going, body, start)
        return SearchResult(
            step_size=jnp.where(end.accepted, end.step, 0),
            loss=jnp.where(end.accepted, end.loss, loss),
            evaluations=end.k,
            accepted=end.accepted,
        )

    return LineSearch(search)
