"""torchvision's names: its classifiers as backbones, and its segmentation models."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from flax import linen as nn

from jaxseg.models import deeplab, fcn
from jaxseg.models.backbones import mobilenet, mobilenet_v3, resnet, vgg
from jaxseg.models.pretrained.entries import (
    Entry,
    Layout,
    conv,
    conv_bn,
    is_counter,
    is_dilated,
    of_backbone,
    separable,
    within,
)


def vggs(backbone: vgg.VGG) -> Iterator[Entry]:
    """`vgg16` and `vgg16_bn`: convolutions, BatchNorms, ReLUs and poolings are numbered through."""
    index = 0
    for stage, (count, _) in enumerate(vgg.STAGES, start=1):
        for j in range(1, count + 1):
            ours, theirs = (f"conv{stage}_{j}",), f"features.{index}"
            role = "stem" if index == 0 else ""
            if backbone.batch_norm:
                yield from conv_bn(ours, theirs, f"features.{index + 1}", bias=True, role=role)
            else:
                yield from conv(ours, theirs, bias=True, role=role)
            index += 3 if backbone.batch_norm else 2
        index += 1


def mobilenet_v2(backbone: mobilenet.MobileNetV2) -> Iterator[Entry]:
    """`mobilenet_v2`: `features.0` the stem, `features.18` the head, blocks between."""
    yield from conv_bn(("stem",), "features.0.0", "features.0.1", role="stem")
    index = 0
    for expansion, _, repeats, _ in mobilenet.BLOCKS:
        for _ in range(repeats):
            ours, theirs, part = f"block_{index}", f"features.{index + 1}.conv", 0
            if expansion != 1:
                yield from conv_bn((ours, "expand"), f"{theirs}.0.0", f"{theirs}.0.1")
                part = 1
            yield from conv_bn((ours, "depthwise"), f"{theirs}.{part}.0", f"{theirs}.{part}.1")
            yield from conv_bn((ours, "project"), f"{theirs}.{part + 1}", f"{theirs}.{part + 2}")
            index += 1
    yield from conv_bn(("head",), f"features.{index + 1}.0", f"features.{index + 1}.1")


def mobilenet_v3s(backbone: mobilenet_v3.MobileNetV3) -> Iterator[Entry]:
    """`mobilenet_v3_large` and `_small`: a block's parts are numbered through, those that it lacks left out."""
    yield from conv_bn(("stem",), "features.0.0", "features.0.1", role="stem")
    channels = mobilenet_v3.STEM
    for i, block in enumerate(backbone.blocks):
        ours = f"block_{i}"
        names = ["expand"] if block.expanded != channels else []
        names += ["depthwise", *(["squeeze"] if block.squeeze else []), "project"]
        for part, name in enumerate(names):
            theirs = f"features.{i + 1}.block.{part}"
            if name == "squeeze":
                yield from conv((ours, name, "reduce"), f"{theirs}.fc1", bias=True)
                yield from conv((ours, name, "expand"), f"{theirs}.fc2", bias=True)
            else:
                yield from conv_bn((ours, name), f"{theirs}.0", f"{theirs}.1")
        channels = block.features
    head = f"features.{len(backbone.blocks) + 1}"
    yield from conv_bn(("head",), f"{head}.0", f"{head}.1")


def resnets(backbone: resnet.ResNet) -> Iterator[Entry]:
    """The ResNets: a shortcut in the first block of a stage that needs one. torchvision has none with a deep stem."""
    convs = 3 if backbone.block is resnet.Bottleneck else 2
    if not backbone.deep_stem:
        yield from conv_bn(("stem",), "conv1", "bn1", role="stem")
    for stage, count in enumerate(backbone.repeats, start=1):
        for block in range(count):
            ours, theirs = f"layer{stage}_{block}", f"layer{stage}.{block}"
            for i in range(1, convs + 1):
                yield from conv_bn((ours, f"conv{i}"), f"{theirs}.conv{i}", f"{theirs}.bn{i}")
            if block == 0 and (stage > 1 or convs == 3):
                yield from conv_bn((ours, "downsample"), f"{theirs}.downsample.0", f"{theirs}.downsample.1")


BACKBONES = {
    vgg.VGG: vggs,
    mobilenet.MobileNetV2: mobilenet_v2,
    mobilenet_v3.MobileNetV3: mobilenet_v3s,
    resnet.ResNet: resnets,
}

# Fields without which the weights of a backbone give other features.
BACKBONE_OPTIONS = {
    mobilenet.MobileNetV2: {"uneven_padding": False, "epsilon": 1e-5},
    mobilenet_v3.MobileNetV3: {"epsilon": 1e-3},
}

# timm's networks whose files can't be told from those of a ResNet of so many blocks: they blur where others stride.
TWINS = {(2, 2, 2, 2): ("resnetblur18",), (3, 4, 6, 3): ("resnetaa50", "resnetblur50")}


def has(backbone: nn.Module) -> bool:
    """Whether torchvision has such a classifier; which of its features are taken does not matter."""
    return type(backbone) in BACKBONES and not getattr(backbone, "deep_stem", False)


def segmentation_backbone(model: nn.Module) -> Iterator[Entry]:
    """A backbone below `backbone.`; of a MobileNet its `features`, without that word."""
    for entry in BACKBONES[type(model.backbone)](model.backbone):
        entry = dataclasses.replace(entry, name=entry.name.removeprefix("features."))
        yield from within(("backbone",), "backbone.", [entry])


def fcn_head(ours: str, theirs: str) -> Iterator[Entry]:
    """`FCNHead`: dropout has a number of its own."""
    yield from conv_bn((ours, "conv"), f"{theirs}.0", f"{theirs}.1")
    yield from conv((ours, "classifier"), f"{theirs}.4", bias=True, role="head")


def aspp(model: deeplab.DeepLabV3 | deeplab.DeepLabV3Plus, theirs: str) -> Iterator[Entry]:
    """`ASPP`, which SMP calls alike; only there the atrous convolutions may be depthwise separable."""
    yield from conv_bn(("aspp", "conv"), f"{theirs}.convs.0.0", f"{theirs}.convs.0.1")
    for i in range(len(model.rates)):
        ours, branch = ("aspp", f"atrous_{i}"), f"{theirs}.convs.{i + 1}"
        if model.separable:
            yield from separable(ours, f"{branch}.0.0", f"{branch}.0.1", f"{branch}.1")
        else:
            yield from conv_bn(ours, f"{branch}.0", f"{branch}.1")
    pooling = f"{theirs}.convs.{len(model.rates) + 1}"
    yield from conv_bn(("aspp", "pooling"), f"{pooling}.1", f"{pooling}.2")
    yield from conv_bn(("aspp", "project"), f"{theirs}.project.0", f"{theirs}.project.1")


def fcns(model: fcn.FCN) -> Iterator[Entry]:
    """`fcn_resnet50` and `fcn_resnet101`."""
    yield from segmentation_backbone(model)
    yield from fcn_head("head", "classifier")
    if model.aux_head:
        yield from fcn_head("auxiliary", "aux_classifier")


def deeplabv3(model: deeplab.DeepLabV3) -> Iterator[Entry]:
    """`deeplabv3_resnet50` and its like."""
    yield from segmentation_backbone(model)
    yield from aspp(model, "classifier.0")
    yield from conv_bn(("aspp_out",), "classifier.1", "classifier.2")
    yield from conv(("classifier",), "classifier.4", bias=True, role="head")
    if model.aux_head:
        yield from fcn_head("auxiliary", "aux_classifier")


# Whole segmentation models, by the type of ours.
MODELS = {deeplab.DeepLabV3: deeplabv3, fcn.FCN: fcns}


def segmentation_form(model: fcn.FCN | deeplab.DeepLabV3) -> dict[str, Any] | None:
    """The form of torchvision's segmentation models, see `Layout.form`; None where none stands on such a backbone.

    torchvision builds FCN on ResNet-50 and -101, DeepLabV3 on these and on MobileNetV3-Large, in one form each.
    """
    backbone, rates = model.backbone, {"rates": (12, 24, 36)} if isinstance(model, deeplab.DeepLabV3) else {}
    if isinstance(backbone, resnet.ResNet) and backbone.block is resnet.Bottleneck:
        stride, dilates_first, auxiliary = 8, False, {"aux_feature": 3}
    elif rates and isinstance(backbone, mobilenet_v3.MobileNetV3) and backbone.blocks == mobilenet_v3.LARGE:
        auxiliary = {"aux_feature": 2, **of_backbone({"first_block_features": True})}
        stride, dilates_first = 16, True
    else:
        return None
    form = {"output_stride": stride, "align_corners": False, **rates}
    if is_dilated(model):
        form |= of_backbone({"dilate_first_block": dilates_first})
    return form | (auxiliary if model.aux_head else {})


FORMS = dict.fromkeys(MODELS, segmentation_form)

# Options that torchvision doesn't have: fields that must be as they are by default.
FIXED = {deeplab.DeepLabV3: ("separable", "aspp_out", "depth")}


def is_default(network: nn.Module, fields: Iterable[str]) -> bool:
    """Whether fields of a network are as its class has them."""
    return all(getattr(network, field) == getattr(type(network), field) for field in fields)


def unused(name: str) -> bool:
    """The classifier, and BatchNorm's step counters."""
    return name.startswith(("classifier.", "fc.")) or is_counter(name)


def backbone_layout(backbone: nn.Module) -> Layout | None:
    """torchvision's names for a backbone's tensors; None where torchvision has no such network."""
    if not has(backbone):
        return None
    kind, twins = type(backbone), TWINS.get(getattr(backbone, "repeats", ()), ())
    form = of_backbone(BACKBONE_OPTIONS.get(kind, {}))
    return Layout("torchvision", tuple(BACKBONES[kind](backbone)), unused, form=form, twins=twins)


def vgg_classifier(model: fcn.FCNVGG) -> Iterator[Entry]:
    """`vgg16` as far as FCN on VGG is that classifier: the first two dense layers are convolutions there."""
    yield from within(("backbone",), "", vggs(model.backbone))
    yield from conv(("fc6",), "classifier.0", bias=True)
    yield from conv(("fc7",), "classifier.3", bias=True)


def dense_as_convolutions(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Dense layers' `[out, C * k * k]`, which act on the last feature flattened as C, k, k, as `[out, C, k, k]`."""
    sides = {"classifier.0.weight": 7, "classifier.3.weight": 1}
    return {
        name: tensor.reshape(len(tensor), -1, side, side)
        if (side := sides.get(name)) and tensor.ndim == 2 and tensor.shape[1] % side**2 == 0
        else tensor
        for name, tensor in tensors.items()
    }


def classifier_layout(model: nn.Module) -> Layout | None:
    """torchvision's names for more of a model than its backbone, where a classifier has more; else None."""
    if not isinstance(model, fcn.FCNVGG):
        return None
    return Layout("torchvision", tuple(vgg_classifier(model)), unused, rename=dense_as_convolutions)


def model_layout(model: nn.Module) -> Layout | None:
    """torchvision's names for a segmentation model's tensors; None where torchvision has no such network."""
    names = MODELS.get(type(model))
    if names is None or not has(model.backbone) or getattr(model.backbone, "expanded_features", False):
        return None
    form = FORMS.get(type(model), lambda model: {})(model)
    if form is None or not is_default(model, FIXED.get(type(model), ())):
        return None
    form = of_backbone(BACKBONE_OPTIONS.get(type(model.backbone), {})) | form
    return Layout("torchvision", tuple(names(model)), is_counter, auxiliary=("aux_classifier.",), form=form)
