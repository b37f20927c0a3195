"""What can be wrong with a run, as only several steps together show it.

Rules like those of ``_findings.py``; none of these steps is at rounding level.
"""

import numpy as np

from ncg_optax._utils.status import Status
from ncg_optax.diagnostics.base import (
    MIN_STEPS,
    Finding,
    Run,
    count,
    is_tiny,
    median,
    mostly,
    number,
    way,
)
from ncg_optax.diagnostics.step_rules import FLOAT64


def _loss_rises(run: Run) -> Finding | None:
    loss = run.info.loss
    third = max(len(loss) // 3, 1)
    before, after = loss[:third], loss[-third:]
    # Losses of mini-batches go up and down.
    apart = np.min(after) > np.max(before)
    doubled = np.median(after) - np.median(before) > np.abs(np.median(before))
    if not (apart and doubled):
        return None
    unseen = "" if run.tried.any() else ", which no line search looked at"
    return Finding(
        "loss_rises",
        "The loss rises.",
        f"{way(loss)} over {len(loss)} steps{unseen}",
        "Use linesearch=armijo(), damping=levenberg_marquardt() and a learning rate "
        "of at most 1. If value_fn falls at each step but the training loss does not: "
        "are both the same function of the same batch?",
    )


def _unresolved(run: Run) -> Finding | None:
    info = run.info
    still = np.abs(info.actual_reduction) <= run.rounding
    promised = info.predicted_reduction > 100 * run.rounding
    # Of a loss that cannot be negative nothing is left below 0.
    bottom = (info.loss == 0) & (info.status == Status.REJECTED_NO_DECREASE)
    bad = run.tried & ((still & promised & (info.step_size > 0)) | bottom)
    if run.arithmetic == "float64" or not mostly(bad, 0.6):
        return None
    return Finding(
        "rounding",
        f"The loss does not move: {run.arithmetic} is too coarse for it.",
        f"{count(bad)} the loss of {number(info.loss[-1])} stayed as it was, at a "
        f"gradient norm of {number(info.gradient_norm[-1])} and a predicted reduction "
        f"of {median(info.predicted_reduction[bad])}; damping {way(info.damping)}",
        "A loss that is the small difference of large numbers is rounded like these. "
        f"{FLOAT64}",
    )


def _gradient_mismatch(run: Run) -> Finding | None:
    info = run.info
    tiny, full = is_tiny(info), info.step_size >= 1
    ratio = info.reduction_ratio
    # The line search ends with a ratio near 1/2 where the model is wrong.
    low = tiny & (ratio < np.where(full, 0.7, 0.25))
    # Of a convex loss it is at most 2, whatever the curvature.
    high = ratio > 2.5
    if mostly(low & run.tried):
        bad, sign, steps = low & run.tried, "less", "short steps"
    elif mostly(high & run.tried):
        bad, sign, steps = high & run.tried, "more", "steps"
    else:
        return None
    ratio = np.median(ratio[bad])
    # On a quadratic, along steps that are short or those of Newton.
    times = 2 / (1 + ratio) if sign == "more" else 1 / max(ratio, 1e-3)
    guess = f": the gradient looks like {times:.2g} times that of value_fn"
    return Finding(
        "gradient_mismatch",
        f"The loss falls {sign} along {steps} than the gradient says.",
        f"{count(bad)} the reduction ratio was {number(ratio)} (median), with a "
        f"damping of {median(info.damping[bad])}, a curvature of "
        f"{median(info.curvature[bad])} and a step size of "
        f"{median(info.step_size[bad])}{guess if ratio > 0.05 else ''}",
        "Is the gradient that of value_fn: the same batch, dropout key and sign, "
        "averaged (not summed) over examples and devices (ncg.value_and_grad)? A loss "
        "with a kink, or one that its arithmetic no longer resolves, looks like this "
        "too: smooth it, or use float64.",
    )


def _negative_curvature(run: Run) -> Finding | None:
    info = run.info
    bad = info.solver_status == Status.NEGATIVE_CURVATURE
    if not mostly(bad):
        return None
    return Finding(
        "negative_curvature",
        "The solver meets negative curvature most of the time.",
        f"{count(bad)}, after a median of {median(info.cg_iterations[bad])} "
        f"iterations; median step size {median(info.step_size[bad])}",
        "For a network use curvature=gauss_newton() with a CompositeLoss, which is "
        "never negative for a convex loss, or hessian_free() as a whole. To stay "
        "with the exact Hessian: solver=steihaug() with damping=0.0 and "
        "linesearch=None, or solver=minres(); if it is one of these already, this is "
        "what it is made for.",
    )


def _rejected(run: Run) -> Finding | None:
    info = run.info
    bad = info.status == Status.REJECTED_NO_DECREASE
    if not (mostly(bad, 0.6) or bad[-5:].all()):
        return None
    return Finding(
        "rejected",
        "Steps are rejected again and again.",
        f"{count(bad)}; damping {way(info.damping)}, loss {way(info.loss)}",
        "Use linesearch=armijo(), which shortens a step before it gives up, and a "
        "higher first damping (levenberg_marquardt(calibration=0.1)); with steihaug() "
        "a smaller radius. If no step however short is accepted, the gradient is not "
        "that of value_fn: the same batch, dropout key and sign?",
    )


def _damping_rises(run: Run) -> Finding | None:
    damping = run.info.damping
    rises = damping[1:] > damping[:-1]
    # It may well rise if it had fallen too low, but not far above the curvature.
    far = damping[-1] >= max(1e4 * damping[0], 100 * np.abs(run.info.curvature[-1]))
    if not (damping[0] > 0 and far and mostly(rises, 0.6)):
        return None
    ratios = run.info.reduction_ratio
    return Finding(
        "damping_rises",
        "The damping rises without end.",
        f"{way(damping)}, {count(rises)}; median ratio {median(ratios)}, median "
        f"step size {median(run.info.step_size)}",
        "No step is as good as the quadratic model says, however short. Look at the "
        "other findings and at the gradient first: is it that of value_fn? Else the "
        "curvature does not fit the loss (a kink, a curvature of your own, too small "
        "a curvature_batch). levenberg_marquardt(maximum=1.0) keeps the damping "
        "where it began.",
    )


def _shortened(run: Run) -> Finding | None:
    info = run.info
    bad = (info.step_size > 0) & (info.step_size < 1)
    if not mostly(bad, 0.8):
        return None
    more = (
        "The damping stays where it is: raise it, or its bound "
        "(levenberg_marquardt(maximum=...), which hessian_free() sets to 1.0)"
        if np.ptp(info.damping) == 0
        else "Start with more damping (levenberg_marquardt(calibration=0.1))"
    )
    return Finding(
        "shortened",
        "The line search shortens nearly every step.",
        f"{count(bad)}, to a median of {median(info.step_size[bad])}; damping "
        f"{way(info.damping)}, median curvature {median(info.curvature)}",
        f"The quadratic model promises too much. {more}, show the curvature more "
        "examples (curvature_batch, sampling(curvature_fraction=1.0), or a share that "
        "grows: sampling(..., grow_below=0.4)), or use another one (gauss_newton() "
        "rather than empirical_fisher()).",
    )


def _noise(run: Run) -> Finding | None:
    info = run.info
    gain = info.actual_reduction
    # An average over batches fits none of them.
    averaged = np.isin(info.solver_status, [Status.ONE_STEP, Status.LONGEST_STEP])
    # Where the next step starts is where this one ended, unless the batch changed.
    used = run.tried & ~averaged & (gain > 0) & np.isfinite(run.next_start)
    if np.sum(used) < MIN_STEPS // 2:
        return None
    loss, gain, after = info.loss[used], gain[used], run.next_start[used]
    lost = after - info.next_loss[used]
    large = np.median(gain / np.maximum(np.abs(loss), np.finfo(float).tiny)) >= 0.1
    in_vain = np.sum(lost) >= 0.8 * np.sum(gain)
    # A learning rate below 1 loses a part of each gain as well, but does not rise.
    if not (large and in_vain and mostly(after > loss, 0.25)):
        return None
    return Finding(
        "noise",
        "What a step gains on its own batch is lost on the next.",
        f"a step lowers the loss of its batch by {number(np.mean(gain))} on average, "
        f"and the next batch starts {number(np.mean(lost))} higher than that; ratios "
        f"from {number(np.min(info.reduction_ratio))} to "
        f"{number(np.max(info.reduction_ratio))}",
        "The steps fit the noise of their mini-batches: take larger ones (five hundred "
        "examples or more), use stochastic_hessian_free(), which averages gradients "
        "before it solves, and average the iterates (optax.incremental_update). "
        "Without mini-batches: leave the learning rate at 1.",
    )


def _iterations(run: Run) -> Finding | None:
    info = run.info
    bad = info.solver_status == Status.MAX_ITERATIONS
    gain = np.abs(info.actual_reduction) / np.maximum(
        np.abs(info.loss), np.finfo(float).tiny
    )
    # Short solves are as good as long ones as long as the loss falls.
    slow = np.median(gain) <= 1e-2
    if not (mostly(bad, 0.95) and np.median(info.residual) >= 1 and slow):
        return None
    return Finding(
        "iterations",
        "The solver ends at its cap, with all of the residual left.",
        f"{count(bad)}, after {median(info.cg_iterations[bad])} iterations; median "
        f"residual {median(info.residual)} of the gradient, and a step lowers the "
        f"loss by {number(100 * np.median(gain))} % (median)",
        "Allow more (cg(maxiter=...)), or better, fewer that count: a preconditioner "
        "(kronecker() for networks, nystrom(30), or jacobi() where scales differ). "
        "With up to some thousand residuals or parameters, residual_space().",
    )


def _timid(run: Run) -> Finding | None:
    info = run.info
    good = run.tried & (info.step_size >= 1) & (info.reduction_ratio >= 0.75)
    heavy = info.damping >= 3 * np.abs(info.curvature)
    falls = info.damping[-1] < 0.5 * info.damping[0]
    if not mostly(good & heavy & (info.damping > 0), 0.9) or falls:
        return None
    return Finding(
        "timid",
        "The steps are too timid: the damping outweighs the curvature and stays.",
        f"the damping is {median(info.damping)} and the curvature along the steps "
        f"{median(info.curvature)} (medians), while the ratio is "
        f"{median(info.reduction_ratio)}: the model is right, and could be trusted "
        "further",
        "Lower the damping, or let it fall: levenberg_marquardt() in place of a "
        "number, with the defaults of initial, calibration, decrease and minimum.",
    )


TENDENCIES = (
    _loss_rises,
    _unresolved,
    _gradient_mismatch,
    _negative_curvature,
    _rejected,
    _damping_rises,
    _shortened,
    _noise,
    _iterations,
    _timid,
)
