"""What can be wrong with a run, as a single step can show it.

A rule for each problem, with its evidence in numbers. The thresholds, here and in
``_tendencies.py``, were chosen on some eighty real runs, half of which had a problem
that was put there on purpose.
"""

import numpy as np

from ncg_optax._utils.status import Status
from ncg_optax.diagnostics.base import (
    Finding,
    Run,
    count,
    is_stationary,
    median,
    mostly,
    number,
    way,
)

NOT_STARTED = Finding(
    "not_started",
    "No update has been made.",
    "the status of every info is NOT_STARTED",
    "Look at the state that update returns, not at the one that init returned: "
    "updates, state = optimizer.update(...). Before switch_after has switched, there "
    "is nothing to see either.",
)


def _non_finite(run: Run) -> Finding | None:
    info = run.info
    start = ~(np.isfinite(info.loss) & np.isfinite(info.gradient_norm))
    solver = info.solver_status == Status.SOLVER_NON_FINITE
    bad = start | solver | (info.status == Status.REJECTED_NON_FINITE)
    if not bad.any():
        return None
    k = int(np.argmax(bad))
    first = ", at the first of them" if len(bad) > 1 else ""
    evidence = (
        f"{count(bad)}{first} with a loss of {number(info.loss[k])} and a gradient "
        f"norm of {number(info.gradient_norm[k])}"
    )
    if start[k]:
        return Finding(
            "non_finite",
            "The loss or its gradient is not finite where the step starts.",
            evidence,
            "Rejected steps keep the parameters, so this does not heal by itself: "
            "look for NaN in the data and the initial parameters, for log or sqrt of "
            "what may be zero, for overflow. If it began in the middle of a run, keep "
            "the line search (linesearch=armijo()) and the learning rate at 1, and "
            "go on from the last checkpoint.",
        )
    return Finding(
        "non_finite",
        "A curvature product is not finite, though loss and gradient are.",
        evidence,
        "The second derivative is infinite somewhere: sqrt, norm or abs(x)**p at "
        "zero, or a jnp.where that hides one (make its argument safe, inside). "
        "gauss_newton() needs no second derivatives of the model.",
    )


def _summed_loss(run: Run) -> Finding | None:
    bad = run.info.status == Status.SUMMED_LOSS
    if not bad.any():
        return None
    return Finding(
        "summed_loss",
        "Loss and gradient are summed over the devices, not averaged.",
        f"{count(bad)} value was a multiple of the loss of "
        f"{number(run.info.loss[bad][0])}, the number of devices times it",
        "Under shard_map jax.grad of a loss on a share of the batch gives the sum. "
        "Use ncg.value_and_grad(loss, axis_name), or make_train_step as a whole.",
    )


def _updates_not_applied(run: Run) -> Finding | None:
    info = run.info
    expected = info.predicted_reduction
    same = (run.next_start == info.loss) & (info.step_size > 0) & (expected > 0)
    same[:-1] &= info.gradient_norm[1:] == info.gradient_norm[:-1]
    same = (same & ~run.settled)[:-1]
    if len(same) < 2 or not mostly(same, 0.9):
        return None
    return Finding(
        "updates_not_applied",
        "The parameters do not change, although steps are accepted.",
        f"loss {number(info.loss[-1])} and gradient norm "
        f"{number(info.gradient_norm[-1])}, both the same {count(same)} and after "
        f"it, where the model promised {median(expected)} less",
        "Apply the updates (params = optax.apply_updates(params, updates)), use the "
        "result in the next step, and check that the learning rate is not 0. Or the "
        "history holds one and the same state many times.",
    )


def _zero_curvature(run: Run) -> Finding | None:
    bad = run.info.solver_status == Status.ZERO_CURVATURE
    if not mostly(bad):
        return None
    return Finding(
        "zero_curvature",
        "The curvature along the gradient is exactly zero.",
        f"{count(bad)}, with a gradient norm of {median(run.info.gradient_norm[bad])}",
        "value_fn probably ignores its first argument and closes over the parameters: "
        "write value_fn=lambda p: loss(p, batch), with p used inside. A loss that is "
        "linear in the parameters has no curvature either; there Newton-CG is of no "
        "use.",
    )


def zero_gradient(run: Run) -> Finding | None:
    info = run.info
    zero = is_stationary(info)
    if not zero.all():
        return None
    return Finding(
        "zero_gradient",
        "The gradient is exactly zero.",
        f"{count(zero)}, loss {number(info.loss[-1])}",
        "If the loss is as low as it should be, the run is done. If it was so from "
        "the first step on: are the gradients those of the loss, and do they reach "
        "the trained leaves (mask=, stop_gradient, dead units)? Start all-zero "
        "weights at random.",
    )


def _indefinite_preconditioner(run: Run) -> Finding | None:
    bad = run.info.solver_status == Status.INDEFINITE_PRECONDITIONER
    if not mostly(bad, 0.1):
        return None
    return Finding(
        "indefinite_preconditioner",
        "The preconditioner is not positive definite.",
        f"{count(bad)} r.Mr <= 0, after a median of "
        f"{median(run.info.cg_iterations[bad])} iterations",
        "Check a preconditioner of your own with check_operator(M, params, "
        "positive=True): apply must be linear, symmetric and positive. With those of "
        "this package: raise their damping, or train in float64.",
    )


def _steepest_descent(run: Run) -> Finding | None:
    bad = run.info.status == Status.STEEPEST_DESCENT
    if not mostly(bad, 0.3):
        return None
    return Finding(
        "steepest_descent",
        "The solver's direction does not descend; steps follow the gradient instead.",
        f"{count(bad)}, with a median residual of {median(run.info.residual[bad])}",
        "On an indefinite Hessian leave cg(negative_curvature='truncate') and "
        "descent_threshold=0.0 as they are, lower warm_start, or use gauss_newton(). "
        "If the curvature is of your own making: is it symmetric (check_operator)?",
    )


FLOAT64 = (
    "If it is low enough the run is done. To go on use float64: "
    "jax.config.update('jax_enable_x64', True), before arrays are made."
)


def _rounding(run: Run) -> Finding | None:
    info = run.info
    at_rounding = run.settled & (info.gradient_norm > 0)
    if run.arithmetic == "float64" or not mostly(at_rounding):
        return None
    return Finding(
        "rounding",
        f"The loss is as low as {run.arithmetic} can tell.",
        f"{count(at_rounding)} the step could not change the loss of "
        f"{number(info.loss[-1])} by more than its rounding; gradient norm "
        f"{number(info.gradient_norm[-1])}, damping {way(info.damping)}",
        FLOAT64,
    )


FROM_ONE_STEP = (
    _summed_loss,
    _non_finite,
    _updates_not_applied,
    _zero_curvature,
    _indefinite_preconditioner,
    _steepest_descent,
    _rounding,
)
