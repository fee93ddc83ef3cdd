"""timm's names for the classifiers that it calls otherwise than torchvision; its plain ResNets have torchvision's.

The variants that it ported from TensorFlow (`tf_mobilenetv3_large_100`) and those of other layers (`mobilenetv3_rw`)
bear the same names and are other networks: nothing in a file tells the first ones apart.
"""

from collections.abc import Iterator

from flax import linen as nn

from jaxseg.models.backbones import mobilenet, mobilenet_v3, resnet, vgg
from jaxseg.models.pretrained import torchvision
from jaxseg.models.pretrained.entries import Entry, Layout, conv, conv_bn, is_counter, of_backbone

# What a segmentation network has no use for, if it is no tensor of the backbone: `conv_head` gives MobileNetV2's last
# feature, but in MobileNetV3 it stands behind the pooling.
CLASSIFIER = ("classifier.", "conv_head.", "fc.", "head.fc.", "pre_logits.")


def mobilenet_v2(backbone: mobilenet.MobileNetV2) -> Iterator[Entry]:
    """`mobilenetv2_100`: blocks are numbered anew in each stage; the first, without expansion, has names of its own."""
    yield from conv_bn(("stem",), "conv_stem", "bn1", role="stem")
    index = 0
    for stage, (expansion, _, repeats, _) in enumerate(mobilenet.BLOCKS):
        for repeat in range(repeats):
            yield from _block(f"block_{index}", f"blocks.{stage}.{repeat}", expands=expansion != 1)
            index += 1
    yield from conv_bn(("head",), "conv_head", "bn2")


def mobilenet_v3s(backbone: mobilenet_v3.MobileNetV3) -> Iterator[Entry]:
    """`mobilenetv3_large_100` and `mobilenetv3_small_100`: a stage has one number of channels."""
    yield from conv_bn(("stem",), "conv_stem", "bn1", role="stem")
    channels, stage, repeat = mobilenet_v3.STEM, 0, 0
    for i, block in enumerate(backbone.blocks):
        if block.features != channels:
            stage, repeat = stage + 1, 0
        theirs = f"blocks.{stage}.{repeat}"
        yield from _block(f"block_{i}", theirs, expands=block.expanded != channels)
        if block.squeeze:
            for name in ("reduce", "expand"):
                yield from conv((f"block_{i}", "squeeze", name), f"{theirs}.se.conv_{name}", bias=True)
        channels, repeat = block.features, repeat + 1
    yield from conv_bn(("head",), f"blocks.{stage + 1}.0.conv", f"blocks.{stage + 1}.0.bn1")


def _block(ours: str, theirs: str, expands: bool) -> Iterator[Entry]:
    """The convolutions of a MobileNet's block."""
    convs = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
    if not expands:
        convs = {"depthwise": "conv_dw", "project": "conv_pw"}
    for i, (part, name) in enumerate(convs.items(), start=1):
        yield from conv_bn((ours, part), f"{theirs}.{name}", f"{theirs}.bn{i}")


def deep_resnets(backbone: resnet.ResNet) -> Iterator[Entry]:
    """`resnet50c` and its like: a stem of three convolutions, and the last BatchNorm of it in the 7x7's place."""
    for i, (conv_name, bn) in enumerate([("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1")], start=1):
        yield from conv_bn((f"stem{i}",), conv_name, bn, role="stem" if i == 1 else "")
    yield from torchvision.resnets(backbone)


BACKBONES = {
    vgg.VGG: torchvision.vggs,
    mobilenet.MobileNetV2: mobilenet_v2,
    mobilenet_v3.MobileNetV3: mobilenet_v3s,
    resnet.ResNet: deep_resnets,
}

# As torchvision's, of which MobileNetV3 alone differs.
BACKBONE_OPTIONS = {**torchvision.BACKBONE_OPTIONS, mobilenet_v3.MobileNetV3: {"epsilon": 1e-5}}

# Ported from TensorFlow: padded at one end, another epsilon, images in [-1, 1].
TWINS = {mobilenet_v3.MobileNetV3: ("tf_mobilenetv3_large_100", "tf_mobilenetv3_small_100")}


def unused(name: str) -> bool:
    """The classifier, and BatchNorm's step counters."""
    return name.startswith(CLASSIFIER) or is_counter(name)


def backbone_layout(backbone: nn.Module) -> Layout | None:
    """timm's names for a backbone's tensors; None where timm has no such network, or calls it as torchvision does."""
    kind = type(backbone)
    if kind not in BACKBONES or not getattr(backbone, "deep_stem", True):
        return None
    form, twins = of_backbone(BACKBONE_OPTIONS.get(kind, {})), TWINS.get(kind, ())
    return Layout("timm", tuple(BACKBONES[kind](backbone)), unused, form=form, twins=twins)
