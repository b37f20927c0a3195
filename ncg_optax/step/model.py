"""Stage 2: the quadratic model of the loss at the point."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, reductions, validate
from ncg_optax.curvature.base import Operator, SampledProduct
from ncg_optax.curvature.sampling import growth
from ncg_optax.curvature.sampling.every_kth import (
    Sample,
    curvature_sample,
    every_kth,
)
from ncg_optax.losses.objective import Objective
from ncg_optax.solvers.base import DirectSolver, Model
from ncg_optax.step.point import Point
from ncg_optax.step.settings import Settings
from ncg_optax.step.unit import model_unit

PyTree = Any

# Smallest number of examples for the products of a preconditioner. It makes many
# products, and few examples are enough for each.
MIN_EXAMPLES = 32


class StepModel(NamedTuple):
    """The quadratic model, the states of its parts, and its cost.

    Attributes:
      model: the model for the solver.
      loss: loss of the whole batch over all devices, shape=().
      sample: the curvature's sample: the whole batch without sampling.
      sample_loss: loss of the sample on this device, shape=().
      share: share of the examples in the products of the solver, in (0, 1].
      batch_product: ``v -> B v`` on the whole batch; None if the curvature never
        changes from the sample to it.
      is_summed: whether the given loss is the sum over devices, not the mean, bool.
      damping: state of the damping rule.
      damping_products: number of products of the damping rule, on the sample.
      preconditioner: state of the preconditioner.
      preconditioner_products: number of products of the preconditioner.
      preconditioner_share: share of the examples in these products, in (0, 1].
      sample_passes: number of forward passes, in passes of the whole batch, for the
        linearisations on a share of the examples.
    """

    model: Model
    loss: jax.Array
    sample: Sample
    sample_loss: jax.Array
    share: float | jax.Array
    batch_product: Operator | None
    is_summed: jax.Array
    damping: Any
    damping_products: jax.Array | int
    preconditioner: Any
    preconditioner_products: jax.Array | int
    preconditioner_share: float | jax.Array
    sample_passes: float


class _Curvature(NamedTuple):
    """The curvature at the point."""

    sample: Sample
    sample_loss: jax.Array  # on this device
    sample_product: SampledProduct  # on the sample
    product: SampledProduct  # for the solver: on the sample or on the whole batch
    batch_product: Operator | None  # on the whole batch


class _Preconditioning(NamedTuple):
    """The preconditioner's state, ``r -> M r``, and the cost of its update."""

    state: Any
    apply: Operator | None = None  # None without a preconditioner
    products: jax.Array | int = 0
    share: float | jax.Array = 1.0  # share of the examples in ``products``
    sample_passes: float = 0.0  # as in :class:`StepModel`


def build_model(
    settings: Settings,
    point: Point,
    state: Any,
    curvature_batch: Mapping[str, PyTree] | None,
) -> StepModel:
    """Linearises the loss, damps the model, and updates the preconditioner.

    Args:
      settings: the parts of the optimizer.
      point: the start of the step.
      state: a :class:`ScaleByNewtonCGState`.
      curvature_batch: data for the curvature, by name; None for a sample of the batch.
    """
    curvature = _linearize(settings, point, state, curvature_batch)
    sample, whole = curvature.sample, curvature.sample.objective is point.objective
    loss = _batch_loss(point, curvature.sample_loss if whole else None)
    gradient, product = point.gradient, curvature.sample_product

    damping, damping_state, damping_products = validate.returned(
        settings.damping,
        "value",
        settings.damping.value(
            state.damping,
            state.count,
            lambda: _curvature_scale(product, gradient),
        ),
        "(damping, state, products)",
        *(object,) * 3,
    )
    validate.returned_scalars(settings.damping, "value", {"damping": damping})
    unit = jnp.asarray(1, point.dtype)
    if not isinstance(settings.solver, DirectSolver):  # it takes the loss itself
        unit = model_unit(settings.damping, damping_state, gradient)
    damping = jnp.asarray(damping, point.dtype) / unit
    gradient, curvature = pytree.scale(gradient, 1 / unit), _divided(curvature, unit)

    m = _precondition(settings, point, state, curvature, gradient, damping, unit)

    return StepModel(
        model=Model(
            gradient=gradient,
            damping=damping,
            product=curvature.product,
            precondition=m.apply,
            params=point.params,
            loss=loss / unit,
            unit=unit,
            objective=sample.objective,
        ),
        loss=loss,
        sample=sample,
        sample_loss=curvature.sample_loss,
        share=curvature.product.share,
        batch_product=curvature.batch_product,
        is_summed=reductions.is_sum_of(point.given_loss, loss, point.axes),
        damping=damping_state,
        damping_products=damping_products,
        preconditioner=m.state,
        preconditioner_products=m.products,
        preconditioner_share=m.share,
        sample_passes=(0.0 if whole else sample.share) + m.sample_passes,
    )


def _reduced(
    point: Point, loss: jax.Array, product: Operator, share: float | jax.Array
) -> SampledProduct:
    """The product over all devices, for widened vectors, from that of one device."""
    over_devices = reductions.reduced_operator(
        loss, product, point.axes, point.objective.product_dtype
    )
    return SampledProduct(pytree.in_dtypes_of(point.params, over_devices), share)


def _linearize(
    settings: Settings,
    point: Point,
    state: Any,
    curvature_batch: Mapping[str, PyTree] | None,
) -> _Curvature:
    """Linearises the loss of the sample, and of the whole batch if that may be used."""
    varying = point.varying
    sample = curvature_sample(
        point.objective, varying, curvature_batch, settings.sampling, state.count
    )
    loss, of_sample = _linearized(settings, sample.objective, varying)
    sample_product = _reduced(point, loss, of_sample, sample.share)
    may_grow = curvature_batch is None and sample.share < 1
    if settings.grow_below is None or not may_grow:
        return _Curvature(sample, loss, sample_product, sample_product, None)
    # XLA shares this linearisation with the user's gradient.
    batch_loss, of_batch = _linearized(settings, point.objective, varying)
    used = growth.sample_or_batch_product(state.sample, of_sample, of_batch)
    share = jnp.where(state.sample.grown, 1, sample.share)
    return _Curvature(
        sample=sample,
        sample_loss=loss,
        sample_product=sample_product,
        product=_reduced(point, loss, used, share),
        batch_product=_reduced(point, batch_loss, of_batch, 1.0),
    )


def _linearized(
    settings: Settings, objective: Objective, params: PyTree
) -> tuple[jax.Array, Operator]:
    """The loss and the product of the curvature on one device.

    The product is jitted, so that it is traced once for all places where it is used.
    """
    loss, product = validate.returned(
        settings.curvature,
        "linearize",
        settings.curvature.linearize(objective, params),
        "(loss, product)",
        *(object,) * 2,
    )

    def curvature_product(v):
        return product(v)

    return loss, jax.jit(curvature_product)


def _batch_loss(point: Point, local: jax.Array | None) -> jax.Array:
    """The loss of the whole batch over all devices, shape=().

    ``local`` is the loss of this device, or None if it is not known.
    """
    if point.loss is not None:
        return point.loss.astype(point.dtype)
    if local is None:
        local = point.batch_value(point.varying)
    return reductions.mean(local, point.axes).astype(point.dtype)


def _curvature_scale(product: Operator, gradient: PyTree) -> jax.Array:
    """``|B g| / |g|``, which lies between the extreme absolute eigenvalues of ``B``."""
    g = pytree.scale(gradient, 1 / pytree.power_of_two(pytree.max_norm(gradient)))
    norm = pytree.norm(g)
    return pytree.scaled_norm(product(g)) / jnp.where(norm > 0, norm, 1)


def _divided(curvature: _Curvature, unit: jax.Array) -> _Curvature:
    """``curvature`` with all products divided by ``unit``."""
    whole = curvature.batch_product
    return curvature._replace(
        sample_product=curvature.sample_product.divided(unit),
        product=curvature.product.divided(unit),
        batch_product=None if whole is None else SampledProduct(whole).divided(unit),
    )


def _precondition(
    settings: Settings,
    point: Point,
    state: Any,
    curvature: _Curvature,
    gradient: PyTree,
    damping: jax.Array,
    unit: jax.Array,
) -> _Preconditioning:
    """Updates the preconditioner, on the sample or on a smaller one if sufficient.

    ``curvature``, ``gradient`` and ``damping`` are divided by ``unit``.
    """
    preconditioner = settings.preconditioner
    if preconditioner is None:
        return _Preconditioning(state=state.preconditioner)
    preconditioner = preconditioner.over(point.axes)
    product, passes, varying = curvature.sample_product, 0.0, point.varying
    smaller = every_kth(
        point.objective,
        varying,
        preconditioner.fraction,
        MIN_EXAMPLES,
        state.count,
        settings.sampling.microbatch_size,
    )
    if smaller.share < curvature.sample.share:
        loss, of_smaller = _linearized(settings, smaller.objective, varying)
        product = _reduced(point, loss, of_smaller, smaller.share).divided(unit)
        passes = smaller.share
    key = jax.random.fold_in(jax.random.key(settings.seed), state.count)
    new_state, products = validate.returned(
        preconditioner,
        "update",
        preconditioner.update(
            state.preconditioner, product, gradient, damping, key, state.count
        ),
        "(state, products)",
        *(object,) * 2,
    )

    prepared = preconditioner.prepare(new_state, damping)

    @jax.jit
    def apply(r):
        z = preconditioner.apply(prepared, r, damping)
        return validate.returned_tree(preconditioner, "apply", z, point.params)

    return _Preconditioning(
        state=new_state,
        apply=apply,
        products=products,
        share=product.share,
        sample_passes=passes,
    )
