"""Stage 5: the updates, the next state, and the cost of the step."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ncg_optax._utils import pytree
from ncg_optax._utils.status import Status
from ncg_optax.step import mask as masks
from ncg_optax.step.direction import Direction
from ncg_optax.step.info import Cost, NewtonCGInfo
from ncg_optax.step.model import StepModel
from ncg_optax.step.point import Point
from ncg_optax.step.repair import repaired
from ncg_optax.step.settings import Settings
from ncg_optax.step.state import ScaleByNewtonCGState, require_same_structure
from ncg_optax.step.trial import Trial

PyTree = Any


def next_state(
    settings: Settings,
    point: Point,
    built: StepModel,
    direction: Direction,
    trial: Trial,
    state: ScaleByNewtonCGState,
) -> ScaleByNewtonCGState:
    """The state after the step; damping rule and solver get the outcome of the step.

    If the loss or the gradient at the start is not finite, the batch says nothing about
    damping, curvature or direction: only ``count`` and ``info`` change. If the solve
    fails and gives no direction, the damping stays.
    """
    failed = direction.result.status == Status.SOLVER_NON_FINITE
    new_state = ScaleByNewtonCGState(
        count=jnp.asarray(optax.safe_increment(state.count)),
        damping=settings.damping.update(built.damping, trial.outcome),
        solver=settings.solver.update(direction.solver, trial.outcome),
        preconditioner=built.preconditioner,
        sample=direction.sample,
        info=_measurements(settings, point, built, direction, trial),
    )
    require_same_structure(settings, new_state, state)
    new_state = pytree.cast_like(new_state, state)
    # No damping makes a product finite. (It may shorten a gradient step.)
    stays = failed & jnp.logical_not(direction.usable)
    damping = pytree.cast_like(built.damping, state.damping)
    damping = pytree.where(stays, damping, new_state.damping)
    new_state = new_state._replace(damping=damping)
    known = jnp.isfinite(built.loss) & point.has_finite_gradient
    no_direction = failed | (direction.result.model_decrease == 0)
    solver = jax.lax.cond(
        no_direction,
        lambda own: repaired(settings.solver, point.params, own),
        lambda own: own,
        new_state.solver,
    )
    new_state = new_state._replace(solver=solver)
    # A cond compiles to copies, and `where` to an operation for each array.
    kept = (
        jax.lax.cond(known, lambda new, _: new, lambda _, old: old, *pair)
        for pair in zip(new_state, state, strict=True)
    )
    kept = ScaleByNewtonCGState(*kept)
    return kept._replace(count=new_state.count, info=new_state.info)


def scaled_updates(
    updates: PyTree,
    params: PyTree,
    point: Point,
    direction: Direction,
    trial: Trial,
) -> PyTree:
    """The negative step, in the dtypes of the gradients; zero for frozen leaves."""
    step = pytree.scale(direction.d, -trial.outcome.step_size)
    return masks.merge(
        point.trained,
        pytree.cast_like(step, point.given_gradient),
        masks.frozen_updates(updates, params),
    )


def _cost(
    settings: Settings, built: StepModel, direction: Direction, trial: Trial
) -> Cost:
    """The sum of all products and evaluations of the step."""
    result, search = direction.result, trial.search
    of_damping, on_batch = built.damping_products, direction.agreement_products
    of_preconditioner = built.preconditioner_products
    # Strict types have no product of a share and an integer.
    real = functools.partial(jnp.asarray, dtype=built.loss.dtype)
    batch_products = (
        built.share * real(result.products)
        + built.sample.share * real(of_damping)
        + built.preconditioner_share * real(of_preconditioner)
        + real(on_batch)
    )
    batch_evaluations = (
        search.share * real(search.evaluations)
        + built.sample.share * real(result.evaluations)
        + built.sample_passes
    )
    return Cost(
        products=result.products + of_damping + of_preconditioner + on_batch,
        evaluations=search.evaluations + result.evaluations,
        batch_products=batch_products,
        batch_evaluations=batch_evaluations,
        gradient_equivalents=1
        + batch_products * settings.curvature.cost
        + batch_evaluations / 3
        + built.sample.share * real(result.gradients),
    )


def _measurements(
    settings: Settings,
    point: Point,
    built: StepModel,
    direction: Direction,
    trial: Trial,
) -> NewtonCGInfo:
    """The measurements of the step."""
    loss, search = built.loss, trial.search
    model = built.model
    # In the unit of the model, as the residual.
    norm = pytree.scaled_norm(model.gradient)
    length2 = direction.length2
    predicted = trial.outcome.predicted_reduction
    actual = trial.outcome.actual_reduction
    return NewtonCGInfo(
        status=trial.status,
        solver_status=direction.result.status,
        loss=loss,
        next_loss=jnp.where(search.evaluations > 0, search.loss, 0),
        gradient_norm=model.unit * norm,
        damping=direction.damping,
        cg_iterations=direction.result.iterations,
        **_cost(settings, built, direction, trial)._asdict(),
        residual=direction.result.residual / jnp.where(norm > 0, norm, 1),
        predicted_reduction=predicted,
        actual_reduction=actual,
        reduction_ratio=actual / jnp.where(predicted != 0, predicted, 1),
        step_size=trial.outcome.step_size,
        curvature=direction.bend / jnp.where(length2 > 0, length2, 1),
        curvature_share=jnp.asarray(built.share, loss.dtype),
    )
