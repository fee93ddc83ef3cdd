"""Networks: images to logits. `create_model` is the way in; a family is one file beside this one."""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxseg.errors import UserError, shown
from jaxseg.fields import IN_CHANNELS, NUM_CLASSES, Choice, Name, Text, check, check_table, shown_value
from jaxseg.lookup import lookup
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
_OWN_BACKBONE_FIELDS = ("output_stride", "dtype", "name", "parent")


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
      UserError: a name, stride or option that there is not, with the nearest ones that there are; a value that an
        option can't have, see `jaxseg.fields`; or a backbone that the family can't take, with the reason.
    """
    network = _network(name, backbone)
    check("dtype", Name("dtype", "jaxseg.models:DTYPES"), dtype)
    check("num_classes", NUM_CLASSES, num_classes)
    check("in_channels", IN_CHANNELS, in_channels)
    backbone_options = {} if backbone_options is None else backbone_options
    check_options(name, backbone, options, backbone_options)
    if backbone in BACKBONES:
        stride = network.default_output_stride if output_stride is None else output_stride
        check("output_stride", Choice(OUTPUT_STRIDES), stride)
        own = getattr(network, "default_backbone_options", {})
        backbone_options = own | {option: _as_tuple(value) for option, value in backbone_options.items()}
        options["backbone"] = BACKBONES[backbone](output_stride=stride, dtype=DTYPES[dtype], **backbone_options)
    elif output_stride is not None:
        raise UserError(f"{name} on {backbone} has an encoder of its own, without an output_stride to set")
    options = {option: _as_tuple(value) for option, value in options.items()}
    return network(num_classes=num_classes, in_channels=in_channels, dtype=DTYPES[dtype], **options)


def check_options(
    name: str, backbone: str, options: Mapping[str, Any], backbone_options: Mapping[str, Any], prefix: str = ""
) -> None:
    """Holds the options of a network and of its backbone to `jaxseg.fields.OPTIONS`.

    Args:
      prefix: of their names in messages, such as `model.` where they come from a config.

    Raises:
      UserError: names the option, its value and what is due, or the nearest options that there are.
    """
    network = _network(name, backbone)
    for what, owner, module, own_fields, given in (
        ("options", name, network, _OWN_FIELDS, options),
        ("backbone_options", backbone, BACKBONES.get(backbone, None), _OWN_BACKBONE_FIELDS, backbone_options),
    ):
        where = f"{prefix}{what}" if prefix else ""
        if not isinstance(given, Mapping):
            raise UserError(f"{where or what} is {shown_value(given)}: it must be a mapping of options to values")
        if module is None:
            if given:
                raise UserError(f"{name} on {backbone} has no backbone that could take {', '.join(map(shown, given))}")
            continue
        cls = module.func if isinstance(module, functools.partial) else module
        known = [field for field in cls.__dataclass_fields__ if field not in own_fields]
        check_table(owner, cls, given, known, where)


def _network(name: str, backbone: str) -> type[nn.Module]:
    check("model", Text(), name)
    check("backbone", Text(), backbone)
    networks = lookup(FAMILIES, name, "model")
    if backbone not in networks and backbone in BACKBONES:
        raise UserError(f"{name} can't stand on {backbone}: {REASONS[name]}. It takes {', '.join(networks)}")
    return lookup(networks, backbone, f"backbone of {name}")


def _as_tuple(value: Any) -> Any:
    """Lists as JSON has them: a field of a module must be hashable."""
    return tuple(value) if isinstance(value, list) else value
