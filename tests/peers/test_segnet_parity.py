"""SegNet against PyTorch's layers put together anew, with the same random weights: no library has it."""

import jax
import numpy as np
import pytest
from parity import arrays, pictures, relative_error, to_ours, to_theirs
from rebuilt import check_rebuilt, random_variables

from jaxseg.models import create_model
from jaxseg.models.backbones import vgg
from jaxseg.models.pretrained import read_weights
from jaxseg.models.segnet import SegNet

pytestmark = pytest.mark.peers


def segnet(layers, x):
    functional, places = layers.torch.nn.functional, []
    for i, (count, _) in enumerate(vgg.STAGES, start=1):
        for j in range(1, count + 1):
            x = layers.conv_bn(x, "backbone", f"conv{i}_{j}").relu()
        size = x.shape
        x, indices = functional.max_pool2d(x, 2, return_indices=True)
        places.append((indices, size))
    for i, (count, _) in reversed(list(enumerate(vgg.STAGES, start=1))):
        indices, size = places[i - 1]
        x = functional.max_unpool2d(x, indices, 2, output_size=size)
        for j in range(count, 0, -1):
            x = layers.conv(x, "classifier") if i == j == 1 else layers.conv_bn(x, f"decoder{i}_{j}").relu()
    return x


def basic(layers, x):
    functional, places = layers.torch.nn.functional, []
    x = layers.torch.nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)(x)
    for i in range(4):
        x = layers.conv_bn(x, f"encoder_{i}").relu()
        size = x.shape
        x, indices = functional.max_pool2d(x, 2, return_indices=True)
        places.append((indices, size))
    for i, (indices, size) in reversed(list(enumerate(places))):
        x = layers.conv_bn(functional.max_unpool2d(x, indices, 2, output_size=size), f"decoder_{i}")
    return layers.conv(x, "classifier")


def constant(layers, x):
    functional, places = layers.torch.nn.functional, []

    def conv(x, name):
        return layers.batch_norm(layers.conv(x, name, "conv").relu(), name, "bn")

    for i, count in enumerate((2, 2, 3, 3, 3), start=1):
        for j in range(count):
            x = conv(x, f"encoder{i}_{j + 1}")
        size = x.shape
        x, indices = functional.max_pool2d(x, 2, return_indices=True)
        places.append((count, indices, size))
    for i, (count, indices, size) in reversed(list(enumerate(places, start=1))):
        x = functional.max_unpool2d(x, indices, 2, output_size=size)
        for j in reversed(range(count)):
            x = conv(x, f"decoder{i}_{j + 1}")
    return layers.conv(x, "classifier")


FORMS = {
    "vgg": (SegNet(vgg.VGG(batch_norm=True, width=8), 5), segnet),
    "basic": (create_model("segnet", backbone="basic", num_classes=5, features=8), basic),
    "constant": (create_model("segnet", backbone="constant", num_classes=5, width=8), constant),
}


@pytest.mark.parametrize(
    ("form", "train"),
    [("vgg", False), ("vgg", True), ("basic", False), ("basic", True), ("constant", False)],
)
def test_segnet_equals_its_rebuild(form, train, torch):
    ours, rebuild = FORMS[form]
    # In training the last pooling must leave more than a value or two to normalise.
    check_rebuilt(ours, rebuild, (2, 65, 98) if train else (2, 45, 71), train)


def test_torchvisions_classifier_is_the_encoder(torchvision, randomise):
    """Full size: the features under the last pooling, and where the maxima were."""
    theirs = randomise(torchvision.models.vgg16_bn(weights=None)).eval()
    ours = create_model("segnet", backbone="vgg16_bn", num_classes=5)
    variables = read_weights(ours, arrays(theirs.state_dict())).into(random_variables(ours))
    images = pictures(1, 64, 96)

    @jax.jit
    def encode(variables, images):
        variables = {collection: tree["backbone"] for collection, tree in variables.items()}
        return ours.backbone.apply(variables, images, train=False, with_places=True)

    x, places = encode(variables, images)
    due, their_places = to_theirs(images), []
    for layer in theirs.features:
        if type(layer).__name__ == "MaxPool2d":
            layer.return_indices = True
            width = due.shape[3]
            due, indices = layer(due)
            their_places.append((to_ours(indices), width))
        else:
            due = layer(due)
    assert relative_error(x, to_ours(due)) <= 1e-4
    for (ours, _), (indices, width) in zip(places, their_places, strict=True):
        row, column = np.divmod(indices, width)
        # Rounding may turn a pair of nearly equal values.
        assert np.mean(np.asarray(ours) != row % 2 * 2 + column % 2) < 1e-3
