"""U-Net (Ronneberger et al., MICCAI 2015, figure 1): a contracting path, and an expanding one that sees all of it.

`PlainUNet` has the paper's own encoder; `UNet` is the same idea on any backbone.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.errors import UserError
from jaxseg.models.backbones.vgg import VGG
from jaxseg.models.layers import (
    Conv,
    ConvBN,
    ConvTranspose,
    check_images,
    classifier,
    max_pool,
    resize_bilinear,
    resize_nearest,
)

UPSAMPLINGS = ("transposed", "nearest", "bilinear")


class ConvBlock(nn.Module):
    """3x3 convolutions `conv1`, `conv2`, ..., each followed by BatchNorm, where there is any, and ReLU."""

    features: int
    convs: int = 2
    batch_norm: bool = True
    conv_bias: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for i in range(1, self.convs + 1):
            bias, name = self.conv_bias, f"conv{i}"
            if self.batch_norm:
                x = ConvBN(self.features, use_bias=bias, dtype=self.dtype, name=name)(x, train=train)
            else:
                # Without a norm activations keep their size by the paper's initialisation alone (section 3).
                init = nn.initializers.he_normal()
                x = nn.relu(Conv(self.features, use_bias=bias, dtype=self.dtype, kernel_init=init, name=name)(x))
        return x


class UNet(nn.Module):
    """U-Net on any backbone: `[B, H, W, C]` normalised images to float32 logits `[B, H, W, num_classes]`.

    The network is, by default, the one that segmentation_models_pytorch ships (`Unet`). All five features take part;
    the last block brings the size of the images, without a skip.

    Fields:
      backbone: a backbone module.
      features: channels of the decoder's blocks, coarsest first.
      center: whether two more convolutions follow the backbone's last feature; None: where that is a mere pooling
        (VGG), as SMP has it.
      dtype: of the computation; parameters, BatchNorm's statistics and logits are float32.
    """

    backbone: nn.Module
    num_classes: int
    in_channels: int = 3
    features: tuple[int, int, int, int, int] = (256, 128, 64, 32, 16)
    center: bool | None = None
    dtype: jnp.dtype = jnp.float32
    default_output_stride = 32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        check_images(images, self.in_channels)
        *skips, x = self.backbone(images.astype(self.dtype), train=train)
        if len(self.features) != len(skips) + 1:
            raise UserError(f"features are {len(self.features)}: one a block is due, {len(skips) + 1}, coarsest first")

        if has_center(self):
            x = ConvBlock(x.shape[-1], dtype=self.dtype, name="center")(x, train=train)
        for i, (features, skip) in enumerate(zip(self.features, [*reversed(skips), None], strict=True)):
            x = resize_nearest(x, (images if skip is None else skip).shape[1:3])
            x = x if skip is None else jnp.concatenate([x, skip], -1)
            x = ConvBlock(features, dtype=self.dtype, name=f"decoder_{i}")(x, train=train)

        return classifier(self.num_classes, self.dtype, kernel_size=3)(x).astype(jnp.float32)


def has_center(model: UNet) -> bool:
    """Whether a `UNet` has convolutions between its backbone and its decoder."""
    return isinstance(model.backbone, VGG) if model.center is None else model.center


class PlainUNet(nn.Module):
    """The paper's U-Net: `[B, H, W, C]` normalised images to float32 logits `[B, H, W, num_classes]`.

    Its convolutions are padded, unlike the paper's, so that logits are as large as the images, and no skip is cropped.
    Poolings round odd sizes down; on the way up a feature is brought to its skip's own size.

    Fields:
      width: channels at the finest level, twice as many at each coarser one.
      depth: the number of poolings.
      convs: convolutions a block.
      batch_norm: whether each of them has a BatchNorm behind it.
      conv_bias: whether each of them has a bias.
      upsampling: 'transposed': a transposed convolution that halves the channels; 'nearest': the nearest pixel and a
        convolution that halves them; 'bilinear': interpolation with aligned corners, which keeps them.
      up_kernel_size: of the upsampling's convolution, transposed or not.
      dropout: rate at the end of the contracting path (section 3.1), its two coarsest blocks; the paper gives none.
      dtype: of the computation; parameters, BatchNorm's statistics and logits are float32.

    Raises:
      UserError: there is no such upsampling or depth; or images are too small for `depth` poolings.
    """

    num_classes: int
    in_channels: int = 3
    width: int = 64
    depth: int = 4
    convs: int = 2
    batch_norm: bool = False
    conv_bias: bool = True
    upsampling: str = "transposed"
    up_kernel_size: int = 2
    dropout: float = 0.5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        check_images(images, self.in_channels)
        if not 1 <= self.depth <= 6:
            raise UserError(f"depth is {self.depth}: it must be from 1 to 6 poolings")
        if min(images.shape[1:3]) < 2**self.depth:
            size = f"{images.shape[1]}x{images.shape[2]}"
            raise UserError(f"images are {size}: {self.depth} poolings (depth) leave nothing of them, give larger ones")
        x, skips = images.astype(self.dtype), []

        for level in range(self.depth + 1):
            x = self._block(level, f"encoder_{level}")(x, train=train)
            if level >= self.depth - 1:
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
            if level < self.depth:
                skips.append(x)
                x = max_pool(x)
        for level in reversed(range(self.depth)):
            x = self._upsample(x, skips[level].shape[1:3], level)
            x = jnp.concatenate([skips[level], x], -1)
            x = self._block(level, f"decoder_{level}")(x, train=train)

        return classifier(self.num_classes, self.dtype)(x).astype(jnp.float32)

    def _block(self, level: int, name: str) -> ConvBlock:
        features = self.width * 2**level
        return ConvBlock(features, self.convs, self.batch_norm, self.conv_bias, self.dtype, name=name)

    def _upsample(self, x: jax.Array, size: tuple[int, int], level: int) -> jax.Array:
        features, k, name = self.width * 2**level, self.up_kernel_size, f"up_{level}"
        if self.upsampling == "bilinear":
            return resize_bilinear(x, size, align_corners=True)
        if self.upsampling == "nearest":
            low = (k - 1) // 2
            padding = ((low, k - 1 - low),) * 2
            up = Conv(features, k, padding=padding, use_bias=True, dtype=self.dtype, name=name)
            return up(resize_nearest(x, size))
        if self.upsampling == "transposed":
            x = ConvTranspose(features, k, 2, dtype=self.dtype, name=name)(x)
            # The last row and column are one too many (a 3x3 kernel: Keras' `same` cuts there too), or miss (an odd
            # size, of which the pooling left them out).
            x = x[:, : size[0], : size[1]]
            return jnp.pad(x, ((0, 0), (0, size[0] - x.shape[1]), (0, size[1] - x.shape[2]), (0, 0)))
        raise UserError(f"upsampling is '{self.upsampling}': it must be one of {', '.join(UPSAMPLINGS)}")
