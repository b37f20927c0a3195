"""The steps that the rules examine, a finding, and functions that all rules use."""

from typing import Any, NamedTuple

import jax
import numpy as np

from ncg_optax.step.info import NewtonCGInfo

# With fewer steps the share of those with a problem would be chance.
MIN_STEPS = 10


# On the host these are NumPy arrays; the fields of an info are annotated otherwise.
Array = np.ndarray | jax.Array


class Finding(NamedTuple):
    """A problem of a steps.

    Attributes:
      name: a word for programs, from the list in :func:`diagnose`.
      problem: what is wrong, a sentence.
      evidence: the numbers that show it.
      advice: which setting to change.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> loss = lambda w: jnp.sum(jnp.log(w))
      >>> tx, w = ncg.newton_cg(), jnp.array([-1.0, 2.0])
      >>> _, state = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
      >>> finding, = ncg.diagnose(state).findings
      >>> finding.name, finding.problem
      ('non_finite', 'The loss or its gradient is not finite where the step starts.')
      >>> print(finding.evidence)
      at this step with a loss of nan and a gradient norm of 1.118
    """

    name: str
    problem: str
    evidence: str
    advice: str


class Steps(NamedTuple):
    """The steps that are examined; arrays of shape=(steps,).

    Attributes:
      info: the measurements, reals in float64.
      next_start: the loss at the start of the next step; NaN for the last step.
      evaluated: whether the loss at the end of the step was evaluated.
      negligible: whether the step could not change the loss by more than its rounding
        error, or the gradient was zero; its ratio, damping and length mean nothing.
      rounding: rounding error of the loss.
      arithmetic: name of the dtype of the loss.
    """

    info: NewtonCGInfo
    next_start: Array
    evaluated: Array
    negligible: Array
    rounding: Array
    arithmetic: str

    def select(self, kept: Array) -> "Steps":
        """The steps for which ``kept`` is true."""
        return Steps(
            info=NewtonCGInfo._make(x[kept] for x in self.info),
            next_start=self.next_start[kept],
            evaluated=self.evaluated[kept],
            negligible=self.negligible[kept],
            rounding=self.rounding[kept],
            arithmetic=self.arithmetic,
        )


def as_steps(info: NewtonCGInfo) -> Steps:
    """Consecutive steps from their infos, arrays of shape=(steps,)."""
    dtype = info.loss.dtype
    eps = np.finfo(dtype).eps
    reals = NewtonCGInfo._make(x.astype(np.float64) for x in info)
    rounding = 10 * eps * np.abs(reals.loss)
    # The step may be short for other reasons than a gradient at rounding level. So the
    # reduction by a Newton step along the gradient must be small as well.
    with np.errstate(all="ignore"):
        possible = reals.gradient_norm**2 / (2 * np.abs(reals.curvature))
        # With a factor of 10, because this estimate is rough.
        small = (possible <= 10 * rounding) & (reals.predicted_reduction <= rounding)
    return Steps(
        info=reals,
        next_start=np.append(reals.loss[1:], np.nan),
        evaluated=reals.evaluations > 0,
        negligible=is_stationary(reals) | small,
        rounding=rounding,
        arithmetic=dtype.name,
    )


def is_frequent(flags: Array, share: float = 0.5) -> bool:
    """Whether at least this share of the steps has the flag."""
    return len(flags) > 0 and bool(np.mean(flags) >= share)


def at_steps(flags: Array) -> str:
    """At how many of the steps the flag is set, in words."""
    if len(flags) == 1:
        return "at this step"
    return f"at {np.sum(flags)} of {len(flags)} steps"


def number(x: Any) -> str:
    """Four digits of a number."""
    return f"{x:.4g}"


def median(x: Array) -> str:
    """Four digits of the median."""
    return number(np.median(x))


def from_to(x: Array) -> str:
    """The first and the last number."""
    return f"{number(x[0])} -> {number(x[-1])}"


def is_stationary(info: NewtonCGInfo) -> Array:
    """Steps that start with a finite loss and a gradient of exactly zero."""
    return (info.gradient_norm == 0) & np.isfinite(info.loss)


def is_short(info: NewtonCGInfo) -> Array:
    """Steps so short that a smooth loss is linear along them."""
    damped = (info.damping > 0) & (info.damping >= 100 * np.abs(info.curvature))
    return damped | ((info.step_size > 0) & (info.step_size <= 1e-4))
