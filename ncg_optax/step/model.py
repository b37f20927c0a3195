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
from ncg_optax.curvature.sampling.microbatches import in_microbatches
from ncg_optax.solvers.base import Model
from ncg_optax.step.point import Point
from ncg_optax.step.settings import Settings

PyTree = Any

# A preconditioner sees so many examples at least: it needs many products, and few
# examples are enough for each.
MIN_PROBED = 32


class StepModel(NamedTuple):
    """The model, and what building it has found and cost.

    Attributes:
      model: what the solver is given.
      loss: of the whole batch over all devices, shape=().
      sample: the examples that the curvature is computed on before it grows.
      sample_loss: of this sample on this device, shape=().
      share: of the examples in the products of the solver.
      batch_product: ``v -> B v`` on the whole batch, if the sample may grow.
      is_summed: whether the given loss is the sum over devices, not the mean.
      damping: state of the damping rule.
      damping_products: products that the rule took, on the solver's examples.
      preconditioner: its state.
      probes: products that the preconditioner took.
      probed: the share of the examples in these products.
      linearized: forward passes, in units of the whole batch, that were made to
        linearise on a sample.
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
    probes: jax.Array | int
    probed: float | jax.Array
    linearized: float


class _Curvature(NamedTuple):
    """The curvature at the point; ``sampled`` is that of the sample alone."""

    sample: Sample
    sample_loss: jax.Array
    sampled: SampledProduct
    product: SampledProduct
    batch_product: Operator | None


class _Preconditioning(NamedTuple):
    """The preconditioner's state and ``r -> M r``, and what its update cost."""

    state: Any
    apply: Operator | None = None
    products: jax.Array | int = 0
    share: float | jax.Array = 1.0
    linearized: float = 0.0


def build_model(
    settings: Settings,
    point: Point,
    state: Any,
    curvature_batch: Mapping[str, PyTree] | None,
) -> StepModel:
    """Linearises the loss once, damps the model, and updates the preconditioner.

    Args:
      settings: the parts.
      point: where the step begins.
      state: a :class:`ScaleByNewtonCGState`.
      curvature_batch: data for the curvature, by name; None for a part of the batch.
    """
    curvature = _linearize(settings, point, state, curvature_batch)
    sample, whole = curvature.sample, curvature.sample.objective is point.objective
    loss = _batch_loss(settings, point, curvature.sample_loss if whole else None)
    gradient, product = point.gradient, curvature.product

    damping, damping_state, damping_products = validate.returned(
        settings.damping,
        "value",
        settings.damping.value(
            state.damping, state.count, lambda: _curvature_scale(product, gradient)
        ),
        "(damping, state, products)",
        *(object,) * 3,
    )
    damping = jnp.asarray(damping, point.dtype)

    m = _precondition(settings, point, state, curvature, damping)

    return StepModel(
        model=Model(
            gradient=gradient,
            damping=damping,
            product=product,
            precondition=m.apply,
            params=point.params,
            loss=loss,
            objective=sample.objective,
        ),
        loss=loss,
        sample=sample,
        sample_loss=curvature.sample_loss,
        share=product.share,
        batch_product=curvature.batch_product,
        is_summed=reductions.is_sum_of(point.given_loss, loss, point.axes),
        damping=damping_state,
        damping_products=damping_products,
        preconditioner=m.state,
        probes=m.products,
        probed=m.share,
        linearized=(0.0 if whole else sample.share) + m.linearized,
    )


def _reduced(
    point: Point, loss: jax.Array, product: Operator, share: float | jax.Array
) -> SampledProduct:
    """A product of one device as that over all devices, in the gradient's dtypes."""
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
    """One linearisation of the sample; two where the sample may grow."""
    varying = point.varying
    sample = curvature_sample(
        point.objective, varying, curvature_batch, settings.sampling, state.count
    )
    loss, of_sample = validate.returned(
        settings.curvature,
        "linearize",
        settings.curvature.linearize(sample.objective, varying),
        "(loss, product)",
        *(object,) * 2,
    )
    sampled = _reduced(point, loss, of_sample, sample.share)
    may_grow = curvature_batch is None and sample.share < 1
    if settings.grow_below is None or not may_grow:
        return _Curvature(sample, loss, sampled, sampled, None)
    # What this does at the parameters the gradient has done: XLA does it once.
    batch_loss, of_batch = settings.curvature.linearize(point.objective, varying)
    used = growth.sample_or_batch_product(state.sample, of_sample, of_batch)
    share = jnp.where(state.sample.grown, 1, sample.share)
    return _Curvature(
        sample=sample,
        sample_loss=loss,
        sampled=sampled,
        product=_reduced(point, loss, used, share),
        batch_product=_reduced(point, batch_loss, of_batch, 1.0),
    )


def _batch_loss(settings: Settings, point: Point, local: jax.Array | None) -> jax.Array:
    """The loss of the whole batch over all devices, shape=().

    ``local`` is that of this device, if it is known.
    """
    if point.loss is not None:
        return point.loss.astype(point.dtype)
    if local is None:
        size = settings.sampling.microbatch_size
        local = in_microbatches(point.objective, size).value(point.varying)
    return reductions.mean(local, point.axes).astype(point.dtype)


def _curvature_scale(product: Operator, gradient: PyTree) -> jax.Array:
    """``|B g| / |g|``, between the smallest and the largest eigenvalue in size."""
    norm = pytree.norm(gradient)
    return pytree.norm(product(gradient)) / jnp.where(norm > 0, norm, 1)


def _precondition(
    settings: Settings,
    point: Point,
    state: Any,
    curvature: _Curvature,
    damping: jax.Array,
) -> _Preconditioning:
    """Updates the preconditioner, on the sample or on fewer examples if enough."""
    preconditioner = settings.preconditioner
    if preconditioner is None:
        return _Preconditioning(state=state.preconditioner)
    product, linearized, varying = curvature.sampled, 0.0, point.varying
    few = every_kth(
        point.objective,
        varying,
        preconditioner.fraction,
        MIN_PROBED,
        state.count,
        settings.sampling.microbatch_size,
    )
    if few.share < curvature.sample.share:
        loss, of_few = settings.curvature.linearize(few.objective, varying)
        product, linearized = _reduced(point, loss, of_few, few.share), few.share
    key = jax.random.fold_in(jax.random.key(settings.seed), state.count)
    new_state, products = validate.returned(
        preconditioner,
        "update",
        preconditioner.update(
            state.preconditioner, product, point.gradient, damping, key, state.count
        ),
        "(state, products)",
        *(object,) * 2,
    )

    def apply(r):
        z = preconditioner.apply(new_state, r, damping)
        return validate.returned_tree(preconditioner, "apply", z, point.params)

    return _Preconditioning(
        state=new_state,
        apply=apply,
        products=products,
        share=product.share,
        linearized=linearized,
    )
