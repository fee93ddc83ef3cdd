"""U-Net against segmentation_models_pytorch, the plain one against PyTorch's layers, with the same random weights."""

import pytest
from parity import NUM_CLASSES, check_export, check_logits, check_training_step
from rebuilt import check_rebuilt
from tiers import nightly

from jaxseg.models import create_model

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("backbone", ["vgg16_bn", "resnet50", *nightly("mobilenet_v2", "resnet18")])
def test_unet_equals_smp(backbone, smp, randomise, tmp_path):
    theirs = randomise(smp.Unet(backbone, encoder_weights=None, classes=NUM_CLASSES))
    ours = create_model("unet", backbone=backbone, num_classes=NUM_CLASSES)
    variables, _ = check_logits(ours, theirs, (1, 64, 64), (2, 45, 71))
    check_export(ours, variables, theirs, "smp", tmp_path)


@pytest.mark.parametrize("backbone", ["resnet18", *nightly("vgg16_bn", "mobilenet_v2", "resnet50")])
def test_a_training_step_of_unet_equals_smp(backbone, smp, randomise):
    theirs = randomise(smp.Unet(backbone, encoder_weights=None, classes=NUM_CLASSES))
    ours = create_model("unet", backbone=backbone, num_classes=NUM_CLASSES)
    check_training_step(ours, theirs, (2, 32, 64), "smp")


def plain(layers, x, depth: int, upsampling: str, batch_norm: bool, kernel_size: int):
    functional, skips = layers.torch.nn.functional, []

    def block(x, name):
        for conv in ("conv1", "conv2"):
            x = (layers.conv_bn if batch_norm else layers.conv)(x, name, conv).relu()
        return x

    for level in range(depth):
        skips.append(block(x, f"encoder_{level}"))
        x = functional.max_pool2d(skips[-1], 2)
    x = block(x, f"encoder_{depth}")
    for level in reversed(range(depth)):
        skip, name = skips[level], f"up_{level}"
        size = skip.shape[2:]
        if upsampling == "bilinear":
            x = functional.interpolate(x, size, mode="bilinear", align_corners=True)
        elif upsampling == "nearest":
            x = functional.pad(functional.interpolate(x, size, mode="nearest"), (0, 1, 0, 1))
            x = layers.conv(x, name, padding=0)
        else:
            x = layers.conv_transpose(x, name)
            # Cut where it is too large, filled with zeros where too small.
            x = functional.pad(x, (0, size[1] - x.shape[3], 0, size[0] - x.shape[2]))
        x = block(layers.torch.cat([skip, x], 1), f"decoder_{level}")
    return layers.conv(x, "classifier")


@pytest.mark.parametrize(
    ("upsampling", "batch_norm", "kernel_size", "train"),
    [
        ("transposed", False, 2, False),
        ("transposed", True, 3, False),
        ("transposed", True, 3, True),
        ("nearest", True, 2, False),
        ("nearest", True, 2, True),
        ("bilinear", False, 2, False),
    ],
)
def test_the_plain_network_equals_its_rebuild(upsampling, batch_norm, kernel_size, train, torch):
    form = {"upsampling": upsampling, "batch_norm": batch_norm}
    options = {"depth": 3, "width": 8, "up_kernel_size": kernel_size, "dropout": 0.0, **form}
    ours = create_model("unet", backbone="plain", num_classes=NUM_CLASSES, **options)
    check_rebuilt(ours, lambda layers, x: plain(layers, x, 3, kernel_size=kernel_size, **form), (2, 37, 54), train)
