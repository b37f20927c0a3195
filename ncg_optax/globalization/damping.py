"""Damping rules: the lambda in ``(B + lambda I) d = -g``."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import validate
from ncg_optax.solvers.base import Outcome


class Damping(NamedTuple):
    """A damping rule.

    Attributes:
      init: ``init(dtype) -> state``, with ``dtype`` that of the scalars.
      value: ``value(state, count, measure) -> (damping, state, products)`` at the start
        of step number ``count``; ``measure()`` returns the curvature's own scale,
        ``|B g| / |g|``, for one product, and ``products`` says how often it was called.
      update: ``update(state, outcome) -> state`` after the step was tried.
      needs_outcome: whether ``update`` needs the loss at the end of the step.

    Examples:
      The hundredth part of the curvature's own scale, measured anew at each step:

      >>> import ncg_optax as ncg
      >>> measured = ncg.globalization.Damping(
      ...     init=lambda dtype: (),
      ...     value=lambda state, count, measure: (0.01 * measure(), state, 1),
      ...     update=lambda state, outcome: state,
      ... )
      >>> tx = ncg.newton_cg(damping=measured)
    """

    init: Callable[[Any], Any]
    value: Callable[..., tuple[jax.Array, Any, jax.Array | int]]
    update: Callable[[Any, Outcome], Any]
    needs_outcome: bool = False


def _fixed(value_at: Callable[[jax.Array], Any]) -> Damping:
    return Damping(
        init=lambda dtype: (),
        value=lambda state, count, measure: (value_at(count), state, 0),
        update=lambda state, outcome: state,
    )


def as_damping(damping: Any) -> Damping:
    """A number, optax schedule or :class:`Damping` as a :class:`Damping`."""
    if isinstance(damping, Damping):
        return damping
    if callable(damping) and not isinstance(damping, tuple):
        # A factory passed without calling it would be taken for a schedule.
        if damping is levenberg_marquardt:
            validate.component("damping", damping, Damping, "levenberg_marquardt()")
        return _fixed(damping)
    if isinstance(damping, str) or damping is None or isinstance(damping, tuple):
        validate.component(
            "damping",
            damping,
            Damping,
            "levenberg_marquardt(), or be a number or an optax schedule",
        )
    validate.number("damping", damping, low=0.0)
    return _fixed(lambda count: damping)


class LevenbergMarquardtState(NamedTuple):
    """State of :func:`levenberg_marquardt`; scalars of shape=().

    Attributes:
      damping: lambda.
      unit: the damping of the first step, in multiples of which the bounds are; 0
        while it has not been calibrated.

    Examples:
      >>> import ncg_optax as ncg
      >>> state = ncg.levenberg_marquardt(initial=2.0).init("float32")
      >>> print(state.damping, state.unit)
      2.0 2.0
    """

    damping: jax.Array
    unit: jax.Array


def levenberg_marquardt(
    initial: float | None = None,
    calibration: float = 1e-4,
    decrease: float = 0.1,
    increase: float = 4.0,
    low: float = 0.25,
    high: float = 0.75,
    minimum: float = 1e-12,
    maximum: float = 1e12,
) -> Damping:
    r"""Levenberg-Marquardt damping, steered by the reduction ratio.

    .. math::
      \rho = \frac{f(\theta) - f(\theta + d)}{-(g^T d + \tfrac12 d^T B d)}, \qquad
      \lambda \leftarrow
      \begin{cases}
        \lambda \cdot \text{increase}^2 & \text{a rejected step} \\
        \lambda \cdot \text{increase} & \rho < \text{low or a shortened step} \\
        \lambda \cdot \text{decrease} & \rho > \text{high} \\
        \lambda & \text{otherwise}
      \end{cases}

    (Levenberg 1944, Marquardt 1963; Martens 2010, section 4.1, with 3/2 and 2/3). The
    model is that of the undamped curvature, from the current point. The comparison is
    made without division, and at rounding level in favour of the step. A step that
    the line search had to shorten counts as a bad ratio, and so does a rejected one,
    which multiplies by ``increase`` twice.

    Args:
      initial: first damping, in units of the curvature (loss per squared parameter).
        None calibrates it at the first step, for one product.
      calibration: the first damping without ``initial``, in units of ``|B g| / |g|``,
        which lies near the top of the spectrum.
      decrease: factor in (0, 1] after a good ratio.
      increase: factor of at least 1 after a bad one.
      low: ratios below are bad.
      high: ratios above are good.
      minimum: lower bound, as a multiple of the first damping.
      maximum: upper bound, likewise.

    Returns:
      A :class:`Damping`.

    Raises:
      TypeError: if a setting is not a number.
      ValueError: if one is out of range or NaN.

    Examples:
      >>> import ncg_optax as ncg
      >>> tx = ncg.newton_cg(damping=ncg.levenberg_marquardt(initial=1.0))
    """
    who = "levenberg_marquardt: "
    if initial is not None:
        validate.number(who + "initial", initial, low=0.0, low_open=True)
    validate.number(who + "calibration", calibration, low=0.0, low_open=True)
    validate.number(who + "decrease", decrease, low=0.0, high=1.0, low_open=True)
    validate.number(who + "increase", increase, low=1.0)
    validate.number(who + "low", low, low=0.0, high=1.0)
    validate.number(who + "high", high, low=low, high=1.0)
    validate.number(who + "minimum", minimum, low=0.0, high=1.0)
    validate.number(who + "maximum", maximum, low=1.0)

    def init(dtype):
        start = jnp.asarray(0.0 if initial is None else initial, dtype)
        return LevenbergMarquardtState(damping=start, unit=start)

    def value(state, count, measure):
        if initial is not None:
            return state.damping, state, 0
        # Calibrated once, so the product is not paid for later on.
        fresh = state.unit == 0
        unit = jax.lax.cond(fresh, lambda: calibration * measure(), lambda: state.unit)
        unit = jnp.where(jnp.isfinite(unit), unit, 0)
        damping = jnp.where(fresh, unit, state.damping)
        state = LevenbergMarquardtState(damping, unit)
        return damping, state, fresh.astype(jnp.int32)

    def update(state, outcome):
        full = outcome.step_size >= 1
        good = full & outcome.ratio_at_least(high)
        bad = jnp.logical_not(full & outcome.ratio_at_least(low))
        rise = jnp.where(outcome.accepted, increase, increase**2)
        factor = jnp.where(bad, rise, jnp.where(good, decrease, 1.0))
        damping = jnp.clip(
            state.damping * factor, state.unit * minimum, state.unit * maximum
        )
        return state._replace(damping=damping.astype(state.damping.dtype))

    return Damping(init, value, update, needs_outcome=True)
