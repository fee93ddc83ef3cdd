"""What segmentation_models_pytorch does with weights: which it takes, and how it adapts them to other channels."""

import numpy as np
import pytest
from parity import NUM_CLASSES, arrays

from jaxseg.models import create_model
from jaxseg.models.pretrained import hub, read_weights, torchvision

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("backbone", hub.IMAGENET)
def test_the_files_on_the_hub_are_those_that_smp_pins(backbone, smp):
    settings = smp.encoders.encoders[backbone]["pretrained_settings"]["imagenet"]
    assert hub.IMAGENET[backbone][:2] == (settings["repo_id"], settings["revision"])


@pytest.mark.parametrize(
    ("backbone", "channels"),
    [*((name, 1) for name in hub.IMAGENET), *(("resnet18", channels) for channels in (2, 4, 5))],
)
def test_the_first_kernel_is_adapted_as_smp_does(backbone, channels, smp, torch):
    encoder = smp.encoders.get_encoder(backbone, weights=None)
    tensors = {name: tensor.copy() for name, tensor in arrays(encoder.state_dict()).items()}
    encoder.set_in_channels(channels, pretrained=True)
    due = arrays(encoder.state_dict())
    model = create_model("unet", backbone=backbone, num_classes=NUM_CLASSES, in_channels=channels)
    loaded = read_weights(model, tensors).tensors
    changed = set()
    for entry in torchvision.backbone_layout(model.backbone).entries:
        kernel = loaded[(entry.path[0], "backbone", *entry.path[1:])]
        np.testing.assert_allclose(kernel, entry.to_ours(due[entry.name]), rtol=1e-6, atol=1e-7)
        if due[entry.name].shape != tensors[entry.name].shape:
            changed.add(entry.role)
    assert changed == {"stem"}
