"""Backbones against Keras applications, on Keras' JAX backend: written by Keras to a file, read here, run on both."""

import importlib
import os
import subprocess
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from parity import relative_error
from rebuilt import random_variables

from jaxseg.models import create_model, fpn, pix2pix
from jaxseg.models.pretrained import read_weights
from jaxseg.models.pretrained.files import read_tensors

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras', thousands of them
]

KERAS_V2 = {"uneven_padding": True, "epsilon": 1e-3, "momentum": 0.999}


class Network(NamedTuple):
    """A classifier of Keras, and what figures there are of it: trainable and not, without top; all, with top."""

    module: str
    name: str
    layers: tuple[str, ...]
    trainable: int
    statistics: int
    with_top: int
    options: Mapping[str, Any] = MappingProxyType({})
    gain: float = 2.0


NETWORKS = {
    "vgg16": Network(
        "vgg16",
        "VGG16",
        ("block2_conv2", "block3_conv3", "block4_conv3", "block5_conv3", "block5_pool"),
        14_714_688,
        0,
        138_357_544,
    ),
    "mobilenet_v1": Network(
        "mobilenet",
        "MobileNet",
        ("conv_pw_1_relu", "conv_pw_3_relu", "conv_pw_5_relu", "conv_pw_11_relu", "conv_pw_13_relu"),
        3_206_976,
        21_888,
        4_253_864,
    ),
    "mobilenet_v2": Network(
        "mobilenet_v2",
        "MobileNetV2",
        ("expanded_conv_project_BN", "block_2_add", "block_5_add", "block_12_add", "out_relu"),
        2_223_872,
        34_112,
        3_538_984,
        KERAS_V2,
        1.0,  # half of its convolutions have no ReLU
    ),
    "xception": Network(
        "xception",
        "Xception",
        (
            "block2_sepconv2_bn",
            "block3_sepconv2_bn",
            "block4_sepconv2_bn",
            "block13_sepconv2_bn",
            "block14_sepconv2_act",
        ),
        20_806_952,
        54_528,
        22_910_480,
    ),
}


@pytest.fixture(scope="module")
def keras(tmp_path_factory):
    """Keras on JAX, which must be chosen before it is imported; its settings are read from and written to nowhere."""
    pytest.importorskip("h5py")
    if "keras" not in sys.modules:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KERAS_BACKEND", "jax")
            patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
            pytest.importorskip("keras")
    keras = sys.modules["keras"]
    if keras.backend.backend() != "jax":
        pytest.skip(f"Keras was already imported on {keras.backend.backend()}")
    return keras


def randomise(model, gain: float = 2.0):
    """Random tensors for all variables, of a size that keeps activations in bounds."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        name, shape = weight.path.rsplit("/", 1)[-1], weight.shape
        if "kernel" in name:
            fan_in = np.prod(shape[:2] if shape[-1] == 1 else shape[:-1])
            value = rng.normal(size=shape) * np.sqrt(gain / fan_in)
        elif name in ("gamma", "moving_variance"):
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.uniform(-0.1, 0.1, shape)
        weight.assign(value.astype(np.float32))
    return model


def run(keras, model, layers, images) -> list[np.ndarray]:
    """What the layers give in evaluation mode; compiled as one program, which takes less time than one an operation."""
    tapped = keras.Model(model.input, [model.get_layer(name).output for name in layers])

    @jax.jit
    def apply(trainable, rest, images):
        return tapped.stateless_call(trainable, rest, images, training=False)[0]

    trainable, rest = ([v.value for v in vs] for vs in (tapped.trainable_variables, tapped.non_trainable_variables))
    return apply(trainable, rest, images)


def check_features(ours, weights, images, due):
    """The five features of our backbone are equal to theirs. Returns the largest error."""
    tensors = {(path[0], *path[2:]): tensor for path, tensor in weights.tensors.items()}
    apply = jax.jit(lambda variables, images: ours.backbone.apply(variables, images, train=False))
    got = apply(unflatten_dict(tensors), images)
    errors = [relative_error(feature, theirs) for feature, theirs in zip(got, due, strict=True)]
    assert max(errors) <= 1e-4, errors
    return max(errors)


def pictures(*shape: int) -> np.ndarray:
    """RGB in [0, 255]."""
    return np.random.default_rng(list(shape)).uniform(0, 255, (*shape, 3)).astype(np.float32)


@pytest.mark.parametrize("name", NETWORKS)
def test_features_equal_keras(name, keras, tmp_path):
    network = NETWORKS[name]
    module = importlib.import_module(f"keras.applications.{network.module}")
    ours = create_model("fpn", backbone=name, num_classes=2, output_stride=32, backbone_options=network.options)
    values = None
    for shape in ((2, 72, 96), (1, 75, 97)):
        # Of a given size: MobileNetV2 asks it for its padding.
        theirs = getattr(module, network.name)(weights=None, include_top=False, input_shape=(*shape[1:], 3))
        if values is None:
            values = randomise(theirs, network.gain).get_weights()
            path = tmp_path / "keras.weights.h5"
            theirs.save_weights(path)
            weights = read_weights(ours, path)
        theirs.set_weights(values)
        images = pictures(*shape)
        due = run(keras, theirs, network.layers, module.preprocess_input(images.copy()))
        normalised = (images / 255 - np.float32(weights.mean)) / np.float32(weights.std)
        error = check_features(ours, weights, normalised, due)
        print(f"{name} {shape}: {error:.1e}")

    counts = {c: sum(t.size for path, t in weights.tensors.items() if path[0] == c) for c in ("params", "batch_stats")}
    assert counts == {"params": network.trainable, "batch_stats": network.statistics}
    assert counts["params"] == sum(np.prod(w.shape) for w in theirs.trainable_weights)
    assert "under keras's names" in weights.report[0]
    assert any("BGR" in line for line in weights.report) == (name == "vgg16")


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", "xception"])  # VGG's top has half a gigabyte
def test_both_kinds_of_file_hold_the_same_and_the_classifier_is_left_out(name, keras, tmp_path):
    import h5py
    from keras.src.legacy.saving import legacy_h5_format

    network = NETWORKS[name]
    module = importlib.import_module(f"keras.applications.{network.module}")
    # In a process that has made a network before, layers without a name of their own are counted on.
    theirs = getattr(module, network.name)(weights=None, include_top=True, input_shape=(96, 96, 3))
    randomise(theirs)
    assert theirs.count_params() == network.with_top
    theirs.save_weights(tmp_path / "new.weights.h5")
    with h5py.File(tmp_path / "nameless.weights.h5", "w") as nameless, h5py.File(tmp_path / "new.weights.h5") as new:
        new.copy("layers", nameless)
        for group in nameless["layers"].values():
            group["vars"].attrs.pop("name", None)
    with h5py.File(tmp_path / "old.h5", "w") as old:
        legacy_h5_format.save_weights_to_hdf5_group(old, theirs)

    ours = create_model("fpn", backbone=name, num_classes=2, backbone_options=network.options)
    new, *others = (read_weights(ours, tmp_path / f) for f in ("new.weights.h5", "nameless.weights.h5", "old.h5"))
    assert "2 without use here left out" in new.report[0]
    for other in others:
        assert "2 without use here left out" in other.report[0]
        assert other.tensors.keys() == new.tensors.keys()
        for path, tensor in new.tensors.items():
            np.testing.assert_array_equal(other.tensors[path], tensor)
    names = {variable.path for variable in theirs.variables}
    assert sum(name in names for name in read_tensors(tmp_path / "old.h5")) == len(theirs.weights)


def deeplab_encoder(keras, size: tuple[int, int], output_stride: int):
    """The layers of bonlime/keras-deeplab-v3-plus up to its pyramid, in its names."""
    layers = keras.layers
    rates = {16: (2, 1, (1, 2)), 8: (1, 2, (2, 4))}[output_stride]

    def norm(x, name, relu=False):
        x = layers.BatchNormalization(name=name, epsilon=1e-3)(x)
        return layers.ReLU()(x) if relu else x

    def separable(x, count, name, stride, rate, relu_behind):
        padding = "same"
        if stride == 2:
            x, padding = layers.ZeroPadding2D(rate)(x), "valid"
        x = x if relu_behind else layers.ReLU()(x)
        fields = {"strides": stride, "padding": padding, "dilation_rate": rate, "use_bias": False}
        x = norm(layers.DepthwiseConv2D(3, **fields, name=f"{name}_depthwise")(x), f"{name}_depthwise_BN", relu_behind)
        x = layers.Conv2D(count, 1, use_bias=False, name=f"{name}_pointwise")(x)
        return norm(x, f"{name}_pointwise_BN", relu_behind)

    def block(x, counts, name, shortcut, stride=1, rate=1, relu_behind=False):
        y = x
        for i, count in enumerate(counts, start=1):
            y = separable(y, count, f"{name}_separable_conv{i}", stride if i == 3 else 1, rate, relu_behind)
        if shortcut == "conv":
            x = layers.Conv2D(counts[-1], 1, strides=stride, use_bias=False, name=f"{name}_shortcut")(x)
            return layers.Add()([y, norm(x, f"{name}_shortcut_BN")])
        return layers.Add()([y, x]) if shortcut == "sum" else y

    inputs = layers.Input((*size, 3))
    x = layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False, name="entry_flow_conv1_1")(inputs)
    x = norm(x, "entry_flow_conv1_1_BN", relu=True)
    x = layers.Conv2D(64, 3, padding="same", use_bias=False, name="entry_flow_conv1_2")(x)
    x = norm(x, "entry_flow_conv1_2_BN", relu=True)
    x = block(x, (128, 128, 128), "entry_flow_block1", "conv", 2)
    x = block(x, (256, 256, 256), "entry_flow_block2", "conv", 2)
    x = block(x, (728, 728, 728), "entry_flow_block3", "conv", rates[0])
    for i in range(1, 17):
        x = block(x, (728, 728, 728), f"middle_flow_unit_{i}", "sum", rate=rates[1])
    x = block(x, (728, 1024, 1024), "exit_flow_block1", "conv", rate=rates[2][0])
    x = block(x, (1536, 1536, 2048), "exit_flow_block2", "none", rate=rates[2][1], relu_behind=True)
    return keras.Model(inputs, layers.Identity(name="end")(x))


@pytest.mark.parametrize(("output_stride", "shape"), [(16, (2, 64, 96)), (8, (1, 75, 97))])
def test_deeplabs_xception_equals_the_port_of_it(output_stride, shape, keras, tmp_path):
    theirs = randomise(deeplab_encoder(keras, shape[1:], output_stride))
    theirs.save_weights(tmp_path / "port.weights.h5")
    ours = create_model("fpn", backbone="xception65", num_classes=2, output_stride=output_stride)
    weights = read_weights(ours, tmp_path / "port.weights.h5")
    assert "under keras-deeplab-v3-plus's names" in weights.report[0]
    assert sum(t.size for t in weights.tensors.values()) == theirs.count_params() == 37_867_312 + 185_200
    blocks = ("entry_flow_block1", "entry_flow_block2", "entry_flow_block3", "exit_flow_block1")
    images = pictures(*shape) / 127.5 - 1
    due = run(keras, theirs, [*(f"{block}_separable_conv2_pointwise_BN" for block in blocks), "end"], images)
    print(f"xception65 {shape}: {check_features(ours, weights, images, due):.1e}")


class Sampled(nn.Module):
    """A backbone without weights: of the images every second pixel, every fourth, ..."""

    output_stride: int = 32

    @nn.compact
    def __call__(self, images, *, train):
        return tuple(images[:, ::stride, ::stride] for stride in (2, 4, 8, 16, 32))


class Built:
    """A decoder of Keras' layers on the features of `Sampled`, each layer with the tensors at a path of ours."""

    def __init__(self, keras, model):
        self.keras, self.layers, self.variables = keras, keras.layers, random_variables(model)
        self.flat, self.loads = flatten_dict(self.variables), []
        self.inputs = [self.layers.Input((None, None, 3)) for _ in range(5)]

    def conv(self, x, *path: str, transposed: bool = False):
        kernel, bias = (self.flat.get(("params", *path, name)) for name in ("kernel", "bias"))
        tensors = [tensor for tensor in (kernel, bias) if tensor is not None]
        fields = {"kernel_size": kernel.shape[0], "padding": "same", "use_bias": bias is not None}
        if transposed:
            layer = self.layers.Conv2DTranspose(kernel.shape[2], strides=2, **fields)
        else:
            layer = self.layers.Conv2D(kernel.shape[3], **fields)
        self.loads.append((layer, tensors))
        return layer(x)

    def norm(self, x, *path: str):
        names = (("params", "scale"), ("params", "bias"), ("batch_stats", "mean"), ("batch_stats", "var"))
        layer = self.layers.BatchNormalization(epsilon=1e-5)
        self.loads.append((layer, [self.flat[kind, *path, name] for kind, name in names]))
        return self.layers.ReLU()(layer(x))

    def check(self, ours, logits) -> None:
        theirs = self.keras.Model(self.inputs, logits)
        for layer, tensors in self.loads:
            layer.set_weights(tensors)
        assert theirs.count_params() == sum(tensor.size for tensor in self.flat.values())
        images = np.random.default_rng(0).normal(size=(2, 64, 96, 3)).astype(np.float32)
        features = Sampled().apply({}, images, train=False)
        due = theirs([np.asarray(feature) for feature in features], training=False)
        got = jax.jit(lambda variables, images: ours.apply(variables, images, train=False))(self.variables, images)
        assert relative_error(got, due) < 1e-4


def test_keras_form_of_fpn_equals_segmentation_models(keras):
    """Version 1.0.1's `FPN`, by default but for its softmax, rebuilt here."""
    form = {"merge": "cat", "norm": "batch", "finest": 1, "convs": 2, "upsampling": "nearest", "conv_head": True}
    ours = fpn.FPN(Sampled(), 4, pyramid_features=16, features=8, align_corners=False, dropout=0.0, **form)
    built = Built(keras, ours)
    layers, (*skips, x), levels = built.layers, built.inputs, {}
    x = built.conv(x, "lateral_5")
    for level, skip in zip((4, 3, 2, 1), reversed(skips), strict=True):
        x = layers.Add()([layers.UpSampling2D(2)(x), built.conv(skip, f"lateral_{level}")])
        levels[level] = x
    merged = []
    for level, x in levels.items():
        for i in (1, 2):
            name = f"level_{level}_conv{i}"
            x = built.norm(built.conv(x, name, "conv"), name, "norm")
        merged.append(layers.UpSampling2D(2 ** (level - 1))(x) if level > 1 else x)
    # Ours has the coarsest first.
    x = built.norm(built.conv(layers.Concatenate()(merged), "fuse", "conv"), "fuse", "norm")
    x = layers.UpSampling2D(2, interpolation="bilinear")(x)
    built.check(ours, built.conv(x, "classifier"))


def test_pix2pix_blocks_equal_those_of_the_segmentation_tutorial(keras):
    """TensorFlow's tutorial, rebuilt here: `pix2pix.upsample` four times, and a last transposed convolution."""
    ours = pix2pix.UNetPix2Pix(Sampled(), 4, features=(16, 12, 8, 6))
    built = Built(keras, ours)
    *skips, x = built.inputs
    for i, skip in enumerate(reversed(skips)):
        x = built.norm(built.conv(x, f"up_{i}", "conv", transposed=True), f"up_{i}", "bn")
        x = built.layers.Concatenate()([x, skip])
    built.check(ours, built.conv(x, "classifier", transposed=True))


def test_keras_on_jax_needs_no_tensorflow():
    pytest.importorskip("keras")
    code = "import keras, sys; assert keras.backend.backend() == 'jax'; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "KERAS_BACKEND": "jax"})
