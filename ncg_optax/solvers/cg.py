"""Truncated conjugate gradients, the solver of line-search Newton-CG."""

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
      previous: the last solution, for the warm start; None without one.
      forcing: a :class:`Forcing`, or None with a fixed tolerance.
      count: solves done, int32, shape=(); None with a fixed ``maxiter``.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> ncg.cg(warm_start=0.95, forcing=None).init(jnp.zeros(2))
      CGState(previous=Array([0., 0.], dtype=float32), forcing=None, count=None)
    """

    previous: PyTree | None
    forcing: Forcing | None
    # A field called as a method of tuples, which nobody needs of a state.
    count: jax.Array | None  # pyright: ignore[reportIncompatibleMethodOverride]


@dataclasses.dataclass(frozen=True)
class cg(KrylovSolver):
    r"""Truncated conjugate gradients: the solver of line-search Newton-CG.

    Minimises the damped model

    .. math::
      q(d) = g^T d + \tfrac12 d^T (B + \lambda I)\, d

    (Nocedal and Wright 2006, algorithm 7.1; Martens 2010) until the residual is below
    ``max(rtol |g|, atol)`` or one of the other tests ends it. Memory: 4 vectors the
    size of the parameters, one more with a warm start.

    Attributes:
      maxiter: largest number of iterations, that is of products (one more with a warm
        start). Many short solves beat few long ones on networks, but less so the
        longer one trains: an optax schedule of the number of solves done, rounded down
        and 1 at least, lets it grow. A schedule cannot be had with ``progress_tol``.
      rtol: relative tolerance on the residual. With ``forcing`` the largest one.
      atol: absolute tolerance on the residual, in units of the gradient. Any value
        but 0 makes the method depend on the scale of the loss.
      progress_tol: stop once an iteration improves the model by less than this share
        of it (Martens' test; 5e-4 in the literature), or None.
      warm_start: factor in [0, 1] on the last solution to start from. About 0.95 acts
        as momentum on networks (Martens 2010); 0 starts from zero. A rejected step
        resets it.
      forcing: ``"eisenstat_walker"`` lowers the relative tolerance as the gradient
        falls, :math:`\eta_k = 0.9\,(|g_k| / |g_{k-1}|)^{1.618}`, for superlinear
        convergence without over-solving (Eisenstat and Walker 1996, choice 2); None
        keeps ``rtol``.
      negative_curvature: ``"truncate"`` ends the solve where ``p.Ap <= 0`` with a
        last step along that ``p``; ``"ignore"`` goes on dividing by it, as the poster's
        method does. Not recommended.
      descent_threshold: the solution is replaced by ``-g`` unless ``g.d < -t``. 0 is
        the descent test; the poster's method uses its damping here.

    Raises:
      TypeError: if a setting is not a number, or ``maxiter`` neither an integer nor a
        schedule.
      ValueError: if a setting is out of range or NaN, an option unknown, or
        ``progress_tol`` given with a schedule.

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
        if not callable(self.maxiter):
            validate.integer(
                "cg: maxiter", self.maxiter, low=1, other="an optax schedule"
            )
        elif self.progress_tol is not None:
            raise ValueError(
                "cg: progress_tol must be None where maxiter is a schedule, got "
                f"{self.progress_tol!r}: the test compares with earlier iterations, "
                "whose number has to be known beforehand. Pass an integer maxiter."
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
        """No solve so far."""
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
            assert state.count is not None  # `init` has set it
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
            tolerance=jnp.maximum(eta * norm, self.atol),
            x0=x0,
            precondition=model.precondition,
            progress_tol=self.progress_tol,
            ignore_negative_curvature=self.negative_curvature == "ignore",
        )
        previous = result.solution if self.warm_start else None
        return result, CGState(previous, forcing, count)

    def update(self, state: CGState, outcome: Outcome) -> CGState:
        """Forgets the solution of a rejected step."""
        if not self.warm_start:
            return state
        zeros = pytree.zeros_like(state.previous)
        kept = pytree.where(outcome.accepted, state.previous, zeros)
        return state._replace(previous=kept)
