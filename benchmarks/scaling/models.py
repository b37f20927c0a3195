"""The networks that scaling, memory and a GPU are measured with, on made-up data.

What counts here is what a step costs, so no data set has to be fetched: inputs are
smooth functions of a few random numbers, targets likewise.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import ncg_optax as ncg
from benchmarks.peers.soap import soap
from benchmarks.scenarios import _networks as networks
from benchmarks.scenarios import mnist
from benchmarks.scenarios._base import Params
from benchmarks.scenarios._batch_norm import Network
from benchmarks.scenarios._resnet import ResNet50, group_norm
from benchmarks.scenarios._transformer import init_transformer, transformer

SYMBOLS = 64  # of made-up text
STOCHASTIC = "stochastic_hessian_free"


class Model(NamedTuple):
    """A network with its loss and a batch for it."""

    description: str  # one line
    init: Callable[[int], Params]  # initial parameters for a seed
    # maps parameters and inputs to outputs
    model: Callable[[Params, jax.Array], jax.Array]
    # maps outputs and targets to a mean over the examples
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    # inputs and targets for so many examples
    batch: Callable[[int], dict[str, np.ndarray]]
    batch_size: int  # a sensible number of them
    terms: int = 1  # of the loss in an example: the symbols of a text
    # examples that go through memory at a time, or None for all
    microbatch: int | None = None

    def composite(self) -> ncg.CompositeLoss:
        """The loss as the optimizers want it."""
        return ncg.CompositeLoss(self.model, self.loss)


def _pictures(rows: int, *shape: int) -> np.ndarray:
    """Numbers between 0 and 1 that depend on eight hidden ones, float32."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(8, int(np.prod(shape))))
    hidden = rng.normal(size=(rows, 8))
    values = 1 / (1 + np.exp(-hidden @ mixing))
    return values.reshape(rows, *shape).astype(np.float32)


def _autoencoder(batch_size: int, *sizes: int, note: str = "") -> Model:
    sizes += sizes[-2::-1]

    def batch(rows: int) -> dict[str, np.ndarray]:
        x = _pictures(rows, sizes[0])
        return {"x": x, "y": x}

    return Model(
        f"autoencoder {'-'.join(map(str, sizes))}{note}",
        networks.initialiser(*sizes),
        networks.autoencoder,
        networks.pixel_cross_entropy,
        batch,
        batch_size,
    )


def _classified(classes: int, *shape: int) -> Callable[[int], dict[str, np.ndarray]]:
    def batch(rows: int) -> dict[str, np.ndarray]:
        labels = np.random.default_rng(1).integers(0, classes, rows)
        return {"x": _pictures(rows, *shape), "y": labels.astype(np.int32)}

    return batch


def _transformer(width: int, heads: int, layers: int, context: int) -> Model:
    def batch(rows: int) -> dict[str, np.ndarray]:
        symbols = np.random.default_rng(0).integers(0, SYMBOLS, (rows, context + 1))
        symbols = symbols.astype(np.int32)
        return {"x": symbols[:, :-1], "y": symbols[:, 1:]}

    return Model(
        f"decoder, {layers} layers, width {width}, context {context}",
        lambda seed: init_transformer(seed, SYMBOLS, context, width, layers),
        lambda params, x: transformer(params, x, heads),
        networks.softmax_cross_entropy,
        batch,
        64,
        terms=context,
    )


def _resnet(network: Network, title: str, **settings: int) -> Model:
    classes = network.module.classes
    return Model(
        f"{title} with group normalisation on {network.shape[0]}x{network.shape[1]} "
        "images",
        network.init,
        network.outputs,
        networks.softmax_cross_entropy,
        _classified(classes, *network.shape),
        **settings,
    )


# Batch statistics would couple the examples of a batch; the number of weights is the
# same.
RESNET50 = Network(ResNet50(norm=group_norm), (224, 224, 3))
RESNET_TINY = Network(ResNet50(10, 32, group_norm, blocks=(1,)), (8, 8, 3))

MODELS: dict[str, Model] = {
    "tiny": _autoencoder(64, 16, 8, 4, note=", for tests"),
    "mlp": _autoencoder(2048, 784, 1000, 500, 250, 30),
    "cnn": Model(
        "two convolutions and a dense layer on 28x28 images",
        mnist.init_cnn,
        mnist.cnn,
        networks.softmax_cross_entropy,
        _classified(10, 28, 28, 1),
        1024,
    ),
    "transformer": _transformer(128, 4, 2, 64),
    "transformer_512": _transformer(512, 8, 4, 128),
    "transformer_tiny": _transformer(16, 2, 1, 8),
    # 512 of these images at once do not fit into the memory of most devices.
    "resnet50": _resnet(RESNET50, "ResNet-50", batch_size=512, microbatch=64),
    "resnet_tiny": _resnet(
        RESNET_TINY, "One block of ResNet-50", batch_size=64, microbatch=16
    ),
}


def preset(name: str, model: Model, **settings: Any) -> optax.GradientTransformation:
    """One of the presets, its batches as large as the memory for a model allows."""
    sampling = ncg.presets.DEFAULTS[name]["sampling"]
    if name == STOCHASTIC:  # as its documentation has it: terms count, not examples
        least = max(sampling.min_examples // model.terms, 1)
        sampling = dataclasses.replace(sampling, min_examples=least)
    sampling = dataclasses.replace(sampling, microbatch_size=model.microbatch)
    return getattr(ncg, name)(sampling=sampling, **settings)


OPTIMIZERS: dict[str, Callable[[Model], optax.GradientTransformation]] = {
    "adam": lambda model: optax.adam(1e-3),
    "soap": lambda model: soap(1e-3),
    "newton_cg": partial(preset, "newton_cg"),
    "hessian_free": partial(preset, "hessian_free"),
    "hessian_free_plain": partial(preset, "hessian_free", preconditioner=None),
    "hessian_free_tf32": partial(
        preset, "hessian_free", curvature=ncg.gauss_newton(precision=None)
    ),
    STOCHASTIC: partial(preset, STOCHASTIC),
}
