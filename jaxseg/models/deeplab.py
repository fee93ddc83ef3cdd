"""DeepLabV3+ (Chen et al., ECCV 2018, figure 2): atrous spatial pyramid pooling and a decoder with one skip.

The network is, by default, the one that segmentation_models_pytorch ships (`DeepLabV3Plus`): separable atrous
convolutions, rates 12/24/36, a separable convolution after the pyramid, bilinear resizing with aligned corners.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.layers import ConvBN, SeparableConvBN, check_images, classifier, resize_bilinear


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling with image-level features (DeepLabV3, Chen et al. 2017, section 3.3).

    `[B, h, w, C]` to `[B, h, w, features]`. Five branches: 1x1, a 3x3 at each of three rates, the image's mean; then a
    1x1 over all of them and dropout. In training the image's mean needs more than one image a batch: its BatchNorm has
    one value an image to normalise.
    """

    features: int
    rates: tuple[int, int, int]
    separable: bool
    dropout: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        branches = [ConvBN(self.features, 1, dtype=self.dtype, name="conv")(x, train=train)]
        conv = SeparableConvBN if self.separable else ConvBN
        for i, rate in enumerate(self.rates):
            branches.append(conv(self.features, 3, dilation=rate, dtype=self.dtype, name=f"atrous_{i}")(x, train=train))
        mean = x.mean(axis=(1, 2), keepdims=True)
        mean = ConvBN(self.features, 1, dtype=self.dtype, name="pooling")(mean, train=train)
        branches.append(jnp.broadcast_to(mean, branches[0].shape))
        x = ConvBN(self.features, 1, dtype=self.dtype, name="project")(jnp.concatenate(branches, -1), train=train)
        return nn.Dropout(self.dropout, deterministic=not train)(x)


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+ on any backbone: `[B, H, W, C]` normalised images to float32 logits `[B, H, W, num_classes]`.

    Fields:
      backbone: a backbone module; its last feature feeds the pyramid, the one at stride 4 the decoder.
      rates: of the atrous convolutions. The paper pairs output stride 16 with (6, 12, 18), 8 with (12, 24, 36).
      separable: whether the pyramid's atrous convolutions are depthwise separable (SMP's `decoder_aspp_separable`).
      dtype: of the computation; parameters, BatchNorm's statistics and logits are float32.
    """

    backbone: nn.Module
    num_classes: int
    in_channels: int = 3
    rates: tuple[int, int, int] = (12, 24, 36)
    separable: bool = True
    features: int = 256
    dropout: float = 0.5
    dtype: jnp.dtype = jnp.float32
    default_output_stride = 16

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        check_images(images, self.in_channels)
        _, low, *_, high = self.backbone(images.astype(self.dtype), train=train)

        high = ASPP(self.features, self.rates, self.separable, self.dropout, self.dtype, name="aspp")(high, train=train)
        high = SeparableConvBN(self.features, dtype=self.dtype, name="aspp_out")(high, train=train)
        high = resize_bilinear(high, low.shape[1:3], align_corners=True)

        low = ConvBN(48, 1, dtype=self.dtype, name="skip")(low, train=train)
        x = jnp.concatenate([high, low], -1)
        x = SeparableConvBN(self.features, dtype=self.dtype, name="fuse")(x, train=train)

        logits = classifier(self.num_classes, self.dtype)(x)
        return resize_bilinear(logits.astype(jnp.float32), images.shape[1:3], align_corners=True)
