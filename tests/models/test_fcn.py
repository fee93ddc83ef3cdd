"""FCN: counts of the published networks, deconvolution as bilinear resizing, and what the logits depend on."""

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
    shapes,
    strides_heard,
)

from jaxseg.errors import UserError
from jaxseg.models import create_model
from jaxseg.models.backbones.vgg import vgg16_bn
from jaxseg.models.fcn import FCN, FCNVGG, bilinear_kernel, upsample
from jaxseg.models.layers import ConvTranspose, resize_bilinear

SIZES = [(32, 32), (33, 47), (360, 480), (101, 64)]

# ------------------------------------------------------------------------------------------------- dilated backbones

# torchvision 0.28.0, 21 classes: without and with the auxiliary head, trainable and float buffers.
COUNTS = {
    ("resnet50", False): (32_957_013, 54_144),
    ("resnet50", True): (35_322_218, 54_656),
    ("resnet101", False): (51_949_141, 106_368),
    ("resnet101", True): (54_314_346, 106_880),
}


@pytest.mark.parametrize(("backbone", "aux_head"), COUNTS)
def test_counts_are_those_of_torchvision(backbone, aux_head):
    trainable, _, statistics = counts(create_model("fcn", backbone=backbone, num_classes=21, aux_head=aux_head))
    assert (trainable, statistics) == COUNTS[backbone, aux_head]


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("image_size", SIZES)
def test_logits_are_as_large_as_the_images(image_size, output_stride):
    model = create_model("fcn", backbone="mobilenet_v2", num_classes=5, output_stride=output_stride)
    logits, _ = shapes(model, image_size)
    assert (logits.shape, logits.dtype) == ((2, *image_size, 5), jnp.float32)


@pytest.mark.parametrize("family", ["fcn", "deeplabv3"])
def test_auxiliary_logits_are_sown_at_full_size_and_no_variables(family):
    model = create_model(family, backbone="resnet18", num_classes=5, aux_head=True, dtype="bfloat16")
    images = jax.ShapeDtypeStruct((2, 33, 47, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    assert variables.keys() == {"params", "batch_stats"}
    logits, updates = jax.eval_shape(lambda v, x: model.apply(v, x, train=False, mutable=["aux"]), variables, images)
    (aux,) = updates["aux"]["logits"]
    assert aux.shape == logits.shape == (2, 33, 47, 5)
    assert aux.dtype == logits.dtype == jnp.float32


def small(**fields) -> FCN:
    return FCN(Pools(8), 3, in_channels=8, **fields)


def test_the_auxiliary_head_hears_its_feature_and_no_other():
    model, images = small(aux_head=True, aux_feature=2), random_images(2, 64, 64, 8)
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))(images)

    @jax.jit
    def grads(params):
        def loss(params):
            _, updates = model.apply({**variables, "params": params}, images, train=False, mutable=["aux"])
            (aux,) = updates["aux"]["logits"]
            return (aux * jnp.cos(jnp.arange(aux.size)).reshape(aux.shape)).sum()

        return jax.grad(loss)(params)

    by_feature = {name: np.abs(value).max() for name, value in grads(variables["params"])["backbone"].items()}
    assert {name for name, value in by_feature.items() if value > 0} == {"at_8"}


def test_the_logits_hear_the_last_feature_and_no_other():
    assert strides_heard(small(), random_images(2, 64, 64, 8)) == {32}


def test_an_image_is_scored_alike_in_any_batch():
    check_scores_alike_in_any_batch(small(), random_images(3, 48, 80, 8))


@pytest.mark.nightly
def test_it_learns_two_images_by_heart():
    model = create_model("fcn", backbone="resnet18", num_classes=3, dropout=0.0, aux_head=True)
    accuracy, loss = learn_two_images_by_heart(model)
    assert accuracy > 0.99
    assert loss < 0.15  # of both heads


# ----------------------------------------------------------------------------------------------------------- on VGG-16


def fcn_vgg(num_classes: int = 21, **options) -> FCNVGG:
    return create_model("fcn", backbone="vgg16", num_classes=num_classes, **options)


# 21 classes; the narrow form has 512 channels in fc6 and fc7.
@pytest.mark.parametrize(
    ("stride", "learned", "fixed", "narrow"),
    [
        (32, 136_152_917, 134_346_581, 29_640_021),
        (16, 134_815_994, 134_357_354, 28_303_098),
        (8, 134_489_759, 134_362_751, 27_976_863),
    ],
)
def test_counts_on_vgg_are_those_of_the_paper(stride, learned, fixed, narrow):
    assert counts(fcn_vgg(stride=stride, learned_upsampling=True)) == (learned, 14_714_688, 0)
    assert counts(fcn_vgg(stride=stride))[0] == fixed
    assert counts(fcn_vgg(stride=stride, at_once=True))[0] == fixed
    assert counts(fcn_vgg(stride=stride, learned_upsampling=True, width=512))[0] == narrow


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("image_size", SIZES)
def test_logits_on_vgg_are_as_large_as_the_images(image_size, stride):
    logits, variables = shapes(fcn_vgg(5, stride=stride, learned_upsampling=True, dtype="bfloat16"), image_size)
    assert (logits.shape, logits.dtype) == ((2, *image_size, 5), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("factor", [2, 8, 16, 32])
def test_deconvolution_is_bilinear_resizing_inside_the_border(factor):
    x = random_images(2, 4, 5, 3)
    kernel = bilinear_kernel(jax.random.key(0), (2 * factor, 2 * factor, 3, 3))
    deconvolution = ConvTranspose(3, 2 * factor, factor, factor // 2, use_bias=False)
    y = deconvolution.apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_allclose(upsample(x, factor), y, atol=1e-5)
    due = resize_bilinear(x, (4 * factor, 5 * factor), align_corners=False)
    inside = np.s_[:, factor // 2 : -factor // 2, factor // 2 : -factor // 2]
    np.testing.assert_allclose(y[inside], due[inside], atol=1e-5)
    # Half a pixel from the border both have the border's value, of which the deconvolution has lost a part.
    assert np.abs(y[:, 0] / due[:, 0] - (0.5 + 0.5 / factor)).min() < 1e-3


def small_vgg(**fields) -> FCNVGG:
    return FCNVGG(Pools(), 3, **{"width": 8, **fields})


@pytest.mark.parametrize(("stride", "heard"), [(32, {32}), (16, {8, 32}), (8, {4, 8, 32})])
def test_the_logits_on_vgg_hear_the_poolings_that_their_stride_asks_for(stride, heard):
    """pool3 and pool4 are the poolings of the features at strides 4 and 8."""
    assert strides_heard(small_vgg(stride=stride), random_images(2, 64, 64, 3)) == heard


@pytest.mark.parametrize("learned", [False, True])
def test_an_image_is_scored_alike_on_vgg_in_any_batch(learned):
    check_scores_alike_in_any_batch(small_vgg(learned_upsampling=learned), random_images(3, 48, 80, 3))


def test_an_odd_image_is_scored_as_the_one_padded_with_zeros():
    model, images = small_vgg(), random_images(1, 41, 70, 3)
    variables = model.init(jax.random.key(0), images, train=False)
    padded = np.pad(images, ((0, 0), (0, 23), (0, 26), (0, 0)))
    due = model.apply(variables, padded, train=False)[:, :41, :70]
    np.testing.assert_array_equal(model.apply(variables, images, train=False), due)


def test_scores_of_shallow_layers_are_scaled_in_the_form_that_is_trained_at_once():
    """By 0.01 and 0.0001, so that a layer's kernel has the size that the layers behind it have."""
    model, images = small_vgg(at_once=True), random_images(1, 64, 64, 3)
    variables = model.init(jax.random.key(0), images, train=False)
    params = dict(variables["params"])
    for name, scale in (("score_pool4", 0.01), ("score_pool3", 0.0001)):
        params[name] = {**params[name], "kernel": params[name]["kernel"] * scale}
    due = small_vgg().apply({"params": params}, images, train=False)
    np.testing.assert_allclose(model.apply(variables, images, train=False), due, atol=1e-6)


def test_learned_deconvolutions_begin_as_the_fixed_ones():
    images = random_images(1, 64, 64, 3)
    model = small_vgg(learned_upsampling=True)
    variables = model.init(jax.random.key(0), images, train=False)
    assert count(variables["params"]["up"]) == 16 * 16 * 3 * 3
    fixed = {name: value for name, value in variables["params"].items() if not name.startswith("up")}
    due = small_vgg().apply({"params": fixed}, images, train=False)
    np.testing.assert_allclose(model.apply(variables, images, train=False), due, atol=1e-5)


def test_a_stride_that_there_is_not_is_refused():
    with pytest.raises(UserError, match=r"stride.* is 4.*8, 16, 32"):
        fcn_vgg(stride=4)
    with pytest.raises(UserError, match=r"output_stride is 16.*see its option stride"):
        fcn_vgg(output_stride=16)


@pytest.mark.nightly
def test_it_learns_two_images_by_heart_on_vgg():
    model = FCNVGG(vgg16_bn(width=64), 3, width=64, dropout=0.0)
    accuracy, loss = learn_two_images_by_heart(model, learning_rate=1e-3)
    assert accuracy > 0.99
    assert loss < 0.1
