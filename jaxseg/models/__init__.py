"""Networks: images to logits. `create_model` is the way in; a family is one file beside this one."""

import jax.numpy as jnp
from flax import linen as nn

from jaxseg.errors import UserError
from jaxseg.lookup import lookup, nearest
from jaxseg.models.backbones import BACKBONES, OUTPUT_STRIDES
from jaxseg.models.deeplab import DeepLabV3Plus

FAMILIES = {"deeplabv3plus": DeepLabV3Plus}

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def list_models() -> dict[str, tuple[str, ...]]:
    """The families and, for each, the backbones that it takes."""
    return {family: tuple(BACKBONES) for family in FAMILIES}


def create_model(
    name: str,
    *,
    backbone: str,
    num_classes: int,
    output_stride: int = 16,
    dtype: str = "float32",
    dilate_first_block: bool = True,
    **options,
) -> nn.Module:
    """A network as a Linen module, called as `model.apply(variables, images, train=False)`.

    `images` are normalised, float32 `[B, H, W, 3]` with H and W >= 32, odd sizes too; the result is float32 logits
    `[B, H, W, num_classes]`. Variables are `{'params', 'batch_stats'}`, from `model.init(key, images, train=False)`; in
    training BatchNorm updates `batch_stats` (`mutable=['batch_stats']`) and dropout wants `rngs={'dropout': key}`.

    Args:
      name: the family, see `list_models()`.
      backbone: its backbone.
      num_classes: channels of the logits.
      output_stride: of the backbone's last feature: 8, 16 or 32 (none dilated).
      dtype: of the computation, 'float32' or 'bfloat16'; parameters and logits are float32.
      dilate_first_block: which published rule of dilation the backbone follows, see `backbones.stages.plan`.
      **options: fields of the family, such as `rates` or `separable`.

    Raises:
      UserError: a name, stride or option that there is not; with the nearest ones that there are.
    """
    family = lookup(FAMILIES, name, "model")
    make_backbone = lookup(BACKBONES, backbone, "backbone")
    compute = lookup(DTYPES, dtype, "dtype")
    if output_stride not in OUTPUT_STRIDES:
        raise UserError(f"output_stride is {output_stride}: it must be one of {', '.join(map(str, OUTPUT_STRIDES))}")
    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}: it must be at least 1")
    known = [f for f in family.__dataclass_fields__ if f not in ("backbone", "num_classes", "dtype", "name", "parent")]
    for option in options:
        if option not in known:
            raise UserError(f"{name} has no option '{option}': {nearest(option, known)}")
    return family(
        backbone=make_backbone(output_stride=output_stride, dilate_first_block=dilate_first_block, dtype=compute),
        num_classes=num_classes,
        dtype=compute,
        **options,
    )
