"""DeepLabV3+ against segmentation_models_pytorch, with the same random weights."""

import pytest
from parity import NUM_CLASSES, check_export, check_logits, check_training_step

from jaxseg.models import create_model

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("backbone", ["mobilenet_v2", "resnet18", "resnet50"])
def test_deeplabv3plus_equals_smp(backbone, output_stride, smp, randomise, tmp_path):
    fields = {"encoder_weights": None, "classes": NUM_CLASSES, "encoder_output_stride": output_stride}
    theirs = randomise(smp.DeepLabV3Plus(backbone, **fields))
    ours = create_model("deeplabv3plus", backbone=backbone, num_classes=NUM_CLASSES, output_stride=output_stride)
    variables, _ = check_logits(ours, theirs, (1, 64, 64), (2, 96, 64))
    check_export(ours, variables, theirs, "smp", tmp_path)


@pytest.mark.parametrize("backbone", ["resnet18"])  # mobilenet_v2 passes as well, in minutes
def test_a_training_step_of_deeplabv3plus_equals_smp(backbone, smp, randomise):
    theirs = randomise(smp.DeepLabV3Plus(backbone, encoder_weights=None, classes=NUM_CLASSES))
    ours = create_model("deeplabv3plus", backbone=backbone, num_classes=NUM_CLASSES)
    check_training_step(ours, theirs, (2, 32, 64), "smp")
