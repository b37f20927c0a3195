"""The result of a dense solve."""

from typing import Any

import jax.numpy as jnp

from ncg_optax._utils import pytree
from ncg_optax._utils.status import Status, first_match
from ncg_optax.solvers.base import SolverResult
from ncg_optax.solvers.residual_space.damping_search import Step
from ncg_optax.solvers.residual_space.normal_equations import System

PyTree = Any


def solver_result(system: System, step: Step, rhs: PyTree) -> SolverResult:
    """The step as a :class:`SolverResult`; its solution is 0 if it is not finite."""
    b, dtype = pytree.as_real(rhs), pytree.scalar_dtype(rhs)
    finite = pytree.all_finite(step.direction) & jnp.isfinite(step.bend)
    d = pytree.where(finite, step.direction, pytree.zeros_like(step.direction))
    direction = pytree.cast_like(pytree.from_real(d, rhs), rhs)
    zero_rhs = pytree.max_norm(rhs) == 0  # squares may underflow
    residual = pytree.add_scaled(b, -1.0, system.product(d))
    residual = pytree.add_scaled(residual, -step.damping, d)
    length2 = pytree.vdot(d, d)
    decrease = step.slope - 0.5 * step.bend - 0.5 * step.damping * length2
    return SolverResult(
        solution=direction,
        iterations=jnp.ones((), jnp.int32),
        products=jnp.zeros((), jnp.int32),
        residual=pytree.scaled_norm(residual),
        model_decrease=jnp.where(finite, decrease, 0).astype(dtype),
        length=jnp.sqrt(length2),
        last_direction=direction,
        curvature=step.bend / jnp.where(length2 > 0, length2, 1),
        status=first_match(
            (zero_rhs, Status.ZERO_RIGHT_HAND_SIDE),
            (finite, Status.RESIDUAL_CONVERGED),
            otherwise=Status.SOLVER_NON_FINITE,
        ),
    )
