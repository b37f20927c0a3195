"""Rules for problems that a single step can show.

A rule for each problem returns a finding with its evidence in numbers, or None. The
thresholds, here and in ``trend_rules``, were chosen on about eighty real runs. Half of
these runs had a known problem.
"""

import numpy as np

from ncg_optax._utils.status import Status
from ncg_optax.diagnostics.base import (
    Finding,
    Steps,
    at_steps,
    from_to,
    is_frequent,
    is_stationary,
    median,
    number,
)

NOT_STARTED = Finding(
    "not_started",
    "No update has been made.",
    "the status of every info is NOT_STARTED",
    "Pass the state that update returns, not the one that init returned: "
    "updates, state = optimizer.update(...). Before switch_after has switched, its "
    "second optimizer has not made an update either.",
)


def _non_finite(steps: Steps) -> Finding | None:
    info = steps.info
    start = ~(np.isfinite(info.loss) & np.isfinite(info.gradient_norm))
    solver = info.solver_status == Status.SOLVER_NON_FINITE
    bad = start | solver | (info.status == Status.REJECTED_NON_FINITE)
    if not bad.any():
        return None
    k = int(np.argmax(bad))
    first = ", at the first of them" if len(bad) > 1 else ""
    evidence = (
        f"{at_steps(bad)}{first} with a loss of {number(info.loss[k])} and a gradient "
        f"norm of {number(info.gradient_norm[k])}"
    )
    if start[k]:
        return Finding(
            "non_finite",
            "The loss or its gradient is not finite where the step starts.",
            evidence,
            "Rejected steps keep the parameters, so the run does not recover by "
            "itself: look for NaN in the data and the initial parameters, for log or "
            "sqrt of numbers that may be zero, for overflow. If it began in the middle "
            "of a run, keep the line search (linesearch=armijo()) and a learning rate "
            "of 1, and continue from the last checkpoint.",
        )
    return Finding(
        "non_finite",
        "A curvature product is not finite, though loss and gradient are.",
        evidence,
        "The second derivative is infinite somewhere: sqrt, norm or abs(x)**p at "
        "zero, or a jnp.where that hides one (replace its argument there too). "
        "gauss_newton() needs no second derivatives of the model.",
    )


def _summed_loss(steps: Steps) -> Finding | None:
    bad = steps.info.status == Status.SUMMED_LOSS
    if not bad.any():
        return None
    return Finding(
        "summed_loss",
        "Loss and gradient are summed over the devices, not averaged.",
        f"{at_steps(bad)} value was the loss of {number(steps.info.loss[bad][0])} "
        "times the number of devices",
        "Under shard_map jax.grad of a loss on a share of the batch gives the sum. "
        "Use ncg.value_and_grad(loss, axis_name), or make_train_step.",
    )


def _updates_not_applied(steps: Steps) -> Finding | None:
    info = steps.info
    expected = info.predicted_reduction
    same = (steps.next_start == info.loss) & (info.step_size > 0) & (expected > 0)
    same[:-1] &= info.gradient_norm[1:] == info.gradient_norm[:-1]
    same = (same & ~steps.negligible)[:-1]
    if len(same) < 2 or not is_frequent(same, 0.9):
        return None
    return Finding(
        "updates_not_applied",
        "The parameters do not change, although steps are accepted.",
        f"loss {number(info.loss[-1])} and gradient norm "
        f"{number(info.gradient_norm[-1])}, both the same {at_steps(same)} and after "
        f"it, where the model predicted {median(expected)} less",
        "Apply the updates (params = optax.apply_updates(params, updates)), use the "
        "result in the next step, and check that the learning rate is not 0. Check "
        "also that the history does not contain the same state many times.",
    )


def _zero_curvature(steps: Steps) -> Finding | None:
    bad = steps.info.solver_status == Status.ZERO_CURVATURE
    if not is_frequent(bad):
        return None
    return Finding(
        "zero_curvature",
        "The curvature along the gradient is exactly zero.",
        f"{at_steps(bad)}, with a gradient norm of "
        f"{median(steps.info.gradient_norm[bad])}",
        "value_fn probably ignores its first argument and closes over the parameters: "
        "write value_fn=lambda p: loss(p, batch), with p used inside. A loss that is "
        "linear in the parameters has no curvature either; do not use Newton-CG for "
        "it.",
    )


def zero_gradient(steps: Steps) -> Finding | None:
    """A rule for runs whose first gradient is zero."""
    info = steps.info
    zero = is_stationary(info)
    if not zero.all():
        return None
    return Finding(
        "zero_gradient",
        "The gradient is exactly zero.",
        f"{at_steps(zero)}, loss {number(info.loss[-1])}",
        "If the loss is as low as it should be, the run is done. Else: are the "
        "gradients those of the loss, and do they reach the trained leaves (mask=, "
        "stop_gradient, dead units)? Initialise weights at random, not with zeros.",
    )


def _indefinite_preconditioner(steps: Steps) -> Finding | None:
    bad = steps.info.solver_status == Status.INDEFINITE_PRECONDITIONER
    if not is_frequent(bad, 0.1):
        return None
    return Finding(
        "indefinite_preconditioner",
        "The preconditioner is not positive definite.",
        f"{at_steps(bad)} r.Mr <= 0, after a median of "
        f"{median(steps.info.cg_iterations[bad])} iterations",
        "Check a preconditioner of your own with check_operator(M, params, "
        "positive=True): apply must be linear, symmetric and positive. With those of "
        "this package: raise their damping, or train in float64.",
    )


def _steepest_descent(steps: Steps) -> Finding | None:
    bad = steps.info.status == Status.STEEPEST_DESCENT
    if not is_frequent(bad, 0.3):
        return None
    return Finding(
        "steepest_descent",
        "The solver's direction does not descend; steps follow the gradient instead.",
        f"{at_steps(bad)}, with a median residual of "
        f"{median(steps.info.residual[bad])}",
        "With an indefinite Hessian keep cg(negative_curvature='truncate') and "
        "descent_threshold=0.0, lower warm_start, or use gauss_newton(). Check that a "
        "curvature of your own is symmetric (check_operator).",
    )


FLOAT64 = (
    "If it is low enough the run is done. To continue use float64: "
    "jax.config.update('jax_enable_x64', True), before arrays are made."
)


def _rounding(steps: Steps) -> Finding | None:
    info = steps.info
    at_rounding = steps.negligible & (info.gradient_norm > 0)
    if steps.arithmetic == "float64" or not is_frequent(at_rounding):
        return None
    return Finding(
        "rounding",
        f"The loss is as low as the precision of {steps.arithmetic} allows.",
        f"{at_steps(at_rounding)} the step could not change the loss of "
        f"{number(info.loss[-1])} by more than its rounding; gradient norm "
        f"{number(info.gradient_norm[-1])}, damping {from_to(info.damping)}",
        FLOAT64,
    )


STEP_RULES = (
    _summed_loss,
    _non_finite,
    _updates_not_applied,
    _zero_curvature,
    _indefinite_preconditioner,
    _steepest_descent,
    _rounding,
)
