"""Rules for problems that only several steps together show.

Like those of ``step_rules``. The steps given to them are not negligible.
"""

import numpy as np

from ncg_optax._utils.status import Status
from ncg_optax.diagnostics.base import (
    MIN_STEPS,
    Finding,
    Steps,
    at_steps,
    from_to,
    is_frequent,
    is_short,
    median,
    number,
)
from ncg_optax.diagnostics.step_rules import FLOAT64


def _loss_rises(steps: Steps) -> Finding | None:
    loss = steps.info.loss
    third = max(len(loss) // 3, 1)
    before, after = loss[:third], loss[-third:]
    # Losses of mini-batches go up and down.
    apart = np.min(after) > np.max(before)
    doubled = np.median(after) - np.median(before) > np.abs(np.median(before))
    if not (apart and doubled):
        return None
    evaluated = "" if steps.evaluated.any() else ", without a line search"
    return Finding(
        "loss_rises",
        "The loss rises.",
        f"{from_to(loss)} over {len(loss)} steps{evaluated}",
        "Use linesearch=armijo(), damping=levenberg_marquardt() and a learning rate "
        "of at most 1. If value_fn falls at each step but the training loss does not: "
        "are both the same function of the same batch?",
    )


def _unresolved(steps: Steps) -> Finding | None:
    info = steps.info
    unchanged = np.abs(info.actual_reduction) <= steps.rounding
    predicted = info.predicted_reduction > 100 * steps.rounding
    # A loss of exactly 0 is the minimum of a loss that cannot be negative.
    bottom = (info.loss == 0) & (info.status == Status.REJECTED_NO_DECREASE)
    bad = steps.evaluated & ((unchanged & predicted & (info.step_size > 0)) | bottom)
    if steps.arithmetic == "float64" or not is_frequent(bad, 0.6):
        return None
    return Finding(
        "rounding",
        f"The loss does not change: the precision of {steps.arithmetic} is too low.",
        f"{at_steps(bad)} the loss of {number(info.loss[-1])} stayed as it was, at a "
        f"gradient norm of {number(info.gradient_norm[-1])} and a predicted reduction "
        f"of {median(info.predicted_reduction[bad])}; damping {from_to(info.damping)}",
        "The small difference of two large numbers has their rounding error. "
        f"{FLOAT64}",
    )


def _gradient_mismatch(steps: Steps) -> Finding | None:
    info = steps.info
    short, full = is_short(info), info.step_size >= 1
    ratio = info.reduction_ratio
    # A line search that shortens a step where the model is wrong ends with a ratio near
    # 1/2.
    low = short & (ratio < np.where(full, 0.7, 0.25))
    # For a convex loss it is at most 2, for any curvature.
    high = ratio > 2.5
    if is_frequent(low & steps.evaluated):
        bad, sign, which = low & steps.evaluated, "less", "short steps"
    elif is_frequent(high & steps.evaluated):
        bad, sign, which = high & steps.evaluated, "more", "steps"
    else:
        return None
    ratio = np.median(ratio[bad])
    # Exact for a quadratic loss and steps that are short or Newton steps.
    times = 2 / (1 + ratio) if sign == "more" else 1 / max(ratio, 1e-3)
    guess = f": the gradient looks like {times:.2g} times that of value_fn"
    return Finding(
        "gradient_mismatch",
        f"The loss falls {sign} along {which} than the gradient predicts.",
        f"{at_steps(bad)} the reduction ratio was {number(ratio)} (median), with a "
        f"damping of {median(info.damping[bad])}, a curvature of "
        f"{median(info.curvature[bad])} and a step size of "
        f"{median(info.step_size[bad])}{guess if ratio > 0.05 else ''}",
        "Is the gradient that of value_fn: the same batch, dropout key and sign, "
        "averaged (not summed) over examples and devices (ncg.value_and_grad)? A loss "
        "with a kink, or with changes below its rounding error, gives this finding "
        "too: smooth it, or use float64.",
    )


def _negative_curvature(steps: Steps) -> Finding | None:
    info = steps.info
    bad = info.solver_status == Status.NEGATIVE_CURVATURE
    if not is_frequent(bad):
        return None
    return Finding(
        "negative_curvature",
        "The solver finds negative curvature at most steps.",
        f"{at_steps(bad)}, after a median of {median(info.cg_iterations[bad])} "
        f"iterations; median step size {median(info.step_size[bad])}",
        "For a network use curvature=gauss_newton() with a CompositeLoss, which is "
        "never negative for a convex loss, or the preset hessian_free(). To keep "
        "the exact Hessian: solver=steihaug() with damping=0.0 and linesearch=None, or "
        "solver=minres(). These solvers are made for negative curvature; with one of "
        "them this finding is no problem.",
    )


def _rejected(steps: Steps) -> Finding | None:
    info = steps.info
    bad = info.status == Status.REJECTED_NO_DECREASE
    if not (is_frequent(bad, 0.6) or bad[-5:].all()):
        return None
    return Finding(
        "rejected",
        "Most steps are rejected.",
        f"{at_steps(bad)}; damping {from_to(info.damping)}, loss {from_to(info.loss)}",
        "Use linesearch=armijo(), which shortens a step before it rejects it, and a "
        "higher first damping (levenberg_marquardt(calibration=0.1)); with steihaug() "
        "a smaller radius. If even very short steps are rejected, the gradient is not "
        "that of value_fn: the same batch, dropout key and sign?",
    )


def _damping_rises(steps: Steps) -> Finding | None:
    damping = steps.info.damping
    rises = damping[1:] > damping[:-1]
    # After it has fallen too low it may rise, but not far above the curvature.
    far = damping[-1] >= max(1e4 * damping[0], 100 * np.abs(steps.info.curvature[-1]))
    if not (damping[0] > 0 and far and is_frequent(rises, 0.6)):
        return None
    ratios = steps.info.reduction_ratio
    return Finding(
        "damping_rises",
        "The damping rises far above the curvature.",
        f"{from_to(damping)}, {at_steps(rises)}; median ratio {median(ratios)}, median "
        f"step size {median(steps.info.step_size)}",
        "Even short steps reduce the loss less than the quadratic model predicts. "
        "Check the other findings and the gradient first: is it that of value_fn? Else "
        "the curvature does not fit the loss (a kink, a curvature of your own, too "
        "small a curvature_batch). levenberg_marquardt(maximum=1.0) keeps the damping "
        "at most at its first value.",
    )


def _shortened(steps: Steps) -> Finding | None:
    info = steps.info
    bad = (info.step_size > 0) & (info.step_size < 1)
    if not is_frequent(bad, 0.8):
        return None
    more = (
        "The damping is constant: raise it, or its bound "
        "(levenberg_marquardt(maximum=...), which hessian_free() sets to 1.0)"
        if np.ptp(info.damping) == 0
        else "Start with more damping (levenberg_marquardt(calibration=0.1))"
    )
    return Finding(
        "shortened",
        "The line search shortens nearly every step.",
        f"{at_steps(bad)}, to a median of {median(info.step_size[bad])}; damping "
        f"{from_to(info.damping)}, median curvature {median(info.curvature)}",
        f"The quadratic model predicts too much. {more}, compute the curvature on more "
        "examples (curvature_batch, sampling(curvature_fraction=1.0), or a share that "
        "grows: sampling(..., grow_below=0.4)), or use another curvature "
        "(gauss_newton() rather than empirical_fisher()).",
    )


def _noise(steps: Steps) -> Finding | None:
    info = steps.info
    gain = info.actual_reduction
    # A direction that averages over batches does not fit the noise of one.
    averaged = np.isin(info.solver_status, [Status.ONE_STEP, Status.LONGEST_STEP])
    # The next step starts with the loss at the end of this one, unless the batch
    # changed.
    used = steps.evaluated & ~averaged & (gain > 0) & np.isfinite(steps.next_start)
    if np.sum(used) < MIN_STEPS // 2:
        return None
    loss, gain, after = info.loss[used], gain[used], steps.next_start[used]
    lost = after - info.next_loss[used]
    large = np.median(gain / np.maximum(np.abs(loss), np.finfo(float).tiny)) >= 0.1
    mostly_lost = np.sum(lost) >= 0.8 * np.sum(gain)
    # With a learning rate below 1 a part of each gain is lost too, but the loss does
    # not rise from step to step.
    if not (large and mostly_lost and is_frequent(after > loss, 0.25)):
        return None
    return Finding(
        "noise",
        "The decrease of the loss on the batch of a step is lost on the next batch.",
        f"a step lowers the loss of its batch by {number(np.mean(gain))} on average, "
        f"and the loss of the next batch is {number(np.mean(lost))} higher; ratios "
        f"from {number(np.min(info.reduction_ratio))} to "
        f"{number(np.max(info.reduction_ratio))}",
        "The steps fit the noise of their mini-batches: use larger ones (five hundred "
        "examples or more), use stochastic_hessian_free(), which averages gradients "
        "before it solves, and average the iterates (optax.incremental_update). "
        "Without mini-batches: use a learning rate of 1.",
    )


def _iterations(steps: Steps) -> Finding | None:
    info = steps.info
    bad = info.solver_status == Status.MAX_ITERATIONS
    gain = np.abs(info.actual_reduction) / np.maximum(
        np.abs(info.loss), np.finfo(float).tiny
    )
    # While the loss falls, short solves are no problem.
    slow = np.median(gain) <= 1e-2
    if not (is_frequent(bad, 0.95) and np.median(info.residual) >= 1 and slow):
        return None
    return Finding(
        "iterations",
        "The solver stops at maxiter, and the residual has not decreased.",
        f"{at_steps(bad)}, after {median(info.cg_iterations[bad])} iterations; median "
        f"residual {median(info.residual)} of the gradient, and a step lowers the "
        f"loss by {number(100 * np.median(gain))} % (median)",
        "Raise maxiter, or better, use a preconditioner, with which fewer iterations "
        "are enough: kronecker() for networks, nystrom(30), or jacobi() if the scales "
        "of the parameters differ. "
        "With up to some thousand residuals or parameters, residual_space().",
    )


def _timid(steps: Steps) -> Finding | None:
    info = steps.info
    good = steps.evaluated & (info.step_size >= 1) & (info.reduction_ratio >= 0.75)
    heavy = info.damping >= 3 * np.abs(info.curvature)
    falls = info.damping[-1] < 0.5 * info.damping[0]
    if not is_frequent(good & heavy & (info.damping > 0), 0.9) or falls:
        return None
    return Finding(
        "timid",
        "The steps are too timid: the damping outweighs the curvature and stays.",
        f"the damping is {median(info.damping)} and the curvature along the steps "
        f"{median(info.curvature)} (medians), while the ratio is "
        f"{median(info.reduction_ratio)}: the quadratic model is accurate, and longer "
        "steps are possible",
        "Lower the damping, or let it adapt: levenberg_marquardt() in place of a "
        "number, with the defaults of initial, calibration, decrease and minimum.",
    )


TREND_RULES = (
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
