"""The networks that scaling and memory are measured with, on made-up data.

What counts here is what a step costs, so no data set has to be fetched: inputs are
smooth functions of a few random numbers, targets likewise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ncg_optax as ncg
from benchmarks.scenarios import mnist
from benchmarks.scenarios._base import Params
from benchmarks.scenarios._networks import (
    autoencoder,
    initialiser,
    pixel_cross_entropy,
    softmax_cross_entropy,
)
from benchmarks.scenarios._transformer import init_transformer, transformer

SYMBOLS, CONTEXT, WIDTH, HEADS, LAYERS = 64, 64, 128, 4, 2
BLOCKS = (3, 4, 6, 3)  # of the four stages of ResNet-50
GROUPS = 32


class Model(NamedTuple):
    """A network with its loss and a batch for it.

    Attributes:
        description: one line.
        init: initial parameters for a seed.
        model: maps parameters and inputs to outputs.
        loss: maps outputs and targets to a mean over the examples.
        batch: inputs and targets for so many examples.
        batch_size: a sensible number of them.
    """

    description: str
    init: Callable[[int], Params]
    model: Callable[[Params, jax.Array], jax.Array]
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    batch: Callable[[int], dict[str, np.ndarray]]
    batch_size: int

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


def _convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _group_norm(norm: Params, x: jax.Array) -> jax.Array:
    grouped = x.reshape(*x.shape[:-1], GROUPS, -1)
    normed = jax.nn.standardize(grouped, axis=(1, 2, 4), epsilon=1e-5)
    return normed.reshape(x.shape) * norm["scale"] + norm["shift"]


def init_resnet50(seed: int, classes: int = 1000) -> Params:
    """Weights of ResNet-50, normalised over groups of channels instead of batches.

    Batch statistics would couple the examples of a batch; the number of weights is the
    same.

    Example:
        >>> shapes = jax.eval_shape(init_resnet50, 0)
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
        25557032
    """
    keys = iter(jax.random.split(jax.random.key(seed), 64))

    def convolution(size: int, fan_in: int, fan_out: int) -> Params:
        deviation = (2 / (size * size * fan_in)) ** 0.5
        shape = (size, size, fan_in, fan_out)
        return {
            "kernel": jax.random.normal(next(keys), shape) * deviation,
            "norm": {"scale": jnp.ones(fan_out), "shift": jnp.zeros(fan_out)},
        }

    stages, fan_in = [], 64
    for stage, count in enumerate(BLOCKS):
        narrow = 64 * 2**stage
        blocks = []
        for index in range(count):
            block = {
                "reduce": convolution(1, fan_in, narrow),
                "middle": convolution(3, narrow, narrow),
                "expand": convolution(1, narrow, 4 * narrow),
            }
            if index == 0:
                block["shortcut"] = convolution(1, fan_in, 4 * narrow)
            blocks.append(block)
            fan_in = 4 * narrow
        stages.append(blocks)
    weights = jax.random.normal(next(keys), (fan_in, classes)) * fan_in**-0.5
    return {
        "stem": convolution(7, 3, 64),
        "stages": stages,
        "out": {"w": weights, "b": jnp.zeros(classes)},
    }


def resnet50(params: Params, x: jax.Array) -> jax.Array:
    """Logits for images of shape (rows, height, width, 3); version 1.5.

    Example:
        >>> images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
        >>> jax.eval_shape(resnet50, jax.eval_shape(init_resnet50, 0), images).shape
        (2, 1000)
    """

    def layer(weights: Params, x: jax.Array, stride: int = 1) -> jax.Array:
        return _group_norm(weights["norm"], _convolve(x, weights["kernel"], stride))

    x = jax.nn.relu(layer(params["stem"], x, 2))
    x = jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME"
    )
    for stage, blocks in enumerate(params["stages"]):
        for index, block in enumerate(blocks):
            stride = 2 if stage > 0 and index == 0 else 1
            h = jax.nn.relu(layer(block["reduce"], x))
            h = jax.nn.relu(layer(block["middle"], h, stride))
            h = layer(block["expand"], h)
            if "shortcut" in block:
                x = layer(block["shortcut"], x, stride)
            x = jax.nn.relu(x + h)
    return jnp.mean(x, axis=(1, 2)) @ params["out"]["w"] + params["out"]["b"]


MODELS: dict[str, Model] = {
    "tiny": Model(
        "autoencoder 16-8-4-8-16, for tests",
        initialiser(16, 8, 4, 8, 16),
        autoencoder,
        pixel_cross_entropy,
        _autoencoded(16),
        64,
    ),
    "mlp": Model(
        "autoencoder 784-1000-500-250-30-250-500-1000-784",
        initialiser(784, 1000, 500, 250, 30, 250, 500, 1000, 784),
        autoencoder,
        pixel_cross_entropy,
        _autoencoded(784),
        2048,
    ),
    "cnn": Model(
        "two convolutions and a dense layer on 28x28 images",
        mnist.init_cnn,
        mnist.cnn,
        softmax_cross_entropy,
        _classified(10, 28, 28, 1),
        1024,
    ),
    "transformer": Model(
        f"decoder, {LAYERS} layers, width {WIDTH}, context {CONTEXT}",
        lambda seed: init_transformer(seed, SYMBOLS, CONTEXT, WIDTH, LAYERS),
        lambda params, x: transformer(params, x, HEADS),
        softmax_cross_entropy,
        _text,
        64,
    ),
    "resnet50": Model(
        "ResNet-50 with group normalisation on 224x224 images",
        init_resnet50,
        resnet50,
        softmax_cross_entropy,
        _classified(1000, 224, 224, 3),
        512,
    ),
}


def optimizer(name: str) -> Any:
    """The optimizers that are compared, by name.

    Raises:
        ValueError: if there is none of this name.

    Example:
        >>> optimizer("adam") is not None
        True
    """
    import optax

    makers: dict[str, Callable[[], Any]] = {
        "adam": lambda: optax.adam(1e-3),
        "newton_cg": ncg.newton_cg,
        "hessian_free": ncg.hessian_free,
        "hessian_free_plain": lambda: ncg.hessian_free(preconditioner=None),
    }
    if name not in makers:
        raise ValueError(f"optimizer must be one of {', '.join(makers)}, got {name!r}.")
    return makers[name]()


OPTIMIZERS = ("adam", "newton_cg", "hessian_free", "hessian_free_plain")
