"""The transformation: glue between the parts, in the order in which data flows.

::

  grads -> mask -> all-reduce -> rhs = -g
  params, value_fn -> curvature.linearize -> matvec  v -> B v
  matvec, key -> preconditioner.update -> M ~ (B + damping I)^-1
  (matvec, damping, M, rhs) -> solver -> direction d
  d -> descent safeguard -> trial values f(params + s d) -> damping, solver state
  s d -> updates;  everything measured on the way -> info
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ncg_optax._utils import pytree, reductions, validate
from ncg_optax._utils.status import Status
from ncg_optax.curvature.gauss_newton import Curvature, hessian
from ncg_optax.curvature.sampling import every_kth as _every_kth
from ncg_optax.curvature.sampling import growth as _growth
from ncg_optax.curvature.sampling import microbatches as _microbatches
from ncg_optax.curvature.sampling.every_kth import Sample
from ncg_optax.curvature.sampling.settings import Sampling, sampling
from ncg_optax.globalization.armijo import (
    LineSearch,
    SearchResult,
    armijo,
    full_step,
    rounding_level,
    safeguard,
    single_trial,
)
from ncg_optax.globalization.damping import Damping, as_damping, levenberg_marquardt
from ncg_optax.losses.objective import as_objective
from ncg_optax.preconditioners.base import Preconditioner, identity
from ncg_optax.solvers.base import CGResult, Operator, Outcome, SampledProduct, Solver
from ncg_optax.solvers.cg import cg
from ncg_optax.step import mask as _mask
from ncg_optax.step.info import NewtonCGInfo, first_info

PyTree = Any

# Examples that a preconditioner sees at least: many products matter more to it.
MIN_PROBED = 32


class ScaleByNewtonCGState(NamedTuple):
    """State of :func:`scale_by_newton_cg`.

    Attributes:
      count: updates done, int32, shape=().
      damping: state of the damping rule.
      solver: state of the solver (warm start, trust radius).
      preconditioner: state of the preconditioner.
      sample: a :class:`GrowthState` of the curvature's sample; () if it does not grow.
      info: a :class:`NewtonCGInfo` of the last update.

    Examples:
      >>> import jax.numpy as jnp
      >>> import ncg_optax as ncg
      >>> state = ncg.scale_by_newton_cg().init(jnp.zeros(2))
      >>> print(state.count, state.solver)  # doctest: +ELLIPSIS
      0 CGState(...)
    """

    count: jax.Array
    damping: Any
    solver: Any
    preconditioner: Any
    sample: Any
    info: NewtonCGInfo


class _Direction(NamedTuple):
    """A descent direction and the quadratic model along it."""

    d: PyTree
    slope: jax.Array  # g.d
    bend: jax.Array  # d.Bd
    fell_back: jax.Array  # to the negative gradient, bool
    finite: jax.Array  # bool


class _Work(NamedTuple):
    """What a step did, as :class:`NewtonCGInfo` reports it."""

    products: jax.Array
    evaluations: jax.Array
    batch_products: jax.Array
    batch_evaluations: jax.Array


def _descent_direction(
    result: CGResult, grads: PyTree, damping: jax.Array, threshold: float
) -> _Direction:
    """The solver's direction, or the negative gradient if it does not descend."""
    slope = pytree.vdot(grads, result.solution)
    # model_decrease = -slope - d.(B + damping I)d / 2
    bend = -2 * (result.model_decrease + slope) - damping * pytree.vdot(
        result.solution, result.solution
    )
    steepest = pytree.scale(grads, -1.0)
    fell_back = jnp.logical_not(slope < -threshold)
    d = pytree.where(fell_back, steepest, result.solution)
    slope = jnp.where(fell_back, pytree.vdot(grads, steepest), slope)
    finite = pytree.all_finite(d) & jnp.isfinite(slope)
    finite &= result.status != Status.SOLVER_NON_FINITE
    return _Direction(
        d=pytree.where(finite, d, pytree.zeros_like(d)),
        slope=slope,
        bend=jnp.where(fell_back, 0, bend),
        fell_back=fell_back,
        finite=finite,
    )


def _outcome(direction: _Direction, search: SearchResult, loss: jax.Array) -> Outcome:
    """What the line search found, or a rejected step if anything is not finite."""
    accepted = search.accepted & direction.finite & jnp.isfinite(loss)
    step = jnp.where(accepted, search.step_size, 0).astype(loss.dtype)
    return Outcome(
        predicted_reduction=-step * (direction.slope + 0.5 * step * direction.bend),
        actual_reduction=jnp.where(accepted, loss - search.loss, 0),
        rounding=rounding_level(loss),
        step_size=step,
        accepted=accepted,
    )


def _step_status(
    direction: _Direction, search: SearchResult, loss: jax.Array
) -> jax.Array:
    tried = search.evaluations > 0
    status = jnp.where(tried, Status.ACCEPTED, Status.NOT_EVALUATED)
    status = jnp.where(search.step_size < 1, Status.SHORTENED, status)
    status = jnp.where(direction.fell_back, Status.STEEPEST_DESCENT, status)
    status = jnp.where(search.accepted, status, Status.REJECTED_NO_DECREASE)
    status = jnp.where(direction.slope == 0, Status.ZERO_GRADIENT, status)
    finite = direction.finite & jnp.isfinite(loss)
    return jnp.where(finite, status, Status.REJECTED_NON_FINITE)


def _measurements(
    loss: jax.Array,
    gradient_norm: jax.Array,
    damping: jax.Array,
    result: CGResult,
    direction: _Direction,
    search: SearchResult,
    outcome: Outcome,
    work: _Work,
    curvature_share: float | jax.Array,
    product_cost: float,
) -> NewtonCGInfo:
    length2 = pytree.vdot(direction.d, direction.d)
    predicted, actual = outcome.predicted_reduction, outcome.actual_reduction
    return NewtonCGInfo(
        status=_step_status(direction, search, loss),
        solver_status=result.status,
        loss=loss,
        next_loss=jnp.where(search.evaluations > 0, search.loss, 0),
        gradient_norm=gradient_norm,
        damping=damping,
        cg_iterations=result.iterations,
        **work._asdict(),
        gradient_equivalents=1
        + work.batch_products * product_cost
        + work.batch_evaluations / 3,
        residual=result.residual / jnp.where(gradient_norm > 0, gradient_norm, 1),
        predicted_reduction=predicted,
        actual_reduction=actual,
        reduction_ratio=actual / jnp.where(predicted > 0, predicted, 1),
        step_size=outcome.step_size,
        curvature=direction.bend / jnp.where(length2 > 0, length2, 1),
        curvature_share=jnp.asarray(curvature_share, loss.dtype),
    )


def _curvature_scale(matvec: Operator, grads: PyTree) -> jax.Array:
    """``|B g| / |g|``, between the smallest and the largest eigenvalue in size."""
    norm = pytree.norm(grads)
    return pytree.norm(matvec(grads)) / jnp.where(norm > 0, norm, 1)


def scale_by_newton_cg(
    *,
    curvature: Curvature = hessian(),
    damping: float | optax.Schedule | Damping = levenberg_marquardt(),
    solver: Solver = cg(),
    preconditioner: Preconditioner | None = None,
    linesearch: LineSearch | None = armijo(),
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    sampling: Sampling = sampling(),
    axis_name: str | tuple[str, ...] | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces the gradient by :math:`(B + \lambda I)^{-1} g`, by truncated CG.

    The bare transformation: no sign and no learning rate, so that it is followed by
    ``optax.scale_by_learning_rate(1.0)`` or an optax line search. :func:`newton_cg`
    is this chain, and explains the settings.

    Args:
      curvature: see :func:`newton_cg`, as for all the others.
      damping: a number, an optax schedule or a :class:`Damping`.
      solver: a :class:`Solver`.
      preconditioner: a :class:`Preconditioner` or None.
      linesearch: a :class:`LineSearch` or None.
      mask: which leaves to train.
      sampling: which examples the curvature sees, see :func:`sampling`.
      axis_name: mapped axis name(s).
      seed: of the randomised parts.

    Returns:
      A `optax.GradientTransformationExtraArgs` whose ``update`` needs ``params`` and
      the extra argument ``value_fn``; further extra arguments that ``value_fn`` names
      are passed on to it, unknown ones are ignored.

    Raises:
      TypeError: if a component is not what its name says.
      ValueError: if a number is out of range.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> import ncg_optax as ncg
      >>> f = lambda w: jnp.sum((w - 3.0) ** 2)
      >>> tx = ncg.scale_by_newton_cg(damping=0.0, linesearch=None)
      >>> w = jnp.zeros(2)
      >>> step, _ = tx.update(jax.grad(f)(w), tx.init(w), w, value_fn=f)
      >>> print(w - step)
      [3. 3.]
    """
    validate.component("curvature", curvature, Curvature, "hessian(), gauss_newton()")
    validate.component("solver", solver, Solver, "cg(), steihaug(), minres()")
    if linesearch is not None:
        validate.component("linesearch", linesearch, LineSearch, "armijo(), or None")
        if solver.may_ascend and not linesearch.on_sample:
            raise ValueError(
                "linesearch must be safeguard() or None with a solver whose directions "
                "may lead uphill on a batch, as those of averaged_gradient() do, got "
                "one that would reject them."
            )
    if preconditioner is not None:
        validate.component(
            "preconditioner", preconditioner, Preconditioner, "kronecker(), or None"
        )
    validate.component("sampling", sampling, Sampling, "sampling()")
    # A solver that works on the loss itself has that of the sample for good.
    grow_below = None if solver.needs_objective else sampling.grow_below
    microbatch_size = sampling.microbatch_size
    curvature = _microbatches.curvature_in_microbatches(curvature, microbatch_size)
    damping = as_damping(damping)
    preconditioner = preconditioner or identity()
    if linesearch is None:
        # Whoever steers by the outcome of a step needs the loss at its end.
        steered = damping.needs_outcome or solver.needs_outcome
        looking = safeguard() if solver.may_ascend else single_trial()
        linesearch = looking if steered else full_step()

    def init(params):
        trained = _mask.select(_mask.resolve(mask, params), params)
        # optax.tree.map_params calls init with a placeholder that has no leaves.
        containers = (dict, list, tuple, type(None))
        placeholder = not isinstance(params, containers)
        validate.trainable_tree("params", trained, empty_ok=placeholder)
        dtype = pytree.scalar_dtype(trained)
        state = ScaleByNewtonCGState(
            count=jnp.zeros((), jnp.int32),
            damping=damping.init(dtype),
            solver=solver.init(trained),
            preconditioner=preconditioner.init(trained),
            sample=_growth.first_state(grow_below, dtype),
            info=first_info(dtype),
        )
        # No two leaves may share memory: a jitted step could not donate the state.
        return jax.tree.map(lambda x: jnp.array(x, copy=True), state)

    def update(
        updates, state, params=None, *, value_fn=None, curvature_batch=None, **extra
    ):
        if params is None:
            raise ValueError(
                "newton_cg needs params, the current parameters: call "
                "update(grads, state, params, value_fn=...)."
            )
        trained_mask = _mask.resolve(mask, params)
        validate.same_structure("updates", updates, "params", params)
        trained = _mask.select(trained_mask, params)
        validate.trainable_tree("params", trained)
        dtype = pytree.scalar_dtype(trained)

        # The loss as a function of the trained leaves alone, and its gradient.
        objective = as_objective(value_fn, extra, reductions.as_axes(axis_name))
        objective = objective.restricted(lambda p: _mask.merge(trained_mask, p, params))
        axes = objective.axes
        local_grads = _mask.select(trained_mask, updates)
        is_reduced = objective.reduced_value is not None
        grads = pytree.widen(
            local_grads if is_reduced else reductions.mean(local_grads, axes)
        )

        # Curvature: one linearisation a step, one all-reduce a product.
        varying = reductions.to_varying(trained, axes)

        def operator(loss, local_product, share):
            product = reductions.reduced_operator(
                loss, local_product, axes, objective.product_dtype
            )
            return SampledProduct(pytree.in_dtypes_of(trained, product), share)

        sample = _every_kth.curvature_sample(
            objective, varying, curvature_batch, sampling, state.count
        )
        sample_loss, of_sample = curvature.linearize(sample.objective, varying)
        sampled = operator(sample_loss, of_sample, sample.share)
        matvec = sampled
        is_rotating = curvature_batch is None and sample.share < 1
        grows = grow_below is not None and is_rotating
        if grows:
            # What this does at the parameters the gradient has done: XLA does it once.
            batch_loss, of_batch = curvature.linearize(objective, varying)
            batch_matvec = operator(batch_loss, of_batch, 1.0)
            share = jnp.where(state.sample.grown, 1, sample.share)
            either = _growth.sample_or_batch_product(state.sample, of_sample, of_batch)
            matvec = operator(sample_loss, either, share)

        # The loss itself, always on the whole batch.
        value_at = _microbatches.in_microbatches(objective, microbatch_size).value
        whole = sample.objective is objective
        if is_reduced:
            loss = objective.reduced_value.astype(dtype)
        else:
            local_loss = sample_loss if whole else value_at(varying)
            loss = reductions.mean(local_loss, axes).astype(dtype)
        given = None if is_reduced else extra.get("value")
        is_summed = reductions.is_sum_of(given, loss, axes)

        # How much to trust it.
        lam, damping_state, damping_products = damping.value(
            state.damping, state.count, lambda: _curvature_scale(matvec, grads)
        )
        lam = jnp.asarray(lam, dtype)

        # The preconditioner, which may do with fewer examples than the solver.
        few = _every_kth.every_kth(
            objective,
            varying,
            preconditioner.fraction,
            MIN_PROBED,
            state.count,
            microbatch_size,
        )
        fewer = few.share < sample.share
        probed = sampled
        if fewer:
            few_loss, of_few = curvature.linearize(few.objective, varying)
            probed = operator(few_loss, of_few, few.share)
        key = jax.random.fold_in(jax.random.key(seed), state.count)
        preconditioner_state, probes = preconditioner.update(
            state.preconditioner, probed, grads, lam, key, state.count
        )

        # The direction.
        more = {}
        if solver.needs_objective:
            more |= {"objective": sample.objective, "params": varying}
        if solver.needs_point:
            more |= {"params": pytree.widen(trained), "loss": loss}
        result, solver_state = solver.solve(
            matvec,
            pytree.scale(grads, -1.0),
            lam,
            lambda r: preconditioner.apply(preconditioner_state, r, lam),
            state.solver,
            **more,
        )
        if result.damping is not None:
            lam = result.damping.astype(dtype)
        direction = _descent_direction(result, grads, lam, solver.descent_threshold)
        fits = pytree.all_finite(pytree.cast_like(direction.d, trained))  # in float16
        direction = direction._replace(finite=direction.finite & fits & ~is_summed)

        # Whether the curvature of the sample is that of the batch, along it.
        sample_state, looks = state.sample, 0
        if grows:
            sample_state, looks = _growth.measure_agreement(
                state.sample,
                state.count,
                direction.d,
                direction.bend,
                batch_matvec,
                grow_below,
            )

        # Trial values serve the line search, the damping and the trust region alike. Of
        # a sample the rise counts, on top of the loss of the batch.
        tried, offset = Sample(objective, 1.0), 0
        if linesearch.on_sample and not whole:
            tried, offset = sample, loss - reductions.mean(sample_loss, axes)
        tried_at = _microbatches.in_microbatches(tried.objective, microbatch_size).value

        def loss_at(step):
            moved = pytree.add_scaled(pytree.widen(trained), step, direction.d)
            local = tried_at(
                reductions.to_varying(pytree.cast_like(moved, trained), axes)
            )
            return (reductions.mean(local, axes) + offset).astype(dtype)

        search = linesearch.search(loss_at, loss, direction.slope, direction.bend)
        found = jnp.isfinite(search.loss)  # minus infinity is no success
        search = search._replace(
            accepted=search.accepted & found, loss=jnp.where(found, search.loss, loss)
        )
        outcome = _outcome(direction, search, loss)

        work = _Work(
            products=result.products + damping_products + probes + looks,
            batch_products=matvec.share * (result.products + damping_products)
            + probed.share * probes
            + looks,
            evaluations=search.evaluations + result.evaluations,
            batch_evaluations=search.evaluations * tried.share
            + sample.share * result.evaluations
            + (0 if whole else sample.share)
            + (few.share if fewer else 0),
        )
        info = _measurements(
            loss,
            pytree.norm(grads),
            lam,
            result,
            direction,
            search,
            outcome,
            work,
            matvec.share,
            curvature.cost,
        )
        new_state = ScaleByNewtonCGState(
            count=optax.safe_increment(state.count),
            damping=damping.update(damping_state, outcome),
            solver=solver.update(solver_state, outcome),
            preconditioner=preconditioner_state,
            sample=sample_state,
            info=info._replace(
                status=jnp.where(is_summed, Status.SUMMED_LOSS, info.status)
            ),
        )
        step = pytree.scale(direction.d, -outcome.step_size)
        new_updates = _mask.merge(
            trained_mask,
            pytree.cast_like(step, local_grads),
            _mask.frozen_updates(updates, params),
        )
        return new_updates, pytree.cast_like(new_state, state)

    return optax.GradientTransformationExtraArgs(init, update)
