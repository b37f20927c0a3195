"""Distinguishes a minimum from a saddle where the gradient is zero, and leaves it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree
from ncg_optax._utils.status import Status
from ncg_optax.curvature.hessian import hessian
from ncg_optax.globalization.armijo import armijo
from ncg_optax.globalization.base import Line, SearchResult
from ncg_optax.losses.objective import Objective
from ncg_optax.minimization.box import Box, only
from ncg_optax.solvers.linear_cg import conjugate_gradient

PyTree = Any

# Products in the search for negative curvature.
CHECK_PRODUCTS = 20


class SaddleResult(NamedTuple):
    """What was found at a stationary point; scalars of shape=().

    Attributes:
      status: a :class:`Status` code, int32: CONVERGED_GRADIENT if there is no negative
        curvature, RUNNING if a lower point was found, SADDLE_POINT if none was.
      params: the lower point, or else the stationary point.
      products: with the Hessian, int32.
      evaluations: of the loss, int32.
      gradient_equivalents: the cost of both.
    """

    status: jax.Array
    params: PyTree
    products: jax.Array
    evaluations: jax.Array
    gradient_equivalents: jax.Array


class _NegativeCurvature(NamedTuple):
    found: jax.Array
    direction: PyTree
    curvature: jax.Array  # along it, p.Bp / p.p
    products: jax.Array


def leave_saddle(
    objective: Objective,
    params: PyTree,
    value: jax.Array,
    grads: PyTree,
    count: jax.Array,
    box: Box | None = None,
) -> SaddleResult:
    """Searches for negative curvature at a stationary point, and for a lower point.

    The lower point is found by a line search along a direction of negative curvature.

    Args:
      objective: the loss.
      params: a point where its gradient is negligible.
      value: the loss there, shape=().
      grads: the gradient there; with bounds it says which parameters are held.
      count: selects the random vector of the search.
      box: bounds on the parameters; those that the gradient holds at a bound
        stay there.

    Returns:
      A :class:`SaddleResult`.
    """
    curvature = hessian()
    _, product = curvature.linearize(objective, params)
    product = pytree.in_dtypes_of(params, product)
    dtype = pytree.scalar_dtype(params)
    value = value.astype(dtype)
    key = jax.random.fold_in(jax.random.key(0), count)
    probe = pytree.random_normal(key, pytree.widened_zeros_like(params))
    free = None
    if box is not None:
        free, whole = box.movable(params, grads), product
        product = lambda v: only(free, whole(v))  # noqa: E731
        probe = only(free, box.inward(params, probe))
    negative = _find_negative_curvature(product, probe)

    # Both signs are tried: which one is better depends on the third derivative, because
    # the slope is zero. The first trial is as long as the parameters.
    p = negative.direction
    size = pytree.norm(p)  # zero if all parameters are held at bounds
    length = jnp.maximum(1, pytree.norm(params)) / jnp.where(size > 0, size, 1)
    d = pytree.scale(p, length)
    bend = negative.curvature * pytree.vdot(d, d)

    def moved(step):
        new = pytree.add_scaled(pytree.widen(params), step, d)
        new = pytree.cast_like(new, params)
        return new if box is None else box.project(new)

    def loss_at(step):
        return objective.value(moved(step)).astype(value.dtype)

    def search_line():
        def lower_at(square):
            step = jnp.sqrt(square)
            return jnp.fmin(loss_at(step), loss_at(-step))

        # In the square of the step size the loss has a slope, which is half the bend.
        search = armijo().search(Line(value, 0.5 * bend, bend, lower_at))
        step = jnp.sqrt(search.step_size)
        ahead, behind = loss_at(step), loss_at(-step)
        forward = (ahead <= behind) | jnp.isnan(behind)
        return search, jnp.where(forward, step, -step)

    def stay():
        none = SearchResult(
            step_size=jnp.zeros((), value.dtype),
            loss=value,
            evaluations=jnp.zeros((), jnp.int32),
            accepted=jnp.zeros((), bool),
            rounding=jnp.zeros((), value.dtype),
        )
        return none, none.step_size

    search, step = jax.lax.cond(negative.found, search_line, stay)
    # Two in each trial, and two for the sign.
    evaluations = 2 * (search.evaluations + negative.found.astype(jnp.int32))
    lower = search.accepted & (search.loss < value)
    stuck = jnp.asarray(Status.SADDLE_POINT)
    if box is not None:  # the negative curvature may lead out of the box alone
        weak = jax.tree.map(jnp.not_equal, free, box.free(params, grads))
        at_bound = jnp.stack([jnp.any(x) for x in jax.tree.leaves(weak)]).any()
        stuck = jnp.where(at_bound, Status.CONVERGED_GRADIENT, stuck)
    status = jnp.where(lower, Status.RUNNING, stuck)
    status = jnp.where(negative.found, status, Status.CONVERGED_GRADIENT)
    return SaddleResult(
        status=status.astype(jnp.int32),
        params=pytree.where(lower, moved(step), params),
        products=negative.products,
        evaluations=evaluations,
        gradient_equivalents=negative.products.astype(dtype) * curvature.cost
        + evaluations.astype(dtype) / 3,
    )


def _find_negative_curvature(
    product: Callable[[PyTree], PyTree], probe: PyTree
) -> _NegativeCurvature:
    """Conjugate gradients on the Hessian, with a random right-hand side ``probe``.

    They find a direction of negative curvature if the Krylov space contains one (Royer,
    O'Neill and Wright 2020). Curvature that is negative by rounding alone does not
    count.
    """
    size = pytree.norm(probe)
    dtype = size.dtype
    result = conjugate_gradient(
        product, probe, maxiter=CHECK_PRODUCTS, tolerance=1e-3 * size
    )
    negative = result.status == Status.NEGATIVE_CURVATURE
    scale = jax.lax.cond(
        negative,
        lambda: (pytree.norm(product(probe)) / size).astype(dtype),
        lambda: jnp.zeros((), dtype),
    )
    rounding = jnp.sqrt(jnp.finfo(dtype).eps) * scale
    return _NegativeCurvature(
        found=negative & (result.curvature < -rounding),
        direction=result.last_direction,
        curvature=result.curvature,
        products=result.products + negative.astype(jnp.int32),
    )
