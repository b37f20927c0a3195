"""Parameters to begin with that Adam found: trained once, then kept on disk."""

import hashlib
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from rich.progress import track

from benchmarks.datasets import archives
from benchmarks.scenarios._base import Batch, Params, Scenario
from benchmarks.training.schedules import noam


class Pretraining(NamedTuple):
    """How Adam is run: with the Noam schedule, from seed 0."""

    learning_rate: float  # at the schedule's peak
    batch: int  # examples per step
    epochs: int  # over the training data


class _Progress(NamedTuple):
    params: Params
    state: optax.OptState
    key: jax.Array


def pretrained(scenario: Scenario, data: Batch, setting: Pretraining) -> Params:
    """Trains, or reads what was trained before, as arrays of NumPy.

    The result is kept in the cache of the data sets. Its name depends on the data and
    on the program for XLA, which holds network, loss, setting and optax's part of them.
    """
    epoch, start = _training(scenario, data, setting)
    shapes = jax.eval_shape(start)
    lowered = jax.jit(epoch).lower(shapes, data)
    digest = hashlib.sha256(f"{setting} {lowered.as_text()}".encode())
    for leaf in jax.tree.leaves(data):
        digest.update(np.asarray(leaf).tobytes())
    name = f"{scenario.name}-adam-{digest.hexdigest()[:16]}.npz"
    path = archives.CACHE.expanduser() / name
    if path.exists():
        return _read(path, shapes.params)
    compiled, now = lowered.compile(), jax.jit(start)()
    for _ in track(range(setting.epochs), f"Adam's parameters for {scenario.name}"):
        now = jax.block_until_ready(compiled(now, data))
    leaves = jax.tree.leaves(now.params)
    archives.keep(path, lambda part: np.savez(part, *leaves))
    return _read(path, shapes.params)


def _training(scenario: Scenario, data: Batch, setting: Pretraining) -> tuple[Any, Any]:
    """``epoch(progress, data) -> progress``, and ``start() -> progress``."""
    examples = len(data["y"])
    steps = examples // setting.batch
    shape = noam(steps * setting.epochs)
    tx = optax.adam(lambda count: setting.learning_rate * shape(count))

    def step(carry: tuple[Params, Any], batch: Batch) -> tuple[tuple[Params, Any], Any]:
        params, state = carry
        grads = jax.grad(lambda p: scenario.value(p, **batch))(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    def epoch(now: _Progress, data: Batch) -> _Progress:
        key, shuffle, noise = jax.random.split(now.key, 3)
        rows = jax.random.permutation(shuffle, examples)[: steps * setting.batch]
        rows = rows.reshape(steps, setting.batch)
        batches = jax.tree.map(lambda leaf: leaf[rows], data)
        batches = scenario.with_key(batches, jax.random.split(noise, steps))
        (params, state), _ = jax.lax.scan(step, (now.params, now.state), batches)
        return _Progress(params, state, key)

    def start() -> _Progress:
        params = scenario.init(0)
        return _Progress(params, tx.init(params), jax.random.key(0))

    return epoch, start


def _read(path: pathlib.Path, shapes: Params) -> Params:
    with np.load(path, allow_pickle=False) as stored:
        leaves = [stored[f"arr_{i}"] for i in range(len(stored.files))]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)
