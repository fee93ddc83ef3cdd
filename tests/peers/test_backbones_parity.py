"""Backbones against torchvision's classifiers, with the same random weights."""

import pytest
from parity import feature_error, pictures

from jaxseg.models.backbones import BACKBONES

pytestmark = pytest.mark.peers

RESNET_LAYERS = ("relu", "layer1", "layer2", "layer3", "layer4")
MOBILENET_LAYERS = ("features.1", "features.3", "features.6", "features.13", "features.18")


@pytest.mark.parametrize(
    ("name", "layers"),
    [("mobilenet_v2", MOBILENET_LAYERS), ("resnet18", RESNET_LAYERS), ("resnet50", RESNET_LAYERS)],
)
def test_features_equal_torchvision(name, layers, torchvision, randomise):
    theirs = randomise(torchvision.models.get_model(name, weights=None))
    assert feature_error(BACKBONES[name](), theirs, layers, pictures(1, 75, 97)) < 1e-4


def test_undilated_first_blocks_are_the_rule_of_torchvision(torchvision, randomise):
    dilated = [False, True, True]
    theirs = randomise(torchvision.models.resnet50(weights=None, replace_stride_with_dilation=dilated))
    backbone = BACKBONES["resnet50"](output_stride=8, dilate_first_block=False)
    assert feature_error(backbone, theirs, RESNET_LAYERS, pictures(1, 75, 97)) < 1e-4
