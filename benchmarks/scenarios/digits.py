"""Handwritten digits: 1,797 images of 8x8 pixels, ten classes."""

import jax
import jax.numpy as jnp
import optax

from benchmarks.scenarios._base import Dataset, Scenario, dataset
from benchmarks.scenarios._networks import dense, initialiser


def load() -> Dataset:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return dataset(pixels / 16.0, labels)


def loss(outputs: jax.Array, y: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()


def accuracy(outputs: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean(jnp.argmax(outputs, axis=-1) == y)


SCENARIO = Scenario(
    name="digits",
    description="Digits classification, 64-128-64-10 network, cross-entropy",
    load=load,
    init=initialiser(64, 128, 64, 10),
    model=dense,
    loss=loss,
    metric=accuracy,
    metric_name="accuracy",
)
