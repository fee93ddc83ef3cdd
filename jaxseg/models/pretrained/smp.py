"""segmentation_models_pytorch's names: torchvision's backbones below `encoder.`, its own decoders."""

from collections.abc import Iterator

from flax import linen as nn

from jaxseg.models import deeplab
from jaxseg.models.pretrained import torchvision
from jaxseg.models.pretrained.entries import Entry, Layout, conv, conv_bn, separable, within


def encoder(model: nn.Module) -> Iterator[Entry]:
    """The backbone below `encoder.`: torchvision's names, which SMP leaves as they are."""
    yield from within(("backbone",), "encoder.", torchvision.BACKBONES[type(model.backbone)](model.backbone))


def deeplabv3plus(model: deeplab.DeepLabV3Plus) -> Iterator[Entry]:
    """`DeepLabV3Plus`."""
    yield from encoder(model)
    yield from conv_bn(("aspp", "conv"), "decoder.aspp.0.convs.0.0", "decoder.aspp.0.convs.0.1")
    for i in range(3):
        branch = f"decoder.aspp.0.convs.{i + 1}"
        yield from separable(("aspp", f"atrous_{i}"), f"{branch}.0.0", f"{branch}.0.1", f"{branch}.1")
    yield from conv_bn(("aspp", "pooling"), "decoder.aspp.0.convs.4.1", "decoder.aspp.0.convs.4.2")
    yield from conv_bn(("aspp", "project"), "decoder.aspp.0.project.0", "decoder.aspp.0.project.1")
    yield from separable(("aspp_out",), "decoder.aspp.1.0", "decoder.aspp.1.1", "decoder.aspp.2")
    yield from conv_bn(("skip",), "decoder.block1.0", "decoder.block1.1")
    yield from separable(("fuse",), "decoder.block2.0.0", "decoder.block2.0.1", "decoder.block2.1")
    yield from conv(("classifier",), "segmentation_head.0", bias=True, role="head")


MODELS = {deeplab.DeepLabV3Plus: deeplabv3plus}


def model_layout(model: nn.Module) -> Layout | None:
    """SMP's names for a model's tensors; None where SMP has no such network."""
    names = MODELS.get(type(model))
    return names and Layout("smp", tuple(names(model)), lambda name: name.endswith(".num_batches_tracked"))
