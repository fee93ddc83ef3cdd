"""segmentation_models_pytorch's names: torchvision's backbones below `encoder.`, its own decoders."""

from collections.abc import Iterator
from typing import Any

from flax import linen as nn

from jaxseg.models import deeplab, fpn, pspnet, unet
from jaxseg.models.backbones import mobilenet_v3, vgg
from jaxseg.models.pretrained import torchvision
from jaxseg.models.pretrained.entries import (
    Entry,
    Layout,
    conv,
    conv_bn,
    is_counter,
    is_dilated,
    of_backbone,
    scale_and_bias,
    separable,
    within,
)


def encoder(model: nn.Module) -> Iterator[Entry]:
    """The backbone below `encoder.`: torchvision's names, which SMP leaves as they are."""
    yield from within(("backbone",), "encoder.", torchvision.BACKBONES[type(model.backbone)](model.backbone))


def deeplabv3(model: deeplab.DeepLabV3) -> Iterator[Entry]:
    """`DeepLabV3`."""
    yield from encoder(model)
    yield from torchvision.aspp(model, "decoder.aspp")
    yield from conv_bn(("aspp_out",), "decoder.conv", "decoder.bn")
    yield from conv(("classifier",), "segmentation_head.0", bias=True, role="head")


def deeplabv3plus(model: deeplab.DeepLabV3Plus) -> Iterator[Entry]:
    """`DeepLabV3Plus`."""
    yield from encoder(model)
    yield from torchvision.aspp(model, "decoder.aspp.0")
    yield from separable(("aspp_out",), "decoder.aspp.1.0", "decoder.aspp.1.1", "decoder.aspp.2")
    yield from conv_bn(("skip",), "decoder.block1.0", "decoder.block1.1")
    yield from separable(("fuse",), "decoder.block2.0.0", "decoder.block2.0.1", "decoder.block2.1")
    yield from conv(("classifier",), "segmentation_head.0", bias=True, role="head")


def unets(model: unet.UNet) -> Iterator[Entry]:
    """`Unet`: the blocks of the decoder, after VGG a center, and a 3x3 head."""
    yield from encoder(model)
    blocks = [((f"decoder_{i}",), f"decoder.blocks.{i}.conv1", f"decoder.blocks.{i}.conv2") for i in range(5)]
    if unet.has_center(model):
        blocks.append((("center",), "decoder.center.0", "decoder.center.1"))
    for ours, *convs in blocks:
        for name, theirs in zip(("conv1", "conv2"), convs, strict=True):
            yield from conv_bn((*ours, name), f"{theirs}.0", f"{theirs}.1")
    yield from conv(("classifier",), "segmentation_head.0", bias=True, role="head")


def semantic_fpn(model: fpn.FPN) -> Iterator[Entry]:
    """`FPN`: `seg_blocks.0` is the coarsest level's."""
    yield from encoder(model)
    yield from conv(("lateral_5",), "decoder.p5", bias=True)
    for level in (4, 3, 2):
        yield from conv((f"lateral_{level}",), f"decoder.p{level}.skip_conv", bias=True)
    for level in (5, 4, 3, 2):
        for i, finer in enumerate(range(max(level - 1, 2), 1, -1)):
            ours, theirs = f"level_{level}_to_{finer}", f"decoder.seg_blocks.{5 - level}.block.{i}.block"
            yield from conv((ours, "conv"), f"{theirs}.0")
            yield from scale_and_bias((ours, "norm"), f"{theirs}.1")
    yield from conv(("classifier",), "segmentation_head.0", bias=True, role="head")


def pyramid_pooling(model: pspnet.PSPNet) -> Iterator[Entry]:
    """`PSPNet`: it keeps the layers of its encoder that it stops before."""
    yield from encoder(model)
    for i, bins in enumerate(model.bins):
        ours, theirs = ("pyramid", f"bins_{bins}"), f"decoder.psp.blocks.{i}.pool.1"
        if bins > 1:
            yield from conv_bn(ours, f"{theirs}.0", f"{theirs}.1")
        else:
            yield from conv(ours, f"{theirs}.0", bias=True)
    yield from conv_bn(("head", "conv"), "decoder.conv.0", "decoder.conv.1")
    yield from conv(("head", "classifier"), "segmentation_head.0", bias=True, role="head")


MODELS = {
    deeplab.DeepLabV3: deeplabv3,
    deeplab.DeepLabV3Plus: deeplabv3plus,
    fpn.FPN: semantic_fpn,
    pspnet.PSPNet: pyramid_pooling,
    unet.UNet: unets,
}


# Options that SMP doesn't have: fields that must be as they are by default.
FIXED = {
    deeplab.DeepLabV3: ("aspp_out", "depth"),
    deeplab.DeepLabV3Plus: ("aspp_out", "decoder_separable", "decoder_convs", "norm_between", "skip_first"),
    fpn.FPN: ("norm", "finest", "convs", "conv_head"),
    pspnet.PSPNet: ("bins", "norm_one_window", "kernel_sizes"),
}


# By family what SMP's own network has, where it leaves no tensor, and which of it SMP's users may choose.
FORMS = {
    deeplab.DeepLabV3: {"output_stride": 8, "rates": (12, 24, 36), "align_corners": True},
    deeplab.DeepLabV3Plus: {"output_stride": 16, "rates": (12, 24, 36), "align_corners": True},
    fpn.FPN: {"output_stride": 32, "upsampling": "bilinear", "align_corners": True},
    unet.UNet: {"output_stride": 32},
}
CHOICES = {
    deeplab.DeepLabV3: ("output_stride", "rates"),
    deeplab.DeepLabV3Plus: ("output_stride", "rates"),
    fpn.FPN: ("decoder_interpolation nearest",),
    unet.UNet: ("decoder_interpolation nearest",),
}


def _form(model: nn.Module) -> dict[str, Any]:
    """See `Layout.form`."""
    form = of_backbone(torchvision.BACKBONE_OPTIONS.get(type(model.backbone), {})) | FORMS.get(type(model), {})
    if isinstance(model, deeplab.DeepLabV3 | deeplab.DeepLabV3Plus) and is_dilated(model):
        form |= of_backbone({"dilate_first_block": True})
    if isinstance(model, pspnet.PSPNet):
        # SMP's stops early and is never dilated. How early, the channels tell, but not VGG's.
        form |= {"output_stride": 32} if is_dilated(model) else {}
        form |= {"depth": 3} if isinstance(model.backbone, vgg.VGG) else {}
    return form


def _has_its_options(model: nn.Module) -> bool:
    """Whether a network's layers, and the order of their channels, are those that SMP can build."""
    three_rates = len(getattr(model, "rates", range(3))) == 3
    if isinstance(model, deeplab.DeepLabV3 | deeplab.DeepLabV3Plus) and isinstance(model.backbone, vgg.VGG):
        return False  # SMP dilates no VGG
    if isinstance(model, unet.UNet) and unet.has_center(model) != isinstance(model.backbone, vgg.VGG):
        return False
    return three_rates and torchvision.is_default(model, FIXED.get(type(model), ()))


def _has(backbone: nn.Module) -> bool:
    """Whether SMP has such an encoder under torchvision's names; its MobileNetV3 is timm's."""
    other = isinstance(backbone, mobilenet_v3.MobileNetV3) or getattr(backbone, "expanded_features", False)
    return torchvision.has(backbone) and not other


def model_layout(model: nn.Module) -> Layout | None:
    """SMP's names for a model's tensors; None where SMP has no such network, or not with its options."""
    names = MODELS.get(type(model))
    if names is None or not _has(model.backbone) or not _has_its_options(model):
        return None
    choices = CHOICES.get(type(model), ())
    if isinstance(model, pspnet.PSPNet) and isinstance(model.backbone, vgg.VGG):
        choices = ("depth",)
    form, auxiliary = _form(model), ("classification_head.",)
    return Layout("smp", tuple(names(model)), is_counter, auxiliary=auxiliary, form=form, choices=choices)
