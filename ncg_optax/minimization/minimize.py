"""A whole minimisation in one ``lax.while_loop`` around a transformation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ncg_optax._utils import pytree, validate
from ncg_optax._utils.status import Status
from ncg_optax.losses.objective import as_objective
from ncg_optax.minimization.saddle import leave_saddle
from ncg_optax.presets import newton_cg
from ncg_optax.step.info import NewtonCGInfo

PyTree = Any

# Steps without any progress, in value or in gradient norm, after which to give up.
PATIENCE = 20


class MinimizeResult(NamedTuple):
    """How a minimisation ended; arrays of shape=().

    Attributes:
      value: the loss at the returned parameters.
      gradient_norm: the largest absolute entry of the gradient there.
      iterations: updates done, int32.
      products: curvature products spent, int32.
      evaluations: evaluations of the loss alone, int32.
      gradient_equivalents: all of it in gradients, by the rule of thumb: 1 for each
        gradient, ``curvature.cost`` for a product, 1/3 for an evaluation.
      status: a :class:`Status` code, int32; :func:`explain` it.
      converged: whether a tolerance was met, bool.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> _, _, result = ncg.minimize(lambda w: jnp.sum((w - 1.0) ** 2), jnp.zeros(3))
      >>> print(result.value, result.converged, ncg.Status(int(result.status)).name)
      0.0 True CONVERGED_GRADIENT
    """

    value: jax.Array
    gradient_norm: jax.Array
    iterations: jax.Array
    products: jax.Array
    evaluations: jax.Array
    gradient_equivalents: jax.Array
    status: jax.Array
    converged: jax.Array


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
    params: PyTree
    state: Any
    value: jax.Array
    grads: PyTree
    norm: jax.Array
    best_norm: jax.Array
    idle: jax.Array  # steps in a row without progress
    k: jax.Array
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
    negative eigenvalue that is tiny beside the others.

    Args:
      value_fn: the loss, ``value_fn(params, **data)``, scalar or ``(loss, aux)``, or a
        :class:`CompositeLoss`.
      params: where to start, a pytree of floating-point or complex arrays.
      optimizer: :func:`newton_cg` if None; any optax optimizer works.
      maxiter: largest number of updates.
      gtol: tolerance on the largest entry of the gradient, in units of the gradient.
      ftol: stop if an update lowers the loss by no more than this share of its size; 0
        for no such test.
      check_curvature: whether to look for negative curvature before claiming
        convergence. Needs the Hessian of ``value_fn``.
      **data: further arguments of ``value_fn``, by name.

    Returns:
      ``(params, state, result)``: the parameters, the optimizer's state and a
      :class:`MinimizeResult`.

    Raises:
      TypeError: as ``update`` of :func:`newton_cg`.
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
    validate.integer("minimize: maxiter", maxiter, low=0)
    validate.number("minimize: gtol", gtol, low=0.0)
    validate.number("minimize: ftol", ftol, low=0.0)
    optimizer = newton_cg() if optimizer is None else optimizer
    validate.component(
        "optimizer", optimizer, optax.GradientTransformation, "newton_cg()"
    )
    optimizer = optax.with_extra_args_support(optimizer)
    params = jax.tree.map(jnp.asarray, params)
    validate.trainable_tree("params", params)

    def solve(params, data):
        dtype = pytree.scalar_dtype(params)
        objective = as_objective(value_fn, data)
        value_and_grad = _value_and_conjugated_grad(objective.value)

        def keep_going(loop):
            return loop.status == Status.RUNNING

        def step(loop):
            updates, state = optimizer.update(
                loop.grads,
                loop.state,
                loop.params,
                value=loop.value,
                grad=loop.grads,
                value_fn=value_fn,
                **data,
            )
            moved = pytree.max_norm(updates) > 0
            new = optax.apply_updates(loop.params, updates)
            # After a rejected step the gradient is known.
            value, grads = jax.lax.cond(
                moved,
                lambda: value_and_grad(new),
                lambda: (loop.value, loop.grads),
            )
            cost = _with_step(loop.cost, state, moved)
            return advance(loop, new, state, value, grads, cost)

        def leave_or_accept(loop):
            way_out = leave_saddle(
                objective, loop.params, loop.value, loop.grads, loop.k
            )
            found = way_out.status == Status.RUNNING
            moved = found & (loop.k < maxiter)
            new = pytree.where(moved, way_out.params, loop.params)
            value, grads = jax.lax.cond(
                moved,
                lambda: value_and_grad(new),
                lambda: (loop.value, loop.grads),
            )
            cost = loop.cost.plus(
                way_out.products,
                way_out.evaluations,
                way_out.gradient_equivalents + moved,
            )
            after = advance(loop, new, loop.state, value, grads, cost)
            stay = jnp.where(found, Status.MAX_STEPS, way_out.status)
            return after._replace(
                status=_code(jnp.where(moved, after.status, stay)),
                k=jnp.where(moved, after.k, loop.k),
                idle=jnp.zeros_like(loop.idle),
            )

        def body(loop):
            finish = leave_or_accept if check_curvature else accept
            return jax.lax.cond(loop.norm <= gtol, finish, step, loop)

        def accept(loop):
            return loop._replace(status=_code(Status.CONVERGED_GRADIENT))

        def advance(loop, new, state, value, grads, cost):
            norm = pytree.max_norm(grads).astype(dtype)
            progress = (value < loop.value) | (norm < loop.best_norm)
            idle = jnp.where(progress, 0, loop.idle + 1).astype(jnp.int32)
            size = jnp.maximum(jnp.abs(value), jnp.abs(loop.value))
            flat = (loop.value - value <= ftol * size) & (idle == 0) & (ftol > 0)
            k = loop.k + 1
            small = norm <= gtol
            status = jnp.where(k >= maxiter, Status.MAX_STEPS, Status.RUNNING)
            status = jnp.where(idle >= PATIENCE, Status.STALLED, status)
            status = jnp.where(flat, Status.CONVERGED_VALUE, status)
            # One more round: the gradient is small, the curvature is to be looked at.
            status = jnp.where(small, Status.RUNNING, status)
            finite = jnp.isfinite(value) & jnp.isfinite(norm)
            status = jnp.where(finite, status, Status.DIVERGED)
            return _Loop(
                params=new,
                state=state,
                value=value,
                grads=grads,
                norm=norm,
                best_norm=jnp.minimum(norm, loop.best_norm),
                idle=idle,
                k=k,
                cost=cost,
                status=_code(status),
            )

        value, grads = value_and_grad(params)
        norm = pytree.max_norm(grads).astype(dtype)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        start = jnp.where(finite, Status.RUNNING, Status.DIVERGED)
        start = jnp.where((maxiter == 0) & (norm > gtol), Status.MAX_STEPS, start)
        nothing = jnp.zeros((), jnp.int32)
        end = jax.lax.while_loop(
            keep_going,
            body,
            _Loop(
                params=params,
                state=optimizer.init(params),
                value=value,
                grads=grads,
                norm=norm,
                best_norm=norm,
                idle=nothing,
                k=nothing,
                cost=_Cost(nothing, nothing, jnp.ones((), dtype)),
                status=_code(start),
            ),
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

    return jax.jit(solve)(params, data)


def _code(status: Any) -> jax.Array:
    return jnp.asarray(status, jnp.int32)


def _value_and_conjugated_grad(value: Callable) -> Callable:
    """Value and gradient, conjugated as optax wants it for complex parameters."""

    def value_and_grad(params):
        loss, grads = jax.value_and_grad(value)(params)
        return loss, pytree.conj(grads)

    return value_and_grad


def _with_step(cost: _Cost, state: Any, moved: jax.Array) -> _Cost:
    """The cost after a step; of other optimizers only the gradient is known."""
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, NewtonCGInfo))
    infos = [x for x in leaves if isinstance(x, NewtonCGInfo)]
    return cost.plus(
        sum(info.products for info in infos),
        sum(info.evaluations for info in infos),
        # The step's own gradient has been paid, the one after it is new.
        sum(info.gradient_equivalents - 1 for info in infos) + jnp.where(moved, 1, 0),
    )
