"""ResNet-50 (He et al. 2016) in Flax; as in version 1.5, 3x3 convolutions stride."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen

from benchmarks.scenarios._batch_norm import batch_norm
from benchmarks.scenarios._convolution import convolve

BLOCKS = (3, 4, 6, 3)  # of the four stages of ResNet-50
EXPANSION = 4

Norm = Callable[[bool], linen.Module]  # a layer, for training or not


def group_norm(train: bool) -> linen.Module:
    """Over groups of channels: batch statistics couple the examples of a batch."""
    return linen.GroupNorm(num_groups=32, epsilon=1e-5)


class Bottleneck(linen.Module):
    """Convolutions of 1x1, 3x3 and 1x1, and a shortcut around them."""

    channels: int
    stride: int
    norm: Norm

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def layer(x: jax.Array, channels: int, size: int, stride: int = 1) -> jax.Array:
            x = _convolution(channels, size, stride)(x)
            return self.norm(train)(x)

        wide = EXPANSION * self.channels
        h = linen.relu(layer(x, self.channels, 1))
        h = linen.relu(layer(h, self.channels, 3, self.stride))
        h = layer(h, wide, 1)
        if x.shape != h.shape:
            x = layer(x, wide, 1, self.stride)
        return linen.relu(x + h)


class ResNet50(linen.Module):
    """Logits for images of shape (rows, height, width, 3)."""

    classes: int = 1000  # number of them
    width: int = 64  # channels of the first stage; 64 is the published network
    norm: Norm = batch_norm  # the layer that normalises
    blocks: tuple[int, ...] = BLOCKS  # of each stage

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = linen.relu(self.norm(train)(_convolution(self.width, 7, 2)(x)))
        x = linen.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, count in enumerate(self.blocks):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                x = Bottleneck(self.width * 2**stage, stride, self.norm)(x, train)
        return linen.Dense(self.classes)(jnp.mean(x, axis=(1, 2)))


def _convolution(channels: int, size: int, stride: int) -> linen.Module:
    return linen.Conv(
        channels, (size, size), stride, use_bias=False, conv_general_dilated=convolve
    )
