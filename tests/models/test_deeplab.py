"""DeepLabV3 and DeepLabV3+: counts of the published networks, shapes, and what the logits depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_checks import (
    Pools,
    check_scores_alike_in_any_batch,
    count,
    counts,
    learn_two_images_by_heart,
    random_images,
    score_two_images,
    shapes,
    strides_heard,
    train_on_two_images,
)

from jaxseg.errors import UserError
from jaxseg.models import create_model
from jaxseg.models.deeplab import DeepLabV3, DeepLabV3Plus
from jaxseg.models.pretrained import smp, torchvision

# segmentation_models_pytorch 0.6.0, 21 classes: trainable, of which encoder; float buffers.
COUNTS = {
    "mobilenet_v2": (4_383_653, 2_223_872, 38_304),
    "resnet18": (12_334_437, 11_176_512, 13_792),
    "resnet34": (22_442_597, 21_284_672, 21_216),
    "resnet50": (26_682_725, 23_508_032, 57_312),
    "resnet101": (45_674_853, 42_500_160, 109_536),
}


# DeepLabV3 of SMP and of torchvision: the same numbers on the two ResNets that both have.
V3_COUNTS = {
    "mobilenet_v2": (12_653_077, 2_223_872, 37_696),
    "resnet18": (15_904_085, 11_176_512, 13_184),
    "resnet34": (26_012_245, 21_284_672, 20_608),
    "resnet50": (39_638_869, 23_508_032, 56_704),
    "resnet101": (58_630_997, 42_500_160, 108_928),
}
# torchvision 0.28.0, with the auxiliary head: trainable, float buffers.
V3_AUX_COUNTS = {
    "resnet50": (42_004_074, 57_216),
    "resnet101": (60_996_202, 109_440),
    "mobilenet_v3_large": (11_029_328, 28_004),
}


def deeplabv3(backbone: str = "resnet18", num_classes: int = 21, **options):
    return create_model("deeplabv3", backbone=backbone, num_classes=num_classes, **options)


def deeplab(backbone: str = "resnet18", num_classes: int = 21, **options):
    return create_model("deeplabv3plus", backbone=backbone, num_classes=num_classes, **options)


@pytest.mark.parametrize("backbone", COUNTS)
def test_counts_are_those_of_the_published_network(backbone):
    assert counts(deeplab(backbone)) == COUNTS[backbone]


@pytest.mark.parametrize("backbone", V3_COUNTS)
def test_counts_of_deeplabv3_are_those_of_both_references(backbone):
    assert counts(deeplabv3(backbone)) == V3_COUNTS[backbone]


@pytest.mark.parametrize("backbone", V3_AUX_COUNTS)
def test_counts_of_deeplabv3_with_its_auxiliary_head_are_those_of_torchvision(backbone):
    aux = {"aux_feature": 2 if backbone == "mobilenet_v3_large" else 3}
    trainable, _, statistics = counts(deeplabv3(backbone, aux_head=True, **aux))
    assert (trainable, statistics) == V3_AUX_COUNTS[backbone]


def test_counts_on_xception_are_those_of_the_form_of_the_authors():
    """As bonlime/keras-deeplab-v3-plus has it: one class, and 257 parameters more with every other."""
    form = {"rates": (6, 12, 18), "aspp_out": False, "decoder_convs": 2, "norm_between": True, "dropout": 0.1}
    for num_classes in (1, 2, 21):
        trainable, _, statistics = counts(deeplab("xception65", num_classes, **form))
        assert (trainable, statistics) == (41_050_273 + 257 * (num_classes - 1), 202_800)


# Of a project on VOC: up to `block_13_expand_relu` of Keras' MobileNetV2, a pyramid of two rates and no more.
ON_EXPANDED = {
    "backbone": "mobilenet_v2",
    "backbone_options": {"expanded_features": True},
    "output_stride": 32,
    "depth": 4,
    "rates": (6, 12),
    "features": 128,
    "aspp_out": False,
}


def test_counts_on_expanded_features_are_those_of_the_rebuilt_network():
    trainable, backbone, statistics = counts(deeplabv3(**ON_EXPANDED))
    assert (trainable, backbone, trainable + statistics) == (2_143_061, 598_976, 2_161_621)


def test_a_depth_that_can_not_be_is_refused():
    with pytest.raises(UserError, match=r"depth .*is 2.*3, 4, 5"):
        shapes(deeplabv3(depth=2))
    with pytest.raises(UserError, match="aux_feature is 3, and depth 3: it must be less"):
        shapes(deeplabv3(depth=3, aux_head=True))


def test_plain_atrous_convolutions_have_the_parameters_of_full_kernels():
    _, separable = shapes(deeplab())
    _, plain = shapes(deeplab(separable=False))
    channels, features = 512, 256
    more = 3 * (9 * channels * features - (9 * channels + channels * features))
    assert count(plain["params"]) - count(separable["params"]) == more
    assert plain["params"]["aspp"]["atrous_0"]["conv"]["kernel"].shape == (3, 3, channels, features)


@pytest.mark.parametrize("family", [deeplabv3, deeplab])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("image_size", [(32, 32), (33, 47), (360, 480), (101, 64)])
def test_logits_are_as_large_as_the_images(image_size, output_stride, family):
    logits, _ = shapes(family("mobilenet_v2", 5, output_stride=output_stride), image_size)
    assert logits.shape == (2, *image_size, 5)
    assert logits.dtype == jnp.float32


def test_computing_in_bfloat16_gives_float32_logits_from_float32_variables():
    logits, variables = shapes(deeplab("mobilenet_v2", dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, variables))} == {jnp.dtype(jnp.float32)}


def small(**fields) -> DeepLabV3Plus:
    return DeepLabV3Plus(Pools(), 3, rates=(1, 2, 3), features=8, **fields)


def test_options_of_the_decoder_add_and_take_away_what_they_are_named_for():
    def kernels(**fields):
        _, variables = shapes(small(**fields))
        return {"/".join(key.key for key in path) for path, _ in jax.tree.leaves_with_path(variables["params"])}

    names = kernels()
    assert {name.split("/")[0] for name in names - kernels(aspp_out=False)} == {"aspp_out"}
    assert {name.split("/")[0] for name in kernels(decoder_convs=2) - names} == {"fuse_2"}
    assert kernels(decoder_separable=False) - names == {"aspp_out/conv/kernel", "fuse/conv/kernel"}
    separables = {"aspp/atrous_0", "aspp/atrous_1", "aspp/atrous_2", "aspp_out", "fuse"}
    assert {name.rpartition("/depthwise_bn/")[0] for name in kernels(norm_between=True) - names} == separables


@pytest.mark.parametrize("option", [{"aspp_out": False}, {"decoder_convs": 2}, {"skip_first": True}])
def test_other_forms_are_not_given_the_names_of_a_library_that_has_them_not(option):
    assert smp.model_layout(deeplab()) is not None
    assert smp.model_layout(deeplab(**option)) is None


@pytest.mark.parametrize("fields", [{"depth": 4}, {"rates": (6, 12)}, {"aspp_out": False}])
def test_other_forms_of_deeplabv3_are_not_given_the_names_of_a_library_that_has_them_not(fields):
    assert torchvision.model_layout(deeplabv3("resnet50")) is not None
    assert smp.model_layout(deeplabv3()) is not None
    assert smp.model_layout(deeplabv3(**fields)) is None
    # Any number of rates is one of torchvision's own.
    assert (torchvision.model_layout(deeplabv3("resnet50", **fields)) is not None) == ("rates" in fields)


@pytest.mark.parametrize(("depth", "stride"), [(5, 32), (4, 16), (3, 8)])
def test_deeplabv3_hears_the_feature_of_its_depth_and_no_other(depth, stride):
    model = DeepLabV3(Pools(), 3, rates=(1, 2), features=8, depth=depth)
    assert strides_heard(model, random_images(2, 64, 64, 3)) == {stride}


def test_deeplabv3_scores_an_image_alike_in_any_batch():
    model = DeepLabV3(Pools(8), 3, rates=(1, 2, 3), features=8)
    check_scores_alike_in_any_batch(model, random_images(3, 48, 80, 3))


def test_the_logits_hear_the_skip_and_the_last_feature_and_no_other():
    assert strides_heard(small(), random_images(2, 64, 64, 3)) == {4, 32}


def test_an_image_is_scored_alike_in_any_batch():
    check_scores_alike_in_any_batch(small(), random_images(3, 48, 80, 3))


def test_in_training_dropout_and_batch_statistics_are_at_work():
    model, images = small(dropout=0.5), random_images(2, 32, 32, 3)
    variables = model.init(jax.random.key(0), images, train=False)

    @jax.jit
    def apply(key):
        return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key})

    logits, updates = apply(jax.random.key(0))
    again, _ = apply(jax.random.key(0))
    other, other_updates = apply(jax.random.key(1))
    np.testing.assert_array_equal(logits, again)
    assert np.abs(logits - other).max() > 1e-3
    # What comes before the dropout is blind to it.
    before = updates["batch_stats"]["aspp"]
    assert jax.tree.all(jax.tree.map(np.array_equal, before, other_updates["batch_stats"]["aspp"]))
    assert np.abs(before["conv"]["bn"]["mean"]).max() > 0


def test_it_learns_two_images_by_heart_and_says_the_same_in_bfloat16():
    fields = {"num_classes": 3, "features": 32, "rates": (1, 2, 3), "dropout": 0.0}
    model = deeplab(**fields)
    variables, loss = train_on_two_images(model)
    result = score_two_images(model, variables)
    assert np.trace(result["counts"]) / result["counts"].sum() > 0.99
    assert loss < 0.1
    halved = score_two_images(deeplab(**fields, dtype="bfloat16"), variables)
    assert np.abs(halved["loss_sum"] - result["loss_sum"]) > 0
    assert (halved["preds"] != result["preds"]).mean() < 0.01


@pytest.mark.nightly
def test_deeplabv3_learns_two_images_by_heart():
    model = deeplabv3(num_classes=3, features=32, rates=(1, 2, 3), dropout=0.0, align_corners=False)
    accuracy, loss = learn_two_images_by_heart(model, steps=80)
    assert accuracy > 0.99
    assert loss < 0.1
