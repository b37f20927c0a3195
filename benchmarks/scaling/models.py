"""The networks that scaling and memory are measured with, on made-up data.

What counts here is what a step costs, so no data set has to be fetched: inputs are
smooth functions of a few random numbers, targets likewise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import ncg_optax as ncg
from benchmarks.scenarios import _networks as networks
from benchmarks.scenarios import mnist
from benchmarks.scenarios._base import Params
from benchmarks.scenarios._batch_norm import Network
from benchmarks.scenarios._resnet import ResNet50, group_norm
from benchmarks.scenarios._transformer import init_transformer, transformer

SYMBOLS, CONTEXT, WIDTH, HEADS, LAYERS = 64, 64, 128, 4, 2


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


def _autoencoded(width: int) -> Callable[[int], dict[str, np.ndarray]]:
    def batch(rows: int) -> dict[str, np.ndarray]:
        x = _pictures(rows, width)
        return {"x": x, "y": x}

    return batch


def _classified(classes: int, *shape: int) -> Callable[[int], dict[str, np.ndarray]]:
    def batch(rows: int) -> dict[str, np.ndarray]:
        labels = np.random.default_rng(1).integers(0, classes, rows)
        return {"x": _pictures(rows, *shape), "y": labels.astype(np.int32)}

    return batch


def _text(rows: int) -> dict[str, np.ndarray]:
    symbols = np.random.default_rng(0).integers(0, SYMBOLS, (rows, CONTEXT + 1))
    symbols = symbols.astype(np.int32)
    return {"x": symbols[:, :-1], "y": symbols[:, 1:]}


# Batch statistics would couple the examples of a batch; the number of weights is the
# same.
RESNET50 = Network(ResNet50(norm=group_norm), (224, 224, 3))


MODELS: dict[str, Model] = {
    "tiny": Model(
        "autoencoder 16-8-4-8-16, for tests",
        networks.initialiser(16, 8, 4, 8, 16),
        networks.autoencoder,
        networks.pixel_cross_entropy,
        _autoencoded(16),
        64,
    ),
    "mlp": Model(
        "autoencoder 784-1000-500-250-30-250-500-1000-784",
        networks.initialiser(784, 1000, 500, 250, 30, 250, 500, 1000, 784),
        networks.autoencoder,
        networks.pixel_cross_entropy,
        _autoencoded(784),
        2048,
    ),
    "cnn": Model(
        "two convolutions and a dense layer on 28x28 images",
        mnist.init_cnn,
        mnist.cnn,
        networks.softmax_cross_entropy,
        _classified(10, 28, 28, 1),
        1024,
    ),
    "transformer": Model(
        f"decoder, {LAYERS} layers, width {WIDTH}, context {CONTEXT}",
        lambda seed: init_transformer(seed, SYMBOLS, CONTEXT, WIDTH, LAYERS),
        lambda params, x: transformer(params, x, HEADS),
        networks.softmax_cross_entropy,
        _text,
        64,
    ),
    "resnet50": Model(
        "ResNet-50 with group normalisation on 224x224 images",
        RESNET50.init,
        RESNET50.outputs,
        networks.softmax_cross_entropy,
        _classified(1000, 224, 224, 3),
        512,
    ),
}


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "adam": lambda: optax.adam(1e-3),
    "newton_cg": ncg.newton_cg,
    "hessian_free": ncg.hessian_free,
    "hessian_free_plain": lambda: ncg.hessian_free(preconditioner=None),
}


def optimizer(name: str) -> Any:
    """One of the optimizers that are compared."""
    if name not in OPTIMIZERS:
        known = ", ".join(OPTIMIZERS)
        raise ValueError(f"optimizer must be one of {known}, got {name!r}.")
    return OPTIMIZERS[name]()
