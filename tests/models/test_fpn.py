"""Semantic FPN: counts of the published networks, shapes, and what the logits depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_checks import (
    Pools,
    check_scores_alike_in_any_batch,
    counts,
    learn_two_images_by_heart,
    random_images,
    shapes,
    strides_heard,
)
from flax import linen as nn

from jaxseg.errors import UserError
from jaxseg.models import create_model
from jaxseg.models.fpn import FPN
from jaxseg.models.pretrained import smp

# segmentation_models_pytorch 0.6.0, 21 classes: trainable, of which encoder; float buffers.
COUNTS = {
    "vgg16": (16_800_981, 14_714_688, 0),
    "vgg16_bn": (16_809_429, 14_723_136, 8_448),
    "mobilenet_v2": (4_218_005, 2_223_872, 34_112),
    "resnet18": (13_049_813, 11_176_512, 9_600),
    "resnet34": (23_157_973, 21_284_672, 17_024),
    "resnet50": (26_118_613, 23_508_032, 53_120),
    "resnet101": (45_110_741, 42_500_160, 105_344),
}
SIZES = [(32, 32), (33, 47), (360, 480), (101, 64)]


def fpn(backbone: str = "resnet18", num_classes: int = 21, **options):
    return create_model("fpn", backbone=backbone, num_classes=num_classes, **options)


@pytest.mark.parametrize("backbone", COUNTS)
def test_counts_are_those_of_the_published_network(backbone):
    assert counts(fpn(backbone)) == COUNTS[backbone]


# Keras' segmentation_models 1.0.1, on MobileNet: classes, trainable, statistics.
KERAS = {
    "merge": "cat",
    "finest": 1,
    "norm": "batch",
    "convs": 2,
    "upsampling": "nearest",
    "conv_head": True,
    "align_corners": False,
    "dropout": 0.0,
}


@pytest.mark.parametrize(("num_classes", "due"), [(12, 6_091_596), (21, 6_101_973)])
def test_counts_of_keras_form_are_those_of_its_library(num_classes, due):
    trainable, _, statistics = counts(fpn("mobilenet_v1", num_classes, **KERAS))
    assert (trainable, trainable + statistics) == (due, due + 24_192)


def test_concatenation_only_widens_the_classifier():
    assert counts(fpn(merge="cat"))[0] - counts(fpn())[0] == 3 * 128 * 21


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("image_size", SIZES)
def test_logits_are_as_large_as_the_images(image_size, output_stride):
    logits, _ = shapes(fpn("mobilenet_v2", 5, output_stride=output_stride), image_size)
    assert logits.shape == (2, *image_size, 5)
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize("image_size", SIZES)
def test_logits_of_keras_form_are_as_large_as_the_images(image_size):
    logits, _ = shapes(fpn("mobilenet_v2", 5, **KERAS), image_size)
    assert logits.shape == (2, *image_size, 5)
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"merge": "sum"}, r"merge .*'sum'.*add.*cat"),
        ({"norm": "layer"}, r"norm .*'layer'.*group, batch"),
        ({"upsampling": "cubic"}, r"upsampling .*'cubic'.*bilinear, nearest"),
        ({"finest": 3}, "finest .*is 3: .*1, 2"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(fields, words):
    with pytest.raises(UserError, match=words):
        shapes(fpn(**fields))


@pytest.mark.parametrize("option", [{"norm": "batch"}, {"finest": 1}, {"convs": 2}, {"conv_head": True}])
def test_other_forms_are_not_given_the_names_of_a_library_that_has_them_not(option):
    assert smp.model_layout(fpn()) is not None
    assert smp.model_layout(fpn(**option)) is None


def small(**fields) -> FPN:
    return FPN(Pools(), 3, pyramid_features=16, features=32, **fields)


def test_keras_form_hears_every_feature_and_keeps_statistics():
    model = small(**KERAS)
    assert strides_heard(model, random_images(2, 64, 64, 3)) == {2, 4, 8, 16, 32}
    assert counts(model)[2] == 2 * 32 * (4 * 2 + 1)


@pytest.mark.parametrize("merge", ["add", "cat"])
def test_the_logits_hear_every_feature_but_the_finest(merge):
    assert strides_heard(small(merge=merge), random_images(2, 64, 64, 3)) == {4, 8, 16, 32}


@pytest.mark.parametrize("fields", [{}, KERAS])
def test_an_image_is_scored_alike_in_any_batch(fields):
    check_scores_alike_in_any_batch(small(**fields), random_images(3, 48, 80, 3))


def test_dropout_leaves_out_whole_channels_of_what_was_merged():
    model, images = small(dropout=0.5), random_images(2, 32, 32, 3)

    @jax.jit
    def dropped(images):
        variables = model.init(jax.random.key(0), images, train=False)
        rngs, kept = {"dropout": jax.random.key(0)}, lambda module, _: isinstance(module, nn.Dropout)
        _, updates = model.apply(
            variables, images, train=True, rngs=rngs, capture_intermediates=kept, mutable=["intermediates"]
        )
        return jax.tree.leaves(updates)

    (x,) = dropped(images)
    gone = (np.asarray(x) == 0).all(axis=(1, 2))
    assert 0.3 < gone.mean() < 0.7
    assert not np.array_equal(*gone)


@pytest.mark.nightly
def test_it_learns_two_images_by_heart():
    accuracy, loss = learn_two_images_by_heart(fpn(num_classes=3, pyramid_features=64, features=32, dropout=0.0))
    assert accuracy > 0.99
    assert loss < 0.1
