"""The step for one batch: bases, moments, learning rate, direction."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ncg_optax._utils import pytree
from ncg_optax._utils.conditional import inside_loop
from ncg_optax._utils.status import Status, first_match
from ncg_optax.minibatch.average import next_average
from ncg_optax.minibatch.batch import Batch, Probe
from ncg_optax.minibatch.clipping import clipped, counted_steps
from ncg_optax.minibatch.distance import (
    CHECKED_STEPS,
    Distance,
    found_rate,
    next_distance,
    relative_distance,
)
from ncg_optax.minibatch.eigenbasis import (
    Turned,
    is_due,
    refreshed,
    rotated,
)
from ncg_optax.minibatch.info import KroneckerAdamInfo
from ncg_optax.minibatch.moments import Moments, direction, next_moments
from ncg_optax.minibatch.settings import Settings
from ncg_optax.minibatch.state import KroneckerAdamState

PyTree = Any

# Steps over which a number for the learning rate rises linearly: the first bases and
# moments are of few samples. A rate that is found starts small by itself.
WARM_UP = 20


class Step(NamedTuple):
    """A step, and the state to keep if the batch is rejected.

    Attributes:
      moved: the step, zero if the batch is rejected, a tree shaped like the parameters.
      state: the state after the step.
      state_if_rejected: the state before the step, if the batch is rejected and the
        state is not damaged. Otherwise its bases, moments and distance may already be
        changed: then XLA needs no copy of the old ones.
      usable: whether the batch is used, bool, shape=().
      damaged: whether a usable batch gives a step that is not finite, because bases or
        moments are not, bool, shape=().
    """

    moved: PyTree
    state: KroneckerAdamState
    state_if_rejected: KroneckerAdamState
    usable: jax.Array
    damaged: jax.Array


def next_step(
    settings: Settings,
    batch: Batch,
    state: KroneckerAdamState,
    probe: Probe | None,
) -> Step:
    """The step for a batch, and the state after it."""
    params, dtype = pytree.widen(batch.params), state.usual_norm.dtype
    steps = counted_steps(state.usual_norm, batch.norm, state.steps)
    factor, usual_norm = clipped(state.usual_norm, batch.norm, steps)
    rate = _learning_rate(settings, state.distance, steps).astype(dtype)
    # The second moment needs the squares.
    usable = batch.usable & jnp.isfinite(jnp.square(factor * batch.norm))
    usable &= jnp.isfinite(rate)
    gradient = pytree.scale(batch.gradient, factor)
    due = is_due(steps) & usable
    is_first = (steps == 0) & usable
    state = _with_new_bases(state, is_first, due, gradient, probe)
    # After the loop, so that XLA fuses the selections with what reads their results.
    state = _begun(state, params, is_first)
    bases, distance = state.bases, state.distance
    turned = rotated(bases, gradient)
    moments = next_moments(state.moments, turned, steps)
    if distance:
        checked = (steps < CHECKED_STEPS) & usable
        distance = _checked_lengths(distance, gradient, params, checked)
        distance = next_distance(distance, gradient, turned, params)
    moved = rotated(bases, direction(moments), back=True)
    # Bases and moments are finite unless the state is damaged.
    damaged = usable & ~pytree.all_finite(moved)
    usable &= ~damaged
    moved = jax.tree.map(lambda x: jnp.where(usable, -rate * x, 0), moved)

    cost = settings.curvature.cost * probe.share if settings.curvature and probe else 0
    info = KroneckerAdamInfo(
        status=first_match(
            (~usable, Status.REJECTED_NON_FINITE),
            (batch.norm == 0, Status.ZERO_GRADIENT),
            (factor < 1, Status.CLIPPED_GRADIENT),
            otherwise=Status.NOT_EVALUATED,
        ),
        loss=batch.loss,
        gradient_norm=batch.norm,
        usual_norm=state.usual_norm,
        clipping=jnp.where(usable, factor, 0),
        learning_rate=jnp.where(usable, rate, 0),
        products=jnp.where(due, 0 if probe is None else 1, 0),
        gradient_equivalents=1 + jnp.where(due, jnp.asarray(cost, dtype), 0),
    )
    new_state = KroneckerAdamState(
        count=state.count,
        steps=jnp.asarray(optax.safe_increment(steps)),
        bases=bases,
        moments=moments,
        distance=distance,
        usual_norm=usual_norm,
        average=next_average(state.average, params, steps),
        info=info,
    )
    return Step(moved, new_state, state, usable, damaged)


def _begun(
    state: KroneckerAdamState, params: PyTree, is_first: jax.Array
) -> KroneckerAdamState:
    """The state, without what earlier gradients left in it if this is the first step.

    The average gives earlier parameters no weight at step 0. Nor do the moments to
    earlier gradients, but they are set to zero, because subtracting an outlier would
    lose all digits. The refreshes of the bases begin at 0 in :func:`_with_new_bases`.
    """
    zeros = pytree.zeros_like(state.moments)
    state = state._replace(moments=pytree.where(is_first, zeros, state.moments))
    distance = state.distance
    if not distance:
        return state
    gradients = jax.tree.map(lambda s: jnp.where(is_first, 0, s), distance.gradients)
    distance = distance._replace(
        products=jnp.where(is_first, 0, distance.products),
        gradients=gradients,
        start=pytree.where(is_first, params, distance.start),
    )
    return state._replace(distance=distance)


def _checked_lengths(
    distance: Distance, gradient: PyTree, params: PyTree, checked: jax.Array
) -> Distance:
    """The distance, at least relative to weights whose length is arbitrary."""

    def body(i, estimate):
        relative = relative_distance(*inside_loop((gradient, params), i))
        return jnp.maximum(estimate, relative)

    # A loop of at most one iteration, as for the bases.
    number = checked.astype(int)
    estimate = jax.lax.fori_loop(0, number, body, distance.estimate)
    return distance._replace(estimate=estimate)


def _with_new_bases(
    state: KroneckerAdamState,
    is_first: jax.Array,
    due: jax.Array,
    gradient: PyTree,
    probe: Probe | None,
) -> KroneckerAdamState:
    """The state, with new bases if a refresh is due.

    Then moments and distance are expressed in the new bases. At the first step the
    number of refreshes begins at 0.
    """
    distance = state.distance

    def body(i, carry):
        bases, moments, gradients = carry
        turned = Turned((moments.mean, *gradients), moments.square)
        samples = [inside_loop(gradient, i)]
        if probe is not None:
            samples.append(probe.product(i))
        bases, turned = refreshed(bases, samples, turned)
        mean, *gradients = turned.linear
        return bases, Moments(mean, turned.squares), tuple(gradients)

    refreshes = jnp.where(is_first, 0, state.bases.refreshes)
    bases = state.bases._replace(refreshes=refreshes)
    carry = bases, state.moments, (distance.gradients,) if distance else ()
    # A loop of at most one iteration: under vmap a cond would always compute it.
    bases, moments, gradients = jax.lax.fori_loop(0, due.astype(int), body, carry)
    if distance:
        distance = distance._replace(gradients=gradients[0])
    return state._replace(bases=bases, moments=moments, distance=distance)


def _learning_rate(settings: Settings, distance: Any, steps: jax.Array) -> jax.Array:
    """The learning rate of this step, shape=()."""
    rate = settings.learning_rate
    if rate is None:
        return found_rate(distance, steps)
    if callable(rate):
        return jnp.asarray(rate(steps))
    return jnp.float32(rate) * jnp.minimum((steps + 1) / WARM_UP, 1)
