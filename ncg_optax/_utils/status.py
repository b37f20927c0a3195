"""Reason codes and their sentences."""

import enum

import jax
import jax.numpy as jnp


class Status(enum.IntEnum):
    """Why a solve or a step ended as it did; :func:`explain` says it in words.

    Codes below 20 come from the linear solver, codes from 20 to 39 say what became of
    the step, codes from 40 on how :func:`ncg_optax.minimize` ended.

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

    CONVERGED_GRADIENT = 40
    CONVERGED_VALUE = 41
    MAX_STEPS = 42
    STALLED = 43
    SADDLE_POINT = 44
    DIVERGED = 45


_SENTENCES = {
    Status.NOT_STARTED: "No step has been taken yet.",
    Status.RUNNING: "The iteration has not finished.",
    Status.RESIDUAL_CONVERGED: "The residual of the linear system fell below the "
    "solver's tolerance.",
    Status.PROGRESS_STALLED: "The quadratic model stopped improving by more than "
    "progress_tol an iteration, so the solve ended early.",
    Status.MAX_ITERATIONS: "The linear solver used all of its maxiter iterations; the "
    "direction is the best so far.",
    Status.NEGATIVE_CURVATURE: "The linear solver met a direction of negative "
    "curvature and returned a descent direction from there.",
    Status.TRUST_REGION_BOUNDARY: "The step reached the boundary of the trust region.",
    Status.ZERO_RIGHT_HAND_SIDE: "The gradient is exactly zero, there is nothing to "
    "solve.",
    Status.ZERO_CURVATURE: "The curvature along the gradient is exactly zero although "
    "the gradient is not: does value_fn depend on its first argument, or does it close "
    "over the parameters? (A loss that is linear in the parameters gives this too.)",
    Status.INDEFINITE_PRECONDITIONER: "The preconditioner is not positive definite "
    "(r.Mr <= 0); the solve ended with the direction so far.",
    Status.SOLVER_NON_FINITE: "A curvature product was not finite; the solve ended "
    "with the last finite direction.",
    Status.ONE_STEP: "One preconditioned step was made, to the minimum of the "
    "quadratic model along it.",
    Status.LONGEST_STEP: "The quadratic model has its minimum beyond the longest step, "
    "which was made instead.",
    Status.ACCEPTED: "The full step was accepted.",
    Status.SHORTENED: "The line search shortened the step.",
    Status.NOT_EVALUATED: "The step was taken without evaluating the loss at its end: "
    "neither the line search, the damping nor the solver asked for it.",
    Status.STEEPEST_DESCENT: "The solver's direction was no descent direction; the "
    "step goes along the negative gradient instead.",
    Status.REJECTED_NO_DECREASE: "The step was rejected because the loss did not "
    "decrease enough along it (or was not finite there); the parameters stay and the "
    "damping rises.",
    Status.REJECTED_NON_FINITE: "The step was rejected because the loss, the gradient, "
    "the curvature or the direction was not finite; the parameters stay and the "
    "damping rises.",
    Status.ZERO_GRADIENT: "The gradient is exactly zero: a stationary point.",
    Status.SUMMED_LOSS: "The step was rejected because the value given to update is "
    "the loss of value_fn times the number of devices: loss and gradient are summed "
    "over the mapped axis, but must be averaged (ncg_optax.value_and_grad does it).",
    Status.CONVERGED_GRADIENT: "Converged: the largest entry of the gradient is at "
    "most gtol and no negative curvature was found.",
    Status.CONVERGED_VALUE: "Converged: the loss changed by less than ftol, relative "
    "to its size.",
    Status.MAX_STEPS: "Stopped after maxiter steps without meeting a tolerance.",
    Status.STALLED: "Stopped: no further decrease could be found although the gradient "
    "is above gtol; often the limit of the arithmetic (try float64).",
    Status.SADDLE_POINT: "Stopped at a stationary point that is not a minimum: "
    "negative curvature was found, but no step along it decreased the loss.",
    Status.DIVERGED: "Stopped: the loss or its gradient is not finite at the current "
    "parameters.",
}


def explain(status: int | jax.Array) -> str:
    """A sentence for a status code.

    Args:
      status: a concrete code: ``get_info(state).status``, ``.solver_status``, or the
        ``status`` of a :class:`ncg_optax.minimization.MinimizeResult`.

    Returns:
      The sentence.

    Raises:
      ValueError: if there is no such code.

    Examples:
      >>> import ncg_optax as ncg
      >>> ncg.explain(ncg.Status.SHORTENED)
      'The line search shortened the step.'
    """
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
    conditions, codes = zip(*cases, strict=True)
    codes = [jnp.asarray(code, jnp.int32) for code in codes]
    return jnp.select(
        list(map(jnp.asarray, conditions)), codes, jnp.asarray(otherwise, jnp.int32)
    )
