"""Dense networks on plain pytrees, and the losses and metrics that they share."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

Layers = list[dict[str, jax.Array]]


def init_dense(sizes: Sequence[int], seed: int, gain: float = 1.0) -> Layers:
    """Weights with variance gain/fan-in and zero biases, one dict per layer."""
    keys = jax.random.split(jax.random.key(seed), len(sizes) - 1)
    return [
        {
            "w": jax.random.normal(key, (fan_in, fan_out)) * (gain / fan_in) ** 0.5,
            "b": jnp.zeros(fan_out),
        }
        for key, fan_in, fan_out in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def dense(
    layers: Layers,
    x: jax.Array,
    linear: Sequence[int] = (),
    activation: Callable[[jax.Array], jax.Array] = jnp.tanh,
) -> jax.Array:
    """A dense network: tanh after every layer except the last and those in `linear`."""
    last = len(layers) - 1
    for index, layer in enumerate(layers):
        x = x @ layer["w"] + layer["b"]
        if index != last and index not in linear:
            x = activation(x)
    return x


def regressor(layers: Layers, x: jax.Array) -> jax.Array:
    """A dense network with a single output, one number per example."""
    return dense(layers, x)[:, 0]


def autoencoder(layers: Layers, x: jax.Array) -> jax.Array:
    """A dense network whose middle layer, the code, is linear."""
    return dense(layers, x, linear=(len(layers) // 2 - 1,))


def half_mean_squared_error(outputs: jax.Array, y: jax.Array) -> jax.Array:
    return 0.5 * jnp.mean((outputs - y) ** 2)


def r_squared(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """The share of the targets' variance that the outputs explain."""
    return 1.0 - jnp.mean((outputs - y) ** 2) / jnp.var(y)


def softmax_cross_entropy(outputs: jax.Array, y: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()


def accuracy(outputs: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean(jnp.argmax(outputs, axis=-1) == y)


def pixel_cross_entropy(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Sigmoid cross-entropy of an image, summed over its pixels."""
    return optax.sigmoid_binary_cross_entropy(outputs, y).sum(axis=-1).mean()


def squared_error(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Squared error of an image, the score that Martens (2010) reports."""
    return jnp.mean(jnp.sum((outputs - y) ** 2, axis=-1))


def squared_error_of_logits(outputs: jax.Array, y: jax.Array) -> jax.Array:
    return squared_error(jax.nn.sigmoid(outputs), y)


def glorot_initialiser(*sizes: int) -> Callable[[int], Layers]:
    """Weights with variance ``2 / (fan-in + fan-out)`` and zero biases."""

    def init(seed: int) -> Layers:
        layers = init_dense(sizes, seed)
        return [
            layer | {"w": layer["w"] * (2 * n / (n + m)) ** 0.5}
            for layer, n, m in zip(layers, sizes[:-1], sizes[1:], strict=True)
        ]

    return init


def initialiser(*sizes: int, gain: float = 1.0) -> Callable[[int], Layers]:
    return lambda seed: init_dense(sizes, seed, gain)
