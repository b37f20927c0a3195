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
    """The parameters after a step of this size, rounded as by `optax.apply_updates`."""
    step_tree = pytree.scale(direction.d, step)

    def add(x, u, gradient):
        u = _rounded(u, gradient.dtype)
        wider = jnp.promote_types(x.dtype, u.dtype)
        return _rounded(x.astype(wider) + u.astype(wider), x.dtype)

    return jax.tree.map(add, point.params, step_tree, point.given_gradient)


def _rounded(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """``x`` in this dtype; XLA may leave out the rounding of a mere conversion."""
    if dtype.itemsize < 4:
        limits = jnp.finfo(dtype)
        x = jax.lax.reduce_precision(x, limits.nexp, limits.nmant)
    return x.astype(dtype)


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
    predicted = -step * (direction.slope + 0.5 * step * direction.bend)
    return Outcome(
        # Zero times a slope that has overflowed is NaN.
        predicted_reduction=jnp.where(accepted, predicted, 0),
        actual_reduction=jnp.where(accepted, loss - search.loss, 0),
        rounding=jnp.maximum(rounding_level(loss), search.rounding).astype(loss.dtype),
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
    moves = _moves(point, direction, search)
    return first_match(
        (built.is_summed, Status.SUMMED_LOSS),
        (~usable, Status.REJECTED_NON_FINITE),
        (point.has_zero_gradient & ~moves, Status.ZERO_GRADIENT),
        (~(search.accepted & moves), Status.REJECTED_NO_DECREASE),
        (
            direction.result.status == Status.SOLVER_NON_FINITE,
            Status.NON_FINITE_CURVATURE,
        ),
        (direction.fell_back, Status.STEEPEST_DESCENT),
        (search.step_size < 1, Status.SHORTENED),
        (search.evaluations > 0, Status.ACCEPTED),
        otherwise=Status.NOT_EVALUATED,
    )
