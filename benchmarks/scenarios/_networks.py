"""Dense networks on plain pytrees, and the losses and metrics that they share."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

Layers = list[dict[str, jax.Array]]


def init_dense(sizes: Sequence[int], seed: int) -> Layers:
    """Weights with variance 1/fan-in and zero biases, one dict per layer.

    Example:
        >>> [layer["w"].shape for layer in init_dense((13, 64, 1), seed=0)]
        [(13, 64), (64, 1)]
    """
    keys = jax.random.split(jax.random.key(seed), len(sizes) - 1)
    return [
        {
            "w": jax.random.normal(key, (fan_in, fan_out)) * fan_in**-0.5,
            "b": jnp.zeros(fan_out),
        }
        for key, fan_in, fan_out in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def dense(layers: Layers, x: jax.Array, linear: Sequence[int] = ()) -> jax.Array:
    """A dense network: tanh after every layer except the last and those in `linear`."""
    last = len(layers) - 1
    for index, layer in enumerate(layers):
        x = x @ layer["w"] + layer["b"]
        if index != last and index not in linear:
            x = jnp.tanh(x)
    return x


def regressor(layers: Layers, x: jax.Array) -> jax.Array:
    """A dense network with a single output, one number per example."""
    return dense(layers, x)[:, 0]


def half_mean_squared_error(outputs: jax.Array, y: jax.Array) -> jax.Array:
    return 0.5 * jnp.mean((outputs - y) ** 2)


def r_squared(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """The share of the targets' variance that the outputs explain."""
    return 1.0 - jnp.mean((outputs - y) ** 2) / jnp.var(y)


def initialiser(*sizes: int) -> Callable[[int], Layers]:
    return lambda seed: init_dense(sizes, seed)
