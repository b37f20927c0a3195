"""Telling a minimum from a saddle where the gradient has vanished, and leaving it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree
from ncg_optax._utils.status import Status
from ncg_optax.curvature.hessian import hessian
from ncg_optax.globalization.armijo import armijo
from ncg_optax.globalization.base import Line, SearchResult
from ncg_optax.losses.objective import Objective
from ncg_optax.solvers.linear_cg import conjugate_gradient

PyTree = Any

# Products spent on looking for negative curvature.
CHECK_PRODUCTS = 20


class WayOut(NamedTuple):
    """What was found at a stationary point; scalars of shape=().

    Attributes:
      status: a :class:`Status` code, int32: converged if no negative curvature was
        found, running if a lower point was, saddle point if none was.
      params: the lower point, or where it started.
      products: with the Hessian, int32.
      evaluations: of the loss, int32.
      gradient_equivalents: the cost of both.
    """

    status: jax.Array
    params: PyTree
    products: jax.Array
    evaluations: jax.Array
    gradient_equivalents: jax.Array


def leave_saddle(
    objective: Objective,
    params: PyTree,
    value: jax.Array,
    grads: PyTree,
    count: jax.Array,
) -> WayOut:
    """Looks for negative curvature at a stationary point and follows it downhill.

    Conjugate gradients on the Hessian, from a random right-hand side, meet a direction
    of negative curvature if there is any that the Krylov space can see; an oracle for
    the smallest eigenvalue (Royer, O'Neill and Wright 2020). Curvature that is
    negative at the level of rounding does not count.

    Args:
      objective: the loss.
      params: a point where its gradient is negligible.
      value: the loss there, shape=().
      grads: the gradient there, for the sign of the step.
      count: makes the random vector new at each call.

    Returns:
      A :class:`WayOut`.
    """
    curvature = hessian()
    _, product = curvature.linearize(objective, params)
    matvec = pytree.in_dtypes_of(params, product)
    dtype = pytree.scalar_dtype(params)
    zero = jnp.zeros((), dtype)

    key = jax.random.fold_in(jax.random.key(0), count)
    probe = pytree.random_normal(key, pytree.widened_zeros_like(params))
    size = pytree.norm(probe)
    result = conjugate_gradient(
        matvec, probe, maxiter=CHECK_PRODUCTS, tolerance=1e-3 * size
    )
    met = result.status == Status.NEGATIVE_CURVATURE
    spread = jax.lax.cond(
        met, lambda: (pytree.norm(matvec(probe)) / size).astype(dtype), lambda: zero
    )
    negative = met & (result.curvature < -jnp.sqrt(jnp.finfo(dtype).eps) * spread)

    # Along +p or -p, whichever does not climb; as far as the parameters are large.
    p = result.last_direction
    length = jnp.maximum(1, pytree.norm(params)) / pytree.norm(p)
    d = pytree.scale(p, jnp.where(pytree.vdot(grads, p) > 0, -length, length))
    bend = result.curvature * pytree.vdot(d, d)

    def moved(step):
        return pytree.cast_like(
            pytree.add_scaled(pytree.widen(params), step, d), params
        )

    def follow():
        # There is no slope: the decrease to ask for is what the curvature promises.
        def loss_at(step):
            return objective.value(moved(step)).astype(value.dtype)

        return armijo().search(Line(value, 0.5 * bend, bend, loss_at))

    def stay():
        return SearchResult(
            step_size=jnp.zeros((), value.dtype),
            loss=value,
            evaluations=jnp.zeros((), jnp.int32),
            accepted=jnp.zeros((), bool),
        )

    search = jax.lax.cond(negative, follow, stay)
    lower = search.accepted & (search.loss < value)
    status = jnp.where(lower, Status.RUNNING, Status.SADDLE_POINT)
    status = jnp.where(negative, status, Status.CONVERGED_GRADIENT)
    products = result.products + met
    return WayOut(
        status=status.astype(jnp.int32),
        params=pytree.where(lower, moved(search.step_size), params),
        products=products,
        evaluations=search.evaluations,
        gradient_equivalents=products.astype(dtype) * curvature.cost
        + search.evaluations.astype(dtype) / 3,
    )
