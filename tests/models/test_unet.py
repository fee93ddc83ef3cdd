"""U-Net: counts of the published networks, shapes, and what the logits depend on."""

import functools

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

from jaxseg.errors import UserError
from jaxseg.models import create_model
from jaxseg.models.unet import PlainUNet, UNet

# segmentation_models_pytorch 0.6.0, 21 classes: trainable, of which encoder; float buffers.
COUNTS = {
    "vgg16": (23_751_141, 14_714_688, 4_032),
    "vgg16_bn": (23_759_589, 14_723_136, 12_480),
    "mobilenet_v2": (6_631_845, 2_223_872, 36_096),
    "resnet18": (14_331_109, 11_176_512, 11_584),
    "resnet34": (24_439_269, 21_284_672, 19_008),
    "resnet50": (32_524_005, 23_508_032, 55_104),
    "resnet101": (51_516_133, 42_500_160, 107_328),
}
# The plain network, by its fields: trainable parameters and float buffers.
PLAIN = [
    ((31_030_658, 0), {"num_classes": 2, "in_channels": 1}),
    ((31_030_658, 0), {"num_classes": 2, "in_channels": 1, "upsampling": "nearest"}),
    ((31_042_434, 11_776), {"num_classes": 2, "in_channels": 1, "batch_norm": True}),
    ((31_036_546, 11_776), {"num_classes": 2, "in_channels": 1, "batch_norm": True, "conv_bias": False}),
    ((31_037_698, 11_776), {"num_classes": 2, "batch_norm": True, "conv_bias": False}),
    ((31_033_045, 0), {}),
    ((31_044_821, 11_776), {"batch_norm": True}),
    ((31_038_933, 11_776), {"batch_norm": True, "conv_bias": False}),
    ((31_392_021, 11_776), {"batch_norm": True, "upsampling": "bilinear"}),
    ((31_380_245, 0), {"upsampling": "bilinear"}),
    ((7_766_645, 5_888), {"batch_norm": True, "width": 32}),
    ((1_944_389, 2_944), {"batch_norm": True, "width": 16}),
    # Three poolings, of a project on aerial images.
    ((7_788_935, 5_632), {"num_classes": 7, "batch_norm": True, "depth": 3, "upsampling": "bilinear"}),
    # 16 filters, of a project on nuclei: as it ran, with one convolution of each block at work, and as it was meant.
    ((1_177_937, 1_472), {"num_classes": 1, "batch_norm": True, "width": 16, "convs": 1, "up_kernel_size": 3}),
    ((2_161_649, 2_944), {"num_classes": 1, "batch_norm": True, "width": 16, "up_kernel_size": 3}),
]
PLAIN_FORMS = [
    {},
    {"up_kernel_size": 3, "batch_norm": True},
    {"upsampling": "nearest", "depth": 5},
    {"upsampling": "bilinear", "depth": 3, "convs": 1},
]
SIZES = [(32, 32), (33, 47), (360, 480), (101, 64)]


def unet(backbone: str = "resnet18", num_classes: int = 21, **options):
    return create_model("unet", backbone=backbone, num_classes=num_classes, **options)


@pytest.mark.parametrize("backbone", COUNTS)
def test_counts_are_those_of_the_published_network(backbone):
    assert counts(unet(backbone)) == COUNTS[backbone]


@pytest.mark.parametrize(("num_classes", "due"), [(12, 23_749_836), (1, 23_748_241)])
def test_counts_on_vgg_are_those_of_keras_segmentation_models_too(num_classes, due):
    trainable, _, statistics = counts(unet("vgg16", num_classes))
    assert (trainable, trainable + statistics) == (due, due + 4_032)


@pytest.mark.parametrize(("due", "fields"), PLAIN)
def test_plain_counts_are_those_of_the_published_networks(due, fields):
    trainable, _, buffers = counts(unet("plain", **fields))
    assert (trainable, buffers) == due


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("image_size", SIZES)
def test_logits_are_as_large_as_the_images(image_size, output_stride):
    logits, _ = shapes(unet("mobilenet_v2", 5, output_stride=output_stride), image_size)
    assert logits.shape == (2, *image_size, 5)
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize("fields", PLAIN_FORMS)
@pytest.mark.parametrize("image_size", SIZES)
def test_plain_logits_are_as_large_as_the_images(image_size, fields):
    logits, variables = shapes(unet("plain", 5, in_channels=4, dtype="bfloat16", **fields), image_size)
    assert logits.shape == (2, *image_size, 5)
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, variables))} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"upsampling": "cubic"}, "upsampling .*'cubic'.*transposed, nearest, bilinear"),
        ({"depth": 7}, "depth .*is 7: .*1 to 6"),
    ],
)
def test_a_plain_network_that_can_not_be_is_refused(fields, words):
    with pytest.raises(UserError, match=words):
        shapes(unet("plain", 5, **fields))


@pytest.mark.parametrize("center", [True, False])
def test_the_center_can_be_asked_for_and_left_out(center):
    backbones = ("vgg16_bn", "resnet18")
    assert {"center" in shapes(unet(backbone, center=center))[1]["params"] for backbone in backbones} == {center}


def small(**fields) -> UNet:
    return UNet(Pools(), 3, features=(16, 8, 8, 8, 8), **fields)


def test_the_logits_hear_every_feature():
    assert strides_heard(small(), random_images(2, 64, 64, 3)) == {2, 4, 8, 16, 32}


def plain(**fields) -> PlainUNet:
    return PlainUNet(3, **{"width": 8, "depth": 2, "batch_norm": True, **fields})


def test_every_level_of_the_plain_network_has_a_part_in_the_logits():
    model, images = plain(dropout=0.0), random_images(2, 37, 50, 3)
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))(images)

    @jax.jit
    def grads(params):
        def loss(params):
            logits, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return (logits * jnp.cos(jnp.arange(logits.size)).reshape(logits.shape)).sum()

        return jax.grad(loss)(params)

    flat = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads(variables["params"]))
    }
    # Half of what the first convolution of a decoder block sees is the skip, or less where channels were kept.
    for level in range(2):
        skip = flat[f"['decoder_{level}']['conv1']['conv']['kernel']"][:, :, : 8 * 2**level]
        flat[f"skip {level}"] = skip
    sizes = {name: np.abs(leaf).max() for name, leaf in flat.items() if leaf.ndim == 4}
    assert min(sizes.values()) > 1e-3, sizes


def test_plain_dropout_is_at_work_in_training_alone():
    model, images = plain(depth=1), random_images(1, 32, 32, 3)
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))(images)

    @functools.partial(jax.jit, static_argnames="train")
    def apply(key, train):
        return model.apply(variables, images, train=train, mutable=["batch_stats"], rngs={"dropout": key})[0]

    assert np.abs(apply(jax.random.key(0), True) - apply(jax.random.key(1), True)).max() > 1e-3
    np.testing.assert_array_equal(apply(jax.random.key(0), False), apply(jax.random.key(1), False))


def test_an_image_is_scored_alike_in_any_batch():
    check_scores_alike_in_any_batch(small(), random_images(3, 48, 80, 3))


@pytest.mark.nightly
def test_it_learns_two_images_by_heart():
    accuracy, loss = learn_two_images_by_heart(
        unet("vgg16_bn", 3, features=(32, 16, 16, 16, 16), backbone_options={"width": 16})
    )
    assert accuracy > 0.99
    assert loss < 0.1


def test_the_plain_network_learns_two_images_by_heart():
    accuracy, loss = learn_two_images_by_heart(plain(width=16, dropout=0.0))
    assert accuracy > 0.99
    assert loss < 0.1
