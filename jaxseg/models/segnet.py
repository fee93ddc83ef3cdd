"""SegNet (Badrinarayanan et al., TPAMI 2017, figure 2): the decoder puts values back where its encoder's poolings took
them from.

Layers are those of the authors' release for Caffe, but for poolings, which round odd sizes down; the decoder gets the
sizes of the encoder back at any size of the images.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.errors import UserError
from jaxseg.models.backbones.vgg import STAGES
from jaxseg.models.layers import (
    Conv,
    ConvBN,
    batch_norm,
    check_images,
    classifier,
    max_pool_with_places,
    max_unpool,
)


class SegNet(nn.Module):
    """SegNet on VGG-16: `[B, H, W, C]` normalised images to float32 logits `[B, H, W, num_classes]`.

    The decoder is VGG's mirror image, a convolution of it for each of the encoder's; the last one gives the logits.

    Fields:
      backbone: a `VGG`; the paper's has BatchNorm.
      dtype: of the computation; parameters, BatchNorm's statistics and logits are float32.
    """

    backbone: nn.Module
    num_classes: int
    in_channels: int = 3
    dtype: jnp.dtype = jnp.float32
    default_output_stride = 32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        check_images(images, self.in_channels)
        x, places = self.backbone(images.astype(self.dtype), train=train, with_places=True)

        for i, (count, channels) in reversed(list(enumerate(STAGES))):
            # A stage whose pooling was left out for the output stride has its size already.
            x = x if places[i] is None else max_unpool(x, *places[i])
            for j in reversed(range(count)):
                # What a convolution of the encoder took in, its mirror image gives out.
                features = channels if j > 0 else STAGES[i - 1][1]
                features, name = self.backbone.width or features, f"decoder{i + 1}_{j + 1}"
                if i == j == 0:
                    x = classifier(self.num_classes, self.dtype, kernel_size=3)(x)
                else:
                    x = ConvBN(features, use_bias=True, dtype=self.dtype, name=name)(x, train=train)
        return x.astype(jnp.float32)


def local_response_norm(x: jax.Array, size: int = 5, alpha: float = 1e-4, beta: float = 0.75) -> jax.Array:
    """Every value over (1 + alpha * mean of squares of the `size` channels around it)^beta; `x` is `[B, H, W, C]`.

    Channels that there are not count as 0, in the mean too (Krizhevsky et al. 2012, section 3.3, as Caffe has it).
    """
    low, channels = size // 2, x.shape[-1]
    squares = jnp.pad(jnp.square(x), ((0, 0), (0, 0), (0, 0), (low, size - 1 - low)))
    mean = sum(squares[..., i : i + channels] for i in range(size)) / size
    return x / (1 + alpha * mean) ** beta


class SegNetBasic(nn.Module):
    """SegNet-Basic (section 3.2): four convolutions down and four up, their decoders without ReLU.

    `[B, H, W, C]` normalised images to float32 logits `[B, H, W, num_classes]`.

    Fields:
      features, kernel_size: of each convolution; 7x7 so that a pixel of the last feature sees 106x106 pixels.
      depth: the number of poolings.
      dtype: of the computation; parameters, BatchNorm's statistics and logits are float32.

    Raises:
      UserError: an even kernel, no such depth; or images are too small for `depth` poolings.
    """

    num_classes: int
    in_channels: int = 3
    features: int = 64
    kernel_size: int = 7
    depth: int = 4
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        check_images(images, self.in_channels)
        if self.kernel_size % 2 == 0:
            raise UserError(
                f"kernel_size is {self.kernel_size}: it must be odd, or features lose a pixel at each layer"
            )
        if not 1 <= self.depth <= 6:
            raise UserError(f"depth is {self.depth}: it must be from 1 to 6 poolings")
        if min(images.shape[1:3]) < 2**self.depth:
            size = f"{images.shape[1]}x{images.shape[2]}"
            raise UserError(f"images are {size}: {self.depth} poolings (depth) leave nothing of them, give larger ones")
        x, poolings = local_response_norm(images).astype(self.dtype), []

        for i in range(self.depth):
            x = self._conv(f"encoder_{i}", nn.relu)(x, train=train)
            size = x.shape[1:3]
            x, places = max_pool_with_places(x)
            poolings.append((places, size))
        for i in reversed(range(self.depth)):
            x = max_unpool(x, *poolings[i])
            x = self._conv(f"decoder_{i}", None)(x, train=train)
        return classifier(self.num_classes, self.dtype)(x).astype(jnp.float32)

    def _conv(self, name: str, activation) -> ConvBN:
        return ConvBN(
            self.features, self.kernel_size, use_bias=True, activation=activation, dtype=self.dtype, name=name
        )


class ConvReluBN(nn.Module):
    """3x3 convolution with bias, ReLU, and only then BatchNorm: children `conv` and `bn`."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.relu(Conv(self.features, use_bias=True, dtype=self.dtype, name="conv")(x))
        return batch_norm(train, dtype=self.dtype)(x)


class SegNetConstant(nn.Module):
    """SegNet with the same few channels in all of VGG-16's convolutions and their mirror images.

    `[B, H, W, C]` normalised images to float32 logits `[B, H, W, num_classes]`. A small network from scratch, after a
    Keras project on nuclei (github.com/arslanamin14/Image-Segmentation): BatchNorm stands behind the ReLU, and a 3x3
    convolution of its own gives the logits.

    Fields:
      width: channels of each convolution.
      dtype: of the computation; parameters, BatchNorm's statistics and logits are float32.
    """

    num_classes: int
    in_channels: int = 3
    width: int = 40
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        check_images(images, self.in_channels)
        x, poolings = images.astype(self.dtype), []

        for i, (count, _) in enumerate(STAGES):
            for j in range(count):
                x = ConvReluBN(self.width, self.dtype, name=f"encoder{i + 1}_{j + 1}")(x, train=train)
            size = x.shape[1:3]
            x, places = max_pool_with_places(x)
            poolings.append((places, size))
        for i, (count, _) in reversed(list(enumerate(STAGES))):
            x = max_unpool(x, *poolings[i])
            for j in reversed(range(count)):
                x = ConvReluBN(self.width, self.dtype, name=f"decoder{i + 1}_{j + 1}")(x, train=train)
        return classifier(self.num_classes, self.dtype, kernel_size=3)(x).astype(jnp.float32)
