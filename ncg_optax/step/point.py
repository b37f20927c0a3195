"""Stage 1: the start of the step."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, reductions, validate
from ncg_optax.curvature.sampling.microbatches import in_microbatches
from ncg_optax.losses.objective import Objective, as_objective
from ncg_optax.step import mask as masks
from ncg_optax.step.settings import Settings

PyTree = Any


class Point(NamedTuple):
    """The parameters at the start of a step, and the loss there.

    Trees of trained leaves have None in place of the frozen leaves.

    Attributes:
      trained: which leaves are trained, a tree of bools like the parameters.
      params: the trained leaves, in their own dtypes.
      gradient: gradient of the trained leaves, the mean over all devices, float32 or
        wider.
      given_gradient: the gradient of the trained leaves as given to ``update``, in the
        dtypes of the updates.
      objective: the loss as a function of the trained leaves.
      batch_value: the value of ``objective``, in microbatches. It is jitted, so that
        all evaluations are traced once.
      loss: loss of the whole batch over all devices, shape=(); None unless the caller
        of ``update`` has averaged it.
      given_loss: the ``value`` given to ``update``, which is checked, shape=(); None
        without it.
    """

    trained: PyTree
    params: PyTree
    gradient: PyTree
    given_gradient: PyTree
    objective: Objective
    batch_value: Callable[[PyTree], jax.Array]
    loss: jax.Array | None
    given_loss: jax.Array | None

    @property
    def axes(self) -> tuple[str, ...]:
        """The mapped axes that the batch is split over."""
        return self.objective.axes

    @property
    def varying(self) -> PyTree:
        """The trained leaves, typed as varying over the mapped axes."""
        return reductions.to_varying(self.params, self.axes)

    @property
    def has_finite_gradient(self) -> jax.Array:
        """Whether every entry of the gradient is finite, bool."""
        return jnp.isfinite(self._largest_entry)

    @property
    def has_zero_gradient(self) -> jax.Array:
        """Whether every entry of the gradient is zero, bool."""
        return self._largest_entry == 0

    @property
    def _largest_entry(self) -> jax.Array:
        # The solvers compute the same norm of the right-hand side, and XLA shares it.
        return pytree.max_norm(pytree.negative(self.gradient))

    @property
    def dtype(self) -> jnp.dtype:
        """Dtype of the scalars: real, float32 or wider."""
        return pytree.scalar_dtype(self.params)


def read_point(
    settings: Settings,
    updates: PyTree,
    params: PyTree | None,
    value_fn: Any,
    extra: Mapping[str, Any],
) -> Point:
    """Checks the arguments of ``update`` and averages the gradient over devices.

    Raises:
      ValueError: if ``params`` or ``value_fn`` is missing, or if gradients and
        parameters differ in structure.
      TypeError: if a trained leaf is not floating-point or complex, or if ``value_fn``
        is not a function or lacks an argument.
    """
    if params is None:
        raise ValueError(
            "newton_cg needs params, the current parameters: call "
            "update(grads, state, params, value_fn=...)."
        )
    trained = masks.resolve(settings.mask, params)
    validate.same_structure("updates", updates, "params", params)
    trained_params = masks.select(trained, params)
    validate.trainable_tree("params", trained_params)
    validate.trainable_tree("updates", masks.select(trained, updates))
    validate.loss_value(extra.get("value"))

    objective = as_objective(value_fn, extra, settings.axes)
    objective = objective.restricted(lambda p: masks.merge(trained, p, params))
    given = gradient = masks.select(trained, updates)
    is_reduced = objective.reduced_value is not None
    if not is_reduced:
        gradient = reductions.mean(gradient, objective.axes)
    return Point(
        trained=trained,
        params=trained_params,
        gradient=pytree.widen(gradient),
        given_gradient=given,
        objective=objective,
        batch_value=jitted_value(objective, settings.sampling.microbatch_size),
        loss=objective.reduced_value,
        given_loss=None if is_reduced else extra.get("value"),
    )


def jitted_value(
    objective: Objective, microbatch_size: int | None
) -> Callable[[PyTree], jax.Array]:
    """The value of a loss, in microbatches; traced once for all evaluations."""
    value_at = in_microbatches(objective, microbatch_size).value

    def loss_value(params):
        return value_at(params)

    return jax.jit(loss_value)
