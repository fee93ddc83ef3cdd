"""FCN on ResNets against torchvision, with the same random weights."""

import pytest
from parity import NUM_CLASSES, check_export, check_logits, check_training_step
from tiers import nightly

from jaxseg.models import create_model

pytestmark = pytest.mark.peers


@pytest.mark.parametrize(
    ("backbone", "aux_head"),
    [("resnet50", True), *nightly(("resnet50", False), ("resnet101", False), ("resnet101", True))],
)
def test_fcn_equals_torchvision(backbone, aux_head, torchvision, randomise, tmp_path):
    build = getattr(torchvision.models.segmentation, f"fcn_{backbone}")
    theirs = randomise(build(weights_backbone=None, num_classes=NUM_CLASSES, aux_loss=aux_head))
    ours = create_model("fcn", backbone=backbone, num_classes=NUM_CLASSES, aux_head=aux_head)
    variables, _ = check_logits(ours, theirs, (1, 64, 64), (2, 45, 71))
    check_export(ours, variables, theirs, "torchvision", tmp_path)


@pytest.mark.parametrize("backbone", ["resnet50", *nightly("resnet101")])
def test_a_training_step_of_fcn_with_its_auxiliary_head_equals_torchvision(backbone, torchvision, randomise):
    build = getattr(torchvision.models.segmentation, f"fcn_{backbone}")
    theirs = build(weights_backbone=None, num_classes=NUM_CLASSES, aux_loss=True)
    ours = create_model("fcn", backbone=backbone, num_classes=NUM_CLASSES, aux_head=True)
    check_training_step(ours, randomise(theirs), (2, 32, 64), "torchvision")
