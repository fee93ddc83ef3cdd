"""PSPNet against segmentation_models_pytorch, with the same random weights."""

import pytest
from parity import NUM_CLASSES, check_export, check_logits, check_training_step
from tiers import nightly

from jaxseg.models import create_model

pytestmark = pytest.mark.peers


def clear_what_is_not_used(network, torch):
    """SMP keeps the layers of the encoder that it stops before; exported, they are zeros."""
    network.eval()(torch.zeros(1, 3, 64, 64)).sum().backward()
    with torch.no_grad():
        for module in network.modules():
            own = list(module.parameters(recurse=False))
            if own and all(parameter.grad is None for parameter in own):
                for tensor in (*own, *module.buffers(recurse=False)):
                    tensor.zero_()
    network.zero_grad()
    return network


@pytest.mark.parametrize(
    ("backbone", "depth"),
    [("vgg16_bn", 3), ("resnet18", 5), *nightly(("mobilenet_v2", 3), ("resnet18", 3), ("resnet50", 3))],
)
def test_pspnet_equals_smp(backbone, depth, smp, torch, randomise, tmp_path):
    theirs = smp.PSPNet(backbone, encoder_weights=None, classes=NUM_CLASSES, encoder_depth=depth, upsampling=2**depth)
    theirs = clear_what_is_not_used(randomise(theirs), torch)
    ours = create_model("pspnet", backbone=backbone, num_classes=NUM_CLASSES, depth=depth, output_stride=32)
    variables, _ = check_logits(ours, theirs, (1, 64, 64), (2, 96, 72) if depth == 3 else (2, 96, 64))
    check_export(ours, variables, theirs, "smp", tmp_path)


@pytest.mark.parametrize("backbone", ["resnet18", *nightly("vgg16_bn", "mobilenet_v2", "resnet50")])
def test_a_training_step_of_pspnet_equals_smp(backbone, smp, randomise):
    theirs = randomise(smp.PSPNet(backbone, encoder_weights=None, classes=NUM_CLASSES))
    ours = create_model("pspnet", backbone=backbone, num_classes=NUM_CLASSES)
    check_training_step(ours, theirs, (2, 32, 64), "smp")
