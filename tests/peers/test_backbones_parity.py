"""Backbones against torchvision's and timm's classifiers, with the same random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from parity import arrays, feature_error, outputs, pictures, relative_error, to_ours, to_theirs
from tiers import nightly

from jaxseg.errors import UserError
from jaxseg.models import create_model
from jaxseg.models.backbones import BACKBONES, mobilenet_v3
from jaxseg.models.pretrained import BACKBONE_LAYOUTS, read_weights

pytestmark = pytest.mark.peers

RESNET_LAYERS = ("relu", "layer1", "layer2", "layer3", "layer4")
LAYERS = {
    "vgg16": ("features.8", "features.15", "features.22", "features.29", "features.30"),
    "vgg16_bn": ("features.12", "features.22", "features.32", "features.42", "features.43"),
    "mobilenet_v2": ("features.1", "features.3", "features.6", "features.13", "features.18"),
    "mobilenet_v3_large": ("features.1", "features.3", "features.6", "features.12", "features.16"),
    "mobilenet_v3_small": ("features.0", "features.1", "features.3", "features.8", "features.12"),
    "resnet18": RESNET_LAYERS,
    "resnet34": RESNET_LAYERS,
    "resnet50": RESNET_LAYERS,
    "resnet101": RESNET_LAYERS,
}

QUICK = ("vgg16_bn", "mobilenet_v2", "mobilenet_v3_small", "resnet18", "resnet50")  # one of each kind of block

# With random weights MobileNets multiply float32's rounding to 1e-4 and 2e-4 of their last feature.
WIDE = ("float64", 1e-9)

# timm's name, ours, our fields, and the modules that give timm's features.
TIMM = [
    ("mobilenetv2_100", "mobilenet_v2", {}, ("blocks.0", "blocks.1", "blocks.2", "blocks.4", "bn2")),
    (
        "mobilenetv3_large_100",
        "mobilenet_v3_large",
        {"epsilon": 1e-5},
        ("blocks.0", "blocks.1", "blocks.2", "blocks.4", "blocks.6"),
    ),
    (
        "mobilenetv3_small_100",
        "mobilenet_v3_small",
        {"epsilon": 1e-5},
        ("bn1", "blocks.0", "blocks.1", "blocks.3", "blocks.5"),
    ),
    ("resnet50c", "resnet50", {"deep_stem": True}, ("act1", "layer1", "layer2", "layer3", "layer4")),
]


def without_classifier(torch, model):
    """VGG's has most of its parameters, and a feature doesn't need it."""
    model.classifier = torch.nn.Identity()
    return model


@pytest.mark.parametrize("name", [name if name in QUICK else nightly(name)[0] for name in LAYERS])
def test_features_equal_torchvision(name, torch, torchvision, randomise):
    theirs = torchvision.models.get_model(name, weights=None, **({"init_weights": False} if "vgg" in name else {}))
    theirs = randomise(without_classifier(torch, theirs) if "vgg" in name else theirs)
    dtype, tolerance = WIDE if "mobilenet" in name else ("float32", 1e-4)
    assert feature_error(BACKBONES[name](), theirs, LAYERS[name], pictures(1, 75, 97), dtype=dtype) < tolerance


def test_expanded_features_of_mobilenet_v2_equal_torchvision(torchvision, randomise):
    """Of the blocks 1, 3, 6 and 13 what the first convolution gives; of the last the convolution before its norm."""
    theirs = randomise(torchvision.models.mobilenet_v2(weights=None))
    layers = (*(f"features.{i}.conv.0" for i in (2, 4, 7, 14)), "features.17.conv.2")
    backbone, (dtype, tolerance) = BACKBONES["mobilenet_v2"](expanded_features=True), WIDE
    assert feature_error(backbone, theirs, layers, pictures(1, 75, 97), dtype=dtype) < tolerance


def test_undilated_first_blocks_are_the_rule_of_torchvision(torchvision, randomise):
    dilated = [False, True, True]
    theirs = randomise(torchvision.models.resnet50(weights=None, replace_stride_with_dilation=dilated))
    backbone = BACKBONES["resnet50"](output_stride=8, dilate_first_block=False)
    assert feature_error(backbone, theirs, RESNET_LAYERS, pictures(1, 75, 97)) < 1e-4


@pytest.mark.parametrize("size", [(75, 97), *nightly(((64, 96),))])
def test_mobilenet_v3_in_a_segmentation_model_of_torchvision(size, torchvision, randomise):
    """Dilated in the last three blocks, the first of them too; the auxiliary head sees the first block at stride 8."""
    networks = torchvision.models.segmentation
    theirs = networks.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, aux_loss=True)
    theirs = randomise(theirs).eval()
    ours = create_model(
        "deeplabv3",
        backbone="mobilenet_v3_large",
        num_classes=21,
        output_stride=16,
        align_corners=False,
        backbone_options={"first_block_features": True},
        aux_head=True,
        aux_feature=2,
    )
    variables = unflatten_dict(read_weights(ours, arrays(theirs.state_dict())).tensors)
    variables, images = {name: tree["backbone"] for name, tree in variables.items()}, pictures(2, *size)
    due = outputs(theirs.backbone, images)
    features = jax.jit(lambda images: ours.backbone.apply(variables, images, train=False))(images)
    assert relative_error(features[-1], due["out"]) < 1e-4
    assert relative_error(features[2], due["aux"]) < 1e-4


def test_a_block_of_mobilenet_v3_trains_as_torchvisions(torch, torchvision, randomise):
    """Values, gradients and running statistics of a block with squeeze-and-excite, hard-swish and a shortcut."""
    theirs = randomise(torchvision.models.mobilenet_v3_large(weights=None).features[12]).double().train()
    tensors = {name: tensor.copy() for name, tensor in arrays(theirs.state_dict()).items()}
    inputs = pictures(2, 9, 11, channels=112)
    entries = [
        dataclasses.replace(entry, path=(entry.path[0], *entry.path[2:]), name=entry.name.removeprefix("features.12."))
        for entry in BACKBONE_LAYOUTS["torchvision"](BACKBONES["mobilenet_v3_large"]()).entries
        if entry.path[1] == "block_11"
    ]
    variables = unflatten_dict({entry.path: entry.to_ours(tensors[entry.name]) for entry in entries})
    due_inputs = to_theirs(inputs).double().requires_grad_()
    due = theirs(due_inputs)
    due.square().sum().backward()
    after = arrays(theirs.state_dict())
    gradients = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
    block = mobilenet_v3.InvertedResidual(mobilenet_v3.LARGE[11], 1, 1, dtype=jnp.dtype("float64"))

    def loss(params, inputs):
        y, updates = block.apply({**variables, "params": params}, inputs, train=True, mutable=["batch_stats"])
        return (y**2).sum(), (y, updates)

    with jax.enable_x64(True):
        variables, inputs = jax.tree.map(np.float64, (variables, inputs))
        grads, (y, updates) = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables["params"], inputs)
    assert relative_error(y, to_ours(due)) < 1e-6
    assert relative_error(grads[1], to_ours(due_inputs.grad)) < 1e-6
    got, n = flatten_dict({"params": grads[0], **updates}), inputs[..., 0].size
    for entry in entries:
        expected = (gradients if entry.path[0] == "params" else after)[entry.name]
        if entry.path[-1] == "var":
            # PyTorch stores n / (n - 1) of the variance that a batch has.
            kept = 0.99 * tensors[entry.name]
            expected = kept + (expected - kept) * (n - 1) / n
        assert relative_error(got[entry.path], entry.to_ours(expected)) < 1e-5, entry.name


def test_hard_swish_has_pytorchs_gradient_at_its_corners_too(torch):
    x = np.array([-4, -3, -2.9, 0, 1, 2.9, 3, 4], np.float32)
    for ours, theirs in [
        (mobilenet_v3.hard_swish, torch.nn.functional.hardswish),
        (mobilenet_v3.hard_sigmoid, torch.nn.functional.hardsigmoid),
    ]:
        inputs = torch.from_numpy(x).requires_grad_()
        due = theirs(inputs)
        due.sum().backward()
        np.testing.assert_allclose(ours(x), due.detach(), atol=1e-6)
        np.testing.assert_allclose(jax.vmap(jax.grad(ours))(x), inputs.grad, atol=1e-6)


@pytest.mark.parametrize(("theirs", "name", "fields", "layers"), TIMM, ids=[name for name, *_ in TIMM])
def test_features_equal_timm(theirs, name, fields, layers, timm, randomise):
    theirs, backbone = randomise(timm.create_model(theirs, pretrained=False)), BACKBONES[name](**fields)
    dtype, tolerance = WIDE
    assert feature_error(backbone, theirs, layers, pictures(1, 75, 97), "timm", dtype) < tolerance


@pytest.mark.parametrize(
    ("theirs", "name", "fields", "layout"),
    [
        *((theirs, name, fields, "timm") for theirs, name, fields, _ in TIMM),
        ("vgg16", "vgg16", {}, "timm"),
        ("vgg16_bn", "vgg16_bn", {}, "timm"),
        ("resnet34", "resnet34", {}, "torchvision"),
    ],
)
def test_timms_classifiers_are_recognised(theirs, name, fields, layout, torch, timm):
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in timm.create_model(theirs).state_dict().items()}
    counters = {name: np.zeros(shape, np.int64) for name, shape in shapes.items() if not shape}
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()} | counters
    ours = create_model("fpn", backbone=name, num_classes=2, backbone_options=fields)
    weights = read_weights(ours, tensors)
    assert f"under {layout}'s names" in weights.report[0]


def test_what_a_backbone_must_be_for_timms_weights_is_said(torch, timm):
    ours = create_model("fpn", backbone="mobilenet_v3_large", num_classes=2)
    tensors = arrays(timm.create_model("mobilenetv3_large_100").state_dict())
    with pytest.raises(UserError, match=r"backbone_options\.epsilon is 1e-05 there and 0\.001 here"):
        read_weights(ours, tensors)
