"""MobileNetV3-Large and -Small (Howard et al., ICCV 2019, tables 1 and 2), as torchvision builds them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.backbones import stages
from jaxseg.models.layers import Conv, ConvBN, DepthwiseConvBN, relu6


class Block(NamedTuple):
    """A row of a table: kernel, expanded and given channels, squeeze-and-excite, hard-swish (else ReLU), stride."""

    kernel_size: int
    expanded: int
    features: int
    squeeze: bool
    hard_swish: bool
    stride: int


STEM = 16  # channels

LARGE = (
    Block(3, 16, 16, False, False, 1),
    Block(3, 64, 24, False, False, 2),
    Block(3, 72, 24, False, False, 1),
    Block(5, 72, 40, True, False, 2),
    Block(5, 120, 40, True, False, 1),
    Block(5, 120, 40, True, False, 1),
    Block(3, 240, 80, False, True, 2),
    Block(3, 200, 80, False, True, 1),
    Block(3, 184, 80, False, True, 1),
    Block(3, 184, 80, False, True, 1),
    Block(3, 480, 112, True, True, 1),
    Block(3, 672, 112, True, True, 1),
    Block(5, 672, 160, True, True, 2),
    Block(5, 960, 160, True, True, 1),
    Block(5, 960, 160, True, True, 1),
)

SMALL = (
    Block(3, 16, 16, True, False, 2),
    Block(3, 72, 24, False, False, 2),
    Block(3, 88, 24, False, False, 1),
    Block(5, 96, 40, True, True, 2),
    Block(5, 240, 40, True, True, 1),
    Block(5, 240, 40, True, True, 1),
    Block(5, 120, 48, True, True, 1),
    Block(5, 144, 48, True, True, 1),
    Block(5, 288, 96, True, True, 2),
    Block(5, 576, 96, True, True, 1),
    Block(5, 576, 96, True, True, 1),
)


def hard_sigmoid(x: jax.Array) -> jax.Array:
    """The sigmoid in three straight lines: relu6(x + 3) / 6 (section 5.2)."""
    return relu6(x + 3) / 6


def hard_swish(x: jax.Array) -> jax.Array:
    """x times its hard sigmoid (section 5.2)."""
    return x * hard_sigmoid(x)


def to_multiple_of_8(channels: int) -> int:
    """The nearest one that is not more than a tenth below `channels`."""
    nearest = (channels + 4) // 8 * 8
    return nearest if nearest >= 0.9 * channels else nearest + 8


class SqueezeExcite(nn.Module):
    """Channels weighed by what the means of all say: 1x1 to a quarter, ReLU, 1x1, hard sigmoid (section 5.3)."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = functools.partial(Conv, kernel_size=1, use_bias=True, dtype=self.dtype)
        channels = x.shape[-1]
        y = nn.relu(conv(to_multiple_of_8(channels // 4), name="reduce")(x.mean((1, 2), keepdims=True)))
        return x * hard_sigmoid(conv(channels, name="expand")(y))


class InvertedResidual(nn.Module):
    """1x1 to `expanded` channels, depthwise, squeeze-and-excite, linear 1x1; added to its input where shapes agree."""

    block: Block
    stride: int
    dilation: int
    epsilon: float = 1e-3
    momentum: float = 0.99
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        block, y, channels = self.block, x, x.shape[-1]
        fields = {"epsilon": self.epsilon, "momentum": self.momentum, "dtype": self.dtype}
        activation = hard_swish if block.hard_swish else nn.relu
        if block.expanded != channels:
            y = ConvBN(block.expanded, 1, activation=activation, **fields, name="expand")(y, train=train)
        depthwise = DepthwiseConvBN(
            block.kernel_size, self.stride, self.dilation, activation=activation, **fields, name="depthwise"
        )
        y = depthwise(y, train=train)
        if block.squeeze:
            y = SqueezeExcite(self.dtype, name="squeeze")(y)
        y = ConvBN(block.features, 1, activation=None, **fields, name="project")(y, train=train)
        return x + y if self.stride == 1 and channels == block.features else y


class MobileNetV3(nn.Module):
    """MobileNetV3 without its classifier.

    Large has features of 16, 24, 40, 112 and 960 channels, Small of 16, 16, 24, 48 and 576: the feature at a stride is
    the last one of that size. BatchNorm's constants are torchvision's; timm's weights `mobilenetv3_large_100` and
    `mobilenetv3_small_100` were trained with `epsilon=1e-5`.

    Fields:
      first_block_features: whether the feature at a stride is rather that of the first block of that size, which leaves
        the deeper ones unread: of Large 16, 24, 40, 80 and 960 channels. So torchvision's
        `deeplabv3_mobilenet_v3_large` has it, at `output_stride=16`, for its auxiliary head.
    """

    blocks: tuple[Block, ...]
    first_block_features: bool = False
    epsilon: float = 1e-3
    momentum: float = 0.99
    output_stride: int = 32
    dilate_first_block: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, depth: int = 5) -> tuple[jax.Array, ...]:
        fields = {"epsilon": self.epsilon, "momentum": self.momentum, "dtype": self.dtype}
        x = ConvBN(STEM, 3, 2, activation=hard_swish, **fields, name="stem")(images, train=train)
        features, first = [], x
        plan = stages.plan([block.stride for block in self.blocks], 2, self.output_stride)
        for i, (block, stage) in enumerate(zip(self.blocks, plan, strict=True)):
            if block.stride == 2:
                features.append(first if self.first_block_features else x)
                if len(features) == depth:
                    return tuple(features)
            dilation = stage.dilation if self.dilate_first_block else stage.first_dilation
            x = InvertedResidual(block, stage.stride, dilation, **fields, name=f"block_{i}")(x, train=train)
            first = x if block.stride == 2 else first
        head = ConvBN(6 * self.blocks[-1].features, 1, activation=hard_swish, **fields, name="head")
        return (*features, head(x, train=train))


mobilenet_v3_large = functools.partial(MobileNetV3, blocks=LARGE)
mobilenet_v3_small = functools.partial(MobileNetV3, blocks=SMALL)
