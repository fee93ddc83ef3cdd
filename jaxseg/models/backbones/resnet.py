"""ResNet-18/34/50/101 (He et al., CVPR 2016, table 1), as torchvision builds them: v1.5, the stride on the 3x3.

With `deep_stem` they are the ResNetV1c of segmentation papers (He et al., CVPR 2019, section 4.2).
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.backbones import stages
from jaxseg.models.layers import ConvBN, max_pool


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (figure 5, left)."""

    features: int
    stride: int
    dilation: int
    dtype: jnp.dtype = jnp.float32
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv = functools.partial(ConvBN, dtype=self.dtype)
        y = conv(self.features, 3, self.stride, self.dilation, name="conv1")(x, train=train)
        y = conv(self.features, 3, 1, self.dilation, activation=None, name="conv2")(y, train=train)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv(self.features, 1, self.stride, activation=None, name="downsample")(x, train=train)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 to four times the channels, and a shortcut (figure 5, right)."""

    features: int
    stride: int
    dilation: int
    dtype: jnp.dtype = jnp.float32
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv = functools.partial(ConvBN, dtype=self.dtype)
        y = conv(self.features, 1, name="conv1")(x, train=train)
        y = conv(self.features, 3, self.stride, self.dilation, name="conv2")(y, train=train)
        y = conv(4 * self.features, 1, activation=None, name="conv3")(y, train=train)
        if self.stride != 1 or x.shape[-1] != 4 * self.features:
            x = conv(4 * self.features, 1, self.stride, activation=None, name="downsample")(x, train=train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A ResNet without its classifier: the stem's feature, then that of each of the four stages.

    Fields:
      deep_stem: three 3x3 convolutions of 32, 32 and 64 channels, the first with the stride, in place of the 7x7.
    """

    block: type[nn.Module]
    repeats: tuple[int, int, int, int]
    deep_stem: bool = False
    output_stride: int = 32
    dilate_first_block: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, depth: int = 5) -> tuple[jax.Array, ...]:
        if self.deep_stem:
            x = images
            for i, (channels, stride) in enumerate([(32, 2), (32, 1), (64, 1)], start=1):
                x = ConvBN(channels, 3, stride, dtype=self.dtype, name=f"stem{i}")(x, train=train)
        else:
            x = ConvBN(64, 7, 2, dtype=self.dtype, name="stem")(images, train=train)
        features = [x]
        x = max_pool(x, 3, 2, ((1, 1), (1, 1)))
        plan = stages.plan([1, 2, 2, 2], 4, self.output_stride)
        for i, (repeats, stage) in enumerate(zip(self.repeats[: depth - 1], plan[: depth - 1], strict=True)):
            for j in range(repeats):
                dilation = stage.first_dilation if j == 0 and not self.dilate_first_block else stage.dilation
                x = self.block(
                    64 * 2**i, stage.stride if j == 0 else 1, dilation, self.dtype, name=f"layer{i + 1}_{j}"
                )(x, train=train)
            features.append(x)
        return tuple(features)


resnet18 = functools.partial(ResNet, block=BasicBlock, repeats=(2, 2, 2, 2))
resnet34 = functools.partial(ResNet, block=BasicBlock, repeats=(3, 4, 6, 3))
resnet50 = functools.partial(ResNet, block=Bottleneck, repeats=(3, 4, 6, 3))
resnet101 = functools.partial(ResNet, block=Bottleneck, repeats=(3, 4, 23, 3))
