"""What every network is made of. All arrays are `[B, H, W, C]`."""

import jax
import jax.numpy as jnp

from jaxseg.errors import UserError
from jaxseg.models.layers.conv import (
    Activation,
    Conv,
    ConvBN,
    ConvTranspose,
    DepthwiseConv,
    DepthwiseConvBN,
    Padding,
    SeparableConvBN,
    batch_norm,
    classifier,
    he_normal_fan_out,
    relu6,
    uneven_padding,
)
from jaxseg.models.layers.dense import dense_conv, dense_conv_transpose, pointwise_conv
from jaxseg.models.layers.depthwise import depthwise_conv
from jaxseg.models.layers.pool import adaptive_avg_pool, max_pool, max_pool_with_places, max_unpool
from jaxseg.models.layers.resize import FullSize, resize_bilinear, resize_nearest

__all__ = [
    "Activation",
    "Conv",
    "ConvBN",
    "ConvTranspose",
    "DepthwiseConv",
    "DepthwiseConvBN",
    "FullSize",
    "Padding",
    "SeparableConvBN",
    "adaptive_avg_pool",
    "batch_norm",
    "check_images",
    "classifier",
    "dense_conv",
    "dense_conv_transpose",
    "depthwise_conv",
    "he_normal_fan_out",
    "max_pool",
    "max_pool_with_places",
    "max_unpool",
    "pointwise_conv",
    "relu6",
    "resize_bilinear",
    "resize_nearest",
    "uneven_padding",
]

MIN_SIZE = 32  # pixels: below it the coarsest feature has nothing left to see


def check_images(images: jax.Array, in_channels: int = 3) -> None:
    """Refuses what no network here can take.

    Raises:
      UserError: `images` is not floating point `[B, H, W, in_channels]` with H and W of at least `MIN_SIZE`.
    """
    if images.ndim != 4 or images.shape[-1] != in_channels:
        raise UserError(f"images have the shape {images.shape}: [B, H, W, {in_channels}] is due")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(f"images are {images.dtype}: normalised floating point is due (see jaxseg.step.normalise)")
    if min(images.shape[1:3]) < MIN_SIZE:
        raise UserError(f"images are {images.shape[1]}x{images.shape[2]}: at least {MIN_SIZE}x{MIN_SIZE} is due")
