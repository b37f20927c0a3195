"""What a damping rule and a line search are, and what they learn of a step."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from ncg_optax._utils.parts import Part


def rounding_level(loss: jax.Array) -> jax.Array:
    """The error that rounding leaves in ``loss``: ten units in its last place."""
    return 10 * jnp.finfo(loss.dtype).eps * jnp.abs(loss)


class Outcome(NamedTuple):
    """What became of a step; scalars of shape=().

    Attributes:
      predicted_reduction: ``-(g.d + d.Bd / 2)`` of the step ``d`` as taken.
      actual_reduction: ``f(params) - f(params + d)``.
      rounding: how far ``actual_reduction`` may be off through the rounding of ``f``.
      step_size: the factor that the line search put on the solver's direction.
      accepted: whether the step was taken, bool.

    Examples:
      A step that brought 80 per cent of what the model promised:

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
        """Whether actual / predicted >= threshold.

        Without division, so that it keeps its sense at zero, and in favour of the step
        at rounding level. False for a rejected step.
        """
        reached = self.actual_reduction + self.rounding >= (
            threshold * self.predicted_reduction
        )
        return jnp.logical_and(self.accepted, reached)


@runtime_checkable
class Damping(Part, Protocol):
    """A rule for the damping lambda in ``(B + lambda I) d = -g``.

    Subclass this protocol for a rule of one's own. Only ``value`` has no default.

    Attributes:
      needs_outcome: whether ``update`` needs the loss at the end of the step. If nobody
        needs it, it is not evaluated.

    Examples:
      The hundredth part of the curvature's own scale, measured anew at each step:

      >>> import ncg_optax as ncg
      >>> class Measured(ncg.globalization.Damping):
      ...     def value(self, state, count, measure):
      ...         return 0.01 * measure(), state, 1
      >>> tx = ncg.newton_cg(damping=Measured())
    """

    needs_outcome: bool = False

    def init(self, dtype: Any) -> Any:
        """The first state. ``dtype`` is that of the scalars."""
        del dtype
        return ()

    def value(
        self, state: Any, count: jax.Array, measure: Callable[[], jax.Array]
    ) -> tuple[jax.typing.ArrayLike, Any, jax.Array | int]:
        """The damping of step number ``count``.

        Args:
          state: the last one.
          count: steps done, int32, shape=().
          measure: returns the curvature's own scale, ``|B g| / |g|``, for one product.

        Returns:
          ``(damping, state, products)``, with ``products`` how often ``measure`` was
          called.
        """
        ...

    def update(self, state: Any, outcome: Outcome) -> Any:
        """The next state, after the step was tried."""
        del outcome
        return state


class Line(NamedTuple):
    """The loss along a direction ``d``, for a line search.

    Attributes:
      loss: at the start, shape=().
      slope: ``g.d``, shape=(); not negative only if ``tolerates_rise``.
      bend: ``d.Bd``, shape=().
      loss_at: ``loss_at(step_size)``, the loss at ``params + step_size * d``, shape=().
      sample_loss_at: the same, estimated on the examples of the curvature's sample: the
        loss at the start plus the rise of the sample's loss. None: use ``loss_at``.
      sample_share: of the examples in the sample, in (0, 1].

    Examples:
      The loss of a step that goes twice as far as it should:

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


class SearchResult(NamedTuple):
    """The outcome of a line search; scalars of shape=().

    Attributes:
      step_size: the factor on the direction; 0 if no step was good enough.
      loss: the loss there (at the start if there was none).
      evaluations: of the loss, int32.
      accepted: whether a step was found, bool.
      share: of the examples in each evaluation, in (0, 1].

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


@runtime_checkable
class LineSearch(Part, Protocol):
    """A rule for the step size along a direction.

    Subclass this protocol for a line search of one's own.

    Attributes:
      tolerates_rise: whether the search accepts steps along which the loss rises. A
        solver whose directions may lead uphill (``may_ascend``) needs such a search.

    Examples:
      Half of the step, whatever the loss there is:

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
        """The step size for this line."""
        ...
