"""The last layer alone, on what MobileNetV2 sees in CIFAR-10: the poster's way.

MobileNetV2 was trained on ImageNet. What it makes of an image before its classifier,
1280 numbers, is computed once and kept in the cache; a new classifier is trained on it.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from benchmarks import datasets
from benchmarks.datasets import archives
from benchmarks.scenarios import _networks as networks
from benchmarks.scenarios import mobilenet
from benchmarks.scenarios._base import Dataset, Scenario, split
from benchmarks.scenarios._images import normalise
from benchmarks.scenarios._mobilenet import HEAD, MobileNetV2, from_torch

SIZE, CHUNK = 96, 100  # pixels that images are enlarged to, images at a time
CLASSES = 10


def load() -> Dataset:
    images, origin = datasets.images.cifar10()
    train, test = (features(part, SIZE) for part in (images.train, images.test))
    data = split(train, images.train_labels, test, images.test_labels)
    return data._replace(
        note=f"features of {origin}, enlarged to {SIZE}x{SIZE}, by MobileNetV2 as "
        "trained on ImageNet"
    )


def features(images: np.ndarray, size: int) -> np.ndarray:
    """Outputs of the trained network for images, computed or read from the cache.

    The images are bytes, (examples, height, width, 3), enlarged bilinearly to ``size``.
    """
    # The name of the file depends on everything that the features depend on.
    digest = hashlib.sha256(np.ascontiguousarray(images).tobytes())
    weights = datasets.weights.MOBILENET_V2.sha256
    digest.update(f"{images.shape} {size} {weights}".encode())
    name = f"mobilenet_v2_features-{digest.hexdigest()[:16]}.npy"
    path = archives.CACHE.expanduser() / name
    if not path.exists():
        found = _computed(images, size)
        archives.keep(path, lambda part: np.save(part, found))
    return np.load(path, allow_pickle=False)


def _computed(images: np.ndarray, size: int) -> np.ndarray:
    variables = from_torch(datasets.weights.mobilenet_v2_weights())

    @jax.jit
    def apply(chunk: jax.Array) -> jax.Array:
        shape = (len(chunk), size, size, 3)
        enlarged = jax.image.resize(chunk.astype(jnp.float32), shape, "bilinear")
        network = MobileNetV2(classes=None)
        return network.apply(variables, normalise(enlarged), train=False)

    starts = range(0, len(images), CHUNK)
    steps = track(starts, f"Features of {len(images):,} images")
    return np.concatenate(
        [np.asarray(apply(images[start : start + CHUNK])) for start in steps]
    )


SCENARIO = Scenario(
    name="mobilenet_last_layer",
    description="CIFAR-10, a new last layer for MobileNetV2 as trained on ImageNet, "
    "cross-entropy",
    load=load,
    init=networks.initialiser(HEAD, CLASSES),
    model=networks.dense,
    loss=networks.softmax_cross_entropy,
    metric=networks.accuracy,
    metric_name="accuracy",
    budget=100.0,
    seeds=5,
    batch_sizes=(64, 256),
    registration=("softmax_cross_entropy", 1.0),
    poster=mobilenet.POSTER,
)
