"""Many dampings at once: their steps are priced with true losses, and one is taken."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, reductions
from ncg_optax.globalization.base import rounding_level
from ncg_optax.losses.objective import Objective

PyTree = Any


class Steps(NamedTuple):
    """A direction ``d`` and the model along it, or several along a first axis.

    Attributes:
      direction: ``d``.
      damping: the lambda that it solves for, shape=().
      slope: ``b.d`` with ``b`` the negative gradient, shape=().
      bend: ``d.Bd``, shape=().
    """

    direction: PyTree
    damping: jax.Array
    slope: jax.Array
    bend: jax.Array

    @property
    def reduction(self) -> jax.Array:
        """Of the loss, as the undamped model predicts it."""
        return self.slope - 0.5 * self.bend


def rungs(centre: jax.Array, count: int, spread: float) -> jax.Array:
    """A geometric ladder around ``centre``, smallest first, shape=(count,)."""
    return centre * spread ** jnp.linspace(-1.0, 1.0, count)


def loss_along(
    objective: Objective, params: PyTree, like: PyTree
) -> Callable[[PyTree], jax.Array]:
    """The loss over all devices after a step, given as a real vector.

    Args:
      objective: the loss.
      params: where the step begins.
      like: a vector that says which leaves of the step are complex, and the dtype of
        the loss.
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


def choose(
    steps: Steps, loss_at: Callable[[PyTree], jax.Array], ratio: float
) -> tuple[Steps, jax.Array]:
    """The largest step that keeps its promise, or else the best, or the shortest.

    Args:
      steps: of all rungs, the smallest damping first.
      loss_at: the loss after a step.
      ratio: actual over predicted reduction that it must reach.

    Returns:
      The step, and whether it kept its promise. One evaluation of the loss more than
      there are steps.
    """
    start = loss_at(jax.tree.map(lambda x: jnp.zeros_like(x[0]), steps.direction))
    losses = jax.vmap(loss_at)(steps.direction)
    losses = jnp.where(jnp.isfinite(steps.bend), losses, jnp.inf)
    losses = jnp.where(jnp.isfinite(losses), losses, jnp.inf)
    enough = start - losses + rounding_level(start) >= ratio * steps.reduction
    # Momentum may lead uphill, where the model promises an increase.
    passed = enough & (losses < jnp.inf) & (steps.reduction >= 0)
    best = jnp.argmin(losses)
    otherwise = jnp.where(losses[best] < start, best, len(losses) - 1)
    k = jnp.where(jnp.any(passed), jnp.argmax(passed), otherwise)
    return jax.tree.map(lambda x: x[k], steps), jnp.any(passed)
