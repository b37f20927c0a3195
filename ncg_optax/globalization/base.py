"""The protocols of damping rules and line searches, and their arguments."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from ncg_optax._utils.parts import Part


def rounding_level(loss: jax.Array) -> jax.Array:
    """A bound on the rounding error of ``loss``: ten units in its last place."""
    return 10 * jnp.finfo(loss.dtype).eps * jnp.abs(loss)


def largest_rounding(loss: jax.Array) -> jax.Array:
    """The largest rounding error of ``loss`` that is plausible, after cancellation."""
    cancelled = float(jnp.finfo(loss.dtype).eps) ** (2 / 3) * jnp.abs(loss)
    return jnp.maximum(cancelled, rounding_level(loss))


class Outcome(NamedTuple):
    """The result of trying a step; scalars of shape=().

    Attributes:
      predicted_reduction: ``-(g.d + d.Bd / 2)``, with ``d`` the step that is taken: the
        direction times ``step_size``.
      actual_reduction: ``f(params) - f(params + d)``; 0 for a rejected step.
      rounding: a bound on the rounding error of ``actual_reduction``.
      step_size: factor of the line search on the direction; 0 for a rejected step.
      accepted: whether the step is taken, bool.

    Examples:
      A step that reduces the loss by 80 per cent of what the model predicts:

      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> outcome = ncg.globalization.Outcome(
      ...     predicted_reduction=jnp.array(1.0),
      ...     actual_reduction=jnp.array(0.8),
      ...     rounding=jnp.array(1e-7),
      ...     step_size=jnp.array(1.0),
      ...     accepted=jnp.array(True),
      ... )
      >>> print(outcome.ratio_at_least(0.75), outcome.ratio_at_least(0.9))
      True False
    """

    predicted_reduction: jax.Array
    actual_reduction: jax.Array
    rounding: jax.Array
    step_size: jax.Array
    accepted: jax.Array

    def ratio_at_least(self, threshold: float | jax.Array) -> jax.Array:
        """Whether actual / predicted reduction is at least ``threshold``, bool.

        The comparison does not divide, so it is also valid if the predicted reduction
        is zero. A difference within ``rounding`` counts in favour of the step. False
        for a rejected step.
        """
        reached = self.actual_reduction + self.rounding >= (
            threshold * self.predicted_reduction
        )
        return jnp.logical_and(self.accepted, reached)


@runtime_checkable
class Damping(Part, Protocol):
    """A rule for the damping lambda in ``(B + lambda I) d = -g``.

    To add a rule, subclass this protocol. Only ``value`` has no default.

    Attributes:
      needs_outcome: whether ``update`` needs the loss at the end of the step. That loss
        is evaluated if the damping rule, the solver or the line search needs it.

    Examples:
      One hundredth of the curvature's own scale, which is measured at each step:

      >>> import ncg_optax as ncg
      >>> class Measured(ncg.globalization.Damping):
      ...     def value(self, state, count, measure):
      ...         return 0.01 * measure(), state, 1
      >>> tx = ncg.newton_cg(damping=Measured())
    """

    needs_outcome: bool = False

    def init(self, dtype: Any) -> Any:
        """The state before the first step; ``dtype`` is the dtype of the scalars."""
        del dtype
        return ()

    def value(
        self, state: Any, count: jax.Array, measure: Callable[[], jax.Array]
    ) -> tuple[jax.typing.ArrayLike, Any, jax.Array | int]:
        """The damping of step number ``count``.

        Args:
          state: state after the last step.
          count: number of steps done, int32, shape=().
          measure: returns the curvature's own scale, ``|B g| / |g|``, shape=(). A call
            costs one product on the curvature's sample.

        Returns:
          ``(damping, state, products)``, with ``products`` the number of calls of
          ``measure``.
        """
        ...

    def unit(self, state: Any) -> jax.Array | None:
        """The scale of the curvature in this run, shape=(), after ``value``.

        It must stay the same over the run. If it is far from 1, gradient and curvature
        are divided by it during a step, so that their squares do not overflow. None if
        the rule does not know it; then the gradient defines the unit.
        """
        del state
        return None

    def update(self, state: Any, outcome: Outcome) -> Any:
        """The state for the next step, after this one was tried."""
        del outcome
        return state


class Line(NamedTuple):
    """The loss along a direction ``d``, for a line search.

    Attributes:
      loss: loss at the start, of the whole batch, shape=().
      slope: ``g.d``, the derivative of the loss along ``d``, shape=(). It is negative
        or zero unless the search has ``tolerates_rise``.
      bend: ``d.Bd``, the second derivative of the undamped model along ``d``, shape=().
      loss_at: ``loss_at(step_size)``, the loss at ``params + step_size * d``, shape=().
      sample_loss_at: an estimate of ``loss_at`` that evaluates only the sample of the
        curvature: ``loss`` plus the rise of the sample's loss. None if there is no
        sample; then use ``loss_at``.
      sample_share: share of the batch's examples that are in the sample, in (0, 1].

    Examples:
      A full step that is twice as long as it should be:

      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> line = ncg.globalization.Line(
      ...     loss=jnp.array(1.0),
      ...     slope=jnp.array(-4.0),
      ...     bend=jnp.array(8.0),
      ...     loss_at=lambda step_size: (2 * step_size - 1) ** 2,
      ... )
      >>> print(line.loss_at(jnp.array(0.5)))
      0.0
    """

    loss: jax.Array
    slope: jax.Array
    bend: jax.Array
    loss_at: Callable[[jax.Array], jax.Array]
    sample_loss_at: Callable[[jax.Array], jax.Array] | None = None
    sample_share: float | jax.Array = 1.0

    @property
    def is_short(self) -> jax.Array:
        """Whether the loss has to decrease by about ``slope``, bool, shape=().

        So it is if damping or a trust region has made the step short, and if the
        curvature is negative: then the curvature raises the loss by much less than the
        slope lowers it, if the gradient is right.
        """
        return self.bend < -0.1 * self.slope

    @property
    def allowed_rise(self) -> jax.Array:
        """A rise of the loss that rounding may have made, shape=().

        It is 0 for a short step. With another gradient, damping would shorten the steps
        until all rises were small, and all of them would be accepted.
        """
        return jnp.where(self.is_short, 0, rounding_level(self.loss))


class SearchResult(NamedTuple):
    """The result of a line search; scalars of shape=().

    Attributes:
      step_size: factor on the direction; 0 if no step was accepted.
      loss: loss at that step; the loss at the start if no step was accepted.
      evaluations: number of evaluations of the loss, int32.
      accepted: whether a step was accepted, bool.
      share: share of the batch's examples in each evaluation, in (0, 1].
      rounding: the rounding error of the loss if the search has measured it, else 0.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> line = ncg.globalization.Line(
      ...     loss=jnp.array(1.0),
      ...     slope=-6.0,
      ...     bend=18.0,
      ...     loss_at=lambda step: (3 * step - 1) ** 2,  # the full step is too long
      ... )
      >>> result = ncg.armijo().search(line)
      >>> print(f"{result.step_size:.3f} after {result.evaluations} trials")
      0.333 after 2 trials
    """

    step_size: jax.Array
    loss: jax.Array
    evaluations: jax.Array
    accepted: jax.Array
    share: float | jax.Array = 1.0
    rounding: float | jax.Array = 0.0


@runtime_checkable
class LineSearch(Part, Protocol):
    """A rule for the step size along a direction.

    To add a line search, subclass this protocol.

    Attributes:
      tolerates_rise: whether the search may accept a step that increases the loss. A
        solver with ``may_ascend``, whose directions may increase the loss, needs this.

    Examples:
      Half of the step, for every loss:

      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> class Half(ncg.globalization.LineSearch):
      ...     def search(self, line):
      ...         half = jnp.asarray(0.5, line.loss.dtype)
      ...         trial = line.loss_at(half)
      ...         return ncg.globalization.SearchResult(
      ...             half, trial, evaluations=jnp.array(1), accepted=jnp.array(True)
      ...         )
      >>> tx = ncg.newton_cg(linesearch=Half())
    """

    tolerates_rise: bool = False

    def search(self, line: Line) -> SearchResult:
        """The step size along this line."""
        ...
