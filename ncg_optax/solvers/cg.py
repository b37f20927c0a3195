"""Truncated conjugate gradients for Newton-CG with a line search."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ncg_optax._utils import pytree, validate
from ncg_optax.globalization.base import Outcome
from ncg_optax.solvers.base import KrylovSolver, Model, SolverResult
from ncg_optax.solvers.linear_cg import conjugate_gradient
from ncg_optax.solvers.tolerance import (
    Forcing,
    check_tolerance,
    first_forcing,
    relative_tolerance,
)

PyTree = Any

NEGATIVE_CURVATURE = ("truncate", "ignore")


class CGState(NamedTuple):
    """State of :func:`cg`.

    Attributes:
      previous: the last solution, shaped like the parameters; None without a warm
        start.
      forcing: state of the Eisenstat-Walker rule; None with a fixed tolerance.
      count: number of solves done, int32, shape=(); None with a fixed ``maxiter``.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> ncg.cg(warm_start=0.95, forcing=None).init(jnp.zeros(2))
      CGState(previous=Array([0., 0.], dtype=float32), forcing=None, count=None)
    """

    previous: PyTree | None
    forcing: Forcing | None
    # Tuples have a method of this name; the field hides it.
    count: jax.Array | None  # pyright: ignore[reportIncompatibleMethodOverride]


@dataclasses.dataclass(frozen=True)
class cg(KrylovSolver):
    r"""Truncated conjugate gradients, the solver of Newton-CG with a line search.

    The solver minimises the damped model

    .. math::
      q(d) = g^T d + \tfrac12 d^T (B + \lambda I)\, d

    (Nocedal and Wright 2006, algorithm 7.1; Martens 2010) until the residual is at most
    ``max(rtol |g|, atol)`` or another of the tests below ends the solve. Memory: 4
    vectors the size of the parameters, and one more with a warm start.

    Attributes:
      maxiter: largest number of iterations, at least 1. Each costs a product; a warm
        start costs one more. It may be an optax schedule of the number of solves done:
        on networks, many short solves are better than few long ones early in a run, and
        less so late in it. Its values are rounded down; values below 1 count as 1. A
        schedule requires ``progress_tol=None``.
      rtol: relative tolerance on the residual, at least 0. With ``forcing`` it is the
        largest one.
      atol: absolute tolerance on the residual, in units of the gradient, at least 0.
        Any value but 0 makes the method depend on the scale of the loss.
      progress_tol: the solve ends if the model improves by less than this share of its
        value per iteration (Martens' test; 5e-4 in the literature). None for no such
        test.
      warm_start: the solve starts from the last solution times this factor in [0, 1].
        About 0.95 acts as a momentum on networks (Martens 2010); 0 starts from zero.
        After a rejected step, or a solution that is no descent direction, the solve
        starts from zero.
      forcing: ``"eisenstat_walker"`` lowers the relative tolerance while the gradient
        decreases, :math:`\eta_k = 0.9\,(|g_k| / |g_{k-1}|)^{1.618}`, for superlinear
        convergence without unnecessary iterations (Eisenstat and Walker 1996, choice
        2); None uses ``rtol``.
      negative_curvature: ``"truncate"`` ends the solve at a direction ``p`` with
        ``p.Ap <= 0``, with a last step along ``p``. ``"ignore"`` continues and divides
        by ``p.Ap``, as the poster's method does. Not recommended.
      descent_threshold: a number ``t``, at least 0: the solution is replaced by ``-g``
        unless ``g.d < -t``. 0 tests for descent; the poster's method uses its damping.

    Raises:
      TypeError: if a setting is not a number, or if ``maxiter`` is neither an integer
        nor a schedule.
      ValueError: if a setting is out of range or NaN, if an option is unknown, or if
        ``progress_tol`` is given together with a schedule.

    Examples:
      >>> import optax
      >>> import ncg_optax as ncg
      >>> solver = ncg.cg(maxiter=10, warm_start=0.95, progress_tol=5e-4)
      >>> growing = ncg.cg(maxiter=optax.linear_schedule(5, 10, 100))
    """

    maxiter: int | optax.Schedule = 200
    rtol: float = 0.1
    atol: float = 0.0
    progress_tol: float | None = None
    warm_start: float = 0.0
    forcing: str | None = "eisenstat_walker"
    negative_curvature: str = "truncate"
    descent_threshold: float = 0.0

    def __post_init__(self):
        validate.integer_or_schedule("cg: maxiter", self.maxiter, low=1)
        if callable(self.maxiter) and self.progress_tol is not None:
            raise ValueError(
                "cg: progress_tol must be None if maxiter is a schedule, got "
                f"{self.progress_tol!r}. The test stores the values of all iterations, "
                "so their number has to be an integer: pass an integer maxiter."
            )
        check_tolerance("cg", self.rtol, self.forcing)
        validate.number("cg: atol", self.atol, low=0.0)
        if self.progress_tol is not None:
            validate.number("cg: progress_tol", self.progress_tol, low=0.0)
        validate.number("cg: warm_start", self.warm_start, low=0.0, high=1.0)
        validate.choice(
            "cg: negative_curvature", self.negative_curvature, NEGATIVE_CURVATURE
        )
        validate.number("cg: descent_threshold", self.descent_threshold, low=0.0)

    def init(self, params: PyTree) -> CGState:
        """The state before the first solve."""
        return CGState(
            previous=pytree.widened_zeros_like(params) if self.warm_start else None,
            forcing=first_forcing(self.forcing, pytree.scalar_dtype(params)),
            count=jnp.zeros((), jnp.int32) if callable(self.maxiter) else None,
        )

    def solve(self, model: Model, state: CGState) -> tuple[SolverResult, CGState]:
        """The truncated solution."""
        norm = pytree.norm(model.gradient)
        eta, forcing = relative_tolerance(self.rtol, state.forcing, norm)
        maxiter, count = self.maxiter, None
        if callable(maxiter):
            assert state.count is not None  # `init` sets it
            maxiter = jnp.asarray(maxiter(state.count)).astype(jnp.int32)
            maxiter = jnp.maximum(maxiter, 1)
            count = jnp.asarray(optax.safe_increment(state.count))
        x0 = None
        if self.warm_start:
            x0 = pytree.scale(state.previous, self.warm_start)
        result = conjugate_gradient(
            model.product,
            model.rhs,
            model.damping,
            maxiter=maxiter,
            tolerance=jnp.maximum(eta * norm, self.atol / model.unit),
            x0=x0,
            precondition=model.precondition,
            progress_tol=self.progress_tol,
            ignore_negative_curvature=self.negative_curvature == "ignore",
        )
        previous = None
        if self.warm_start:
            # A start that rises is not used as a step, and would grow from solve to
            # solve along negative curvature.
            threshold = self.descent_threshold / model.unit
            descends = pytree.vdot(model.rhs, result.solution) > threshold
            zeros = pytree.zeros_like(result.solution)
            previous = pytree.where(descends, result.solution, zeros)
        return result, CGState(previous, forcing, count)

    def update(self, state: CGState, outcome: Outcome) -> CGState:
        """Resets the warm start to zero after a rejected step."""
        if not self.warm_start:
            return state
        zeros = pytree.zeros_like(state.previous)
        kept = pytree.where(outcome.accepted, state.previous, zeros)
        return state._replace(previous=kept)
