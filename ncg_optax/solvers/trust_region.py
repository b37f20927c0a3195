"""Trust-region conjugate gradients: Steihaug's method."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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


class SteihaugState(NamedTuple):
    """State of :func:`steihaug`.

    Attributes:
      radius: radius of the trust region, in units of the parameters, shape=().
      length: length of the last solution in the same norm, shape=().
      forcing: state of the Eisenstat-Walker rule; None with a fixed tolerance.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> state = ncg.steihaug(radius=0.5).init(jnp.zeros(2))
      >>> print(state.radius)
      0.5
    """

    radius: jax.Array
    length: jax.Array
    forcing: Forcing | None


@dataclasses.dataclass(frozen=True)
class steihaug(KrylovSolver):
    r"""Conjugate gradients within a trust region, whose radius is in the state.

    The solver minimises the model within :math:`|d| \le \Delta`. The solve ends at the
    boundary if an iteration would leave the region, or follows the first direction of
    negative curvature to the boundary (Steihaug 1983; Nocedal and Wright 2006,
    algorithms 7.2 and 4.1). If the reduction ratio is below 1/4 the radius becomes a
    quarter of the step's length, but at least the square of the rounding unit times the
    first radius (1e-14 of it in float32). If the ratio is above 3/4 and the step ended
    at the boundary, the radius is doubled. With a preconditioner ``M`` lengths are in
    the norm of ``M^-1``. Use this solver with ``damping=0.0`` and ``linesearch=None``,
    because the trust region replaces both.

    Attributes:
      maxiter: largest number of iterations, at least 1; each costs one product.
      rtol: relative tolerance on the residual, at least 0. With ``forcing`` it is the
        largest one.
      radius: first radius, in units of the parameters, above 0.
      max_radius: largest radius, in the same units, above 0.
      forcing: rule for the relative tolerance, as for :func:`cg`.

    Raises:
      TypeError: if a setting is not a number, or if ``maxiter`` is not an integer.
      ValueError: if a setting is out of range or NaN.

    Examples:
      >>> import ncg_optax as ncg
      >>> tx = ncg.newton_cg(solver=ncg.steihaug(), damping=0.0, linesearch=None)
    """

    maxiter: int = 200
    rtol: float = 0.1
    radius: float = 1.0
    max_radius: float = 1e3
    forcing: str | None = "eisenstat_walker"

    needs_outcome = True

    def __post_init__(self):
        validate.integer("steihaug: maxiter", self.maxiter, low=1)
        check_tolerance("steihaug", self.rtol, self.forcing)
        validate.number("steihaug: radius", self.radius, low=0.0, low_open=True)
        validate.number("steihaug: max_radius", self.max_radius, low=self.radius)

    def init(self, params: PyTree) -> SteihaugState:
        """The state with the first radius."""
        dtype = pytree.scalar_dtype(params)
        return SteihaugState(
            radius=jnp.asarray(self.radius, dtype),
            length=jnp.zeros((), dtype),
            forcing=first_forcing(self.forcing, dtype),
        )

    def solve(
        self, model: Model, state: SteihaugState
    ) -> tuple[SolverResult, SteihaugState]:
        """The solution within the trust region."""
        norm = pytree.norm(model.gradient)
        eta, forcing = relative_tolerance(self.rtol, state.forcing, norm)
        result = conjugate_gradient(
            model.product,
            model.rhs,
            model.damping,
            maxiter=self.maxiter,
            tolerance=eta * norm,
            precondition=model.precondition,
            radius=state.radius,
        )
        return result, state._replace(length=result.length, forcing=forcing)

    def update(self, state: SteihaugState, outcome: Outcome) -> SteihaugState:
        """The state with the next radius."""
        good = outcome.ratio_at_least(0.75) & (state.length > 0.99 * state.radius)
        bad = jnp.logical_not(outcome.ratio_at_least(0.25))
        grown = jnp.minimum(2 * state.radius, self.max_radius)
        radius = jnp.where(good, grown, state.radius)
        # The length of a failed solve is 0. Then the radius itself is divided by 4.
        length = jnp.where(state.length > 0, state.length, state.radius)
        # No factor changes 0.
        least = jnp.finfo(radius.dtype).eps ** 2 * self.radius
        smaller = jnp.maximum(length / 4, least)
        return state._replace(radius=jnp.where(bad, smaller, radius))
