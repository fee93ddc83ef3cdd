"""MobileNetV2 (Sandler et al., CVPR 2018, table 2), as torchvision builds it."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.backbones import stages
from jaxseg.models.layers import ConvBN, DepthwiseConvBN, relu6

# Table 2: expansion, channels, repeats, stride of the first.
BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1x1 to `expansion` times the channels, 3x3 depthwise, linear 1x1; added to its input where the shapes agree."""

    features: int
    expansion: int
    stride: int
    dilation: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y, channels = x, x.shape[-1]
        if self.expansion != 1:
            y = ConvBN(self.expansion * channels, 1, activation=relu6, dtype=self.dtype, name="expand")(y, train=train)
        y = DepthwiseConvBN(3, self.stride, self.dilation, activation=relu6, dtype=self.dtype, name="depthwise")(
            y, train=train
        )
        y = ConvBN(self.features, 1, activation=None, dtype=self.dtype, name="project")(y, train=train)
        return x + y if self.stride == 1 and channels == self.features else y


class MobileNetV2(nn.Module):
    """MobileNetV2 without its classifier; features of 16, 24, 32, 96 and 1280 channels."""

    output_stride: int = 32
    dilate_first_block: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
        x = ConvBN(32, 3, 2, activation=relu6, dtype=self.dtype, name="stem")(images, train=train)
        features, index = [], 0
        plan = stages.plan([stride for *_, stride in BLOCKS], 2, self.output_stride)
        for (expansion, channels, repeats, stride), stage in zip(BLOCKS, plan, strict=True):
            if stride == 2:
                features.append(x)
            for repeat in range(repeats):
                first = repeat == 0
                dilation = stage.first_dilation if first and not self.dilate_first_block else stage.dilation
                x = InvertedResidual(
                    channels, expansion, stage.stride if first else 1, dilation, self.dtype, name=f"block_{index}"
                )(x, train=train)
                index += 1
        features.append(ConvBN(1280, 1, activation=relu6, dtype=self.dtype, name="head")(x, train=train))
        return tuple(features)
