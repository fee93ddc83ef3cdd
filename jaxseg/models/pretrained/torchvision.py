"""torchvision's names: its classifiers as backbones, and its segmentation models."""

from collections.abc import Iterator

from flax import linen as nn

from jaxseg.models.backbones import mobilenet, resnet
from jaxseg.models.pretrained.entries import Entry, Layout, conv_bn


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


def resnets(backbone: resnet.ResNet) -> Iterator[Entry]:
    """The ResNets: a shortcut in the first block of a stage that needs one."""
    convs = 3 if backbone.block is resnet.Bottleneck else 2
    yield from conv_bn(("stem",), "conv1", "bn1", role="stem")
    for stage, count in enumerate(backbone.repeats, start=1):
        for block in range(count):
            ours, theirs = f"layer{stage}_{block}", f"layer{stage}.{block}"
            for i in range(1, convs + 1):
                yield from conv_bn((ours, f"conv{i}"), f"{theirs}.conv{i}", f"{theirs}.bn{i}")
            if block == 0 and (stage > 1 or convs == 3):
                yield from conv_bn((ours, "downsample"), f"{theirs}.downsample.0", f"{theirs}.downsample.1")


BACKBONES = {mobilenet.MobileNetV2: mobilenet_v2, resnet.ResNet: resnets}

# Whole segmentation models, by the type of ours.
MODELS = {}


def unused(name: str) -> bool:
    """The classifier, and BatchNorm's step counters."""
    return name.startswith(("classifier.", "fc.")) or name.endswith(".num_batches_tracked")


def backbone_layout(backbone: nn.Module) -> Layout | None:
    """torchvision's names for a backbone's tensors; None where torchvision has no such network."""
    names = BACKBONES.get(type(backbone))
    return names and Layout("torchvision", tuple(names(backbone)), unused)


def model_layout(model: nn.Module) -> Layout | None:
    """torchvision's names for a segmentation model's tensors; None where torchvision has no such network."""
    names = MODELS.get(type(model))
    return names and Layout("torchvision", tuple(names(model)), lambda name: name.endswith(".num_batches_tracked"))
