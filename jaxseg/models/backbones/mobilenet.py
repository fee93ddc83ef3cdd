"""MobileNet (Howard et al. 2017) as Keras applications has it, MobileNetV2 (Sandler et al., CVPR 2018) as torchvision.

Their strided convolutions are padded evenly in PyTorch and at the bottom and right alone in Keras: the same weights
give other features. Which it is, is the field `uneven_padding`.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.backbones import stages
from jaxseg.models.layers import ConvBN, DepthwiseConvBN, relu6, uneven_padding

# MobileNet, table 1: channels and stride of the depthwise separable convolutions.
V1_BLOCKS = (
    (64, 1),
    *((128, 2), (128, 1)),
    *((256, 2), (256, 1)),
    *((512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1)),
    *((1024, 2), (1024, 1)),
)

# MobileNetV2, table 2: expansion, channels, repeats, stride of the first.
BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV1(nn.Module):
    """MobileNet of width 1 without its classifier; features of 64, 128, 256, 512 and 1024 channels.

    In Keras' names they are `conv_pw_1_relu`, `conv_pw_3_relu`, `conv_pw_5_relu`, `conv_pw_11_relu` and
    `conv_pw_13_relu`.

    Fields:
      uneven_padding: whether strided convolutions pad as Keras does: the first as TensorFlow, the depthwise ones with
        one pixel at the bottom and right, whatever the size, so that odd sizes are halved by rounding down.
    """

    uneven_padding: bool = True
    epsilon: float = 1e-3
    momentum: float = 0.99
    output_stride: int = 32
    dilate_first_block: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, depth: int = 5) -> tuple[jax.Array, ...]:
        fields = {"activation": relu6, "epsilon": self.epsilon, "momentum": self.momentum, "dtype": self.dtype}
        padding = uneven_padding(images.shape[1:3], 3, 2) if self.uneven_padding else None
        x = ConvBN(32, 3, 2, padding=padding, **fields, name="stem")(images, train=train)
        features = []
        plan = stages.plan([stride for _, stride in V1_BLOCKS], 2, self.output_stride)
        for i, ((channels, stride), stage) in enumerate(zip(V1_BLOCKS, plan, strict=True)):
            if stride == 2:
                features.append(x)
                if len(features) == depth:
                    return tuple(features)
            dilation = stage.dilation if self.dilate_first_block else stage.first_dilation
            padding = ((0, 1), (0, 1)) if self.uneven_padding and stage.stride == 2 else None
            depthwise = DepthwiseConvBN(3, stage.stride, dilation, padding, **fields, name=f"block_{i}_depthwise")
            x = depthwise(x, train=train)
            x = ConvBN(channels, 1, **fields, name=f"block_{i}_pointwise")(x, train=train)
        return (*features, x)


class InvertedResidual(nn.Module):
    """1x1 to `expansion` times the channels, 3x3 depthwise, linear 1x1; added to its input where the shapes agree.

    Gives that, or None for `expand_only`, and what the first of the three gives.

    Fields:
      project_norm: whether the last of the three has a BatchNorm as the others have.
    """

    features: int
    expansion: int
    stride: int
    dilation: int
    uneven_padding: bool = False
    project_norm: bool = True
    epsilon: float = 1e-5
    momentum: float = 0.9
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, expand_only: bool = False) -> tuple[jax.Array | None, jax.Array]:
        fields = {"epsilon": self.epsilon, "momentum": self.momentum, "dtype": self.dtype}
        conv_bn = functools.partial(ConvBN, kernel_size=1, **fields)
        y, channels = x, x.shape[-1]
        if self.expansion != 1:
            y = conv_bn(self.expansion * channels, activation=relu6, name="expand")(y, train=train)
        expanded = y
        if expand_only:
            return None, expanded
        uneven = self.uneven_padding and self.stride == 2
        padding = uneven_padding(y.shape[1:3], 3, 2) if uneven else None
        depthwise = DepthwiseConvBN(
            3, self.stride, self.dilation, padding, activation=relu6, **fields, name="depthwise"
        )
        project = conv_bn(self.features, activation=None, norm=self.project_norm, name="project")
        y = project(depthwise(y, train=train), train=train)
        return x + y if self.stride == 1 and channels == self.features else y, expanded


class MobileNetV2(nn.Module):
    """MobileNetV2 without its classifier; features of 16, 24, 32, 96 and 1280 channels.

    Keras' weights were trained with `uneven_padding=True, epsilon=1e-3, momentum=0.999`.

    Fields:
      uneven_padding: whether strided convolutions pad an even size at the bottom and right only.
      expanded_features: whether the feature at a stride is rather what the first 1x1 convolution behind it makes of it,
        before the next stride, and the last one what the last block's convolutions give: 96, 144, 192, 576 and 320
        channels, in Keras' names `block_1_expand_relu`, `block_3_expand_relu`, `block_6_expand_relu`,
        `block_13_expand_relu` and `block_16_project`. What stands behind the last has no variables: that block's last
        BatchNorm and the convolution to 1280 channels. So TensorFlow's segmentation tutorial takes it.
    """

    uneven_padding: bool = False
    expanded_features: bool = False
    epsilon: float = 1e-5
    momentum: float = 0.9
    output_stride: int = 32
    dilate_first_block: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, depth: int = 5) -> tuple[jax.Array, ...]:
        fields = {"epsilon": self.epsilon, "momentum": self.momentum, "dtype": self.dtype}
        padding = uneven_padding(images.shape[1:3], 3, 2) if self.uneven_padding else None
        x = ConvBN(32, 3, 2, padding=padding, activation=relu6, **fields, name="stem")(images, train=train)
        features, index = [], 0
        plan = stages.plan([stride for *_, stride in BLOCKS], 2, self.output_stride)
        for (expansion, channels, repeats, stride), stage in zip(BLOCKS, plan, strict=True):
            if stride == 2 and not self.expanded_features:
                features.append(x)
                if len(features) == depth:
                    return tuple(features)
            for repeat in range(repeats):
                first = repeat == 0
                dilation = stage.first_dilation if first and not self.dilate_first_block else stage.dilation
                block = InvertedResidual(
                    channels,
                    expansion,
                    stage.stride if first else 1,
                    dilation,
                    self.uneven_padding,
                    project_norm=not (self.expanded_features and channels == BLOCKS[-1][1]),
                    **fields,
                    name=f"block_{index}",
                )
                expands = self.expanded_features and stride == 2 and first
                x, expanded = block(x, train=train, expand_only=expands and len(features) == depth - 1)
                if expands:
                    features.append(expanded)
                    if len(features) == depth:
                        return tuple(features)
                index += 1
        if self.expanded_features:
            return (*features, x)
        features.append(ConvBN(1280, 1, activation=relu6, **fields, name="head")(x, train=train))
        return tuple(features)
