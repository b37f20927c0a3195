"""Damping rules: the lambda in ``(B + lambda I) d = -g``."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from ncg_optax._utils import validate
from ncg_optax._utils.conditional import compute_if
from ncg_optax.globalization.base import Damping, Outcome


@dataclasses.dataclass(frozen=True)
class fixed(Damping):
    """A fixed damping.

    Attributes:
      damping: a number, shape=(), or an optax schedule of the number of steps done.
    """

    damping: float | jax.Array | optax.Schedule

    def value(self, state, count, measure):
        """The number, or the value of the schedule."""
        if not callable(self.damping):
            return self.damping, state, 0
        damping = self.damping(count)
        validate.number("damping: the value of the schedule", damping, low=0.0)
        return damping, state, 0


def as_damping(damping: Any) -> Damping:
    """``damping``, a number, a schedule or a rule, as a :class:`Damping`.

    Raises:
      TypeError: if ``damping`` is none of these.
      ValueError: if the number is negative or NaN.
    """
    if isinstance(damping, (int, float)) or hasattr(damping, "dtype"):
        return fixed(validate.number("damping", damping, low=0.0, high_open=True))
    # A class, such as levenberg_marquardt without (), is callable but no schedule.
    if callable(damping) and not isinstance(damping, type):
        return fixed(cast(optax.Schedule, validate.schedule("damping", damping)))
    examples = "levenberg_marquardt(), or a number or an optax schedule"
    return validate.component("damping", damping, Damping, examples)


class LevenbergMarquardtState(NamedTuple):
    """State of :func:`levenberg_marquardt`; scalars of shape=().

    Attributes:
      damping: lambda of the next step; 0 before it is calibrated.
      unit: damping of the first step, which the bounds are multiples of; 0 before it is
        calibrated.

    Examples:
      >>> import ncg_optax as ncg
      >>> state = ncg.levenberg_marquardt(initial=2.0).init("float32")
      >>> print(state.damping, state.unit)
      2.0 2.0
    """

    damping: jax.Array
    unit: jax.Array


@dataclasses.dataclass(frozen=True)
class levenberg_marquardt(Damping):
    r"""Levenberg-Marquardt damping, adapted by the reduction ratio.

    .. math::
      \rho = \frac{f(\theta) - f(\theta + d)}{-(g^T d + \tfrac12 d^T B d)}, \qquad
      \lambda \leftarrow
      \begin{cases}
        \lambda \cdot \text{increase}^2 & \text{a rejected step} \\
        \lambda \cdot \text{increase} & \rho < \text{low or a shortened step} \\
        \lambda \cdot \text{decrease} & \rho > \text{high} \\
        \lambda & \text{otherwise}
      \end{cases}

    (Levenberg 1944, Marquardt 1963; Martens 2010, section 4.1, with the factors 3/2 and
    2/3). The denominator of :math:`\rho` is the decrease of the undamped model. The
    comparison does not divide, and a difference within rounding counts in favour of the
    step. A step that the line search shortened counts as a bad ratio. A rejected step
    multiplies the damping by ``increase`` twice. If the loss is multiplied by a number,
    so is the damping, but it is never below the smallest normal number of its dtype.

    Attributes:
      initial: first damping, in units of the curvature (loss per squared parameter),
        above 0. None calibrates it at the first step, which costs one product.
      calibration: first damping if ``initial`` is None, in units of ``|B g| / |g|``,
        which is often near the largest eigenvalue; above 0.
      decrease: factor after a good ratio, in (0, 1].
      increase: factor after a bad ratio, at least 1.
      low: a ratio below ``low`` is bad, in [0, 1].
      high: a ratio above ``high`` is good, in [``low``, 1].
      minimum: lower bound, as a multiple of the first damping, in [0, 1].
      maximum: upper bound, as a multiple of the first damping, at least 1.

    Raises:
      TypeError: if a setting is not a number.
      ValueError: if a setting is out of range or NaN.

    Examples:
      >>> import ncg_optax as ncg
      >>> tx = ncg.newton_cg(damping=ncg.levenberg_marquardt(initial=1.0))
    """

    initial: float | None = None
    calibration: float = 1e-4
    decrease: float = 0.1
    increase: float = 4.0
    low: float = 0.25
    high: float = 0.75
    minimum: float = 1e-20
    maximum: float = 1e12

    needs_outcome = True

    def __post_init__(self):
        def check(name, **interval):
            value = getattr(self, name)
            validate.number(f"levenberg_marquardt: {name}", value, **interval)

        if self.initial is not None:
            check("initial", low=0.0, low_open=True)
        check("calibration", low=0.0, low_open=True)
        check("decrease", low=0.0, high=1.0, low_open=True)
        check("increase", low=1.0)
        check("low", low=0.0, high=1.0)
        check("high", low=self.low, high=1.0)
        check("minimum", low=0.0, high=1.0)
        check("maximum", low=1.0)

    def init(self, dtype: Any) -> LevenbergMarquardtState:
        """The state with ``initial``, or with 0 before it is calibrated."""
        start = jnp.asarray(0.0 if self.initial is None else self.initial, dtype)
        return LevenbergMarquardtState(damping=start, unit=start)

    def value(
        self,
        state: LevenbergMarquardtState,
        count: jax.Array,
        measure: Callable[[], jax.Array],
    ) -> tuple[jax.Array, LevenbergMarquardtState, jax.Array | int]:
        """The damping of the state; at the first step it is calibrated."""
        if self.initial is not None:
            return state.damping, state, 0
        # Only the first step makes the product.
        fresh = state.unit == 0
        unit = compute_if(fresh, lambda: self.calibration * measure(), state.unit)
        unit = jnp.where(jnp.isfinite(unit), unit, 0)
        # A damaged state may have NaN, which no factor changes, or a number that this
        # rule cannot have reached.
        known = (state.damping <= state.unit * self.maximum) & jnp.logical_not(fresh)
        damping = jnp.where(known, state.damping, unit)
        state = LevenbergMarquardtState(damping, unit)
        return damping, state, fresh.astype(jnp.int32)

    def unit(self, state: LevenbergMarquardtState) -> jax.Array | None:
        """The first damping; None for ``initial``, which no measurement gave."""
        return state.unit if self.initial is None else None

    def update(
        self, state: LevenbergMarquardtState, outcome: Outcome
    ) -> LevenbergMarquardtState:
        """Decreases the damping after a good step, increases it after a bad one."""
        full = outcome.step_size >= 1
        good = full & outcome.ratio_at_least(self.high)
        bad = jnp.logical_not(full & outcome.ratio_at_least(self.low))
        increase = jnp.where(outcome.accepted, self.increase, self.increase**2)
        factor = jnp.where(bad, increase, jnp.where(good, self.decrease, 1.0))
        # No factor changes 0 or infinity.
        limits = jnp.finfo(state.damping.dtype)
        damping = jnp.clip(
            state.damping * factor,
            jnp.maximum(state.unit * self.minimum, limits.tiny),
            jnp.minimum(state.unit * self.maximum, limits.max),
        )
        return state._replace(damping=damping.astype(state.damping.dtype))
