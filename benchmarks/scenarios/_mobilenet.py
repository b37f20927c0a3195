"""MobileNetV2 (Sandler et al. 2018) in Flax, as torchvision has it.

Without the dropout before the classifier: the loss is the same whenever it is asked.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from benchmarks.scenarios._batch_norm import batch_norm
from benchmarks.scenarios._convolution import convolve


class Stage(NamedTuple):
    """Blocks with the same number of channels."""

    expansion: int  # channels within a block, in multiples of those that come in
    channels: int  # that come out
    count: int  # of blocks
    stride: int  # of the first one


STAGES = (
    Stage(1, 16, 1, 1), Stage(6, 24, 2, 2), Stage(6, 32, 3, 2), Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1), Stage(6, 160, 3, 2), Stage(6, 320, 1, 1),
)  # fmt: skip
STEM, HEAD = 32, 1280  # channels of the first layer and of the last one


class Layer(linen.Module):
    """A convolution, batch normalisation, and relu6 if it is not linear."""

    channels: int
    size: int = 1
    stride: int = 1
    depthwise: bool = False
    linear: bool = False

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = linen.Conv(
            self.channels,
            (self.size, self.size),
            self.stride,
            padding=(self.size - 1) // 2,
            use_bias=False,
            feature_group_count=self.channels if self.depthwise else 1,
            conv_general_dilated=convolve,
            name="convolution",
        )(x)
        x = batch_norm(train, name="norm")(x)
        return x if self.linear else linen.relu6(x)


class InvertedResidual(linen.Module):
    """Few channels, many, few again, and the sum with what came in if it fits."""

    expansion: int
    channels: int
    stride: int

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        wide, h = self.expansion * x.shape[-1], x
        if self.expansion > 1:
            h = Layer(wide, name="expand")(h, train)
        h = Layer(wide, 3, self.stride, depthwise=True, name="depthwise")(h, train)
        h = Layer(self.channels, linear=True, name="project")(h, train)
        return x + h if x.shape == h.shape else h


class MobileNetV2(linen.Module):
    """Logits for images of shape (rows, height, width, 3)."""

    # number of them; ``None`` for the features before the classifier
    classes: int | None = 1000
    stages: tuple[Stage, ...] = STAGES  # the blocks
    stem: int = STEM  # channels of the first layer
    head: int = HEAD  # features

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = Layer(self.stem, 3, 2, name="features_0")(x, train)
        blocks = _blocks(self.stages)
        for index, block in enumerate(blocks, start=1):
            x = InvertedResidual(*block, name=f"features_{index}")(x, train)
        x = Layer(self.head, name=f"features_{len(blocks) + 1}")(x, train)
        features = jnp.mean(x, axis=(1, 2))
        if self.classes is None:
            return features
        return linen.Dense(self.classes, name="classifier")(features)


def from_torch(
    weights: Mapping[str, np.ndarray], stages: tuple[Stage, ...] = STAGES
) -> dict[str, Any]:
    """Variables of `MobileNetV2` from the state of torchvision's network.

    Returns:
        What ``MobileNetV2(...).apply`` takes: ``params`` and ``batch_stats``.
    """

    def layer(convolution: str, norm: str) -> tuple[dict, dict]:
        kernel = weights[f"{convolution}.weight"].transpose(2, 3, 1, 0)
        names = ("weight", "bias", "running_mean", "running_var")
        scale, bias, mean, var = (weights[f"{norm}.{name}"] for name in names)
        params = {
            "convolution": {"kernel": kernel},
            "norm": {"scale": scale, "bias": bias},
        }
        return params, {"norm": {"mean": mean, "var": var}}

    blocks = _blocks(stages)
    layers = {
        f"features_{index}": layer(f"features.{index}.0", f"features.{index}.1")
        for index in (0, len(blocks) + 1)
    }
    for index, (expansion, _, _) in enumerate(blocks, start=1):
        prefix = f"features.{index}.conv"
        names = ["expand", "depthwise"] if expansion > 1 else ["depthwise"]
        parts = {
            name: layer(f"{prefix}.{place}.0", f"{prefix}.{place}.1")
            for place, name in enumerate(names)
        }
        end = len(names)
        parts["project"] = layer(f"{prefix}.{end}", f"{prefix}.{end + 1}")
        layers[f"features_{index}"] = tuple(
            {name: part[kind] for name, part in parts.items()} for kind in (0, 1)
        )
    params, statistics = (
        {name: pair[kind] for name, pair in layers.items()} for kind in (0, 1)
    )
    kernel = weights["classifier.1.weight"].T
    params["classifier"] = {"kernel": kernel, "bias": weights["classifier.1.bias"]}
    return {"params": params, "batch_stats": statistics}


def _blocks(stages: tuple[Stage, ...]) -> list[tuple[int, int, int]]:
    """Expansion, channels and stride of every block."""
    return [
        (stage.expansion, stage.channels, stage.stride if index == 0 else 1)
        for stage in stages
        for index in range(stage.count)
    ]
