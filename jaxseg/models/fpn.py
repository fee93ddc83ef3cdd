"""Semantic FPN (Kirillov et al., Panoptic Feature Pyramid Networks, CVPR 2019, figure 3) on a feature pyramid (Lin et
al., CVPR 2017, figure 3).

The network is, by default, the one that segmentation_models_pytorch ships (`FPN`): it has no 3x3 convolution after the
pyramid's additions, merges at a quarter of the image's size and enlarges with aligned corners.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.errors import UserError
from jaxseg.lookup import lookup
from jaxseg.models.layers import Conv, FullSize, batch_norm, check_images, classifier, resize_bilinear, resize_nearest

MERGES = {"add": sum, "cat": functools.partial(jnp.concatenate, axis=-1)}
NORMS = {"group": None, "batch": None}
UPSAMPLINGS = {"bilinear": None, "nearest": None}


class ConvNorm(nn.Module):
    """3x3 convolution without bias, GroupNorm of 32 groups or BatchNorm, ReLU: children `conv` and `norm`."""

    features: int
    norm: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = Conv(self.features, 3, dtype=self.dtype, name="conv")(x)
        if self.norm == "batch":
            return nn.relu(batch_norm(train, dtype=self.dtype, name="norm")(x))
        return nn.relu(nn.GroupNorm(32, epsilon=1e-5, dtype=self.dtype, name="norm")(x))


class FPN(nn.Module):
    """Semantic FPN on any backbone: `[B, H, W, C]` normalised images to float32 logits `[B, H, W, num_classes]`.

    Keras' segmentation_models differs in `merge='cat', norm='batch', finest=1, convs=2, upsampling='nearest',
    conv_head=True, align_corners=False, dropout=0.0`.

    Fields:
      backbone: a backbone module; its features from stride `2 ** finest` to the last feed the pyramid.
      merge: how four levels come together at the finest of them, 'add' or 'cat' (concatenation).
      pyramid_features: channels of the pyramid.
      features: channels of the levels that are merged; a multiple of 32 for GroupNorm.
      finest: 2 or 1: the merged levels are those of strides 4 to 32, or of 2 to 16.
      norm: behind every 3x3 convolution, 'group' (GroupNorm of 32 groups) or 'batch' (BatchNorm).
      convs: 3x3 convolutions a level before it is merged, at its own size; 0: one for every doubling on the way, and
        one where there is none to do.
      upsampling: of the levels to the size where they are merged, 'bilinear' or 'nearest'.
      conv_head: whether a 3x3 convolution follows the merge, and the classifier is a 3x3 one too, of features as large
        as the images; else it is 1x1 and logits are enlarged.
      align_corners: of bilinear resizing, see `resize_bilinear`.
      dropout: of whole channels of what was merged.
      dtype: of the computation; parameters, BatchNorm's statistics and logits are float32.

    Raises:
      UserError: there is no such `merge`, `norm`, `upsampling` or `finest`.
    """

    backbone: nn.Module
    num_classes: int
    in_channels: int = 3
    merge: str = "add"
    pyramid_features: int = 256
    features: int = 128
    finest: int = 2
    norm: str = "group"
    convs: int = 0
    upsampling: str = "bilinear"
    conv_head: bool = False
    align_corners: bool = True
    dropout: float = 0.2
    dtype: jnp.dtype = jnp.float32
    default_output_stride = 32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        check_images(images, self.in_channels)
        merge = lookup(MERGES, self.merge, "merge")
        lookup(NORMS, self.norm, "norm")
        lookup(UPSAMPLINGS, self.upsampling, "upsampling")
        if self.finest not in (1, 2):
            raise UserError(f"finest is {self.finest}: it must be 1 or 2")
        if self.norm == "group" and self.features % 32:
            raise UserError(f"features is {self.features}: it must be a multiple of 32, GroupNorm's groups")
        # A level's features are those of stride 2 ** level.
        by_level = dict(enumerate(self.backbone(images.astype(self.dtype), train=train), 1))

        lateral = functools.partial(Conv, self.pyramid_features, 1, use_bias=True, dtype=self.dtype)
        pyramid = {5: lateral(name="lateral_5")(by_level[5])}
        for level in range(4, self.finest - 1, -1):
            above = resize_nearest(pyramid[level + 1], by_level[level].shape[1:3])
            pyramid[level] = above + lateral(name=f"lateral_{level}")(by_level[level])

        conv = functools.partial(ConvNorm, self.features, self.norm, self.dtype)
        merged = []
        for level in range(self.finest + 3, self.finest - 1, -1):
            x = pyramid[level]
            if self.convs:
                for i in range(1, self.convs + 1):
                    x = conv(name=f"level_{level}_conv{i}")(x, train=train)
                x = self._resize(x, pyramid[self.finest].shape[1:3])
            else:
                for finer in range(max(level - 1, self.finest), self.finest - 1, -1):
                    x = conv(name=f"level_{level}_to_{finer}")(x, train=train)
                    x = self._resize(x, pyramid[finer].shape[1:3])
            merged.append(x)
        x = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)(merge(merged))

        size = images.shape[1:3]
        if self.conv_head:
            x = resize_bilinear(conv(name="fuse")(x, train=train), size, align_corners=self.align_corners)
            return classifier(self.num_classes, self.dtype, kernel_size=3)(x).astype(jnp.float32)
        return FullSize(size, align_corners=self.align_corners)(classifier(self.num_classes, self.dtype)(x))

    def _resize(self, x: jax.Array, size: tuple[int, int]) -> jax.Array:
        if self.upsampling == "nearest":
            return resize_nearest(x, size)
        return resize_bilinear(x, size, align_corners=self.align_corners)
