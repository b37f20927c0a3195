r"""Projected Newton-CG: the optimizer of :func:`ncg_optax.minimize` with bounds."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ncg_optax._utils import pytree
from ncg_optax._utils.status import Status
from ncg_optax.curvature.hessian import hessian
from ncg_optax.globalization.armijo import armijo
from ncg_optax.globalization.base import Line
from ncg_optax.losses.objective import as_objective
from ncg_optax.minimization.box import Box, only
from ncg_optax.solvers.linear_cg import conjugate_gradient
from ncg_optax.solvers.tolerance import first_forcing, relative_tolerance
from ncg_optax.step.info import NewtonCGInfo, first_info

PyTree = Any

subtract = functools.partial(jax.tree.map, jnp.subtract)

# Largest number of faces of the box in one step, and of iterations on all of them.
MAX_FACES = 10
MAX_ITERATIONS = 200


class ProjectedNewtonState(NamedTuple):
    """State of :func:`projected_newton`.

    Attributes:
      forcing: the relative tolerance of the solves, see :func:`cg`.
      info: measurements of the last step; its ``gradient_norm`` is the norm of the
        projected gradient.
    """

    forcing: Any
    info: NewtonCGInfo


class _Path(NamedTuple):
    """The step so far; the model is ``g.s + s.Bs / 2``."""

    point: PyTree  # its end, x + s
    curved: PyTree  # B s; of the last part of the step only if it has met a bound
    bend: jax.Array  # s.Bs
    free: PyTree  # the face: parameters that may still move, bool
    iterations: jax.Array
    products: jax.Array
    faces: jax.Array
    status: jax.Array  # of the last solve
    done: jax.Array


def projected_newton(box: Box) -> optax.GradientTransformationExtraArgs:
    r"""Newton-CG within bounds.

    A step minimises the quadratic model over the box, approximately. The first face are
    the parameters that are not held at a bound by the gradient. On a face conjugate
    gradients find the minimum of the model. If it is outside of the box the step goes
    to its projection if this lowers the model, else to the first bound, and the
    parameters that are at a bound now leave the face (Nocedal and Wright 2006, section
    16.7; Lin and Moré 1999). A line search follows the sum of these steps.

    Args:
      box: the bounds.

    References:
      Lin and Moré, Newton's method for large bound-constrained optimization problems,
      1999.
    """

    def init(params):
        dtype = pytree.scalar_dtype(params)
        return ProjectedNewtonState(
            first_forcing("eisenstat_walker", dtype), first_info(dtype)
        )

    def update(updates, state, params=None, *, value=None, value_fn=None, **data):
        del data["grad"]  # these are the updates
        assert params is not None and value is not None
        objective = as_objective(value_fn, data)
        curvature = hessian()
        _, product = curvature.linearize(objective, params)
        product = pytree.in_dtypes_of(params, product)
        dtype = pytree.scalar_dtype(params)
        value = value.astype(dtype)
        x, g = pytree.widen(params), pytree.widen(updates)
        wide = Box(pytree.widen(box.low), pytree.widen(box.high))
        norm = pytree.norm(wide.projected_gradient(x, g))
        eta, forcing = relative_tolerance(0.1, state.forcing, norm)
        path = _path(wide, product, x, g, jnp.asarray(eta))
        s = subtract(path.point, x)
        # Where the model is not convex its minimum may be uphill from here.
        descent = pytree.vdot(s, g) < 0
        end = pytree.where(descent, path.point, wide.project(subtract(x, g)))
        s, bend = subtract(end, x), jnp.where(descent, path.bend, 0)
        slope = pytree.vdot(s, g)

        def moved(step):
            # Not x + 1 * s, which may miss a bound by rounding.
            whole = pytree.add_scaled(end, step - 1, s)
            new = pytree.where(step < 1, pytree.add_scaled(x, step, s), whole)
            return box.project(pytree.cast_like(new, params))

        line = Line(
            loss=value,
            slope=slope,
            bend=bend,
            loss_at=lambda step: objective.value(moved(step)).astype(dtype),
        )
        found = armijo().search(line)
        new = pytree.where(found.accepted, moved(found.step_size), params)
        t = found.step_size
        info = _info(path, found, value, norm, -(t * slope + t**2 * bend / 2))
        cost = curvature.cost * path.products.astype(dtype)
        cost += found.evaluations.astype(dtype) / 3
        info = info._replace(gradient_equivalents=1 + cost.astype(dtype))
        return subtract(new, params), ProjectedNewtonState(forcing, info)

    return optax.GradientTransformationExtraArgs(init, update)


def _path(box: Box, product: Any, x: PyTree, g: PyTree, eta: jax.Array) -> _Path:
    """The step that minimises the model over the box, approximately."""
    zero = jnp.zeros((), jnp.int32)
    start = _Path(
        point=x,
        curved=pytree.zeros_like(g),
        bend=jnp.zeros((), eta.dtype),
        free=box.free(x, g),
        iterations=zero,
        products=zero,
        faces=zero,
        status=jnp.asarray(Status.RUNNING, jnp.int32),
        done=jnp.zeros((), bool),
    )
    body = functools.partial(_next_face, box, product, g, eta)
    return jax.lax.while_loop(lambda path: ~path.done, body, start)


def _next_face(box: Box, product: Any, g: PyTree, eta: jax.Array, path: _Path) -> _Path:
    """Adds the minimum of the model on the face at the end of the step so far."""
    at, free = path.point, path.free
    rhs = only(free, pytree.negative(jax.tree.map(jnp.add, g, path.curved)))
    solve = conjugate_gradient(
        lambda v: only(free, product(v)),
        rhs,
        maxiter=MAX_ITERATIONS,
        tolerance=eta * pytree.norm(rhs),
    )
    target = jax.tree.map(jnp.add, at, solve.solution)
    projected = box.project(target)
    outside = pytree.max_norm(subtract(projected, target)) > 0

    def stay_inside():
        # d.Bd follows from the decrease of the model, b.d - d.Bd / 2.
        own = 2 * (pytree.vdot(rhs, solve.solution) - solve.model_decrease)
        return target, pytree.zeros_like(at), own, jnp.zeros((), jnp.int32)

    def to_bounds():
        step = subtract(projected, at)
        bent = product(step)
        own = pytree.vdot(step, bent)
        lower = own / 2 < pytree.vdot(rhs, step)

        def to_first_bound():
            point = box.first_bound(at, solve.solution)
            step = subtract(point, at)
            bent = product(step)
            return point, bent, pytree.vdot(step, bent)

        kept = projected, bent, own
        return *jax.lax.cond(lower, lambda: kept, to_first_bound), 2 - lower.astype(
            jnp.int32
        )

    point, bent, own, products = jax.lax.cond(outside, to_bounds, stay_inside)
    step = subtract(point, at)
    iterations = path.iterations + solve.iterations
    faces = path.faces + 1
    return _Path(
        point=point,
        curved=jax.tree.map(jnp.add, path.curved, bent),
        bend=path.bend + 2 * pytree.vdot(step, path.curved) + own,
        free=jax.tree.map(jnp.logical_and, free, box.inside(point)),
        iterations=iterations,
        products=path.products + solve.products + products,
        faces=faces,
        status=solve.status,
        done=~outside | (faces >= MAX_FACES) | (iterations >= MAX_ITERATIONS),
    )


def _info(path, found, value, norm, predicted):
    """The measurements of a step, without its cost in gradients."""
    reduction = jnp.where(found.accepted, value - found.loss, 0)
    known = predicted > 0
    status = jnp.where(
        found.accepted,
        jnp.where(found.step_size < 1, Status.SHORTENED, Status.ACCEPTED),
        Status.REJECTED_NO_DECREASE,
    )
    return first_info(value.dtype)._replace(
        status=status.astype(jnp.int32),
        solver_status=path.status,
        loss=value,
        next_loss=jnp.where(found.accepted, found.loss, value),
        gradient_norm=norm,
        cg_iterations=path.iterations,
        products=path.products,
        evaluations=found.evaluations,
        batch_products=path.products.astype(value.dtype),
        batch_evaluations=found.evaluations.astype(value.dtype),
        predicted_reduction=predicted,
        actual_reduction=reduction,
        reduction_ratio=jnp.where(known, reduction / jnp.where(known, predicted, 1), 0),
        step_size=found.step_size,
        curvature_share=jnp.ones((), value.dtype),
    )
