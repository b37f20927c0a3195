"""Stage 3: the direction of the step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree
from ncg_optax._utils.status import Status
from ncg_optax.curvature.sampling import growth
from ncg_optax.solvers.base import SolverResult, checked_solve
from ncg_optax.step.model import StepModel
from ncg_optax.step.point import Point
from ncg_optax.step.settings import Settings

PyTree = Any


class Direction(NamedTuple):
    """The direction ``d``, and the quadratic model along it.

    Attributes:
      d: shaped like the trained parameters; zero if it is not finite.
      slope: ``g.d``, shape=().
      bend: ``d.Bd``, shape=().
      fell_back: whether ``d`` is the negative gradient because the solver's direction
        did not descend, bool.
      usable: whether a step along ``d`` may be tried, bool.
      damping: lambda as the solver used it.
      result: what the solver reports.
      solver: its state.
      sample: state of the curvature's sample.
      agreement_products: products with the whole batch to measure how well the sample
        stands for it, int32.
    """

    d: PyTree
    slope: jax.Array
    bend: jax.Array
    fell_back: jax.Array
    usable: jax.Array
    damping: jax.Array
    result: SolverResult
    solver: Any
    sample: Any
    agreement_products: jax.Array | int


def find_direction(
    settings: Settings, point: Point, built: StepModel, state: Any
) -> Direction:
    """Solves the damped system and checks that the solution descends."""
    model, solver = built.model, settings.solver
    result, solver_state = checked_solve(solver, model, state.solver)
    damping = jnp.asarray(model.damping)
    if result.damping is not None:
        damping = result.damping.astype(point.dtype)

    solution, gradient = result.solution, model.gradient
    slope = pytree.vdot(gradient, solution)
    # model_decrease = -slope - d.(B + damping I)d / 2
    length2 = pytree.vdot(solution, solution)
    bend = -2 * (result.model_decrease + slope) - damping * length2
    fell_back = jnp.zeros((), bool)
    d = solution
    if not solver.may_ascend:
        fell_back = jnp.logical_not(slope < -solver.descent_threshold)
        steepest = pytree.scale(gradient, -1.0)
        d = pytree.where(fell_back, steepest, solution)
        slope = jnp.where(fell_back, pytree.vdot(gradient, steepest), slope)
    # Without a slope there is no curvature along the direction to report either.
    bend = jnp.where(fell_back | jnp.isnan(slope), 0, bend)

    finite = pytree.all_finite(d) & jnp.isfinite(slope)
    finite &= result.status != Status.SOLVER_NON_FINITE
    d = pytree.where(finite, d, pytree.zeros_like(d))
    fits = pytree.all_finite(pytree.cast_like(d, point.params))  # in float16
    sample_state, agreement_products = _compare_with_batch(
        settings, built, state, d, bend
    )
    return Direction(
        d=d,
        slope=slope,
        bend=bend,
        fell_back=fell_back,
        usable=finite & fits & jnp.logical_not(built.is_summed),
        damping=damping,
        result=result,
        solver=solver_state,
        sample=sample_state,
        agreement_products=agreement_products,
    )


def _compare_with_batch(
    settings: Settings, built: StepModel, state: Any, d: PyTree, bend: jax.Array
) -> tuple[Any, jax.Array | int]:
    """Whether the sample's curvature is that of the batch along ``d``; its products."""
    if built.batch_product is None or settings.grow_below is None:
        return state.sample, 0
    return growth.measure_agreement(
        state.sample, state.count, d, bend, built.batch_product, settings.grow_below
    )
