"""Backtracking until the loss decreases sufficiently."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import validate
from ncg_optax.globalization.base import (
    Line,
    LineSearch,
    SearchResult,
    largest_rounding,
)

# Largest step size at which a change of the loss can show its rounding.
SHORT = 1e-3


class _Trials(NamedTuple):
    """The state of the search; shapes=()."""

    step: jax.Array  # the best step size found; 0 before there is one
    loss: jax.Array  # at ``step``
    accepted: jax.Array  # whether ``step`` was found, bool
    trial: jax.Array  # the step size to try next
    full: jax.Array  # the loss at the full step
    rounding: jax.Array  # the rounding error of the loss, as short steps show it
    done: jax.Array  # bool
    k: jax.Array  # number of trials, int32


@dataclasses.dataclass(frozen=True)
class armijo(LineSearch):
    r"""Backtracking from the full step until the loss decreases sufficiently.

    The step size :math:`s` shrinks from 1 until

    .. math::
      f(\theta + s d) \le f(\theta) + c\, s\, g^T d

    up to the rounding of :math:`f`, unless damping or a trust region has made the step
    short (Armijo 1966; Nocedal and Wright 2006, algorithm 3.1).

    Near a minimum the decrease may be less than the rounding error of the loss. If no
    trial decreases the loss, those of :math:`s \le 10^{-3}` whose change is more than
    ten times :math:`s\, g^T d` show how large that error is (up to
    :math:`\varepsilon^{2/3} |f|`). If the full step does not change the loss by more
    than four times as much, it is taken: the model is more accurate than the loss.

    The next trial is the minimiser of the parabola with the loss and the slope at the
    start and the loss at the last trial; it is at least 0.1 and at most ``shrink``
    times the last trial (section 3.5 there). Along a direction of negative curvature
    the quadratic model has no minimum, so an accepted full step is doubled as long as
    the loss falls. The search costs one evaluation of the loss if the full step is
    accepted and the curvature is not negative.

    Attributes:
      c: share of the decrease predicted by the slope that a step must reach, in
        [0, 1).
      shrink: largest factor from one trial to the next, in [0.1, 1).
      maxiter: largest number of trials, at least 1.

    Raises:
      TypeError: if a setting is not a number, or ``maxiter`` not an integer.
      ValueError: if a setting is out of range or NaN.

    Examples:
      >>> import ncg_optax as ncg
      >>> tx = ncg.newton_cg(linesearch=ncg.armijo(c=1e-2, shrink=0.8))
    """

    c: float = 1e-4
    shrink: float = 0.5
    maxiter: int = 20

    def __post_init__(self):
        validate.number("armijo: c", self.c, low=0.0, high=1.0, high_open=True)
        validate.number(
            "armijo: shrink", self.shrink, low=0.1, high=1.0, high_open=True
        )
        validate.integer("armijo: maxiter", self.maxiter, low=1)

    def search(self, line: Line) -> SearchResult:
        """A step size with sufficient decrease, after at most ``maxiter`` trials."""
        loss = line.loss
        first = _Trials(
            step=jnp.zeros((), loss.dtype),
            loss=loss,
            accepted=jnp.zeros((), bool),
            trial=jnp.ones((), loss.dtype),
            full=loss,
            rounding=jnp.zeros((), loss.dtype),
            done=jnp.logical_not(jnp.isfinite(loss)),
            k=jnp.zeros((), jnp.int32),
        )

        def keep_going(now):
            return jnp.logical_not(now.done) & (now.k < self.maxiter)

        end = jax.lax.while_loop(keep_going, lambda now: self._try(line, now), first)
        # All changes are rounding: the model is more accurate than the loss.
        level = jnp.abs(end.full - loss) <= end.rounding
        level &= jnp.isfinite(line.slope) & ~(end.accepted | line.is_short)
        return SearchResult(
            step_size=jnp.where(level, 1, end.step),
            loss=jnp.where(level, end.full, end.loss),
            evaluations=end.k,
            accepted=end.accepted | level,
            rounding=end.rounding,
        )

    def _try(self, line: Line, now: _Trials) -> _Trials:
        """Evaluates the loss at one step size."""
        value = line.loss_at(now.trial)
        start = line.loss + line.allowed_rise
        decreased = value <= start + self.c * now.trial * line.slope
        # A shorter step that changes the loss by rounding only shows no decrease.
        decreased &= (now.trial >= 1) | (value < line.loss)
        good = decreased & jnp.isfinite(value)
        better = good & (jnp.logical_not(now.accepted) | (value < now.loss))
        longer = (now.trial >= 1) & (line.bend < 0)
        shorter = self._shorter(line, now.trial, value)
        return _Trials(
            step=jnp.where(better, now.trial, now.step),
            loss=jnp.where(better, value, now.loss),
            accepted=now.accepted | better,
            trial=jnp.where(better, 2 * now.trial, shorter),
            full=jnp.where(now.k == 0, value, now.full),
            rounding=jnp.maximum(now.rounding, _rounding(line, now.trial, value)),
            done=jnp.where(better, jnp.logical_not(longer), now.accepted),
            k=now.k + 1,
        )

    def _shorter(self, line: Line, step: jax.Array, value: jax.Array) -> jax.Array:
        """The next, shorter step size after a loss ``value`` at ``step``."""
        excess = value - line.loss - line.slope * step
        known = jnp.isfinite(excess) & (excess > 0)
        parabola = -0.5 * line.slope * step**2 / jnp.where(known, excess, 1)
        guess = jnp.where(known, parabola, 0.1 * step)
        return jnp.clip(guess, 0.1 * step, self.shrink * step)


def _rounding(line: Line, step: jax.Array, value: jax.Array) -> jax.Array:
    """The rounding error of the loss, if this step shows it, else 0.

    It is four times the change of the loss at a step so short that the slope explains
    less than a tenth of the change: other steps may have more rounding. A large change
    has another cause, such as the loss of another batch.
    """
    change, largest = jnp.abs(value - line.loss), largest_rounding(line.loss)
    unexplained = change > jnp.abs(10 * step * line.slope)
    shown = (step <= SHORT) & unexplained & (change <= largest)
    return jnp.where(shown, jnp.minimum(4 * change, largest), 0)
