"""Benign or malignant? Tissue of breast tumours, by a Bayesian convolutional network.

Where the images of BreakHis are not on disk, those of animals and vehicles stand in:
they have the shape of the task, not its contents. The note of the data says which they
are.

How many examples share the divergence depends on the data, so it comes with them: the
inputs of an example are its image and its share.
"""

from functools import partial

import jax
import jax.numpy as jnp

from benchmarks import datasets
from benchmarks.scenarios import _bayesian as bayesian
from benchmarks.scenarios._base import Batch, Dataset, PosterSettings, Scenario
from benchmarks.scenarios._convolution import patches
from benchmarks.scenarios._images import as_bytes, normalise
from benchmarks.scenarios._networks import accuracy, softmax_cross_entropy

SIZE = 64  # pixels of BreakHis; those of the stand-in are 32x32
CHANNELS, KERNEL, STRIDE = (3, 16, 32, 64), 3, 2
CLASSES = 2


def load() -> Dataset:
    data = as_bytes(datasets.histology.breakhis_or_stand_in(SIZE))
    examples = len(data.train["y"])

    def with_share(part: Batch) -> Batch:
        share = jnp.full(len(part["y"]), 1 / examples)
        return part | {"x": {"image": part["x"], "share": share}}

    train, held_out = map(with_share, data[:2])
    return data._replace(train=train, held_out=held_out)


def init(seed: int) -> bayesian.Layers:
    """Convolutions that halve the image, and a dense layer on their means."""
    pairs = zip(CHANNELS[:-1], CHANNELS[1:], strict=True)
    sizes = [(KERNEL**2 * fan_in, fan_out) for fan_in, fan_out in pairs]
    sizes.append((CHANNELS[-1], CLASSES))
    seeds = len(sizes) * seed + jnp.arange(len(sizes))
    return [
        bayesian.init_mean_field(pair, one)[0]
        for pair, one in zip(sizes, seeds, strict=True)
    ]


def convolution(layer: bayesian.Gaussian, x: jax.Array, key: jax.Array) -> jax.Array:
    """Outputs of a layer for images, with weights drawn anew for each position.

    Positions of one image share their weights, so strictly their noise is correlated.
    That is left out, as usual (Shridhar et al. 2019, arXiv 1901.02731).
    """
    windows = patches(x, (KERNEL, KERNEL), (STRIDE, STRIDE), "SAME")
    outputs = bayesian.linear(layer, windows.reshape(-1, windows.shape[-1]), key)
    return outputs.reshape(*windows.shape[:-1], -1)


def logits(layers: bayesian.Layers, images: jax.Array, key: jax.Array) -> jax.Array:
    """One draw of the network's outputs, shape=(examples, classes)."""
    *convolutions, last = zip(layers, jax.random.split(key, len(layers)), strict=True)
    x = normalise(images)
    for layer, noise in convolutions:
        x = jax.nn.relu(convolution(layer, x, noise))
    return bayesian.linear(last[0], x.mean(axis=(1, 2)), last[1])


def model(layers: bayesian.Layers, x: Batch, key: jax.Array) -> bayesian.Outputs:
    return {
        "logits": logits(layers, x["image"], key),
        "posterior": bayesian.posterior(layers),
        "share": x["share"],
    }


def loss(outputs: bayesian.Outputs, y: jax.Array) -> jax.Array:
    """The negative evidence lower bound per example."""
    fit = softmax_cross_entropy(outputs["logits"], y)
    return fit + outputs["share"].mean() * bayesian.divergence(outputs["posterior"])


def predict(layers: bayesian.Layers, x: Batch, context: Batch) -> bayesian.Outputs:
    """Probabilities averaged over draws; without the posterior, so no divergence."""
    draw = partial(logits, layers, x["image"])
    drawn = bayesian.log_probabilities(draw, context["key"])
    return {"logits": bayesian.average(drawn), "posterior": [], "share": x["share"]}


def classes_right(outputs: bayesian.Outputs, y: jax.Array) -> jax.Array:
    return accuracy(outputs["logits"], y)


SCENARIO = Scenario(
    name="breakhis",
    description="BreakHis or its stand-in (see the note), Bayesian network of three "
    "convolutions, negative ELBO",
    load=load,
    init=init,
    model=model,
    loss=loss,
    metric=classes_right,
    metric_name="accuracy",
    budget=20.0,
    seeds=3,
    batch_sizes=(128, 32),
    full_batch=False,
    random=True,
    predict=predict,
    # Of BreakHis nothing is known: these are the poster's for its other Bayesian ones.
    poster=PosterSettings(learning_rate=0.03, damping=1e5, batch=128),
)
