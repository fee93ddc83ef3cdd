"""Networks: images to logits. `create_model` is the way in; a family is one file beside this one."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxseg.errors import UserError
from jaxseg.lookup import lookup, nearest
from jaxseg.models import deeplab, fcn, fpn, pix2pix, pspnet, segnet, unet
from jaxseg.models.backbones import BACKBONES, OUTPUT_STRIDES

# Family: backbone: network. What is no name of BACKBONES is a network with an encoder of its own.
FAMILIES: dict[str, dict[str, type[nn.Module]]] = {
    "deeplabv3": dict.fromkeys(BACKBONES, deeplab.DeepLabV3),
    "deeplabv3plus": dict.fromkeys(BACKBONES, deeplab.DeepLabV3Plus),
    "fcn": {name: fcn.FCNVGG if name.startswith("vgg") else fcn.FCN for name in BACKBONES},
    "fpn": dict.fromkeys(BACKBONES, fpn.FPN),
    "pspnet": dict.fromkeys(BACKBONES, pspnet.PSPNet),
    "segnet": {name: segnet.SegNet for name in BACKBONES if name.startswith("vgg")}
    | {"basic": segnet.SegNetBasic, "constant": segnet.SegNetConstant},
    "unet": dict.fromkeys(BACKBONES, unet.UNet) | {"plain": unet.PlainUNet},
    "unet_pix2pix": dict.fromkeys(BACKBONES, pix2pix.UNetPix2Pix),
}

# Why a family does not take every backbone.
REASONS: dict[str, str] = {
    "segnet": "its decoder mirrors VGG and puts values back to where VGG's poolings took them from",
}

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

# Fields that create_model sets itself.
_OWN_FIELDS = ("backbone", "num_classes", "in_channels", "dtype", "name", "parent")


def list_models() -> dict[str, tuple[str, ...]]:
    """The families and, for each, the backbones that it takes."""
    return {family: tuple(networks) for family, networks in FAMILIES.items()}


def create_model(
    name: str,
    *,
    backbone: str,
    num_classes: int,
    output_stride: int | None = None,
    in_channels: int = 3,
    dtype: str = "float32",
    backbone_options: Mapping[str, Any] | None = None,
    **options,
) -> nn.Module:
    """A network as a Linen module, called as `model.apply(variables, images, train=False)`.

    `images` are normalised, float32 `[B, H, W, in_channels]` with H and W >= 32, odd sizes too; the result is float32
    logits `[B, H, W, num_classes]`. Variables are `{'params', 'batch_stats'}`, from
    `model.init(key, images, train=False)`; in training BatchNorm updates `batch_stats` (`mutable=['batch_stats']`) and
    dropout wants `rngs={'dropout': key}`. An auxiliary head's logits, of the same shape, are sown: with
    `mutable=['aux']` they come as `updates['aux']['logits'][0]`.

    Args:
      name: the family, see `list_models()`.
      backbone: its backbone.
      num_classes: channels of the logits.
      in_channels: of the images.
      output_stride: of the backbone's last feature: 8, 16 or 32 (none dilated); None for the family's own choice.
      dtype: of the computation, 'float32' or 'bfloat16'; parameters and logits are float32.
      backbone_options: fields of the backbone, such as `dilate_first_block`.
      **options: fields of the family, such as `rates` or `separable`.

    Raises:
      UserError: a name, stride or option that there is not, with the nearest ones that there are; or a backbone that
        the family can't take, with the reason.
    """
    networks = lookup(FAMILIES, name, "model")
    if backbone not in networks and backbone in BACKBONES:
        raise UserError(f"{name} can't stand on {backbone}: {REASONS[name]}. It takes {', '.join(networks)}")
    network = lookup(networks, backbone, f"backbone of {name}")
    compute = lookup(DTYPES, dtype, "dtype")
    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}: it must be at least 1")
    if in_channels < 1:
        raise UserError(f"in_channels is {in_channels}: it must be at least 1")
    _check_options(name, network, options)
    if backbone in BACKBONES:
        stride = network.default_output_stride if output_stride is None else output_stride
        if stride not in OUTPUT_STRIDES:
            raise UserError(f"output_stride is {stride}: it must be one of {', '.join(map(str, OUTPUT_STRIDES))}")
        make_backbone, backbone_options = BACKBONES[backbone], dict(backbone_options or {})
        _check_options(backbone, make_backbone(), backbone_options, ("output_stride", "dtype", "name", "parent"))
        options["backbone"] = make_backbone(output_stride=stride, dtype=compute, **backbone_options)
    elif output_stride is not None:
        raise UserError(f"{name} on {backbone} has an encoder of its own, without an output_stride to set")
    elif backbone_options:
        raise UserError(f"{name} on {backbone} has no backbone that could take {', '.join(backbone_options)}")
    return network(num_classes=num_classes, in_channels=in_channels, dtype=compute, **options)


def _check_options(name: str, module, options: Mapping[str, Any], own_fields: tuple[str, ...] = _OWN_FIELDS) -> None:
    known = [field for field in module.__dataclass_fields__ if field not in own_fields]
    for option in options:
        if option not in known:
            raise UserError(f"{name} has no option '{option}': {nearest(option, known)}")
