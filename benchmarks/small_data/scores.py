"""Losses of networks with one output: half squared errors or cross-entropies."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.scenarios import _networks as networks


def model(params: networks.Layers, x: jax.Array) -> jax.Array:
    """The outputs, a number per example."""
    return networks.dense(params, x)[:, 0]


class Task(NamedTuple):
    """What is fitted.

    Attributes:
      classes: whether the targets are two classes.
    """

    classes: bool

    @property
    def likelihood(self) -> str:
        """As `bayesian_fit` calls it."""
        return "bernoulli" if self.classes else "normal"

    def loss(self, params: networks.Layers, data: Any) -> jax.Array:
        """The mean over the examples: what is trained, and what is scored."""
        return self.loss_of(model(params, data["x"]), data["y"])

    def loss_of(self, outputs: jax.Array, y: jax.Array) -> jax.Array:
        """The same of outputs."""
        if self.classes:
            return jnp.mean(optax.sigmoid_binary_cross_entropy(outputs, y))
        return jnp.mean(jnp.square(outputs - y))
