"""The loop of a minimisation: updates, checks of the curvature, reasons to stop."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ncg_optax._utils import pytree
from ncg_optax._utils.status import Status, first_match
from ncg_optax.globalization.base import largest_rounding, rounding_level
from ncg_optax.losses.objective import Objective
from ncg_optax.minimization.box import Box
from ncg_optax.minimization.result import MinimizeResult
from ncg_optax.minimization.saddle import leave_saddle
from ncg_optax.step.info import find_infos

PyTree = Any

# Steps in a row without progress, in value or gradient norm, before it stops.
PATIENCE = 20


class Limits(NamedTuple):
    """The numbers at which a minimisation stops; :func:`minimize` explains them."""

    maxiter: Any
    gtol: Any
    gtol_relative: Any
    ftol: Any
    xtol: Any


class Problem(NamedTuple):
    """What stays the same during a minimisation."""

    value_fn: Callable[..., Any]
    data: Mapping[str, Any]
    objective: Objective
    optimizer: optax.GradientTransformationExtraArgs
    limits: Limits
    box: Box | None
    check_curvature: bool

    def value_and_grad(self, params: PyTree) -> tuple[jax.Array, PyTree]:
        """Value and gradient, conjugated as optax wants it for complex parameters."""
        value, grads = jax.value_and_grad(self.objective.value)(params)
        return value, pytree.conj(grads)

    def gradient_norm(self, params: PyTree, grads: PyTree) -> jax.Array:
        """The largest entry of the (projected) gradient, float32 or wider."""
        if self.box is not None:
            grads = self.box.projected_gradient(params, grads)
        return pytree.max_norm(grads).astype(pytree.scalar_dtype(params))


class _Cost(NamedTuple):
    products: jax.Array
    evaluations: jax.Array
    gradient_equivalents: jax.Array

    def plus(self, products: Any, evaluations: Any, gradients: Any) -> "_Cost":
        total = self.gradient_equivalents + gradients
        return _Cost(
            products=self.products + products,
            evaluations=self.evaluations + evaluations,
            gradient_equivalents=total.astype(self.gradient_equivalents.dtype),
        )


class _Best(NamedTuple):
    """The point with the lowest value so far."""

    params: PyTree
    value: jax.Array
    norm: jax.Array  # of the gradient there


class Loop(NamedTuple):
    """What changes from one iteration to the next; reals of shape=()."""

    params: PyTree
    state: Any  # of the optimizer
    value: jax.Array
    grads: PyTree
    norm: jax.Array  # the largest absolute entry of the (projected) gradient
    least_norm: jax.Array
    tolerance: jax.Array  # on ``norm``
    best: _Best
    rounding: jax.Array  # of ``value``, as far as accepted rises show it
    idle: jax.Array  # steps in a row without progress
    k: jax.Array  # updates done
    cost: _Cost
    status: jax.Array

    def result(self) -> MinimizeResult:
        """How it ended, at the best point."""
        status = self.status
        tolerances = (
            Status.CONVERGED_GRADIENT,
            Status.CONVERGED_VALUE,
            Status.CONVERGED_STEP,
        )
        return MinimizeResult(
            value=self.best.value,
            gradient_norm=self.best.norm,
            iterations=self.k,
            products=self.cost.products,
            evaluations=self.cost.evaluations,
            gradient_equivalents=self.cost.gradient_equivalents,
            status=status,
            converged=functools.reduce(
                jnp.logical_or, (status == code for code in tolerances)
            ),
        )


def start(problem: Problem, params: PyTree) -> Loop:
    """The loop before the first update."""
    value, grads = problem.value_and_grad(params)
    norm = problem.gradient_norm(params, grads)
    limits = problem.limits
    tolerance = jnp.maximum(limits.gtol, limits.gtol_relative * norm)
    no_steps = (limits.maxiter == 0) & (norm > tolerance)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    zero = jnp.zeros((), jnp.int32)
    return Loop(
        params=params,
        state=problem.optimizer.init(params),
        value=value,
        grads=grads,
        norm=norm,
        least_norm=norm,
        tolerance=tolerance.astype(norm.dtype),
        best=_Best(params, value, norm),
        rounding=jnp.zeros_like(value),
        idle=zero,
        k=zero,
        cost=_Cost(zero, zero, jnp.ones_like(norm)),
        status=first_match(
            (~finite, Status.DIVERGED),
            (no_steps, Status.MAX_STEPS),
            otherwise=Status.RUNNING,
        ),
    )


def advance(problem: Problem, loop: Loop, until: jax.Array | int | None = None) -> Loop:
    """Iterates until it stops, or until there were ``until`` updates."""

    def goes_on(loop):
        running = loop.status == Status.RUNNING
        return running if until is None else running & (loop.k < until)

    return jax.lax.while_loop(goes_on, functools.partial(_iterate, problem), loop)


def _iterate(problem: Problem, loop: Loop) -> Loop:
    """One update, or the check of the curvature where the gradient is small."""

    def accept(loop):
        return loop._replace(status=jnp.asarray(Status.CONVERGED_GRADIENT, jnp.int32))

    return jax.lax.cond(
        loop.norm <= loop.tolerance,
        functools.partial(_check_minimum, problem)
        if problem.check_curvature
        else accept,
        functools.partial(_update, problem),
        loop,
    )


def _update(problem: Problem, loop: Loop) -> Loop:
    """One update of the optimizer."""
    updates, state = problem.optimizer.update(
        loop.grads,
        loop.state,
        loop.params,
        value=loop.value,
        grad=loop.grads,
        value_fn=problem.value_fn,
        **problem.data,
    )
    moved = pytree.max_norm(updates) != 0  # NaN has moved
    params = optax.apply_updates(loop.params, updates)
    if problem.box is not None:
        params = problem.box.project(params)
    value, grads = _gradient_if_moved(problem, loop, moved, params)
    cost = _cost_of_update(loop.cost, state, moved)
    return _advanced(problem, loop, params, state, value, grads, cost)


def _check_minimum(problem: Problem, loop: Loop) -> Loop:
    """Converged at a minimum; elsewhere a step to a lower point, if there is one."""
    found = leave_saddle(
        problem.objective, loop.params, loop.value, loop.grads, loop.k, problem.box
    )
    lower = found.status == Status.RUNNING
    moved = lower & (loop.k < problem.limits.maxiter)
    params = pytree.where(moved, found.params, loop.params)
    value, grads = _gradient_if_moved(problem, loop, moved, params)
    gradients = found.gradient_equivalents + jnp.where(moved, 1, 0)
    cost = loop.cost.plus(found.products, found.evaluations, gradients)
    new = _advanced(problem, loop, params, loop.state, value, grads, cost)
    return new._replace(
        status=first_match(
            (moved, new.status), (lower, Status.MAX_STEPS), otherwise=found.status
        ),
        k=jnp.where(moved, new.k, loop.k),
        idle=jnp.zeros_like(loop.idle),
    )


def _gradient_if_moved(
    problem: Problem, loop: Loop, moved: jax.Array, params: PyTree
) -> tuple[jax.Array, PyTree]:
    """Value and gradient at ``params``; those known if the step was rejected."""
    return jax.lax.cond(
        moved,
        lambda: problem.value_and_grad(params),
        lambda: (loop.value, loop.grads),
    )


def _advanced(
    problem: Problem,
    loop: Loop,
    params: PyTree,
    state: Any,
    value: jax.Array,
    grads: PyTree,
    cost: _Cost,
) -> Loop:
    """The loop after an update to ``params``, and whether it goes on."""
    limits = problem.limits
    norm = problem.gradient_norm(params, grads)
    rise = jnp.maximum(loop.rounding, _accepted_rise(state, value.dtype))
    rounding = jnp.minimum(rise, largest_rounding(value))
    progress = (value < loop.value - rounding) | (norm < loop.least_norm)
    idle = jnp.where(progress, 0, loop.idle + 1).astype(jnp.int32)
    size = jnp.maximum(jnp.abs(value), jnp.abs(loop.value))
    flat = jnp.abs(loop.value - value) <= limits.ftol * size
    length, size = _lengths(loop.params, params)
    short = (length > 0) & (length <= limits.xtol * (limits.xtol + size))
    stationary = norm <= loop.tolerance
    # Other optimizers may have been at a lower point before.
    allowed = jnp.maximum(rounding, rounding_level(loop.best.value))
    level = value <= loop.best.value + allowed
    lower = value < loop.best.value
    kept = lower | level & stationary
    k = loop.k + 1
    return Loop(
        params=params,
        state=state,
        value=value,
        grads=grads,
        norm=norm,
        least_norm=jnp.minimum(norm, loop.least_norm),
        tolerance=loop.tolerance,
        best=pytree.where(kept, _Best(params, value, norm), loop.best),
        rounding=rounding,
        idle=idle,
        k=k,
        cost=cost,
        status=first_match(
            (~(jnp.isfinite(value) & jnp.isfinite(norm)), Status.DIVERGED),
            # The next iteration checks the curvature.
            (stationary & level, Status.RUNNING),
            (stationary, Status.STALLED),
            (flat & level & (idle == 0) & (limits.ftol > 0), Status.CONVERGED_VALUE),
            (short & level & (limits.xtol > 0), Status.CONVERGED_STEP),
            (idle >= PATIENCE, Status.STALLED),
            (k >= limits.maxiter, Status.MAX_STEPS),
            otherwise=Status.RUNNING,
        ),
    )


def _accepted_rise(state: Any, dtype: Any) -> jax.Array:
    """How much the last step of Newton-CG has raised the loss, shape=().

    Its line search accepts a rise that it takes for rounding.
    """
    rise = jnp.zeros((), dtype)
    for info in find_infos(state):
        accepted = info.status == Status.ACCEPTED
        risen = jnp.where(accepted, -info.actual_reduction, 0)
        rise = jnp.maximum(rise, risen.astype(dtype))
    return rise


def _lengths(old: PyTree, new: PyTree) -> tuple[jax.Array, jax.Array]:
    """The norms of the step and of the new parameters."""
    step = jax.tree.map(jnp.subtract, pytree.widen(new), pytree.widen(old))
    return pytree.norm(step), pytree.norm(new)


def _cost_of_update(cost: _Cost, state: Any, moved: jax.Array) -> _Cost:
    """The cost after an update; of other optimizers only the gradients are counted."""
    infos = find_infos(state)
    return cost.plus(
        sum(info.products for info in infos),
        sum(info.evaluations for info in infos),
        # The gradient at the start of the step is counted already; the one after the
        # step is new.
        sum(info.gradient_equivalents - 1 for info in infos) + jnp.where(moved, 1, 0),
    )
