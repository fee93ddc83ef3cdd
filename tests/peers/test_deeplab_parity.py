"""DeepLabV3 and DeepLabV3+ against segmentation_models_pytorch and torchvision, with the same random weights."""

import jax
import pytest
from flax.traverse_util import unflatten_dict
from parity import (
    NUM_CLASSES,
    arrays,
    check_export,
    check_logits,
    check_training_step,
    outputs,
    pictures,
    relative_error,
)
from tiers import nightly

from jaxseg.models import create_model
from jaxseg.models.pretrained import torchvision as names
from jaxseg.models.pretrained.entries import batch_norm, conv, conv_bn

pytestmark = pytest.mark.peers

# At output stride 8 wide enough for the outer taps of rate 36 to see something; the 64 pixels of the others are not.
WIDE = (1, 32, 320)
# For the training steps' features, of 4x8 at most, for the same reason.
SMALL_RATES = (1, 2, 3)

# What torchvision does differently from SMP.
TORCHVISION = {"align_corners": False, "backbone_options": {"dilate_first_block": False}}
MOBILENET_V3 = {
    "output_stride": 16,
    "align_corners": False,
    "aux_feature": 2,
    "backbone_options": {"first_block_features": True},
}


@pytest.mark.parametrize(
    ("backbone", "output_stride"),
    [
        ("mobilenet_v2", 16),
        ("resnet18", 8),
        *nightly(("mobilenet_v2", 8), ("resnet18", 16), ("resnet50", 16), ("resnet50", 8)),
    ],
)
def test_deeplabv3plus_equals_smp(backbone, output_stride, smp, randomise, tmp_path):
    fields = {"encoder_weights": None, "classes": NUM_CLASSES, "encoder_output_stride": output_stride}
    theirs = randomise(smp.DeepLabV3Plus(backbone, **fields))
    ours = create_model("deeplabv3plus", backbone=backbone, num_classes=NUM_CLASSES, output_stride=output_stride)
    wide = [WIDE] if backbone == "resnet18" else []
    variables, _ = check_logits(ours, theirs, (1, 64, 64), (2, 96, 64), *wide)
    check_export(ours, variables, theirs, "smp", tmp_path)


@pytest.mark.parametrize("backbone", ["mobilenet_v2", *nightly("resnet18", "resnet50")])
def test_a_training_step_of_deeplabv3plus_equals_smp(backbone, smp, randomise):
    fields = {"encoder_weights": None, "classes": NUM_CLASSES, "decoder_atrous_rates": SMALL_RATES}
    theirs = randomise(smp.DeepLabV3Plus(backbone, **fields))
    ours = create_model("deeplabv3plus", backbone=backbone, num_classes=NUM_CLASSES, rates=SMALL_RATES)
    check_training_step(ours, theirs, (2, 32, 64), "smp")


@pytest.mark.parametrize(
    ("backbone", "output_stride"),
    [
        ("resnet18", 8),
        *nightly(("resnet18", 16), ("mobilenet_v2", 8), ("mobilenet_v2", 16), ("resnet50", 8), ("resnet50", 16)),
    ],
)
def test_deeplabv3_equals_smp(backbone, output_stride, smp, randomise, tmp_path):
    fields = {"encoder_weights": None, "classes": NUM_CLASSES, "encoder_output_stride": output_stride}
    theirs = randomise(smp.DeepLabV3(backbone, **fields))
    ours = create_model("deeplabv3", backbone=backbone, num_classes=NUM_CLASSES, output_stride=output_stride)
    wide = [WIDE] if backbone == "resnet18" else []
    variables, _ = check_logits(ours, theirs, (1, 64, 64), (2, 80, 64), *wide)
    check_export(ours, variables, theirs, "smp", tmp_path)


def test_separable_deeplabv3_equals_smp(smp, randomise, tmp_path):
    fields = {"decoder_aspp_separable": True, "decoder_atrous_rates": (6, 12, 18)}
    theirs = randomise(smp.DeepLabV3("resnet18", encoder_weights=None, classes=NUM_CLASSES, **fields))
    fields = {"separable": True, "rates": (6, 12, 18)}
    ours = create_model("deeplabv3", backbone="resnet18", num_classes=NUM_CLASSES, **fields)
    variables, _ = check_logits(ours, theirs, WIDE)
    check_export(ours, variables, theirs, "smp", tmp_path)


@pytest.mark.parametrize("backbone", ["resnet18", *nightly("mobilenet_v2", "resnet50")])
def test_a_training_step_of_deeplabv3_equals_smp(backbone, smp, randomise):
    fields = {"encoder_weights": None, "classes": NUM_CLASSES, "decoder_atrous_rates": SMALL_RATES}
    theirs = randomise(smp.DeepLabV3(backbone, **fields))
    ours = create_model("deeplabv3", backbone=backbone, num_classes=NUM_CLASSES, rates=SMALL_RATES)
    check_training_step(ours, theirs, (2, 32, 64), "smp")


@pytest.mark.parametrize(
    ("backbone", "aux_head"),
    [("resnet50", True), *nightly(("resnet50", False), ("resnet101", False), ("resnet101", True))],
)
def test_deeplabv3_equals_torchvision(backbone, aux_head, torchvision, randomise, tmp_path):
    build = getattr(torchvision.models.segmentation, f"deeplabv3_{backbone}")
    theirs = randomise(build(weights_backbone=None, num_classes=NUM_CLASSES, aux_loss=aux_head))
    ours = create_model("deeplabv3", backbone=backbone, num_classes=NUM_CLASSES, aux_head=aux_head, **TORCHVISION)
    variables, _ = check_logits(ours, theirs, (1, 64, 64), (2, 45, 71))
    check_export(ours, variables, theirs, "torchvision", tmp_path)


@pytest.mark.parametrize("aux_head", [True, *nightly(False)])
def test_deeplabv3_on_mobilenet_v3_equals_torchvision(aux_head, torchvision, randomise, tmp_path):
    build = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large
    theirs = randomise(build(weights_backbone=None, num_classes=NUM_CLASSES, aux_loss=aux_head))
    ours = create_model(
        "deeplabv3", backbone="mobilenet_v3_large", num_classes=NUM_CLASSES, aux_head=aux_head, **MOBILENET_V3
    )
    variables, _ = check_logits(ours, theirs, (1, 64, 64), (2, 45, 71))
    check_export(ours, variables, theirs, "torchvision", tmp_path)


@pytest.mark.parametrize("backbone", ["mobilenet_v3_large", *nightly("resnet50", "resnet101")])
def test_a_training_step_of_deeplabv3_with_its_auxiliary_head_equals_torchvision(backbone, torchvision, randomise):
    build = getattr(torchvision.models.segmentation, f"deeplabv3_{backbone}")
    theirs = randomise(build(weights_backbone=None, num_classes=NUM_CLASSES, aux_loss=True))
    fields = MOBILENET_V3 if "mobilenet" in backbone else TORCHVISION
    fields = {"aux_head": True, "aux_dropout": 0.0, **fields}
    ours = create_model("deeplabv3", backbone=backbone, num_classes=NUM_CLASSES, **fields)
    check_training_step(ours, theirs, (2, 32, 64), "torchvision")


def rebuild(torch, resnet, channels: tuple[int, int], rates: tuple[int, int, int], separable: bool):
    """DeepLabV3+ in two forms that no library at hand has, on one of torchvision's ResNets.

    Without separable convolutions that of VainF's DeepLabV3Plus-Pytorch, with them that of TensorFlow's DeepLab. Names
    of the head are those of `rebuilt_names`.
    """
    nn = torch.nn

    def block(inputs, outputs, size=1, rate=1, groups=1):
        if size == 3 and separable and groups == 1:
            return [*block(inputs, inputs, 3, rate, groups=inputs), *block(inputs, outputs)]
        conv = nn.Conv2d(inputs, outputs, size, padding=rate * (size // 2), dilation=rate, groups=groups, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            low, high = channels
            self.skip = nn.Sequential(*block(low, 48))
            branches = [block(high, 256), *(block(high, 256, 3, rate) for rate in rates)]
            branches.append([nn.AdaptiveAvgPool2d(1), *block(high, 256)])
            self.convs = nn.ModuleList(nn.Sequential(*branch) for branch in branches)
            self.project = nn.Sequential(*block(5 * 256, 256), nn.Dropout(0.1))
            more = block(256, 256, 3) if separable else []
            self.last = nn.Sequential(*block(48 + 256, 256, 3), *more, nn.Conv2d(256, NUM_CLASSES, 1))

        def forward(self, low, high):
            *branches, mean = (branch(high) for branch in self.convs)
            pyramid = self.project(torch.cat([*branches, mean.expand_as(branches[0])], 1))
            low = self.skip(low)
            pyramid = resize(pyramid, low.shape[2:])
            return self.last(torch.cat([pyramid, low] if separable else [low, pyramid], 1))

    class DeepLab(nn.Module):
        def __init__(self):
            super().__init__()
            del resnet.fc
            self.backbone, self.head = resnet, Head()

        def forward(self, images):
            x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(images))))
            low = resnet.layer1(x)
            return resize(self.head(low, resnet.layer4(resnet.layer3(resnet.layer2(low)))), images.shape[2:])

    def resize(x, size):
        return nn.functional.interpolate(x, size, mode="bilinear", align_corners=separable)

    return DeepLab()


def rebuilt_names(model):
    def conv_3x3(ours, theirs, first=0):
        if not model.separable:
            return conv_bn(ours, f"{theirs}.{first}", f"{theirs}.{first + 1}")
        pairs = zip(("depthwise", "depthwise_bn", "pointwise", "bn"), (0, 1, 3, 4), strict=True)
        return [
            entry
            for name, i in pairs
            for entry in (batch_norm if "bn" in name else conv)((*ours, name), f"{theirs}.{first + i}")
        ]

    yield from names.segmentation_backbone(model)
    yield from conv_bn(("aspp", "conv"), "head.convs.0.0", "head.convs.0.1")
    for i in range(3):
        yield from conv_3x3(("aspp", f"atrous_{i}"), f"head.convs.{i + 1}")
    yield from conv_bn(("aspp", "pooling"), "head.convs.4.1", "head.convs.4.2")
    yield from conv_bn(("aspp", "project"), "head.project.0", "head.project.1")
    yield from conv_bn(("skip",), "head.skip.0", "head.skip.1")
    yield from conv_3x3(("fuse",), "head.last")
    if model.decoder_convs == 2:
        yield from conv_3x3(("fuse_2",), "head.last", 6)
    yield from conv(("classifier",), f"head.last.{12 if model.separable else 3}", bias=True)


def check_rebuild(ours, theirs, *shapes: tuple[int, int, int]):
    tensors, entries = arrays(theirs.eval().state_dict()), list(rebuilt_names(ours))
    assert {entry.name for entry in entries} == {name for name in tensors if not name.endswith("num_batches_tracked")}
    variables = unflatten_dict({entry.path: entry.to_ours(tensors[entry.name]) for entry in entries})
    apply = jax.jit(lambda variables, images: ours.apply(variables, images, train=False))
    for shape in shapes:
        images = pictures(*shape)
        assert relative_error(apply(variables, images), outputs(theirs, images)["out"]) <= 1e-4


@pytest.mark.parametrize(("output_stride", "rates"), [(16, (6, 12, 18)), *nightly((8, (12, 24, 36)))])
def test_plain_deeplabv3plus_equals_its_rebuild(output_stride, rates, torch, torchvision, randomise):
    resnet = torchvision.models.resnet50(replace_stride_with_dilation=[False, output_stride == 8, True])
    theirs = randomise(rebuild(torch, resnet, (256, 2048), rates, separable=False))
    ours = create_model(
        "deeplabv3plus",
        backbone="resnet50",
        num_classes=NUM_CLASSES,
        output_stride=output_stride,
        rates=rates,
        separable=False,
        decoder_separable=False,
        aspp_out=False,
        skip_first=True,
        dropout=0.1,
        **TORCHVISION,
    )
    check_rebuild(ours, theirs, WIDE, (2, 45, 71))


def test_deeplabv3plus_of_its_authors_equals_its_rebuild(torch, torchvision, randomise):
    theirs = randomise(rebuild(torch, torchvision.models.resnet18(), (64, 512), SMALL_RATES, separable=True))
    ours = create_model(
        "deeplabv3plus",
        backbone="resnet18",
        num_classes=NUM_CLASSES,
        output_stride=32,
        rates=SMALL_RATES,
        norm_between=True,
        aspp_out=False,
        decoder_convs=2,
        dropout=0.1,
    )
    check_rebuild(ours, theirs, (1, 160, 128), (2, 45, 71))
