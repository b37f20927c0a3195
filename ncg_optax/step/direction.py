"""Stage 3: the direction of the step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree
from ncg_optax._utils.status import Status
from ncg_optax.curvature.sampling import growth
from ncg_optax.globalization.fixed_steps import full_step
from ncg_optax.solvers.base import SolverResult, checked_solve
from ncg_optax.step.model import StepModel
from ncg_optax.step.point import Point
from ncg_optax.step.settings import Settings

PyTree = Any


class Direction(NamedTuple):
    """The direction ``d``, and the quadratic model along it.

    Attributes:
      d: the direction, shaped like the trained parameters; zero if it is not finite.
      slope: ``g.d``, the derivative of the loss along ``d``, shape=().
      bend: ``d.Bd``, the second derivative of the undamped model along ``d``, shape=();
        0 if ``fell_back``.
      length2: ``d.d``, shape=().
      fell_back: whether ``d`` is the negative gradient because the solver's direction
        is not a descent direction, bool.
      usable: whether a step along ``d`` may be tried, bool.
      damping: lambda that the solver used, shape=().
      result: result of the solver.
      solver: state of the solver.
      sample: state of the curvature's sample.
      agreement_products: number of products with the whole batch that compared the
        sample with it, int32.
    """

    d: PyTree
    slope: jax.Array
    bend: jax.Array
    length2: jax.Array
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
    """Solves the damped system; replaces the solution if it is no descent direction."""
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
    d, finite = solution, pytree.all_finite(solution)
    if not solver.may_ascend:
        fell_back = jnp.logical_not(slope < -solver.descent_threshold / model.unit)
        # The model's gradient is divided by its unit.
        back = pytree.scale(model.rhs, model.unit)
        d = pytree.where(fell_back, back, solution)
        square = model.unit * pytree.vdot(gradient, gradient)
        slope = jnp.where(fell_back, -square, slope)
        bend = jnp.where(fell_back, 0, bend)
        length2 = jnp.where(fell_back, model.unit * square, length2)
        finite = jnp.where(fell_back, point.has_finite_gradient, finite)

    finite &= jnp.isfinite(slope)
    # Where a product is not finite the direction is the last finite one, or the
    # gradient. Its length means nothing, so it takes a search that evaluates the loss.
    failed = result.status == Status.SOLVER_NON_FINITE
    unchecked = isinstance(settings.linesearch, full_step)
    finite &= jnp.logical_not(failed & (unchecked | (slope == 0)))
    d = pytree.where(finite, d, pytree.zeros_like(d))
    bend, length2 = jnp.where(finite, bend, 0), jnp.where(finite, length2, 0)
    sample_state, agreement_products = _compare_with_batch(
        settings, built, state, d, bend
    )
    return Direction(
        d=d,
        slope=model.unit * slope,
        bend=model.unit * bend,
        length2=length2,
        fell_back=fell_back,
        usable=finite
        & _is_representable(d, point.params)
        & jnp.logical_not(built.is_summed),
        damping=model.unit * damping,
        result=result,
        solver=solver_state,
        sample=sample_state,
        agreement_products=agreement_products,
    )


def _is_representable(d: PyTree, params: PyTree) -> jax.Array | bool:
    """Whether a finite ``d`` is finite in the dtypes of the parameters.

    It may overflow in float16.
    """
    pairs = zip(jax.tree.leaves(d), jax.tree.leaves(params), strict=True)
    if all(x.dtype == y.dtype for x, y in pairs):
        return True
    return pytree.all_finite(pytree.cast_like(d, params))


def _compare_with_batch(
    settings: Settings, built: StepModel, state: Any, d: PyTree, bend: jax.Array
) -> tuple[Any, jax.Array | int]:
    """Compares the curvatures of sample and batch along ``d``.

    Returns the state of the sample and the number of products.
    """
    if built.batch_product is None or settings.grow_below is None:
        return state.sample, 0
    return growth.measure_agreement(
        state.sample, state.count, d, bend, built.batch_product, settings.grow_below
    )
