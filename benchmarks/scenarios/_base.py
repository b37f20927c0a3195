"""What a scenario is: a model, a convex loss on its outputs, and data."""

import pathlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Params = Any
Outputs = Any
LossKind = Literal["squared_error", "sigmoid_cross_entropy", "softmax_cross_entropy"]
Batch = dict[str, Any]  # {"x": inputs, "y": targets}, examples first; maybe a "key"


class Dataset(NamedTuple):
    """A fixed split into training and held-out examples."""

    train: Batch  # to train on
    held_out: Batch  # to score on
    # what one should know of the data beyond the scenario's description, such as that
    # they stand in for others
    note: str = ""


class PosterSettings(NamedTuple):
    """What the poster's own code sets for its Newton-CG method on a scenario."""

    learning_rate: float  # that every step is multiplied by
    damping: float  # the poster's tau, which is its descent threshold as well
    batch: int | None = None  # examples per step, ``None`` for all of them


class Scenario(NamedTuple):
    """A training problem.

    The loss is ``loss(model(params, x), y)``. Network and loss are kept apart because
    the Gauss-Newton matrix has to see where the one ends and the other begins.
    """

    name: str  # what the command line calls it
    description: str  # one line for ``python -m benchmarks list``
    load: Callable[[], Dataset]  # reads the data; called only when the scenario is run
    init: Callable[[int], Params]  # initial parameters for a seed
    model: Callable[[Params, jax.Array], Outputs]  # of parameters and inputs
    loss: Callable[[Outputs, jax.Array], jax.Array]  # of outputs and targets, minimised
    metric: Callable[[Outputs, jax.Array], jax.Array]  # of the same, for people to read
    metric_name: str  # the quantity that ``metric`` measures
    budget: float = 500.0  # default budget in gradient-equivalents
    seeds: int = 5  # default number of runs of each optimizer
    # The mini-batch methods are tuned over these; empty if the examples cannot be drawn
    # one by one.
    batch_sizes: tuple[int, ...] = (64,)
    terms: int = 1  # of the loss in an example, at most: the tokens of a sequence, say
    full_batch: bool = True  # whether the data are small enough for full-batch methods
    # The reported training loss is that of so many examples, evenly spaced; or of all.
    curve_examples: int | None = None
    # For methods that know losses by name: the name and the weight, of a sum over
    # outputs and a mean over examples.
    registration: tuple[LossKind, float] | None = None
    # Whether it is run in double precision. Whoever loads the data and trains has to do
    # both within ``jax.enable_x64(scenario.x64)``.
    x64: bool = False
    # Whether the model is ``model(params, x, key)``, with another key at every step.
    random: bool = False
    # ``predict(params, x, context)`` is scored on held-out examples, if it is not the
    # model itself. The context has training examples and a fixed key: for the
    # statistics of batch normalisation, and for averages over random weights.
    predict: Callable[[Params, Any, Batch], Outputs] | None = None
    # ``examine(params, data, stem)`` draws pictures of trained parameters into files
    # whose paths begin with the stem, and returns further scores by name.
    examine: Callable[[Params, Dataset, pathlib.Path], dict[str, float]] | None = None
    schedules: tuple[str, ...] = ("constant", "cosine")  # to tune over
    poster: PosterSettings | None = None  # the settings of the poster's own method

    def outputs(self, params: Params, data: Batch) -> Outputs:
        """Outputs of the model for the inputs, and for the key if it is random."""
        return self.model(params, *(data[name] for name in self.inputs))

    def value(self, params: Params, **data: Any) -> jax.Array:
        """The training loss as a plain function of parameters and data."""
        return self.loss(self.outputs(params, data), data["y"])

    def with_key(self, data: Batch, key: jax.Array) -> Batch:
        """The data of one step: with the key, if the model is random."""
        return data | {"key": key} if self.random else data

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what the model takes besides the parameters."""
        return ("x", "key") if self.random else ("x",)

    def in_float64(self) -> "Scenario":
        """The same problem in double precision."""
        return self._replace(
            name=f"{self.name}_x64",
            description=f"{self.description}, float64",
            x64=True,
        )


def dataset(x: np.ndarray, y: np.ndarray, held_out: float = 0.2) -> Dataset:
    """Splits examples at random, but always in the same way; a part is held out."""
    order = np.random.default_rng(0).permutation(len(x))
    test, train = np.split(order, [round(held_out * len(x))])
    return split(x[train], y[train], x[test], y[test])


def split(
    x: np.ndarray, y: np.ndarray, held_out_x: np.ndarray, held_out_y: np.ndarray
) -> Dataset:
    """A split that others made, as arrays of JAX."""
    parts = {"x": x, "y": y}, {"x": held_out_x, "y": held_out_y}
    return Dataset(*jax.tree.map(_array, parts))


def standardise(data: Dataset, keys: tuple[str, ...] = ("x",)) -> Dataset:
    """Shifts and scales columns to zero mean and unit variance on the training part."""

    def scale(key: str) -> tuple[jax.Array, jax.Array]:
        values = data.train[key]
        deviation = values.std(axis=0)
        # A constant column carries nothing: leave it at zero instead of dividing by it.
        return values.mean(axis=0), jnp.where(deviation > 0, deviation, 1.0)

    scales = {key: scale(key) for key in keys}

    def apply(part: Batch) -> Batch:
        return part | {
            key: (part[key] - mean) / deviation
            for key, (mean, deviation) in scales.items()
        }

    return data._replace(train=apply(data.train), held_out=apply(data.held_out))


def _array(values: np.ndarray) -> jax.Array:
    # Floating-point numbers as wide as jax.enable_x64 makes them.
    dtype = jnp.int32 if np.issubdtype(values.dtype, np.integer) else float
    return jnp.asarray(values, dtype)
