"""The problems of a run, in words, from the measurements of its last steps."""

import textwrap
from typing import Any, NamedTuple

import numpy as np

from ncg_optax._utils.status import Status
from ncg_optax.diagnostics.base import (
    MIN_STEPS,
    Finding,
    Steps,
    as_steps,
    from_to,
    is_frequent,
    is_stationary,
    median,
    number,
)
from ncg_optax.diagnostics.read_infos import read_infos
from ncg_optax.diagnostics.step_rules import NOT_STARTED, STEP_RULES, zero_gradient
from ncg_optax.diagnostics.trend_rules import TREND_RULES

# If the problem on the left is found, those on the right, which may follow from it, are
# not reported.
CONSEQUENCES = {
    "summed_loss": (
        "non_finite",
        "damping_rises",
        "rejected",
        "gradient_mismatch",
        "negative_curvature",
    ),
    "non_finite": (
        "loss_rises",
        "negative_curvature",
        "damping_rises",
        "rejected",
        "zero_curvature",
    ),
    "updates_not_applied": (
        "noise",
        "negative_curvature",
        "damping_rises",
        "shortened",
        "iterations",
        "timid",
    ),
    "rounding": (
        "gradient_mismatch",
        "damping_rises",
        "shortened",
        "rejected",
        "iterations",
    ),
    "zero_curvature": (
        "gradient_mismatch",
        "shortened",
        "rejected",
        "loss_rises",
        "rounding",
    ),
    "indefinite_preconditioner": (
        "steepest_descent",
        "shortened",
        "rejected",
        "damping_rises",
    ),
    "gradient_mismatch": ("shortened", "rejected", "iterations"),
    "loss_rises": ("noise",),
}


class Diagnosis(NamedTuple):
    """The answer of :func:`diagnose`; prints as text.

    Attributes:
      findings: the problems found.
      steps: how many steps were examined.
      summary: one or two sentences about these steps.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> state = ncg.newton_cg().init(jnp.zeros(3))
      >>> diagnosis = ncg.diagnose(state)
      >>> diagnosis.healthy, len(diagnosis.findings)
      (False, 1)
      >>> print(diagnosis)
      No step has been taken yet.
      <BLANKLINE>
      1. No update has been made. [not_started]
         Evidence: the status of every info is NOT_STARTED.
         Advice: Pass the state that update returns, ...
    """

    findings: tuple[Finding, ...]
    steps: int
    summary: str

    @property
    def healthy(self) -> bool:
        """Whether no problem was found."""
        return not self.findings

    def __str__(self) -> str:
        text = [_wrapped(self.summary)]
        for k, finding in enumerate(self.findings, start=1):
            text += [
                "",
                _wrapped(f"{k}. {finding.problem} [{finding.name}]", indent="   "),
                _wrapped(f"   Evidence: {finding.evidence}.", indent="   "),
                _wrapped(f"   Advice: {finding.advice}", indent="   "),
            ]
        return "\n".join(text)

    __repr__ = __str__


def diagnose(history: Any, last: int | None = 20) -> Diagnosis:
    """Finds problems of a run, and says which setting to change.

    Uses the measurements of the last steps, the infos that :func:`get_info` finds in a
    state, and nothing else: collect states or infos while training, or return the info
    from the body of a ``lax.scan``. Some problems can only be found from ten steps or
    more; from a single state those that one step shows are reported. Fetches all
    numbers in one transfer; call it outside of jit.

    The names of the findings:

    - ``not_started``: no update has been made.
    - ``non_finite``: loss, gradient or curvature are not finite.
    - ``summed_loss``: loss and gradient are summed over devices, not averaged.
    - ``updates_not_applied``: the parameters do not change.
    - ``zero_curvature``: ``value_fn`` does not depend on its argument.
    - ``zero_gradient``: the gradient is zero from the first step on.
    - ``indefinite_preconditioner``: ``r.Mr <= 0``.
    - ``steepest_descent``: the solver's direction does not descend.
    - ``loss_rises``: the loss more than doubled.
    - ``gradient_mismatch``: the loss does not change as its gradient predicts.
    - ``negative_curvature``: at half of the steps or more.
    - ``rejected``: steps are rejected again and again.
    - ``damping_rises``: the damping rises far above the curvature.
    - ``shortened``: the line search shortens nearly all steps.
    - ``noise``: steps fit the noise of their mini-batch.
    - ``iterations``: the solver stops at ``maxiter``, far from the solution.
    - ``timid``: the damping is too high, and does not fall.
    - ``rounding``: a further decrease is below the rounding error of float32.

    Args:
      history: states (of :func:`newton_cg`, or any wrapper around it) or infos, oldest
        first; or one of them, also stacked along a first axis of steps. Infos from
        ``pmap`` are accepted if the devices agree.
      last: how many of the last steps to examine; None for all.

    Returns:
      A :class:`Diagnosis`, which prints as text.

    Raises:
      TypeError: if it is called under jit, or ``last`` is not an integer.
      ValueError: if there is no info in the history, or more than one in an entry; if
        an info has more axes than one, or the devices disagree; if ``last`` is below 1.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> import ncg_optax as ncg
      >>> f = lambda w: jnp.sum(jnp.cosh(w))
      >>> tx = ncg.newton_cg(damping=100.0)       # far more than the curvature
      >>> def step(carry, _):
      ...     w, state = carry
      ...     updates, state = tx.update(jax.grad(f)(w), state, w, value_fn=f)
      ...     return (optax.apply_updates(w, updates), state), ncg.get_info(state)
      >>> w = jnp.ones(3)
      >>> _, infos = jax.lax.scan(step, (w, tx.init(w)), length=10)
      >>> diagnosis = ncg.diagnose(infos)
      >>> [finding.name for finding in diagnosis.findings]
      ['timid']
      >>> print(diagnosis)
      The last 10 steps: loss 4.629 -> 4.305, ...
      <BLANKLINE>
      1. The steps are too timid: ... [timid]
         Evidence: the damping is 100 ...
         Advice: ...
    """
    info = read_infos("diagnose", history, last)
    # Before switch_after has switched there are no measurements.
    started = info.status != Status.NOT_STARTED
    if not started.any():
        return Diagnosis((NOT_STARTED,), 0, "No step has been taken yet.")
    steps = as_steps(info).select(started)
    index = np.arange(len(steps.evaluated))
    first = steps.select(index == 0)
    if last is not None:
        steps = steps.select(index >= len(index) - last)

    findings = [rule(steps) for rule in STEP_RULES]
    if is_stationary(first.info).all():  # Else the run has converged there.
        findings.append(zero_gradient(steps))
    # If most steps are negligible the run has ended, and a trend means nothing.
    if not is_frequent(steps.negligible):
        moving = steps.select(~steps.negligible)
        if len(moving.evaluated) >= MIN_STEPS:
            findings += [rule(moving) for rule in TREND_RULES]
    findings = [finding for finding in findings if finding]
    explained = {name for f in findings for name in CONSEQUENCES.get(f.name, ())}
    findings = tuple(f for f in findings if f.name not in explained)
    summary = _summary(steps, healthy=not findings)
    return Diagnosis(findings, len(steps.evaluated), summary)


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 79, subsequent_indent=indent, break_on_hyphens=False)


def _summary(steps: Steps, healthy: bool) -> str:
    info = steps.info
    count = len(steps.evaluated)
    which = "The last step" if count == 1 else f"The last {count} steps"
    parts = [
        f"loss {number(info.loss[0]) if count == 1 else from_to(info.loss)}",
        f"gradient norm {number(info.gradient_norm[-1])}",
        f"damping {number(info.damping[-1])}",
    ]
    if steps.evaluated.any():
        parts.append(f"median ratio {median(info.reduction_ratio[steps.evaluated])}")
    parts.append(f"{number(np.mean(info.products))} products a step")
    text = f"{which}: {', '.join(parts)}."
    if not healthy:
        return text
    if is_frequent(steps.negligible):
        verdict = (
            "Converged: the gradient is exactly zero."
            if info.gradient_norm[-1] == 0
            else f"Converged: a further decrease is below the rounding of "
            f"{steps.arithmetic}."
        )
    elif np.sum(~steps.negligible) < MIN_STEPS:
        verdict = (
            "No problem found, but some problems can be found only from "
            f"{MIN_STEPS} steps on: pass a history."
        )
    else:
        verdict = "No problem found."
    return f"{text} {verdict}"
