"""Adam with weight decay: rate, decay and the number of epochs by validation."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.small_data.scores import Task

Params = Any
BATCH = 32
EPOCHS = 500
RATES = tuple(float(x) for x in 10.0 ** np.arange(-4.0, -0.9, 0.5))
DECAYS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
EXTENSIONS = 4  # of the grid, at most


class Choice(NamedTuple):
    """A point of the grid with its lowest validation loss, and where it was.

    Attributes:
      rate: the learning rate.
      decay: the weight decay, which is multiplied by the rate.
      epochs: the number of epochs with the lowest loss.
      validation_loss: that loss.
      inside: whether rate and decay are not at an edge of the grid; no decay is none.
    """

    rate: float
    decay: float
    epochs: int
    validation_loss: float
    inside: bool


@functools.partial(jax.jit, static_argnums=(0, 6))
def _train(
    task: Task,
    params: Params,
    train: Any,
    validation: Any,
    settings: tuple[jax.Array, jax.Array],
    limit: jax.Array,
    epochs: int,
) -> tuple[Params, jax.Array]:
    """The parameters with the lowest validation loss, and the losses of all epochs.

    With ``limit`` the parameters are those after so many epochs instead.
    """
    rate, decay = settings
    tx = optax.adamw(rate, weight_decay=decay)
    count = len(train["y"])
    batches = count // BATCH

    def step(now, rows):
        params, state = now
        grads = jax.grad(task.loss)(params, jax.tree.map(lambda a: a[rows], train))
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    def epoch(now, k):
        params, state, best, lowest = now
        order = jax.random.permutation(jax.random.fold_in(jax.random.key(0), k), count)
        rows = order[: batches * BATCH].reshape(batches, BATCH)
        params, state = jax.lax.scan(step, (params, state), rows)[0]
        loss = task.loss(params, validation)
        better = jnp.where(limit > 0, k + 1 == limit, loss < lowest)
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), params, best)
        return (params, state, best, jnp.minimum(lowest, loss)), loss

    begin = (params, tx.init(params), params, jnp.asarray(jnp.inf))
    end, losses = jax.lax.scan(epoch, begin, jnp.arange(epochs))
    return end[2], losses


@functools.partial(jax.jit, static_argnums=(0, 5))
def _train_grid(task, params, train, validation, settings, epochs):
    def one(settings):
        return _train(task, params, train, validation, settings, 0, epochs)

    return jax.vmap(one)(settings)


def tune(
    task: Task, params: Params, train: Any, validation: Any, epochs: int = EPOCHS
) -> tuple[Choice, Params]:
    """The best point of the grid, and the network that was stopped there."""
    rates, decays = list(RATES), list(DECAYS)
    losses: dict[tuple[float, float], tuple[float, int]] = {}
    networks: dict[tuple[float, float], Params] = {}
    for _ in range(EXTENSIONS + 1):
        new = [(r, d) for r in rates for d in decays if (r, d) not in losses]
        columns = tuple(jnp.asarray(c) for c in zip(*new, strict=True))
        found, curves = _train_grid(task, params, train, validation, columns, epochs)
        for i, point in enumerate(new):
            curve = np.where(np.isfinite(curves[i]), curves[i], np.inf)
            losses[point] = float(curve.min()), int(curve.argmin()) + 1
            networks[point] = jax.tree.map(lambda a, i=i: a[i], found)
        best = min(losses, key=lambda point: losses[point][0])
        inside = rates[0] < best[0] < rates[-1] and best[1] < decays[-1]
        if inside:
            break
        if best[0] == rates[0]:
            rates.insert(0, rates[0] / 10**0.5)
        if best[0] == rates[-1]:
            rates.append(rates[-1] * 10**0.5)
        if best[1] == decays[-1]:
            decays.append(decays[-1] * 10**0.5)
    loss, epoch = losses[best]
    return Choice(*best, epochs=epoch, validation_loss=loss, inside=inside), networks[
        best
    ]


def train_again(task: Task, params: Params, train: Any, choice: Choice) -> Params:
    """A network trained on all examples with the rate, decay and epochs found."""
    settings = jnp.asarray(choice.rate), jnp.asarray(choice.decay)
    return _train(task, params, train, train, settings, choice.epochs, choice.epochs)[0]
