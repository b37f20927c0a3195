"""Status codes and a sentence for each of them."""

import enum

import jax
import jax.numpy as jnp


class Status(enum.IntEnum):
    """Why a solve, a step or a run ended; :func:`explain` returns it as a sentence.

    Codes below 20 are those of the linear solver, codes from 20 to 39 those of the
    step, and codes from 40 on those of :func:`ncg_optax.minimize` and
    :func:`ncg_optax.bayesian_fit`.

    Examples:
      >>> import ncg_optax as ncg
      >>> ncg.Status(21).name, int(ncg.Status.SHORTENED)
      ('SHORTENED', 21)
      >>> ncg.explain(ncg.Status.SHORTENED)
      'The line search shortened the step.'
    """

    NOT_STARTED = 0
    RUNNING = 1
    RESIDUAL_CONVERGED = 2
    PROGRESS_STALLED = 3
    MAX_ITERATIONS = 4
    NEGATIVE_CURVATURE = 5
    TRUST_REGION_BOUNDARY = 6
    ZERO_RIGHT_HAND_SIDE = 7
    ZERO_CURVATURE = 8
    INDEFINITE_PRECONDITIONER = 9
    SOLVER_NON_FINITE = 10
    ONE_STEP = 11
    LONGEST_STEP = 12

    ACCEPTED = 20
    SHORTENED = 21
    NOT_EVALUATED = 22
    STEEPEST_DESCENT = 23
    REJECTED_NO_DECREASE = 24
    REJECTED_NON_FINITE = 25
    ZERO_GRADIENT = 26
    SUMMED_LOSS = 27
    NON_FINITE_CURVATURE = 28
    CLIPPED_GRADIENT = 29

    CONVERGED_GRADIENT = 40
    CONVERGED_VALUE = 41
    MAX_STEPS = 42
    STALLED = 43
    SADDLE_POINT = 44
    DIVERGED = 45
    CONVERGED_STEP = 46
    STOPPED = 47
    OUT_OF_TIME = 48
    CONVERGED_EVIDENCE = 49


_SENTENCES = {
    Status.NOT_STARTED: "No step has been taken yet.",
    Status.RUNNING: "The iteration has not finished.",
    Status.RESIDUAL_CONVERGED: "The residual of the linear system fell below the "
    "solver's tolerance.",
    Status.PROGRESS_STALLED: "The solve ended early because the quadratic model "
    "improved by less than progress_tol per iteration.",
    Status.MAX_ITERATIONS: "The linear solver used all of its maxiter iterations; the "
    "direction is the best so far.",
    Status.NEGATIVE_CURVATURE: "The linear solver found a direction of negative "
    "curvature and ended there.",
    Status.TRUST_REGION_BOUNDARY: "The step reached the boundary of the trust region.",
    Status.ZERO_RIGHT_HAND_SIDE: "The gradient is exactly zero. There is nothing to "
    "solve.",
    Status.ZERO_CURVATURE: "The curvature along the gradient is zero although the "
    "gradient is not. Does value_fn use its first argument, or does it close over the "
    "parameters? (It is also zero if the loss is linear in the parameters.)",
    Status.INDEFINITE_PRECONDITIONER: "The preconditioner is not positive definite "
    "(r.Mr <= 0); the solve ended with the direction found before.",
    Status.SOLVER_NON_FINITE: "A number in the linear solve, such as a curvature "
    "product, was not finite; the solve ended with the last finite direction.",
    Status.ONE_STEP: "The direction is one preconditioned step, to the minimum of "
    "the quadratic model along it.",
    Status.LONGEST_STEP: "The minimum of the quadratic model is beyond the longest "
    "step, so the solver returned the longest step.",
    Status.ACCEPTED: "The full step was accepted.",
    Status.SHORTENED: "The line search shortened the step.",
    Status.NOT_EVALUATED: "The step was taken, and the loss at its end was not "
    "evaluated: neither the line search nor the damping nor the solver needs it.",
    Status.STEEPEST_DESCENT: "The solver's direction was not a descent direction, so "
    "the step follows the negative gradient.",
    Status.REJECTED_NO_DECREASE: "The step was rejected because the loss did not "
    "decrease enough along it (or was not finite), so that Levenberg-Marquardt damping "
    "rises, or because the step is too short to change the parameters. The parameters "
    "stay the same.",
    Status.REJECTED_NON_FINITE: "The step was rejected because the loss, the gradient, "
    "the curvature or the direction was not finite; the parameters stay the same. "
    "After a loss or gradient that is not finite the state stays the same, too.",
    Status.ZERO_GRADIENT: "The gradient is exactly zero: this is a stationary point.",
    Status.SUMMED_LOSS: "The step was rejected because the value given to update is "
    "the loss of value_fn times the number of devices: loss and gradient are summed "
    "over the mapped axis, but must be averaged. Take ncg_optax.value_and_grad.",
    Status.NON_FINITE_CURVATURE: "A curvature product was not finite. The step follows "
    "the last finite direction of the solver, or the negative gradient.",
    Status.CLIPPED_GRADIENT: "The gradient was far longer than those before it. The "
    "step was taken with the gradient reduced, so that it counts little.",
    Status.CONVERGED_GRADIENT: "Converged: the largest entry of the gradient is at "
    "most gtol and no negative curvature was found.",
    Status.CONVERGED_VALUE: "Converged: the loss changed by less than ftol, relative "
    "to its size.",
    Status.MAX_STEPS: "Stopped after maxiter steps; no tolerance was reached.",
    Status.STALLED: "Stopped: no step reduced the loss although the gradient is above "
    "gtol (then the reason is often rounding: try float64), or the optimizer has "
    "reached a stationary point that is above a point that it has left.",
    Status.SADDLE_POINT: "Stopped at a stationary point that is not a minimum: "
    "negative curvature was found, but no step along it decreased the loss.",
    Status.DIVERGED: "Stopped: the loss or its gradient is not finite at the start, or "
    "after a step; then the best point before is returned.",
    Status.CONVERGED_STEP: "Converged: the step was shorter than xtol, relative to the "
    "parameters.",
    Status.STOPPED: "Stopped by the callback.",
    Status.OUT_OF_TIME: "Stopped after max_seconds; no tolerance was reached.",
    Status.CONVERGED_EVIDENCE: "Converged: the evidence rises no further. The point "
    "with the largest evidence is returned.",
}


def explain(status: int | jax.Array) -> str:
    """A sentence for a status code.

    Args:
      status: a code, not traced: ``get_info(state).status``, ``.solver_status``, or
        the ``status`` of a :class:`ncg_optax.minimization.MinimizeResult`.

    Returns:
      The sentence.

    Raises:
      TypeError: if ``status`` is not an integer, or is an array of several.
      ValueError: if ``status`` is not a code of :class:`Status`.

    Examples:
      >>> import ncg_optax as ncg
      >>> ncg.explain(ncg.Status.SHORTENED)
      'The line search shortened the step.'
    """
    if not isinstance(status, int) and not hasattr(status, "dtype"):
        raise TypeError(
            "status must be a code, an integer such as get_info(state).status, got "
            f"{type(status).__name__}."
        )
    shape = getattr(status, "shape", ())
    if shape:
        raise TypeError(
            f"status must be one code, got an array of shape {shape}, as jax.vmap "
            "makes it: [explain(code) for code in status.ravel()]."
        )
    try:
        return _SENTENCES[Status(int(status))]
    except ValueError:
        known = ", ".join(str(int(code)) for code in Status)
        raise ValueError(
            f"status must be one of the codes {known}, got {int(status)}."
        ) from None


def first_match(
    *cases: tuple[jax.Array | bool, int | jax.Array], otherwise: int | jax.Array
) -> jax.Array:
    """The code of the first case whose condition holds, int32, shape=().

    Args:
      *cases: pairs of a condition, bool, shape=(), and a code.
      otherwise: the code if no condition holds.
    """
    # Not `jnp.select`, which makes twice as many operations of it.
    first = jnp.asarray(otherwise, jnp.int32)
    for condition, code in reversed(cases):
        first = jnp.where(condition, jnp.asarray(code, jnp.int32), first)
    return first
