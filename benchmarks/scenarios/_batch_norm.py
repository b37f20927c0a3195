"""Networks of Flax with batch normalisation, as functions of their parameters alone.

While training, a batch is normalised by its own statistics, and what the layers note
down about it is discarded: the loss stays a plain function of parameters and batch,
as Gauss-Newton and line searches need it. Held-out examples are normalised by the
statistics of a sample of training examples at the *current* parameters ("precise
BatchNorm", Wu and Johnson 2021, arXiv 2105.07576), instead of running means, which
would depend on the steps that an optimizer has taken.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from benchmarks.scenarios._base import Batch, Params

CHUNK = 1000  # held-out images that go through memory at a time


def batch_norm(train: bool, name: str | None = None) -> linen.Module:
    """A layer whose statistics, without momentum, are those of its latest batch."""
    return linen.BatchNorm(use_running_average=not train, momentum=0.0, name=name)


class Network(NamedTuple):
    """A module ``module(x, train)`` with batch normalisation, for images of a shape."""

    module: linen.Module
    shape: tuple[int, ...]

    def init(self, seed: int) -> Params:
        """Weights as He et al. (2015) draw them, no biases, scales of one.

        They are cut from one long row of random numbers: initialisers of Flax would
        compile one generator for each of more than fifty layers, for half a minute.
        """
        shapes = self.parameters()
        kernels = [leaf for leaf in jax.tree.leaves(shapes) if len(leaf.shape) > 1]
        ends = np.cumsum([kernel.size for kernel in kernels])
        row = jax.random.normal(jax.random.key(seed), (ends[-1],))
        drawn = iter(jnp.split(row, ends[:-1]))

        def initial(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
            if len(leaf.shape) > 1:
                fan_in = math.prod(leaf.shape[:-1])
                gain = 2.0 if len(leaf.shape) == 4 else 1.0  # relu behind convolutions
                return next(drawn).reshape(leaf.shape) * (gain / fan_in) ** 0.5
            one = path[-1].key == "scale"
            return jnp.ones(leaf.shape) if one else jnp.zeros(leaf.shape)

        return jax.tree.map_with_path(initial, shapes)

    def parameters(self) -> Params:
        """Their shapes."""
        images = jnp.zeros((1, *self.shape))
        variables = jax.eval_shape(
            lambda: self.module.init(jax.random.key(0), images, train=True)
        )
        return variables["params"]

    def outputs(self, params: Params, x: jax.Array) -> jax.Array:
        """What training sees: normalised by the statistics of ``x`` itself."""
        return self._train(params, x)[0]

    def statistics(self, params: Params, x: jax.Array) -> Any:
        """Means and variances of every normalised layer over ``x``."""
        return self._train(params, x)[1]["batch_stats"]

    def evaluate(self, params: Params, statistics: Any, x: jax.Array) -> jax.Array:
        """Normalised by given statistics: every example for itself."""
        variables = {"params": params, "batch_stats": statistics}

        def apply(x: jax.Array) -> jax.Array:
            return self.module.apply(variables, x, train=False)

        if len(x) <= CHUNK:
            return apply(x)
        return jax.lax.map(lambda image: apply(image[None])[0], x, batch_size=CHUNK)

    def predict(self, params: Params, x: jax.Array, context: Batch) -> jax.Array:
        """Held-out examples by the statistics of the training examples at hand."""
        statistics = self.statistics(params, context["x"])
        return self.evaluate(params, statistics, x)

    def _train(self, params: Params, x: jax.Array) -> tuple[jax.Array, Any]:
        return self.module.apply(
            {"params": params}, x, train=True, mutable=["batch_stats"]
        )
