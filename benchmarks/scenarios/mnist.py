"""MNIST and Fashion-MNIST, 60,000 images of ten classes, by two kinds of network."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from benchmarks import datasets
from benchmarks.scenarios import _networks as networks
from benchmarks.scenarios._base import Dataset, Params, PosterSettings, Scenario, split
from benchmarks.scenarios._convolution import convolve

CHANNELS = (1, 8, 16)
KERNEL, STRIDE = 5, 2


def _load(read: Callable[[], datasets.images.Images], *shape: int) -> Dataset:
    images = read()
    train, test = (
        part.reshape(-1, *shape) / 255.0 for part in (images.train, images.test)
    )
    return split(
        train, images.train_labels.astype(int), test, images.test_labels.astype(int)
    )


def init_cnn(seed: int) -> Params:
    """Two convolutions that halve the image, then a dense layer."""
    keys = jax.random.split(jax.random.key(seed), len(CHANNELS) - 1)
    convolutions = [
        {
            "w": jax.random.normal(key, (KERNEL, KERNEL, fan_in, fan_out))
            * (2 / (KERNEL**2 * fan_in)) ** 0.5,
            "b": jnp.zeros(fan_out),
        }
        for key, fan_in, fan_out in zip(keys, CHANNELS[:-1], CHANNELS[1:], strict=True)
    ]
    return {
        "convolutions": convolutions,
        "dense": networks.init_dense((7 * 7 * 16, 10), seed),
    }


def cnn(params: Params, x: jax.Array) -> jax.Array:
    for layer in params["convolutions"]:
        x = convolve(x, layer["w"], (STRIDE, STRIDE), "SAME")
        x = jax.nn.relu(x + layer["b"])
    return networks.dense(params["dense"], x.reshape(len(x), -1))


CLASSIFIER = Scenario(
    name="mnist_classifier",
    description="MNIST classification, 784-512-512-10 relu network, cross-entropy",
    load=lambda: _load(datasets.images.mnist, 784),
    init=networks.initialiser(784, 512, 512, 10, gain=2.0),
    model=partial(networks.dense, activation=jax.nn.relu),
    loss=networks.softmax_cross_entropy,
    metric=networks.accuracy,
    metric_name="accuracy",
    budget=20.0,
    seeds=3,
    batch_sizes=(64, 256),
    registration=("softmax_cross_entropy", 1.0),
    full_batch=False,
    curve_examples=10_000,
)
FASHION = CLASSIFIER._replace(
    name="fashion_classifier",
    description="Fashion-MNIST, 784-512-512-10 relu network, cross-entropy",
    load=lambda: _load(datasets.images.fashion_mnist, 784),
)
CNN = CLASSIFIER._replace(
    name="mnist_cnn",
    description="MNIST classification, convolutions of 8 and 16 channels, "
    "cross-entropy",
    load=lambda: _load(datasets.images.mnist, 28, 28, 1),
    init=init_cnn,
    model=cnn,
    poster=PosterSettings(learning_rate=1e-3, damping=1e-5, batch=64),
)
