"""The search for a damping, by the loss after the step: usually one trial."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncg_optax._utils import pytree, reductions
from ncg_optax.globalization.base import rounding_level
from ncg_optax.losses.objective import Objective

PyTree = Any

# After a step whose first trial passed the damping is divided by DOWN; after a failed
# trial it is multiplied by UP, and more at each further one.
DOWN, UP = 3.0, 4.0
# So many failed trials, and a step that reduces the loss is taken.
PATIENCE = 3


class Step(NamedTuple):
    """A direction ``d`` with its model.

    Attributes:
      direction: ``d``, with its acceleration.
      damping: lambda of the system that it solves, shape=().
      slope: ``b.d`` with ``b`` the negative gradient, shape=().
      bend: ``d.Bd``, shape=().
      promised: the reduction of the loss that the undamped model predicts for the step
        without its acceleration, shape=().
      loss: the loss after the step; infinite if it or the model is not finite.
    """

    direction: PyTree
    damping: jax.Array
    slope: jax.Array
    bend: jax.Array
    promised: jax.Array
    loss: jax.Array


class Found(NamedTuple):
    """The result of the search.

    Attributes:
      step: the step of the last trial.
      passed: whether its reduction ratio is large enough, bool, shape=().
      next_damping: for the first trial of the next step, shape=().
      trials: number of dampings that were tried, int32, shape=().
    """

    step: Step
    passed: jax.Array
    next_damping: jax.Array
    trials: jax.Array


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
        local = objective.value(moved(objective, params, 1.0, d, like))
        return reductions.mean(local, objective.axes).astype(dtype)

    return loss_at


def moved(
    objective: Objective, params: PyTree, factor: float, d: PyTree, like: PyTree
) -> PyTree:
    """``params + factor * d`` in the dtypes of ``params``, for a real vector ``d``."""
    d = pytree.from_real(d, like)
    there = pytree.add_scaled(pytree.widen(params), factor, d)
    return reductions.to_varying(pytree.cast_like(there, params), objective.axes)


def find_step(
    attempt: Callable[[jax.Array], Step],
    start: jax.Array,
    damping: jax.Array,
    ratio: float,
    tries: int,
    hopeful: jax.Array,
    large: jax.Array,
) -> Found:
    """The step of the first damping whose reduction ratio is at least ``ratio``.

    The dampings that are tried increase. So do the factors between them: rounding may
    make a matrix indefinite for all dampings up to many orders above the last one.

    Args:
      attempt: ``damping -> step``.
      start: the loss before the step, shape=().
      damping: of the first trial, shape=().
      ratio: actual over predicted reduction that a step must reach.
      tries: largest number of trials, at least 1.
      hopeful: whether a larger damping may help at all, bool, shape=().
      large: above this damping the next step does not begin because of losses that are
        not finite, shape=(); NaN for none.
    """
    rounding = rounding_level(start)

    def actual(step):
        return start - step.loss

    def passes(step):
        # With momentum the model may predict an increase: that is no reduction.
        enough = actual(step) + rounding >= ratio * step.promised
        return enough & (step.loss < jnp.inf) & (step.promised >= 0)

    def keep_going(now):
        k, step = now
        settled = passes(step) | ((k >= PATIENCE) & (step.loss < start))
        return (k == 0) | (hopeful & jnp.logical_not(settled) & (k < tries))

    def body(now):
        k, step = now
        # The exponent is exact in any dtype; 0 ** 0 at the first trial.
        factor = UP ** (1 + 0.5 * (k - 1).astype(damping.dtype))
        lam = jnp.where(k == 0, damping, step.damping * factor)
        step = attempt(lam.astype(damping.dtype))
        return k + 1, jax.tree.map(lambda x, y: x.astype(y.dtype), step, now[1])

    shapes = jax.eval_shape(attempt, damping)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    trials, step = jax.lax.while_loop(
        keep_going, body, (jnp.zeros((), jnp.int32), nothing)
    )
    easy = (trials == 1) & passes(step)
    # If nothing helped, as in the rounding of the loss, the large dampings say nothing.
    higher = jnp.minimum(step.damping, UP**2 * damping)
    # The trials of one step reach ten orders further.
    bounded = jnp.minimum(higher, jnp.fmax(damping, large))
    following = jnp.where(
        step.loss < start + rounding,
        jnp.where(easy, step.damping / DOWN, step.damping),
        jnp.where(jnp.isfinite(step.loss), higher, bounded),
    )
    return Found(
        step=step,
        passed=passes(step),
        next_damping=following.astype(damping.dtype),
        trials=trials,
    )


def first_damping(
    gram: jax.Array, b: PyTree, stored: jax.Array, given: jax.Array
) -> jax.Array:
    """The damping of the first trial: the stored one.

    At the first step it is ``given``. If that is 0 it is 1e-4 of the mean eigenvalue,
    and if there is no curvature it is the damping of a step of length one. It is
    limited to the range in which rounding does not hide the damping or the matrix.
    """
    top, eps = jnp.trace(gram), jnp.finfo(gram.dtype).eps
    top = jnp.where(jnp.isfinite(top), top, 0)
    mean = 1e-4 * top / len(gram)
    first = jnp.where(given > 0, given, jnp.where(mean > 0, mean, pytree.norm(b)))
    damping = jnp.where((stored > 0) & jnp.isfinite(stored), stored, first)
    highest = jnp.where(top > 0, top / eps, jnp.inf)
    return jnp.clip(damping, 1e-3 * eps * top, highest)
