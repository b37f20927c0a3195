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
      radius: of the trust region, in units of the parameters, shape=().
      length: of the last solution, in the same norm, shape=().
      forcing: a :class:`Forcing`, or None with a fixed tolerance.

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
    r"""Trust-region conjugate gradients with the radius in the state.

    Minimises the model within :math:`|d| \le \Delta`: the solve ends on the boundary
    where it would leave it, or along the first direction of negative curvature
    (Steihaug 1983; Nocedal and Wright 2006, algorithms 7.2 and 4.1). The radius
    becomes a quarter of the step's length if the reduction ratio is below 1/4, and is
    doubled if it is above 3/4 and the step was on the boundary. Lengths are in the norm
    of ``M^-1`` if there is a preconditioner ``M``. Use it with ``damping=0.0`` and
    ``linesearch=None``: one globalisation is enough.

    Attributes:
      maxiter: largest number of iterations, that is of products.
      rtol: relative tolerance on the residual; with ``forcing`` the largest one.
      radius: the first radius, in units of the parameters.
      max_radius: the largest one.
      forcing: as for :func:`cg`.

    Raises:
      TypeError: if a setting is not a number, or ``maxiter`` not an integer.
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
        """The first radius."""
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
        """The next radius."""
        good = outcome.ratio_at_least(0.75) & (state.length > 0.99 * state.radius)
        bad = jnp.logical_not(outcome.ratio_at_least(0.25))
        grown = jnp.minimum(2 * state.radius, self.max_radius)
        radius = jnp.where(good, grown, state.radius)
        # A failed solve has no length: its radius shrinks from what it was.
        length = jnp.where(state.length > 0, state.length, state.radius)
        return state._replace(radius=jnp.where(bad, length / 4, radius))
