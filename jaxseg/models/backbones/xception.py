"""Xception (Chollet, CVPR 2017, figure 5) as Keras applications has it, and DeepLabV3+'s form of 65 layers.

Both repeat one block: depthwise separable convolutions, the stride behind them, and a shortcut around. In both the
feature at a stride is the last one at that resolution: what the second separable convolution of the block gives that
then strides (its BatchNorm's output, no ReLU), and for the coarsest the network's end. That makes 128, 256, 728, 1024
and 2048 channels.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.backbones import stages
from jaxseg.models.layers import Conv, ConvBN, DepthwiseConv, DepthwiseConvBN, batch_norm, max_pool, uneven_padding


def _max_pool(x: jax.Array, stride: int) -> jax.Array:
    """3x3 max pooling to 1 / stride of the size, rounded up; of an uneven padding the odd pixel goes to the end."""
    return max_pool(x, 3, stride, uneven_padding(x.shape[1:3], 3, stride))


class SeparableConv(nn.Module):
    """3x3 depthwise and 1x1 convolution, then BatchNorm: children `depthwise`, `pointwise` and `bn`."""

    features: int
    dilation: int = 1
    epsilon: float = 1e-3
    momentum: float = 0.99
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = DepthwiseConv(3, dilation=self.dilation, dtype=self.dtype, name="depthwise")(x)
        x = Conv(self.features, 1, dtype=self.dtype, name="pointwise")(x)
        return batch_norm(train, epsilon=self.epsilon, momentum=self.momentum, dtype=self.dtype)(x)


class Xception(nn.Module):
    """Keras' Xception without its classifier; features of 128, 256, 728, 1024 and 2048 channels.

    In Keras' names they are `block2_sepconv2_bn`, `block3_sepconv2_bn`, `block4_sepconv2_bn`, `block13_sepconv2_bn` and
    `block14_sepconv2_act`. A pooling that would go beyond `output_stride` stays, with a stride of 1.

    Fields:
      stem_padding: of the first two convolutions. Keras has none: the image's borders are lost, and features are up to
        two pixels smaller than halving gives. With 1 they lie on the image as other backbones' do.
      dilate_first_block: a block strides at its end, so one that lost its stride keeps by default the dilation of the
        blocks before it.
    """

    stem_padding: int = 0
    epsilon: float = 1e-3
    momentum: float = 0.99
    output_stride: int = 32
    dilate_first_block: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, depth: int = 5) -> tuple[jax.Array, ...]:
        fields = {"epsilon": self.epsilon, "momentum": self.momentum, "dtype": self.dtype}
        conv_bn = functools.partial(ConvBN, padding=self.stem_padding, **fields)
        x = conv_bn(32, 3, 2, name="block1_conv1")(images, train=train)
        x = conv_bn(64, 3, name="block1_conv2")(x, train=train)

        features = []
        plan = stages.plan([2, 2, 2, 2], 2, self.output_stride)
        for i, channels in enumerate([(128, 128), (256, 256), (728, 728), (728, 1024)]):
            name = f"block{(2, 3, 4, 13)[i]}"
            dilation = plan[i].dilation if self.dilate_first_block else plan[i].first_dilation
            y = x
            for j, count in enumerate(channels, start=1):
                # In block 2 the first ReLU finds nothing to do: the stem ends with one.
                y = SeparableConv(count, dilation, **fields, name=f"{name}_sepconv{j}")(nn.relu(y), train=train)
            features.append(y)
            if len(features) == depth:
                return tuple(features)
            shortcut = ConvBN(channels[-1], 1, plan[i].stride, activation=None, **fields, name=f"{name}_shortcut")
            x = _max_pool(y, plan[i].stride) + shortcut(x, train=train)
            if name == "block4":
                x = self._middle_flow(x, plan[i].dilation, fields, train)
        for j, count in enumerate((1536, 2048), start=1):
            x = nn.relu(SeparableConv(count, plan[-1].dilation, **fields, name=f"block14_sepconv{j}")(x, train=train))
        return (*features, x)

    def _middle_flow(self, x: jax.Array, dilation: int, fields: dict, train: bool) -> jax.Array:
        for block in range(5, 13):
            y = x
            for j in (1, 2, 3):
                y = SeparableConv(728, dilation, **fields, name=f"block{block}_sepconv{j}")(nn.relu(y), train=train)
            x = x + y
        return x


class DeepLabSeparableConv(nn.Module):
    """3x3 depthwise and 1x1 convolution, each with a BatchNorm: children `depthwise` and `pointwise`.

    `relu_first`: one ReLU before both; else one behind each BatchNorm.
    """

    features: int
    stride: int = 1
    dilation: int = 1
    relu_first: bool = True
    epsilon: float = 1e-3
    momentum: float = 0.99
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        activation = None if self.relu_first else nn.relu
        fields = {"activation": activation, "epsilon": self.epsilon, "momentum": self.momentum, "dtype": self.dtype}
        x = nn.relu(x) if self.relu_first else x
        x = DepthwiseConvBN(3, self.stride, self.dilation, **fields, name="depthwise")(x, train=train)
        return ConvBN(self.features, 1, **fields, name="pointwise")(x, train=train)


class Xception65(nn.Module):
    """The encoder of DeepLabV3+ (Chen et al., ECCV 2018, figure 4); features of 128, 256, 728, 1024 and 2048 channels.

    Poolings are strided depthwise convolutions here, every depthwise convolution has a BatchNorm, and the middle flow
    is twice as long. As bonlime/keras-deeplab-v3-plus has it, in whose names the features are
    `entry_flow_block1_separable_conv2_pointwise_BN`, the same of blocks 2 and 3 and of `exit_flow_block1`, and the
    network's end. DeepLabV3+'s skip is the second, at stride 4 (256 channels, before the ReLU). The encoder has
    37,867,312 parameters and 185,200 running statistics, all BatchNorms an epsilon of 1e-3; those of that decoder have
    1e-5.

    Strided depthwise convolutions are padded by one pixel on all sides; dilations at output stride 8 and 16 are the
    published ones.

    Fields:
      uneven_padding: whether the first convolution pads as TensorFlow does, an even image at the bottom and right only.
      dilate_first_block: a block strides at its end, so one that lost its stride keeps by default the dilation of the
        blocks before it.
    """

    uneven_padding: bool = True
    epsilon: float = 1e-3
    momentum: float = 0.99
    output_stride: int = 32
    dilate_first_block: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, depth: int = 5) -> tuple[jax.Array, ...]:
        fields = {"epsilon": self.epsilon, "momentum": self.momentum, "dtype": self.dtype}
        padding = uneven_padding(images.shape[1:3], 3, 2) if self.uneven_padding else 1
        x = ConvBN(32, 3, 2, padding=padding, **fields, name="entry_conv1")(images, train=train)
        x = ConvBN(64, 3, **fields, name="entry_conv2")(x, train=train)

        features = []
        plan = stages.plan([2, 2, 2, 2], 2, self.output_stride)
        for i, channels in enumerate([(128,) * 3, (256,) * 3, (728,) * 3, (728, 1024, 1024)]):
            name = ("entry_block1", "entry_block2", "entry_block3", "exit_block1")[i]
            dilation = plan[i].dilation if self.dilate_first_block else plan[i].first_dilation
            y = self._separable(x, channels[:2], dilation, fields, name, train)
            features.append(y)
            if len(features) == depth:
                return tuple(features)
            last = DeepLabSeparableConv(channels[2], plan[i].stride, dilation, **fields, name=f"{name}_conv3")
            shortcut = ConvBN(channels[2], 1, plan[i].stride, activation=None, **fields, name=f"{name}_shortcut")
            x = last(y, train=train) + shortcut(x, train=train)
            if name == "entry_block3":
                for unit in range(1, 17):
                    x = x + self._separable(x, (728,) * 3, plan[i].dilation, fields, f"middle_unit{unit}", train)
        fields = {**fields, "relu_first": False}
        return (*features, self._separable(x, (1536, 1536, 2048), plan[-1].dilation, fields, "exit_block2", train))

    def _separable(self, x, channels, dilation: int, fields: dict, name: str, train: bool) -> jax.Array:
        """As many convolutions as there are `channels`, all of stride 1."""
        for j, count in enumerate(channels, start=1):
            conv = DeepLabSeparableConv(count, dilation=dilation, **fields, name=f"{name}_conv{j}")
            x = conv(x, train=train)
        return x
