"""Stage 4: the line search along the direction, and its outcome."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, reductions, validate
from ncg_optax._utils.status import Status, first_match
from ncg_optax.globalization.base import (
    Line,
    Outcome,
    SearchResult,
    rounding_level,
)
from ncg_optax.step.direction import Direction
from ncg_optax.step.model import StepModel
from ncg_optax.step.point import Point, jitted_value
from ncg_optax.step.settings import Settings

PyTree = Any


class Trial(NamedTuple):
    """The result of the line search along the direction.

    Attributes:
      search: result of the line search.
      outcome: outcome of the step for the damping rule, the solver and the info; a
        rejected step if a number is not finite.
      status: a :class:`Status` code of the step, int32, shape=().
    """

    search: SearchResult
    outcome: Outcome
    status: jax.Array


def try_step(
    settings: Settings, point: Point, built: StepModel, direction: Direction
) -> Trial:
    """Searches along the direction.

    The damping rule and the solver use the losses that the line search evaluates.
    """
    line = _line(settings, point, built, direction)
    linesearch = settings.linesearch
    search = validate.returned(
        linesearch, "search", linesearch.search(line), "a SearchResult", SearchResult
    )
    validate.returned_scalars(linesearch, "search", search._asdict())
    finite = jnp.isfinite(search.loss)  # a loss of minus infinity is rejected
    search = search._replace(
        accepted=search.accepted & finite,
        loss=jnp.where(finite, search.loss, line.loss),
    )
    return Trial(
        search=search,
        outcome=_outcome(direction, search, line.loss),
        status=_status(point, built, direction, search, line.loss),
    )


def _moved(point: Point, direction: Direction, step: jax.Array) -> PyTree:
    """The parameters after a step of this size."""
    moved = pytree.add_scaled(pytree.widen(point.params), step, direction.d)
    return pytree.cast_like(moved, point.params)


def _line(
    settings: Settings, point: Point, built: StepModel, direction: Direction
) -> Line:
    """The loss along the direction, on the batch and on the sample."""
    loss = built.loss

    def along(value_at: Callable, offset: jax.Array | float):
        def loss_at(step):
            moved = _moved(point, direction, step)
            local = value_at(reductions.to_varying(moved, point.axes))
            return (reductions.mean(local, point.axes) + offset).astype(point.dtype)

        return loss_at

    line = Line(loss, direction.slope, direction.bend, along(point.batch_value, 0))
    if built.sample.objective is point.objective:
        return line
    size = settings.sampling.microbatch_size
    sample_value = jitted_value(built.sample.objective, size)
    offset = loss - reductions.mean(built.sample_loss, point.axes)
    return line._replace(
        sample_loss_at=along(sample_value, offset),
        sample_share=built.sample.share,
    )


def _outcome(direction: Direction, search: SearchResult, loss: jax.Array) -> Outcome:
    """The outcome of the step; rejected if a number is not finite."""
    accepted = search.accepted & direction.usable & jnp.isfinite(loss)
    step = jnp.where(accepted, search.step_size, 0).astype(loss.dtype)
    return Outcome(
        predicted_reduction=-step * (direction.slope + 0.5 * step * direction.bend),
        actual_reduction=jnp.where(accepted, loss - search.loss, 0),
        rounding=rounding_level(loss),
        step_size=step,
        accepted=accepted,
    )


def _moves(point: Point, direction: Direction, search: SearchResult) -> jax.Array:
    """Whether the step changes a parameter, bool."""
    moved = _moved(point, direction, search.step_size)
    differ = jax.tree.map(lambda x, y: jnp.any(x != y), moved, point.params)
    return jnp.any(jnp.stack(jax.tree.leaves(differ)))


def _status(
    point: Point,
    built: StepModel,
    direction: Direction,
    search: SearchResult,
    loss: jax.Array,
) -> jax.Array:
    """The status code of the step; the first condition that holds decides."""
    usable = direction.usable & jnp.isfinite(loss)
    return first_match(
        (built.is_summed, Status.SUMMED_LOSS),
        (~usable, Status.REJECTED_NON_FINITE),
        (direction.slope == 0, Status.ZERO_GRADIENT),
        (~search.accepted, Status.REJECTED_NO_DECREASE),
        (~_moves(point, direction, search), Status.REJECTED_NO_DECREASE),
        (
            direction.result.status == Status.SOLVER_NON_FINITE,
            Status.NON_FINITE_CURVATURE,
        ),
        (direction.fell_back, Status.STEEPEST_DESCENT),
        (search.step_size < 1, Status.SHORTENED),
        (search.evaluations > 0, Status.ACCEPTED),
        otherwise=Status.NOT_EVALUATED,
    )
