"""The deep autoencoder of the Hessian-free literature, on 8x8 digits."""

import jax
import jax.numpy as jnp
import optax

from benchmarks.scenarios._base import Dataset, Scenario, dataset
from benchmarks.scenarios._networks import Layers, dense, initialiser

SIZES = (64, 200, 100, 50, 12, 50, 100, 200, 64)
CODE = 3  # index of the layer that produces the 12-number code


def load() -> Dataset:
    from sklearn.datasets import load_digits

    pixels, _ = load_digits(return_X_y=True)
    return dataset(pixels / 16.0, pixels / 16.0)


def model(params: Layers, x: jax.Array) -> jax.Array:
    return dense(params, x, linear=(CODE,))


def loss(outputs: jax.Array, y: jax.Array) -> jax.Array:
    return optax.sigmoid_binary_cross_entropy(outputs, y).sum(axis=-1).mean()


def squared_error(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Squared error of an image, the score that Martens (2010) reports."""
    return jnp.mean(jnp.sum((jax.nn.sigmoid(outputs) - y) ** 2, axis=-1))


SCENARIO = Scenario(
    name="digits_autoencoder",
    description="Digits autoencoder, 64-200-100-50-12-50-100-200-64, cross-entropy",
    load=load,
    init=initialiser(*SIZES),
    model=model,
    loss=loss,
    metric=squared_error,
    metric_name="squared error",
    budget=600.0,
)
