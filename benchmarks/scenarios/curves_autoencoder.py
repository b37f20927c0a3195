"""A deep autoencoder on 14x14 images of random curves.

The pixels near the border are almost the same in every image, so that whole rows of
weights hardly matter: a preconditioner that relies on them fails.
"""

import jax

from benchmarks import datasets
from benchmarks.scenarios import _networks as networks
from benchmarks.scenarios._base import Dataset, Scenario, split

IMAGES = 500


def load() -> Dataset:
    train, test = (datasets.generated.curves(IMAGES, seed, size=14) for seed in (0, 1))
    return split(train, train, test, test)


def model(layers: networks.Layers, x: jax.Array) -> jax.Array:
    # The squared error is convex in the pixels, not in what the sigmoid makes them of.
    return jax.nn.sigmoid(networks.autoencoder(layers, x))


SCENARIO = Scenario(
    name="curves_autoencoder",
    description="Autoencoder of generated curves, 196-100-50-25-6-..., squared error",
    load=load,
    init=networks.initialiser(196, 100, 50, 25, 6, 25, 50, 100, 196),
    model=model,
    loss=networks.squared_error,
    metric=networks.squared_error,
    metric_name="squared error",
    budget=800.0,
    seeds=3,
    registration=("squared_error", 1.0),
)
