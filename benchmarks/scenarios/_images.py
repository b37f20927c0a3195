"""Colour images of several classes: what the networks for ImageNet are trained on."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import datasets
from benchmarks.scenarios._base import Dataset, Params, Scenario
from benchmarks.scenarios._batch_norm import Network
from benchmarks.scenarios._networks import accuracy, softmax_cross_entropy

MEAN = (0.485, 0.456, 0.406)  # of red, green and blue on ImageNet
DEVIATION = (0.229, 0.224, 0.225)
EXAMPLES, HELD_OUT = 10_000, 2000  # of CIFAR-10, which suits two cores


def normalise(x: jax.Array) -> jax.Array:
    """Bytes as numbers about zero, the way ImageNet's networks are given them."""
    return (x / 255.0 - jnp.array(MEAN)) / jnp.array(DEVIATION)


def as_bytes(found: datasets.images.Found) -> Dataset:
    """Images as they are stored, a quarter of the memory of float32."""
    x, labels, test_x, test_labels = found.images
    parts = (
        {"x": jnp.asarray(x, jnp.uint8), "y": jnp.asarray(y, jnp.int32)}
        for x, y in ((x, labels), (test_x, test_labels))
    )
    return Dataset(*parts, note=found.note)


def cifar10(examples: int = EXAMPLES, held_out: int = HELD_OUT) -> Dataset:
    """Some images of CIFAR-10, the same ones every time, and a note that says so."""
    images, origin = datasets.images.cifar10()
    rows, test = (
        np.random.default_rng(0).permutation(len(part))[:count]
        for part, count in ((images.train, examples), (images.test, held_out))
    )
    chosen = zip(images, (rows, rows, test, test), strict=True)
    some = datasets.images.Images(*(part[order] for part, order in chosen))
    note = f"{len(rows):,} training and {len(test):,} test images of {origin}"
    return as_bytes(datasets.images.Found(some, note))


def imagenet() -> Dataset:
    """Twenty images of each class of ImageNet at 224x224, five for testing."""
    return as_bytes(datasets.photographs.imagenet())


def classification(
    name: str, description: str, network: Network, load: Callable[[], Dataset]
) -> Scenario:
    """Classes of images by a network with batch normalisation."""

    def model(params: Params, x: jax.Array) -> jax.Array:
        return network.outputs(params, normalise(x))

    def predict(params: Params, x: jax.Array, context: Params) -> jax.Array:
        seen = normalise(context["x"])
        return network.predict(params, normalise(x), {"x": seen})

    return Scenario(
        name=name,
        description=description,
        load=load,
        init=network.init,
        model=model,
        loss=softmax_cross_entropy,
        metric=accuracy,
        metric_name="accuracy",
        seeds=2,
        batch_sizes=(64,),
        schedules=("cosine",),  # one of them, since a run takes minutes
        full_batch=False,
        curve_examples=256,
        predict=predict,
    )
