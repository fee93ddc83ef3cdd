"""Strides, dilations, sizes and channels of the backbones; no arithmetic is done."""

import jax
import jax.numpy as jnp
import pytest

from jaxseg.models.backbones import BACKBONES, OUTPUT_STRIDES
from jaxseg.models.backbones.stages import Stage, plan

RESNET, MOBILENET = [1, 2, 2, 2], [1, 2, 2, 2, 1, 2, 1]

CHANNELS = {
    "mobilenet_v2": (16, 24, 32, 96, 1280),
    "resnet18": (64, 64, 128, 256, 512),
    "resnet34": (64, 64, 128, 256, 512),
    "resnet50": (64, 256, 512, 1024, 2048),
    "resnet101": (64, 256, 512, 1024, 2048),
}


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
    strides = [min(stride, output_stride) for stride in (2, 4, 8, 16, 32)]
    due = [
        (2, -(-height // stride), -(-width // stride), channels)
        for stride, channels in zip(strides, CHANNELS[name], strict=True)
    ]
    assert [feature.shape for feature in features] == due


@pytest.mark.parametrize("name", BACKBONES)
def test_variables_do_not_depend_on_the_output_stride(name):
    """So that weights of a classifier fit every one of them."""

    def shapes(**fields):
        backbone, images = BACKBONES[name](**fields), jnp.zeros((1, 64, 64, 3))
        return jax.eval_shape(lambda: backbone.init(jax.random.key(0), images, train=False))

    assert shapes(output_stride=8, dilate_first_block=False) == shapes(output_stride=32)


def test_computing_in_bfloat16_keeps_variables_in_float32():
    backbone, images = BACKBONES["mobilenet_v2"](dtype=jnp.bfloat16), jnp.zeros((1, 64, 64, 3))
    features, variables = jax.eval_shape(lambda: backbone.init_with_output(jax.random.key(0), images, train=False))
    assert {feature.dtype for feature in features} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
