"""The steps of a run, a finding about them, and what the rules have in common."""

from typing import NamedTuple

import numpy as np

from ncg_optax.step.info import NewtonCGInfo

# Fewer steps show no tendency: their share would be chance.
MIN_STEPS = 10


class Finding(NamedTuple):
    """A problem of a run.

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


class Run(NamedTuple):
    """The steps under examination; arrays of shape=(steps,).

    Attributes:
      info: what was measured, reals in float64.
      next_start: the loss where the next step started; NaN after the last one.
      tried: whether the loss at the end of the step is known.
      settled: whether the step could not change the loss by more than its rounding,
        or the gradient was zero: its ratio, damping and length mean nothing.
      rounding: of the loss.
      arithmetic: the name of the dtype.
    """

    info: NewtonCGInfo
    next_start: np.ndarray
    tried: np.ndarray
    settled: np.ndarray
    rounding: np.ndarray
    arithmetic: str

    def where(self, kept: np.ndarray) -> "Run":
        """Some of the steps."""
        fields = [x if isinstance(x, str) else x[kept] for x in self[1:]]
        return Run(NewtonCGInfo(*(x[kept] for x in self.info)), *fields)


def as_run(info: NewtonCGInfo) -> Run:
    """Infos of consecutive steps, arrays of shape=(steps,), as the rules want them."""
    dtype = info.loss.dtype
    eps = np.finfo(dtype).eps
    reals = NewtonCGInfo(*(x.astype(np.float64) for x in info))
    rounding = 10 * eps * np.abs(reals.loss)
    # What a Newton step along the gradient would gain; no less than by the step taken,
    # which may be short for other reasons than a gradient at rounding level.
    with np.errstate(all="ignore"):
        possible = reals.gradient_norm**2 / (2 * np.abs(reals.curvature))
        # A factor of 10, as the estimate is a rough one.
        small = (possible <= 10 * rounding) & (reals.predicted_reduction <= rounding)
    return Run(
        info=reals,
        next_start=np.append(reals.loss[1:], np.nan),
        tried=reals.evaluations > 0,
        settled=is_stationary(reals) | small,
        rounding=rounding,
        arithmetic=dtype.name,
    )


# What the rules have in common.


def mostly(flags: np.ndarray, share: float = 0.5) -> bool:
    return len(flags) > 0 and bool(np.mean(flags) >= share)


def count(flags: np.ndarray) -> str:
    if len(flags) == 1:
        return "at this step"
    return f"at {np.sum(flags)} of {len(flags)} steps"


def number(x: float) -> str:
    return f"{x:.4g}"


def median(x: np.ndarray) -> str:
    return number(np.median(x))


def way(x: np.ndarray) -> str:
    """From the first to the last."""
    return f"{number(x[0])} -> {number(x[-1])}"


def is_stationary(info: NewtonCGInfo) -> np.ndarray:
    return (info.gradient_norm == 0) & np.isfinite(info.loss)


def is_tiny(info: NewtonCGInfo) -> np.ndarray:
    """Steps so short that a smooth loss is linear along them."""
    damped = (info.damping > 0) & (info.damping >= 100 * np.abs(info.curvature))
    return damped | ((info.step_size > 0) & (info.step_size <= 1e-4))
