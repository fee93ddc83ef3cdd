"""What the benchmark runs beside ours in PyTorch is the same network, and takes the same step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from parity import NUM_CLASSES, outputs, pictures, relative_error

from jaxseg.benchmark import networks, peers
from jaxseg.errors import UserError
from jaxseg.models import create_model
from jaxseg.models.backbones.vgg import STAGES
from jaxseg.models.cost import num_params

pytestmark = pytest.mark.peers

# All that the tables of benchmarks/ compare.
COMPARED = [
    ("deeplabv3", "resnet101"),
    ("deeplabv3plus", "mobilenet_v2"),
    ("deeplabv3plus", "resnet50"),
    ("fcn", "resnet50"),
    ("fpn", "mobilenet_v2"),
    ("pspnet", "resnet50"),
    ("segnet", "vgg16_bn"),
    ("unet", "resnet18"),
    ("unet", "vgg16_bn"),
]


@pytest.mark.parametrize(("family", "backbone"), COMPARED)
def test_both_have_the_same_parameters(family, backbone, torch, smp):
    with torch.device("meta"):
        theirs = peers.create(family, backbone, NUM_CLASSES)
    used = {name: parameter.numel() for name, parameter in theirs.named_parameters()}
    if family == "pspnet":
        # SMP's encoder goes on behind the feature that its decoder takes.
        used = {name: size for name, size in used.items() if not name.startswith(("encoder.layer3", "encoder.layer4"))}
    ours = create_model(family, backbone=backbone, num_classes=NUM_CLASSES, **peers.OPTIONS.get(family, {}))
    assert num_params(ours)[0] == sum(used.values())


def segnet_names(count_of_stage):
    """Our layers in the order of their modules: encoder by stage, then decoder from the deepest stage on."""
    for i, count in enumerate(count_of_stage, start=1):
        yield from (("backbone", f"conv{i}_{j}") for j in range(1, count + 1))
    for i, count in reversed(list(enumerate(count_of_stage, start=1))):
        yield from ((f"decoder{i}_{j}",) for j in range(count, 0, -1) if (i, j) != (1, 1))


def test_segnet_is_ours(torch, randomise):
    # In float64: in float32 two pixels of a window may be so near that another one of them is the largest.
    theirs = randomise(peers.create("segnet", "vgg16_bn", NUM_CLASSES)).eval().double()
    ours = create_model("segnet", backbone="vgg16_bn", num_classes=NUM_CLASSES)
    wide = jnp.dtype("float64")
    ours = ours.clone(dtype=wide, backbone=ours.backbone.clone(dtype=wide))
    convs, norms = (
        [m for m in theirs.modules() if type(m) is kind] for kind in (torch.nn.Conv2d, torch.nn.BatchNorm2d)
    )
    names = list(segnet_names([count for count, _ in STAGES]))
    assert len(convs) == len(names) + 1 and len(norms) == len(names)
    flat = {}
    for name, conv in zip([*((*name, "conv") for name in names), ("classifier",)], convs, strict=True):
        flat["params", *name, "kernel"] = conv.weight.detach().numpy().transpose(2, 3, 1, 0)
        flat["params", *name, "bias"] = conv.bias.detach().numpy()
    for name, norm in zip(names, norms, strict=True):
        for collection, ours_is, theirs_is in (
            ("params", "scale", norm.weight),
            ("params", "bias", norm.bias),
            ("batch_stats", "mean", norm.running_mean),
            ("batch_stats", "var", norm.running_var),
        ):
            flat[collection, *name, "bn", ours_is] = theirs_is.detach().numpy()
    images = pictures(1, 64, 96).astype(np.float64)
    with jax.enable_x64(True):
        apply = jax.jit(lambda variables, images: ours.apply(variables, images, train=False))
        logits = np.asarray(apply(unflatten_dict(flat), images))
    assert relative_error(logits, outputs(theirs, images)["out"]) <= 1e-4


@pytest.mark.parametrize("train", [True, False])
def test_the_fastest_form_is_taken(train, torch, smp, monkeypatch):
    batch = networks.random_batch(2, (64, 64), NUM_CLASSES)
    built = []

    def create(*arguments):
        built.append(arguments)
        return torch.nn.Conv2d(3, NUM_CLASSES, 1)

    monkeypatch.setattr(peers, "create", create)
    lines = []
    forms = peers.FORMS["eager"]
    best = peers.fastest(
        "unet", "resnet18", batch, NUM_CLASSES, train=train, dtype="float32", log=lines.append, forms=forms, block=1
    )
    assert built == [("unet", "resnet18", NUM_CLASSES)] * 2
    figures = {line.split(":")[0]: float(line.split(": ")[1].split(" ms")[0]) for line in lines}
    assert best.name == min(figures, key=figures.get)
    assert best.compile_seconds > 0 and (best.memory is None) == (not torch.cuda.is_available())


def test_a_form_that_fails_is_told_and_left_out(torch, smp, monkeypatch):
    batch, contender, lines = networks.random_batch(1, (32, 32), NUM_CLASSES), peers._contender, []

    def failing(network, batch, name, **settings):
        if "contiguous" in name:
            raise RuntimeError("max_unpool2d has no such form\nand more")
        return contender(network, batch, name, **settings)

    monkeypatch.setattr(peers, "create", lambda *arguments: torch.nn.Conv2d(3, NUM_CLASSES, 1))
    monkeypatch.setattr(peers, "_contender", failing)
    settings = {"train": False, "dtype": "float32", "log": lines.append, "block": 1}
    best = peers.fastest("unet", "resnet18", batch, NUM_CLASSES, forms=peers.FORMS["eager"], **settings)
    assert best.name == "PyTorch eager, channels-last"
    assert lines[1] == "PyTorch eager, contiguous: RuntimeError: max_unpool2d has no such form"
    assert peers.fastest("unet", "resnet18", batch, NUM_CLASSES, forms=peers.FORMS["eager"][1:], **settings) is None


def test_a_network_that_pytorch_has_not_is_refused(torch):
    with pytest.raises(UserError, match="unknown family in PyTorch 'unet_pix2pix'"):
        peers.create("unet_pix2pix", "mobilenet_v2", NUM_CLASSES)
    with pytest.raises(UserError, match="unknown backbone of SegNet in PyTorch 'vgg16'"):
        peers.create("segnet", "vgg16", NUM_CLASSES)
