"""Strides, dilations, sizes and channels of the backbones; hardly any arithmetic is done."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxseg.models import create_model
from jaxseg.models.backbones import BACKBONES, OUTPUT_STRIDES, mobilenet_v3, vgg, xception
from jaxseg.models.backbones.stages import Stage, plan
from jaxseg.models.layers import Conv, max_pool_with_places
from jaxseg.models.pretrained import BACKBONE_LAYOUTS, MODEL_LAYOUTS

RESNET, MOBILENET = [1, 2, 2, 2], [1, 2, 2, 2, 1, 2, 1]

CHANNELS = {
    "vgg16": (128, 256, 512, 512, 512),
    "vgg16_bn": (128, 256, 512, 512, 512),
    "mobilenet_v1": (64, 128, 256, 512, 1024),
    "mobilenet_v2": (16, 24, 32, 96, 1280),
    "mobilenet_v3_large": (16, 24, 40, 112, 960),
    "mobilenet_v3_small": (16, 16, 24, 48, 576),
    "resnet18": (64, 64, 128, 256, 512),
    "resnet34": (64, 64, 128, 256, 512),
    "resnet50": (64, 256, 512, 1024, 2048),
    "resnet101": (64, 256, 512, 1024, 2048),
    "xception": (128, 256, 728, 1024, 2048),
    "xception65": (128, 256, 728, 1024, 2048),
}


def up(size: int) -> int:
    return -(-size // 2)


def down(size: int) -> int:
    return size // 2


# How a size is halved for the first time, and every other time; both by rounding up where nothing stands here.
HALVED = {
    "vgg16": (down, down),
    "vgg16_bn": (down, down),
    "mobilenet_v1": (up, down),
    "xception": (lambda size: down(size - 1) - 2, up),  # two convolutions without padding
}

# Trainable, and running statistics: of torchvision's and Keras applications' networks without top, and of the port of
# DeepLabV3+'s.
COUNTS = {
    "vgg16": (14_714_688, 0),
    "vgg16_bn": (14_723_136, 8_448),
    "mobilenet_v1": (3_206_976, 21_888),
    "mobilenet_v2": (2_223_872, 34_112),
    "mobilenet_v3_large": (2_971_952, 24_400),
    "mobilenet_v3_small": (927_008, 12_112),
    "resnet18": (11_176_512, 9_600),
    "resnet34": (21_284_672, 17_024),
    "resnet50": (23_508_032, 53_120),
    "resnet101": (42_500_160, 105_344),
    "xception": (20_806_952, 54_528),
    "xception65": (37_867_312, 185_200),
}


def sizes(name: str, size: int, output_stride: int) -> list[int]:
    """Of the five features."""
    first, then = HALVED.get(name, (up, up))
    found = [first(size)]
    for stride in (4, 8, 16, 32):
        found.append(then(found[-1]) if stride <= output_stride else found[-1])
    return found


@pytest.mark.parametrize(
    ("strides", "stem_stride", "output_stride", "due"),
    [
        (RESNET, 4, 32, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]),
        (RESNET, 4, 16, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 2, 1)]),
        (RESNET, 4, 8, [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 4, 2)]),
        (MOBILENET, 2, 32, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 1), (2, 1, 1), (1, 1, 1)]),
        (MOBILENET, 2, 16, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 1), (1, 2, 1), (1, 2, 2)]),
        (MOBILENET, 2, 8, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 2, 1), (1, 2, 2), (1, 4, 2), (1, 4, 4)]),
    ],
)
def test_a_stride_beyond_the_output_stride_becomes_a_dilation(strides, stem_stride, output_stride, due):
    assert plan(strides, stem_stride, output_stride) == [Stage(*stage) for stage in due]


@pytest.mark.parametrize("output_stride", OUTPUT_STRIDES)
@pytest.mark.parametrize("name", BACKBONES)
def test_features_have_their_strides_and_channels_at_odd_sizes_too(name, output_stride):
    height, width = 75, 97
    backbone = BACKBONES[name](output_stride=output_stride)
    images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    features, _ = jax.eval_shape(lambda x: backbone.init_with_output(jax.random.key(0), x, train=False), images)
    places = zip(sizes(name, height, output_stride), sizes(name, width, output_stride), strict=True)
    due = [(2, *place, channels) for place, channels in zip(places, CHANNELS[name], strict=True)]
    assert [feature.shape for feature in features] == due


@pytest.mark.parametrize("name", BACKBONES)
def test_counts_are_those_of_the_published_network(name):
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: BACKBONES[name]().init(jax.random.key(0), x, train=False), images)
    counts = (sum(leaf.size for leaf in jax.tree.leaves(variables.get(c, {}))) for c in ("params", "batch_stats"))
    assert tuple(counts) == COUNTS[name]


@pytest.mark.parametrize(
    ("output_stride", "dilations"),
    # Entry block 3, middle flow, the two blocks of the exit flow: model.py of bonlime/keras-deeplab-v3-plus.
    [(16, (1, 1, 1, 2)), (8, (1, 2, 2, 4)), (32, (1, 1, 1, 1))],
)
def test_the_dilations_of_deeplabs_xception_are_the_published_ones(output_stride, dilations):
    found = {}

    def note(next_fun, args, kwargs, context):
        if isinstance(context.module, xception.DeepLabSeparableConv) and context.method_name == "__call__":
            found[context.module.name] = context.module.dilation
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(note):
        images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
        backbone = xception.Xception65(output_stride=output_stride)
        jax.eval_shape(lambda x: backbone.init(jax.random.key(0), x, train=False), images)
    parts = ("entry_block3", "middle_unit", "exit_block1", "exit_block2")
    assert [{d for name, d in found.items() if name.startswith(part)} for part in parts] == [{d} for d in dilations]
    assert {d for name, d in found.items() if not name.startswith(parts)} == {1}


def test_keras_xception_lies_on_the_image_with_a_padded_stem():
    images = jax.ShapeDtypeStruct((1, 75, 97, 3), jnp.float32)
    backbone = BACKBONES["xception"](stem_padding=1)
    features, _ = jax.eval_shape(lambda x: backbone.init_with_output(jax.random.key(0), x, train=False), images)
    assert [feature.shape[1:3] for feature in features] == [(38, 49), (19, 25), (10, 13), (5, 7), (3, 4)]


@pytest.mark.parametrize("name", BACKBONES)
def test_variables_do_not_depend_on_the_output_stride(name):
    """So that weights of a classifier fit every one of them."""

    def shapes(**fields):
        backbone, images = BACKBONES[name](**fields), jnp.zeros((1, 64, 64, 3))
        return jax.eval_shape(lambda: backbone.init(jax.random.key(0), images, train=False))

    assert shapes(output_stride=8, dilate_first_block=False) == shapes(output_stride=32)


@pytest.mark.parametrize("in_channels", [1, 4])
@pytest.mark.parametrize("name", BACKBONES)
def test_images_may_have_any_number_of_channels(name, in_channels):
    def shapes(channels):
        images = jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32)
        variables = jax.eval_shape(lambda x: BACKBONES[name]().init(jax.random.key(0), x, train=False), images)
        return [leaf.shape for leaf in jax.tree.leaves(variables)]

    ((due, found),) = (pair for pair in zip(shapes(3), shapes(in_channels), strict=True) if pair[0] != pair[1])
    assert found == (*due[:2], in_channels, due[3])


def test_vgg_tells_the_places_of_its_poolings():
    """With them it gives what it gives without, and they are those of the values before each pooling."""
    backbone = vgg.VGG(batch_norm=True, width=4)
    images = jax.random.normal(jax.random.key(0), (2, 75, 97, 3))

    @jax.jit
    def run(images):
        features, variables = backbone.init_with_output(jax.random.key(1), images, train=False)
        return features, *backbone.apply(variables, images, train=False, with_places=True)

    features, last, places = run(images)
    np.testing.assert_array_equal(last, features[-1])
    assert [size for _, size in places] == [(75, 97), (37, 48), (18, 24), (9, 12), (4, 6)]
    assert [place.shape for place, _ in places[1:]] == [(2, h // 2, w // 2, 4) for _, (h, w) in places[1:]]
    for before, (place, _) in zip(features, places[1:], strict=False):
        np.testing.assert_array_equal(place, max_pool_with_places(before)[1])


def test_vgg_leaves_out_poolings_for_its_output_stride():
    images = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)

    def run(output_stride, **fields):
        backbone, found = vgg.VGG(batch_norm=False, width=4, output_stride=output_stride, **fields), {}

        def note(next_fun, args, kwargs, context):
            if isinstance(context.module, Conv) and context.method_name == "__call__":
                found[context.module.name] = context.module.dilation
            return next_fun(*args, **kwargs)

        with nn.intercept_methods(note):
            (last, places), _ = jax.eval_shape(
                lambda x: backbone.init_with_output(jax.random.key(0), x, train=False, with_places=True), images
            )
        dilated = {name: dilation for name, dilation in found.items() if dilation > 1}
        return last.shape[1:3], [place is not None for place in places], dilated

    assert run(32) == ((2, 3), [True] * 5, {})
    assert run(16) == ((4, 6), [True] * 4 + [False], {})
    assert run(8) == ((8, 12), [True] * 3 + [False] * 2, dict.fromkeys(("conv5_1", "conv5_2", "conv5_3"), 2))
    assert run(8, dilate_first_block=False)[-1] == dict.fromkeys(("conv5_2", "conv5_3"), 2)


def test_mobilenet_v3_dilates_as_torchvision_in_its_segmentation_models():
    found = {}

    def note(next_fun, args, kwargs, context):
        if isinstance(context.module, mobilenet_v3.InvertedResidual) and context.method_name == "__call__":
            found[context.module.name] = (context.module.stride, context.module.dilation)
        return next_fun(*args, **kwargs)

    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    backbone = BACKBONES["mobilenet_v3_large"](output_stride=16, first_block_features=True)
    with nn.intercept_methods(note):
        features, _ = jax.eval_shape(lambda x: backbone.init_with_output(jax.random.key(0), x, train=False), images)
    assert {name for name, (_, dilation) in found.items() if dilation == 2} == {"block_12", "block_13", "block_14"}
    assert {name for name, (stride, _) in found.items() if stride == 2} == {"block_1", "block_3", "block_6"}
    assert [feature.shape[-1] for feature in features] == [16, 24, 40, 80, 960]


# What TensorFlow's segmentation tutorial takes of MobileNetV2 is, down to its `block_13_expand_relu` and
# `block_16_project`, what Keras counts: trainable, statistics.
EXPANDED = {4: (598_976, 17_280), 5: (1_811_072, 30_912)}


@pytest.mark.parametrize("depth", EXPANDED)
def test_expanded_features_of_mobilenet_v2_are_those_of_the_tutorial_and_nothing_is_made_behind_them(depth):
    images = jax.ShapeDtypeStruct((1, 75, 97, 3), jnp.float32)
    backbone = BACKBONES["mobilenet_v2"](expanded_features=True)
    features, variables = jax.eval_shape(
        lambda x: backbone.init_with_output(jax.random.key(0), x, train=False, depth=depth), images
    )
    due = [(38, 49, 96), (19, 25, 144), (10, 13, 192), (5, 7, 576), (3, 4, 320)]
    assert [feature.shape[1:] for feature in features] == due[:depth]
    counts = (sum(leaf.size for leaf in jax.tree.leaves(variables[kind])) for kind in ("params", "batch_stats"))
    assert tuple(counts) == EXPANDED[depth]


def test_a_deep_stem_is_that_of_resnet_v1c():
    """timm's `resnet50c` without its classifier."""
    images = jax.ShapeDtypeStruct((1, 75, 97, 3), jnp.float32)
    backbone = BACKBONES["resnet50"](deep_stem=True)
    features, variables = jax.eval_shape(lambda x: backbone.init_with_output(jax.random.key(0), x, train=False), images)
    assert [feature.shape[1:] for feature in features[:2]] == [(38, 49, 64), (19, 25, 256)]
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 25_576_264 - 2_049_000
    assert [find(backbone) is not None for find in BACKBONE_LAYOUTS.values()] == [
        library == "timm" for library in BACKBONE_LAYOUTS
    ]
    model = create_model("deeplabv3plus", backbone="resnet50", num_classes=2, backbone_options={"deep_stem": True})
    assert not any(find(model) for find in MODEL_LAYOUTS.values())


def test_computing_in_bfloat16_keeps_variables_in_float32():
    backbone, images = BACKBONES["mobilenet_v2"](dtype=jnp.bfloat16), jnp.zeros((1, 64, 64, 3))
    features, variables = jax.eval_shape(lambda: backbone.init_with_output(jax.random.key(0), images, train=False))
    assert {feature.dtype for feature in features} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
