"""What a scenario is: a model, a convex loss on its outputs, and data."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Params = Any
Outputs = Any
Batch = dict[str, jax.Array]  # {"x": inputs, "y": targets}, examples first


class Dataset(NamedTuple):
    """A fixed split into training and held-out examples."""

    train: Batch
    held_out: Batch


class Scenario(NamedTuple):
    """A training problem.

    The loss is ``loss(model(params, x), y)``. Network and loss are kept apart because
    the Gauss-Newton matrix has to see where the one ends and the other begins.

    Attributes:
        name: what the command line calls it.
        description: one line for ``python -m benchmarks list``.
        load: reads the data; called only when the scenario is run.
        init: initial parameters for a seed.
        model: maps parameters and inputs to outputs.
        loss: maps outputs and targets to the scalar that is minimised.
        metric: maps outputs and targets to a number people can read.
        metric_name: what ``metric`` measures.
        budget: default budget in gradient-equivalents.
        batch_sizes: that the mini-batch methods are tuned over.
    """

    name: str
    description: str
    load: Callable[[], Dataset]
    init: Callable[[int], Params]
    model: Callable[[Params, jax.Array], Outputs]
    loss: Callable[[Outputs, jax.Array], jax.Array]
    metric: Callable[[Outputs, jax.Array], jax.Array]
    metric_name: str
    budget: float = 500.0
    batch_sizes: tuple[int, ...] = (64,)

    def value(self, params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        """The training loss as a plain function of parameters and data."""
        return self.loss(self.model(params, x), y)


def dataset(x: np.ndarray, y: np.ndarray, held_out: float = 0.2) -> Dataset:
    """Splits examples at random, but always in the same way.

    Args:
        x: inputs, examples first.
        y: targets, examples first.
        held_out: the fraction that is kept for the held-out score.

    Example:
        >>> split = dataset(np.zeros((10, 3)), np.zeros(10))
        >>> split.train["x"].shape, split.held_out["x"].shape
        ((8, 3), (2, 3))
    """
    order = np.random.default_rng(0).permutation(len(x))
    test, train = np.split(order, [round(held_out * len(x))])
    return Dataset(*({"x": _array(x[rows]), "y": _array(y[rows])} for rows in
                     (train, test)))  # fmt: skip


def standardise(split: Dataset, keys: tuple[str, ...] = ("x",)) -> Dataset:
    """Shifts and scales columns to zero mean and unit variance on the training part."""

    def scale(key: str) -> tuple[jax.Array, jax.Array]:
        values = split.train[key]
        deviation = values.std(axis=0)
        # A constant column carries nothing: leave it at zero instead of dividing by it.
        return values.mean(axis=0), jnp.where(deviation > 0, deviation, 1.0)

    scales = {key: scale(key) for key in keys}

    def apply(part: Batch) -> Batch:
        return part | {
            key: (part[key] - mean) / deviation
            for key, (mean, deviation) in scales.items()
        }

    return Dataset(apply(split.train), apply(split.held_out))


def _array(values: np.ndarray) -> jax.Array:
    dtype = jnp.int32 if np.issubdtype(values.dtype, np.integer) else jnp.float32
    return jnp.asarray(values, dtype)
