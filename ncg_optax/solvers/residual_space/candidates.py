"""Steps for several dampings, and the choice of one by the losses after them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, reductions
from ncg_optax.globalization.base import rounding_level
from ncg_optax.losses.objective import Objective

PyTree = Any


class Steps(NamedTuple):
    """A direction ``d`` with its model, or several of them along a first axis.

    Attributes:
      direction: ``d``.
      damping: lambda of the system that ``d`` solves, shape=().
      slope: ``b.d`` with ``b`` the negative gradient, shape=().
      bend: ``d.Bd``, shape=().
    """

    direction: PyTree
    damping: jax.Array
    slope: jax.Array
    bend: jax.Array

    @property
    def reduction(self) -> jax.Array:
        """The reduction of the loss that the undamped model predicts."""
        return self.slope - 0.5 * self.bend


def geometric_dampings(centre: jax.Array, count: int, spread: float) -> jax.Array:
    """Dampings from ``centre / spread`` to ``centre * spread``, shape=(count,)."""
    return centre * spread ** jnp.linspace(-1.0, 1.0, count)


def loss_after_step(
    objective: Objective, params: PyTree, like: PyTree
) -> Callable[[PyTree], jax.Array]:
    """A function from a step, a real vector, to the loss over all devices after it.

    Args:
      objective: the loss.
      params: where the step starts.
      like: a vector that defines which leaves of the step are complex, and the dtype
        of the loss.
    """
    dtype = pytree.scalar_dtype(like)

    def loss_at(d):
        d = pytree.from_real(d, like)
        moved = pytree.cast_like(
            pytree.add_scaled(pytree.widen(params), 1.0, d), params
        )
        local = objective.value(reductions.to_varying(moved, objective.axes))
        return reductions.mean(local, objective.axes).astype(dtype)

    return loss_at


def choose_step(
    steps: Steps, loss_at: Callable[[PyTree], jax.Array], ratio: float
) -> tuple[Steps, jax.Array]:
    """The largest step whose reduction ratio is at least ``ratio``.

    If there is none, the step with the lowest loss, provided that it reduces the loss;
    if none does, the step with the largest damping. Evaluates the loss once for each
    step and once at the start.

    Args:
      steps: for all dampings, the smallest first.
      loss_at: the loss after a step.
      ratio: actual over predicted reduction that a step must reach.

    Returns:
      The step, and whether its ratio is at least ``ratio``.
    """
    start = loss_at(jax.tree.map(lambda x: jnp.zeros_like(x[0]), steps.direction))
    losses = jax.vmap(loss_at)(steps.direction)
    losses = jnp.where(jnp.isfinite(steps.bend), losses, jnp.inf)
    losses = jnp.where(jnp.isfinite(losses), losses, jnp.inf)
    enough = start - losses + rounding_level(start) >= ratio * steps.reduction
    # With momentum the model may predict an increase: that is no reduction.
    passed = enough & (losses < jnp.inf) & (steps.reduction >= 0)
    best = jnp.argmin(losses)
    otherwise = jnp.where(losses[best] < start, best, len(losses) - 1)
    k = jnp.where(jnp.any(passed), jnp.argmax(passed), otherwise)
    return jax.tree.map(lambda x: x[k], steps), jnp.any(passed)
