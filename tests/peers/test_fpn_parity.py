"""Semantic FPN against segmentation_models_pytorch, with the same random weights."""

import pytest
from parity import NUM_CLASSES, check_export, check_logits, check_training_step
from tiers import nightly

from jaxseg.models import create_model

pytestmark = pytest.mark.peers


@pytest.mark.parametrize(
    ("backbone", "merge"),
    [
        ("mobilenet_v2", "add"),
        ("resnet18", "cat"),
        *nightly(("vgg16_bn", "add"), ("resnet18", "add"), ("resnet50", "add")),
    ],
)
def test_fpn_equals_smp(backbone, merge, smp, randomise, tmp_path):
    theirs = randomise(smp.FPN(backbone, encoder_weights=None, classes=NUM_CLASSES, decoder_merge_policy=merge))
    ours = create_model("fpn", backbone=backbone, num_classes=NUM_CLASSES, merge=merge)
    variables, _ = check_logits(ours, theirs, (1, 64, 64), (2, 96, 64))
    check_export(ours, variables, theirs, "smp", tmp_path)


@pytest.mark.parametrize("backbone", ["mobilenet_v2", *nightly("vgg16_bn", "resnet18", "resnet50")])
def test_a_training_step_of_fpn_equals_smp(backbone, smp, randomise):
    theirs = randomise(smp.FPN(backbone, encoder_weights=None, classes=NUM_CLASSES))
    ours = create_model("fpn", backbone=backbone, num_classes=NUM_CLASSES)
    check_training_step(ours, theirs, (2, 32, 64), "smp")
