"""Fully convolutional networks (Long et al., CVPR 2015; Shelhamer et al., TPAMI 2017).

`FCNVGG` is the papers' network: VGG-16 with its classifier as convolutions, and scores of finer layers added on the way
up. `FCN` is what the name means on a dilated backbone: a head of two convolutions, torchvision's `fcn_resnet50`.
"""

from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxseg.errors import UserError
from jaxseg.models.layers import Conv, ConvBN, ConvTranspose, FullSize, check_images, classifier, max_pool


class FCNHead(nn.Module):
    """3x3 convolution to a quarter of the channels, dropout, 1x1: `[B, h, w, C]` to logits `[B, h, w, num_classes]`."""

    num_classes: int
    dropout: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = ConvBN(x.shape[-1] // 4, 3, dtype=self.dtype, name="conv")(x, train=train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return classifier(self.num_classes, self.dtype)(x)


class FCN(nn.Module):
    """FCN on a dilated backbone: `[B, H, W, C]` normalised images to float32 logits `[B, H, W, num_classes]`.

    The network is, on ResNet-50 and -101, torchvision's: `create_model` gives its backbone `dilate_first_block=False`,
    on whatever backbone.

    Fields:
      backbone: a backbone module; its last feature feeds the head.
      dropout: of the head, and of the auxiliary one.
      align_corners: of the resizing to the size of the images, see `resize_bilinear`.
      aux_head: whether there are auxiliary logits, from a head of the same kind; see `create_model`.
      aux_feature: index of the feature that the auxiliary head sees: 3 is the stage before the last.
      dtype: of the computation; parameters, BatchNorm's statistics and logits are float32.
    """

    backbone: nn.Module
    num_classes: int
    in_channels: int = 3
    dropout: float = 0.1
    align_corners: bool = False
    aux_head: bool = False
    aux_feature: int = 3
    dtype: jnp.dtype = jnp.float32
    default_output_stride = 8
    default_backbone_options = MappingProxyType({"dilate_first_block": False})

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        check_images(images, self.in_channels)
        features = self.backbone(images.astype(self.dtype), train=train)
        if self.aux_head and not -len(features) <= self.aux_feature < len(features):
            raise UserError(f"aux_feature is {self.aux_feature}: the backbone has features 0 to {len(features) - 1}")

        full_size = FullSize(images.shape[1:3], align_corners=self.align_corners)

        def head(feature: jax.Array, name: str) -> jax.Array:
            logits = FCNHead(self.num_classes, self.dropout, self.dtype, name=name)(feature, train=train)
            return full_size(logits)

        if self.aux_head:
            aux_logits = head(features[self.aux_feature], "auxiliary")
            if not self.is_initializing():
                self.sow("aux", "logits", aux_logits)
        return head(features[-1], "head")


def _hat(size: int, factor: int) -> np.ndarray:
    """The `[factor * size, size]` matrix of bilinear upsampling along one axis, with zeros beyond the border.

    A pixel's weight falls from 1 where the centres of the two agree to 0 at the next pixel's.
    """
    distance = np.arange(factor * size)[:, None] + 0.5 - factor * (np.arange(size) + 0.5)
    return np.maximum(0, 1 - np.abs(distance) / factor).astype(np.float32)


def upsample(x: jax.Array, factor: int) -> jax.Array:
    """The fixed bilinear deconvolution: `[B, h, w, C]` to `[B, factor * h, factor * w, C]`, each channel by itself.

    Inside the border it is `resize_bilinear(align_corners=False)`; within half a pixel of `x` from the border it fades
    to half, as a deconvolution does that sees zeros there.
    """
    rows, columns = (jnp.asarray(_hat(n, factor), x.dtype) for n in x.shape[1:3])
    return jnp.einsum("bhwc,ph,qw->bpqc", x, rows, columns, precision=jax.lax.Precision.HIGHEST)


def bilinear_kernel(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """An initialisation `[2 * factor, 2 * factor, C, C]` that makes a deconvolution of stride `factor` `upsample`."""
    factor = shape[0] // 2
    taps = _hat(3, factor)[factor // 2 : factor // 2 + 2 * factor, 1]
    return jnp.asarray(np.einsum("i,j,ab->ijab", taps, taps, np.eye(shape[2])), dtype)


class FCNVGG(nn.Module):
    """FCN-32s, -16s and -8s on VGG-16: `[B, H, W, C]` normalised images to float32 logits `[B, H, W, num_classes]`.

    The papers' network and not quite the authors' release: that pads images by 100 pixels, so that a 7x7 convolution
    without padding keeps what it needs, and crops; here fc6 is padded by 3. Images are padded at the bottom and at the
    right to multiples of 32, with zeros, which is the mean colour. So everything upsampled fits its skip.

    Fields:
      backbone: a VGG.
      stride: 32: upsampled from the last layer at once; 16: with the scores of pool4; 8: with those of pool3 too.
      at_once: whether pool4 and pool3 are scaled by 0.01 and 0.0001 before their score layers, so that all of them
        can be trained together (FCN-8s at once) and not one after another.
      learned_upsampling: whether deconvolutions are parameters, bilinear at first, or stay bilinear (the release).
      width: channels of fc6 and fc7.
      dropout: after each of the two.
      dtype: of the computation; parameters, statistics, the last upsampling and logits are float32.

    Raises:
      UserError: another stride, or a backbone that is dilated.
    """

    backbone: nn.Module
    num_classes: int
    in_channels: int = 3
    stride: int = 8
    at_once: bool = False
    learned_upsampling: bool = False
    width: int = 4096
    dropout: float = 0.5
    dtype: jnp.dtype = jnp.float32
    default_output_stride = 32

    def __post_init__(self):
        if self.stride not in (8, 16, 32):
            raise UserError(f"stride is {self.stride}: it must be one of 8, 16, 32")
        if self.backbone.output_stride != 32:
            raise UserError(f"output_stride is {self.backbone.output_stride}: FCN on VGG has 32; see its option stride")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        check_images(images, self.in_channels)
        height, width = images.shape[1:3]
        images = jnp.pad(images, ((0, 0), (0, -height % 32), (0, -width % 32), (0, 0)))
        _, conv3, conv4, _, x = self.backbone(images.astype(self.dtype), train=train)

        for name, kernel_size in (("fc6", 7), ("fc7", 1)):
            x = nn.relu(Conv(self.width, kernel_size, use_bias=True, dtype=self.dtype, name=name)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = classifier(self.num_classes, self.dtype, "score")(x)

        for name, conv, scale, stride in (("pool4", conv4, 0.01, 16), ("pool3", conv3, 0.0001, 8)):
            if stride >= self.stride:
                pool = max_pool(conv)
                pool = pool * scale if self.at_once else pool
                x = self._upsample(x, 2, f"up_to_{name}")
                x = x + classifier(self.num_classes, self.dtype, f"score_{name}")(pool)

        x = self._upsample(x.astype(jnp.float32), self.stride, "up")
        return x[:, :height, :width]

    def _upsample(self, x: jax.Array, factor: int, name: str) -> jax.Array:
        if not self.learned_upsampling:
            return upsample(x, factor)
        # Padded by half its stride a deconvolution gives `factor` times the size, cropped as it has to be.
        deconvolution = ConvTranspose(
            self.num_classes,
            2 * factor,
            factor,
            factor // 2,
            use_bias=False,
            dtype=x.dtype,
            kernel_init=bilinear_kernel,
            name=name,
        )
        return deconvolution(x)
