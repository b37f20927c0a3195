"""A whole minimisation: one ``lax.while_loop`` around an optax transformation."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ncg_optax._utils import compile_log, pytree, validate
from ncg_optax._utils.status import Status, first_match
from ncg_optax.losses.objective import Objective, as_objective
from ncg_optax.minimization.arguments import (
    arrays_and_constants,
    require_known_names,
)
from ncg_optax.minimization.result import MinimizeResult
from ncg_optax.minimization.saddle import leave_saddle
from ncg_optax.presets import newton_cg
from ncg_optax.step.info import find_infos

PyTree = Any

SETTINGS = ("optimizer", "maxiter", "gtol", "ftol", "check_curvature")

# Steps in a row without progress, in value or gradient norm, before it stops.
PATIENCE = 20


class _Settings(NamedTuple):
    """The arguments of :func:`minimize` that are not arrays."""

    value_fn: Callable[..., Any]
    optimizer: optax.GradientTransformationExtraArgs
    maxiter: int
    gtol: float
    ftol: float
    check_curvature: bool
    constants: Mapping[str, Any]


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


class _Loop(NamedTuple):
    """What changes from one iteration to the next; reals of shape=()."""

    params: PyTree
    state: Any  # of the optimizer
    value: jax.Array
    grads: PyTree
    norm: jax.Array  # the largest absolute entry of the gradient
    best_norm: jax.Array
    idle: jax.Array  # steps in a row without progress
    k: jax.Array  # updates done
    cost: _Cost
    status: jax.Array


def minimize(
    value_fn: Callable[..., Any],
    params: PyTree,
    optimizer: optax.GradientTransformation | None = None,
    *,
    maxiter: int = 1000,
    gtol: float = 1e-5,
    ftol: float = 0.0,
    check_curvature: bool = True,
    **data: Any,
) -> tuple[PyTree, Any, MinimizeResult]:
    r"""Minimises a deterministic function, the whole solve on the device.

    Runs ``optimizer`` until :math:`\max_i |\partial f / \partial \theta_i| \le`
    ``gtol`` at a point where no direction of negative curvature is found: a saddle or
    a maximum is left along one, not reported as a solution. The search for it takes up
    to 20 products with the exact Hessian, from a random vector, so it may miss a
    negative eigenvalue that is small compared with the others.

    Args:
      value_fn: the loss, ``value_fn(params, **data)``, scalar or ``(loss, aux)``, or a
        :class:`CompositeLoss`.
      params: where to start, a pytree of floating-point or complex arrays.
      optimizer: :func:`newton_cg` if None; any optax optimizer works.
      maxiter: largest number of updates.
      gtol: tolerance on the largest entry of the gradient, in units of the gradient.
      ftol: stop if an update lowers the loss by no more than ``ftol`` times its
        absolute value; 0 for no such test.
      check_curvature: whether to search for negative curvature before convergence is
        reported. Needs the Hessian of ``value_fn``.
      **data: further arguments of ``value_fn``, by name. Those that are not arrays or
        numbers, such as strings and bools, are constants of the program.

    Returns:
      ``(params, state, result)``: the parameters, the optimizer's state and a
      :class:`MinimizeResult`.

    Raises:
      TypeError: as ``update`` of :func:`newton_cg`, or if a keyword argument is
        neither a setting nor an argument of ``value_fn``.
      ValueError: if a setting is out of range.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> saddle = lambda w: w[0] ** 2 - w[1] ** 2 + w[1] ** 4
      >>> w, _, result = ncg.minimize(saddle, jnp.zeros(2))  # starts on the saddle
      >>> print(result.converged, jnp.round(jnp.abs(w), 3), jnp.round(result.value, 3))
      True [0. 0.707] -0.25
      >>> ncg.explain(result.status)[:9]
      'Converged'
    """
    validate.function("minimize: value_fn", value_fn)
    require_known_names(value_fn, SETTINGS, data)
    validate.integer("minimize: maxiter", maxiter, low=0)
    validate.number("minimize: gtol", gtol, low=0.0)
    validate.number("minimize: ftol", ftol, low=0.0)
    validate.flag("minimize: check_curvature", check_curvature)
    optimizer = newton_cg() if optimizer is None else optimizer
    validate.component(
        "optimizer", optimizer, optax.GradientTransformation, "newton_cg()"
    )
    validate.numeric_tree("params", params)
    params = jax.tree.map(jnp.asarray, params)
    validate.trainable_tree("params", params)
    data, constants = arrays_and_constants(data)
    settings = _Settings(
        value_fn=value_fn,
        optimizer=optax.with_extra_args_support(optimizer),
        maxiter=maxiter,
        gtol=gtol,
        ftol=ftol,
        check_curvature=check_curvature,
        constants=constants,
    )
    solve = jax.jit(functools.partial(_solve, settings))
    return compile_log.compiled("minimize", solve, params, data)(params, data)


def _solve(
    settings: _Settings, params: PyTree, data: Mapping[str, Any]
) -> tuple[PyTree, Any, MinimizeResult]:
    """The whole minimisation, as one program."""
    data = {**data, **settings.constants}
    objective = as_objective(settings.value_fn, data)
    end = jax.lax.while_loop(
        lambda loop: loop.status == Status.RUNNING,
        functools.partial(_iterate, settings, objective, data),
        _start(settings, objective, params),
    )
    converged = (end.status == Status.CONVERGED_GRADIENT) | (
        end.status == Status.CONVERGED_VALUE
    )
    result = MinimizeResult(
        value=end.value,
        gradient_norm=end.norm,
        iterations=end.k,
        products=end.cost.products,
        evaluations=end.cost.evaluations,
        gradient_equivalents=end.cost.gradient_equivalents,
        status=end.status,
        converged=converged,
    )
    return end.params, end.state, result


def _start(settings: _Settings, objective: Objective, params: PyTree) -> _Loop:
    value, grads = _value_and_grad(objective, params)
    norm = _largest_entry(grads, params)
    no_steps = (settings.maxiter == 0) & (norm > settings.gtol)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    zero = jnp.zeros((), jnp.int32)
    return _Loop(
        params=params,
        state=settings.optimizer.init(params),
        value=value,
        grads=grads,
        norm=norm,
        best_norm=norm,
        idle=zero,
        k=zero,
        cost=_Cost(zero, zero, jnp.ones_like(norm)),
        status=first_match(
            (~finite, Status.DIVERGED),
            (no_steps, Status.MAX_STEPS),
            otherwise=Status.RUNNING,
        ),
    )


def _iterate(
    settings: _Settings, objective: Objective, data: Mapping[str, Any], loop: _Loop
) -> _Loop:
    """One update, or the check of the curvature where the gradient is small."""

    def accept(loop):
        return loop._replace(status=jnp.asarray(Status.CONVERGED_GRADIENT, jnp.int32))

    return jax.lax.cond(
        loop.norm <= settings.gtol,
        functools.partial(_check_minimum, settings, objective)
        if settings.check_curvature
        else accept,
        functools.partial(_update, settings, objective, data),
        loop,
    )


def _update(
    settings: _Settings, objective: Objective, data: Mapping[str, Any], loop: _Loop
) -> _Loop:
    """One update of the optimizer."""
    updates, state = settings.optimizer.update(
        loop.grads,
        loop.state,
        loop.params,
        value=loop.value,
        grad=loop.grads,
        value_fn=settings.value_fn,
        **data,
    )
    moved = pytree.max_norm(updates) > 0
    params = optax.apply_updates(loop.params, updates)
    value, grads = _gradient_if_moved(objective, loop, moved, params)
    cost = _cost_of_update(loop.cost, state, moved)
    return _advance(settings, loop, params, state, value, grads, cost)


def _check_minimum(settings: _Settings, objective: Objective, loop: _Loop) -> _Loop:
    """Converged at a minimum; elsewhere a step to a lower point, if there is one."""
    found = leave_saddle(objective, loop.params, loop.value, loop.grads, loop.k)
    lower = found.status == Status.RUNNING
    moved = lower & (loop.k < settings.maxiter)
    params = pytree.where(moved, found.params, loop.params)
    value, grads = _gradient_if_moved(objective, loop, moved, params)
    gradients = found.gradient_equivalents + jnp.where(moved, 1, 0)
    cost = loop.cost.plus(found.products, found.evaluations, gradients)
    new = _advance(settings, loop, params, loop.state, value, grads, cost)
    return new._replace(
        status=first_match(
            (moved, new.status), (lower, Status.MAX_STEPS), otherwise=found.status
        ),
        k=jnp.where(moved, new.k, loop.k),
        idle=jnp.zeros_like(loop.idle),
    )


def _gradient_if_moved(
    objective: Objective, loop: _Loop, moved: jax.Array, params: PyTree
) -> tuple[jax.Array, PyTree]:
    """Value and gradient at ``params``; those known if the step was rejected."""
    return jax.lax.cond(
        moved,
        lambda: _value_and_grad(objective, params),
        lambda: (loop.value, loop.grads),
    )


def _advance(
    settings: _Settings,
    loop: _Loop,
    params: PyTree,
    state: Any,
    value: jax.Array,
    grads: PyTree,
    cost: _Cost,
) -> _Loop:
    """The loop after an update to ``params``, and whether it goes on."""
    norm = _largest_entry(grads, params)
    progress = (value < loop.value) | (norm < loop.best_norm)
    idle = jnp.where(progress, 0, loop.idle + 1).astype(jnp.int32)
    size = jnp.maximum(jnp.abs(value), jnp.abs(loop.value))
    flat = (jnp.abs(loop.value - value) <= settings.ftol * size) & (idle == 0)
    k = loop.k + 1
    return _Loop(
        params=params,
        state=state,
        value=value,
        grads=grads,
        norm=norm,
        best_norm=jnp.minimum(norm, loop.best_norm),
        idle=idle,
        k=k,
        cost=cost,
        status=first_match(
            (~(jnp.isfinite(value) & jnp.isfinite(norm)), Status.DIVERGED),
            # The next iteration checks the curvature.
            (norm <= settings.gtol, Status.RUNNING),
            (flat & (settings.ftol > 0), Status.CONVERGED_VALUE),
            (idle >= PATIENCE, Status.STALLED),
            (k >= settings.maxiter, Status.MAX_STEPS),
            otherwise=Status.RUNNING,
        ),
    )


def _largest_entry(grads: PyTree, params: PyTree) -> jax.Array:
    """The largest absolute entry of the gradient, float32 or wider."""
    return pytree.max_norm(grads).astype(pytree.scalar_dtype(params))


def _value_and_grad(objective: Objective, params: PyTree) -> tuple[jax.Array, PyTree]:
    """Value and gradient, conjugated as optax wants it for complex parameters."""
    value, grads = jax.value_and_grad(objective.value)(params)
    return value, pytree.conj(grads)


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
