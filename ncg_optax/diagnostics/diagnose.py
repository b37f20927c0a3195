"""What is wrong with a run, in words, from what its last steps measured."""

import textwrap
from typing import Any, NamedTuple

import numpy as np

from ncg_optax._utils.status import Status
from ncg_optax.diagnostics import read_infos as _history
from ncg_optax.diagnostics import step_rules as _findings
from ncg_optax.diagnostics import trend_rules as _tendencies
from ncg_optax.diagnostics.base import (
    MIN_STEPS,
    Finding,
    Run,
    as_run,
    is_stationary,
    median,
    mostly,
    number,
    way,
)

# What follows from a finding is not reported beside it.
EXPLAINS = {
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
      findings: the problems found, those that explain others first.
      steps: how many steps were looked at.
      summary: a sentence or two on how they went.

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
         Advice: Look at the state that update returns, ...
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
    """What is wrong with a run, and which setting to change.

    Looks at what the last steps measured, which :func:`get_info` finds in a state, and
    needs nothing else: collect states or infos while training, or return the info from
    the body of a ``lax.scan``. Tendencies show from ten steps on; of a single state
    only what one step can show is reported. Fetches all numbers in one transfer; call
    it outside of jit.

    The names of the findings:

    - ``not_started``: no update has been made.
    - ``non_finite``: loss, gradient or curvature are not finite.
    - ``summed_loss``: loss and gradient are summed over devices, not averaged.
    - ``updates_not_applied``: the parameters stay where they are.
    - ``zero_curvature``: ``value_fn`` does not depend on its argument.
    - ``zero_gradient``: nothing to do from the first step on.
    - ``indefinite_preconditioner``: ``r.Mr <= 0``.
    - ``steepest_descent``: the solver's direction does not descend.
    - ``loss_rises``: the loss more than doubled.
    - ``gradient_mismatch``: the loss does not follow its gradient.
    - ``negative_curvature``: at half of the steps or more.
    - ``rejected``: steps are rejected again and again.
    - ``damping_rises``: without end.
    - ``shortened``: the line search shortens nearly all steps.
    - ``noise``: steps fit the noise of their mini-batch.
    - ``iterations``: the solver ends at its cap, far from the solution.
    - ``timid``: the damping is too high, and does not fall.
    - ``rounding``: float32 cannot resolve what is left to gain.

    Args:
      history: states (of :func:`newton_cg`, or any wrapper around it) or infos, oldest
        first; or one of them, also stacked along a first axis of steps. The infos of
        ``pmap`` are taken if the devices agree.
      last: how many steps from the end to look at; None for all.

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
    info = _history.read("diagnose", history, last)
    # Before a switch of optimizers there is nothing to see.
    started = info.status != Status.NOT_STARTED
    if not started.any():
        return Diagnosis((_findings.NOT_STARTED,), 0, "No step has been taken yet.")
    run = as_run(info).where(started)
    first = run.where(np.arange(len(run.tried)) == 0)
    if last is not None:
        run = run.where(np.arange(len(run.tried)) >= len(run.tried) - last)
    steps = len(run.tried)

    findings = [rule(run) for rule in _findings.FROM_ONE_STEP]
    if is_stationary(first.info).all():  # else it is where the run converged
        findings.append(_findings.zero_gradient(run))
    # Whose loss no longer changes has no tendency, except to end.
    if not mostly(run.settled):
        moving = run.where(~run.settled)
        if len(moving.tried) >= MIN_STEPS:
            findings += [rule(moving) for rule in _tendencies.TENDENCIES]
    findings = [finding for finding in findings if finding]
    explained = {name for f in findings for name in EXPLAINS.get(f.name, ())}
    findings = tuple(f for f in findings if f.name not in explained)
    return Diagnosis(findings, steps, _summary(run, healthy=not findings))


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 79, subsequent_indent=indent, break_on_hyphens=False)


def _summary(run: Run, healthy: bool) -> str:
    info = run.info
    steps = len(run.tried)
    which = "The last step" if steps == 1 else f"The last {steps} steps"
    parts = [
        f"loss {number(info.loss[0]) if steps == 1 else way(info.loss)}",
        f"gradient norm {number(info.gradient_norm[-1])}",
        f"damping {number(info.damping[-1])}",
    ]
    if run.tried.any():
        parts.append(f"median ratio {median(info.reduction_ratio[run.tried])}")
    parts.append(f"{number(np.mean(info.products))} products a step")
    text = f"{which}: {', '.join(parts)}."
    if not healthy:
        return text
    if mostly(run.settled):
        verdict = (
            "Converged: the gradient is exactly zero."
            if info.gradient_norm[-1] == 0
            else f"Converged: what is left to gain is below the rounding of "
            f"{run.arithmetic}."
        )
    elif np.sum(~run.settled) < MIN_STEPS:
        verdict = (
            "No problem found, but tendencies show only from "
            f"{MIN_STEPS} steps on: hand over a history."
        )
    else:
        verdict = "No problem found."
    return f"{text} {verdict}"
