"""The data of one batch: its gradient, and products with its curvature."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, reductions, validate
from ncg_optax._utils.conditional import inside_loop
from ncg_optax.curvature.sampling.every_kth import every_kth
from ncg_optax.losses.objective import MappedLoss, as_objective
from ncg_optax.minibatch.settings import Settings
from ncg_optax.minibatch.state import without_masked_nodes
from ncg_optax.step import mask as masks

PyTree = Any

# Share and least number of the examples in a curvature product.
FRACTION, MIN_EXAMPLES = 1 / 4, 32


class Batch(NamedTuple):
    """The data of one batch; trees of trained leaves have None for the others."""

    trained: PyTree  # which leaves are trained
    params: PyTree  # the trained leaves
    gradient: PyTree  # float32 or wider, the mean over all devices
    norm: jax.Array
    loss: jax.Array  # 0 if it is not known
    usable: jax.Array  # whether loss and gradient are finite


def read_batch(
    settings: Settings, updates: PyTree, params: PyTree, value_fn: Any, value: Any
) -> Batch:
    """Checks the arguments of ``update`` and averages the gradient over devices."""
    if params is None:
        raise ValueError(
            "kronecker_adam needs params, the current parameters: call "
            "update(grads, state, params)."
        )
    params = without_masked_nodes(params)
    updates = without_masked_nodes(updates)
    trained = masks.resolve(settings.mask, params)
    validate.same_structure("updates", updates, "params", params)
    own = masks.select(trained, params)
    validate.trainable_tree("params", own)
    validate.trainable_tree("updates", masks.select(trained, updates))
    validate.loss_value(value)
    dtype = pytree.scalar_dtype(own)
    gradient = masks.select(trained, updates)
    loss = jnp.zeros((), dtype) if value is None else jnp.asarray(value, dtype)
    if not isinstance(value_fn, MappedLoss):  # its caller has averaged them
        gradient, loss = reductions.mean((gradient, loss), settings.axes)
    gradient = pytree.widen(gradient)
    norm = pytree.scaled_norm(gradient).astype(dtype)
    usable = jnp.isfinite(norm) & jnp.isfinite(loss)
    return Batch(trained, own, gradient, norm, loss, usable)


class Probe(NamedTuple):
    """A product ``B v`` of the curvature with random signs ``v``."""

    share: float  # of the examples that it is computed on
    product: Callable[[jax.Array], PyTree]  # of the index of the loop that it is in


def curvature_probe(
    settings: Settings,
    batch: Batch,
    params: PyTree,
    count: jax.Array,
    value_fn: Any,
    extra: Mapping[str, Any],
) -> Probe | None:
    """A product of the curvature on a share of the batch; None without curvature."""
    curvature = settings.curvature
    if curvature is None:
        return None
    if value_fn is None:
        raise ValueError(
            "kronecker_adam needs value_fn, the loss as a function of the parameters, "
            f"for curvature={curvature!r}: call update(grads, state, params, "
            "value_fn=...)."
        )
    objective = as_objective(value_fn, extra, settings.axes)
    objective = objective.restricted(lambda p: masks.merge(batch.trained, p, params))
    varying = reductions.to_varying(batch.params, objective.axes)
    fraction, least = FRACTION, MIN_EXAMPLES
    sample = every_kth(objective, varying, fraction, least, count, None)

    def product(index):
        point, step = inside_loop((varying, count), index)
        loss, local = curvature.linearize(sample.objective, point)
        reduced = reductions.reduced_operator(
            loss, local, objective.axes, objective.product_dtype
        )
        key = jax.random.fold_in(jax.random.key(settings.seed), step)
        return pytree.widen(reduced(pytree.random_signs(key, batch.params)))

    return Probe(sample.share, product)
