"""What segmentation took from pix2pix (Isola et al., Image-to-Image Translation with Conditional Adversarial Networks,
CVPR 2017): its upsampling blocks, its discriminator of patches, and its generator as a second stage.

`UNetPix2Pix` is the network of TensorFlow's segmentation tutorial. `Refined` is a trained network, frozen, with a
`Refiner` behind it, which `jaxseg.refine` trains against a `PatchGAN`.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.errors import UserError
from jaxseg.models.layers import Conv, ConvTranspose, FullSize, batch_norm, check_images, resize_bilinear

# Section 6.2: weights are drawn from a Gaussian of mean 0 and standard deviation 0.02.
init_002 = nn.initializers.normal(0.02)


class Down(nn.Module):
    """4x4 convolution, padded by 1, BatchNorm or a bias, LeakyReLU of slope 0.2: children `conv` and `bn`."""

    features: int
    stride: int = 2
    norm: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        bias, init = not self.norm, init_002
        x = Conv(self.features, 4, self.stride, 1, 1, bias, dtype=self.dtype, kernel_init=init, name="conv")(x)
        return nn.leaky_relu(batch_norm(train, dtype=self.dtype)(x) if self.norm else x, 0.2)


class Up(nn.Module):
    """Transposed convolution of stride 2 without bias, BatchNorm, ReLU, brought to `size`: `[B, *size, features]`.

    Children `conv` and `bn`. Padded as Keras' `same`: twice as large as its input.
    """

    features: int
    kernel_size: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, size: tuple[int, int], *, train: bool) -> jax.Array:
        x = enlarge(x, self.features, self.kernel_size, self.dtype, use_bias=False, name="conv")
        x = nn.relu(batch_norm(train, dtype=self.dtype)(x))
        return resize_bilinear(x, size, align_corners=False)


def enlarge(x: jax.Array, features: int, kernel_size: int, dtype: jnp.dtype, *, use_bias: bool, name: str) -> jax.Array:
    """`[B, h, w, C]` to `[B, 2h, 2w, features]` by a transposed convolution of stride 2, a child `name` of the caller.

    What it has too many at odd kernel sizes, a last row and column, is cut, as Keras' `same` cuts.
    """
    h, w = x.shape[1:3]
    padding = (kernel_size - 2) // 2
    up = ConvTranspose(
        features, kernel_size, 2, padding, use_bias=use_bias, dtype=dtype, kernel_init=init_002, name=name
    )
    return up(x)[:, : 2 * h, : 2 * w]


class UNetPix2Pix(nn.Module):
    """U-Net with pix2pix's upsampling blocks on any backbone: `[B, H, W, C]` normalised images to float32 logits
    `[B, H, W, num_classes]`.

    As TensorFlow's segmentation tutorial has it, which takes MobileNetV2 with the field `expanded_features`: a
    transposed 3x3 convolution each, BatchNorm, ReLU, then the skip, and a transposed convolution to the classes.

    Fields:
      backbone: a backbone module; all five features take part.
      features: channels of the blocks, coarsest first.
      dtype: of the computation; parameters, BatchNorm's statistics and logits are float32.
    """

    backbone: nn.Module
    num_classes: int
    in_channels: int = 3
    features: tuple[int, int, int, int] = (512, 256, 128, 64)
    dtype: jnp.dtype = jnp.float32
    default_output_stride = 32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        check_images(images, self.in_channels)
        *skips, x = self.backbone(images.astype(self.dtype), train=train)
        if len(self.features) != len(skips):
            raise UserError(f"features are {len(self.features)}: one a block is due, {len(skips)}, coarsest first")
        for i, (features, skip) in enumerate(zip(self.features, reversed(skips), strict=True)):
            x = Up(features, 3, self.dtype, name=f"up_{i}")(x, skip.shape[1:3], train=train)
            x = jnp.concatenate([x, skip], -1)
        logits = enlarge(x, self.num_classes, 3, self.dtype, use_bias=True, name="classifier")
        return FullSize(images.shape[1:3], align_corners=False)(logits)


class PatchGAN(nn.Module):
    """The discriminator of 70x70 patches (Isola et al. 2017, section 6.1.2): C64-C128-C256-C512, and one logit a patch.

    4x4 convolutions, the first three of stride 2, BatchNorm but in the first, LeakyReLU of slope 0.2. Each logit sees
    70x70 pixels, and says whether the label map there is a true one of the image.

    Fields:
      width: channels of the first convolution, twice as many in each of the next three.
      dtype: of the computation; logits are float32.
    """

    width: int = 64
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, probs: jax.Array, *, train: bool) -> jax.Array:
        """`[B, h, w]` logits, about one for 8x8 pixels.

        Args:
          images: normalised, `[B, H, W, C]`, H and W of at least 32.
          probs: the label map `[B, H, W, num_classes]`: one-hot labels, or probabilities.
        """
        check_images(images, images.shape[-1])
        x = jnp.concatenate([images, probs], -1).astype(self.dtype)
        for i, stride in enumerate((2, 2, 2, 1)):
            x = Down(self.width * 2**i, stride, i > 0, self.dtype, name=f"down_{i}")(x, train=train)
        last = Conv(1, 4, padding=1, use_bias=True, dtype=self.dtype, kernel_init=init_002, name="classifier")
        return last(x)[..., 0].astype(jnp.float32)


class Refiner(nn.Module):
    """The generator: an image and the class probabilities predicted for it to refined logits.

    A U-Net of pix2pix's layers, four times halved. What it gives is added to the logarithm of the probabilities, and
    its last layer begins at zero: a fresh one is the identity.

    Fields:
      num_classes: of the probabilities, and channels of the logits.
      width: channels of the first convolution, twice as many at each coarser size.
      dtype: of the computation; logits are float32.
    """

    num_classes: int
    width: int = 32
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, probs: jax.Array, *, train: bool) -> jax.Array:
        """Float32 logits `[B, H, W, num_classes]`.

        Args:
          images: normalised, `[B, H, W, C]`, H and W of at least 32, odd ones too.
          probs: float32 `[B, H, W, num_classes]`, 1 over the classes.
        """
        x, skips = jnp.concatenate([images, probs], -1).astype(self.dtype), []
        for i in range(4):
            skips.append(x)
            x = Down(self.width * 2**i, 2, i > 0, self.dtype, name=f"down_{i}")(x, train=train)
        for i in reversed(range(4)):
            x = Up(self.width * 2 ** max(i - 1, 0), 4, self.dtype, name=f"up_{i}")(x, skips[i].shape[1:3], train=train)
            x = jnp.concatenate([x, skips[i]], -1)
        last = Conv(
            self.num_classes, 3, use_bias=True, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="classifier"
        )
        # A class that the first stage is sure to be out of the question can be brought back: hence a floor.
        return jnp.log(jnp.maximum(probs, 1e-6)) + last(x).astype(jnp.float32)


class Refined(nn.Module):
    """A trained network and a `Refiner` behind it, as one network: images to refined logits.

    The first is frozen, in evaluation mode whatever `train` is, and no gradient reaches it.
    """

    first: nn.Module
    refiner: Refiner

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        logits = self.first(images, train=False)
        return self.refiner(images, jax.lax.stop_gradient(nn.softmax(logits)), train=train)

    @property
    def num_classes(self) -> int:
        return self.first.num_classes

    @property
    def in_channels(self) -> int:
        return self.first.in_channels
