"""Semantic FPN (Kirillov et al., Panoptic Feature Pyramid Networks, CVPR 2019, figure 3) on a feature pyramid (Lin et
al., CVPR 2017, figure 3).

The network is, by default, the one that segmentation_models_pytorch ships (`FPN`): it has no 3x3 convolution after the
pyramid's additions, merges at a quarter of the image's size and enlarges with aligned corners.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.lookup import lookup
from jaxseg.models.layers import Conv, check_images, classifier, resize_bilinear, resize_nearest

MERGES = {"add": sum, "cat": functools.partial(jnp.concatenate, axis=-1)}


class ConvGroupNorm(nn.Module):
    """3x3 convolution without bias, GroupNorm of 32 groups, ReLU: children `conv` and `norm`."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Conv(self.features, 3, dtype=self.dtype, name="conv")(x)
        return nn.relu(nn.GroupNorm(32, epsilon=1e-5, dtype=self.dtype, name="norm")(x))


class FPN(nn.Module):
    """Semantic FPN on any backbone: `[B, H, W, C]` normalised images to float32 logits `[B, H, W, num_classes]`.

    Fields:
      backbone: a backbone module; its features at strides 4 to 32 feed the pyramid.
      merge: how the four levels come together at stride 4, 'add' or 'cat' (concatenation).
      pyramid_features: channels of the pyramid.
      features: channels of the levels that are merged; a multiple of 32.
      dropout: of whole channels of what was merged.
      dtype: of the computation; parameters, BatchNorm's statistics and logits are float32.

    Raises:
      UserError: there is no such `merge`.
    """

    backbone: nn.Module
    num_classes: int
    in_channels: int = 3
    merge: str = "add"
    pyramid_features: int = 256
    features: int = 128
    dropout: float = 0.2
    dtype: jnp.dtype = jnp.float32
    default_output_stride = 32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        check_images(images, self.in_channels)
        merge = lookup(MERGES, self.merge, "merge")
        _, *laterals, x = self.backbone(images.astype(self.dtype), train=train)

        # From the coarsest level, 5, to the finest, 2: a level's features are those of stride 2 ** level.
        lateral = functools.partial(Conv, self.pyramid_features, 1, use_bias=True, dtype=self.dtype)
        pyramid = {5: lateral(name="lateral_5")(x)}
        for level, skip in zip((4, 3, 2), reversed(laterals), strict=True):
            above = resize_nearest(pyramid[level + 1], skip.shape[1:3])
            pyramid[level] = above + lateral(name=f"lateral_{level}")(skip)

        merged = []
        for level, x in pyramid.items():
            # A convolution for every doubling, and one where there is none to do.
            for finer in range(max(level - 1, 2), 1, -1):
                x = ConvGroupNorm(self.features, self.dtype, name=f"level_{level}_to_{finer}")(x)
                x = resize_bilinear(x, pyramid[finer].shape[1:3], align_corners=True)
            merged.append(x)
        x = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)(merge(merged))

        logits = classifier(self.num_classes, self.dtype)(x)
        return resize_bilinear(logits.astype(jnp.float32), images.shape[1:3], align_corners=True)
