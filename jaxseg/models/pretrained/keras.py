"""Keras' names: the classifiers of Keras applications as backbones, and the Xception of keras-deeplab-v3-plus.

A tensor is called `layer/variable` (`files.read_keras`). Layers bear the names that Keras 3 gives them in a fresh
process, but files need not: Xception's official file numbers its layers by class, MobileNetV2's says
`mobl1_conv_1_expand` for `block_1_expand`. Keras itself goes by the order of the layers, and so does `in_order` where
names don't fit. So the tables list layers in the model's order.
"""

import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from flax import linen as nn

from jaxseg.models.backbones import mobilenet, vgg, xception
from jaxseg.models.pretrained.entries import Entry, Layout, of_backbone

# Keras' modes of `preprocess_input`, for RGB images in [0, 1]: 'tf' brings them to [-1, 1]; 'caffe' takes the mean of
# BGR images in [0, 255] away and scales nothing.
CENTRED = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
CAFFE = {
    "mean": (123.68 / 255, 116.779 / 255, 103.939 / 255),
    "std": (1 / 255, 1 / 255, 1 / 255),
    "bgr": True,
}

KINDS = {"conv2d": "keras_conv", "depthwise_conv2d": "keras_depthwise"}


def conv(
    ours: tuple[str, ...], layer: str, kind: str = "conv2d", *, bias: bool = False, role: str = ""
) -> Iterator[Entry]:
    """A convolution; `kind` is Keras' class."""
    yield Entry(("params", *ours, "kernel"), f"{layer}/kernel", KINDS[kind], role)
    if bias:
        yield Entry(("params", *ours, "bias"), f"{layer}/bias")


def batch_norm(ours: tuple[str, ...], layer: str) -> Iterator[Entry]:
    """The four tensors of a BatchNorm."""
    yield Entry(("params", *ours, "scale"), f"{layer}/gamma")
    yield Entry(("params", *ours, "bias"), f"{layer}/beta")
    yield Entry(("batch_stats", *ours, "mean"), f"{layer}/moving_mean")
    yield Entry(("batch_stats", *ours, "var"), f"{layer}/moving_variance")


def conv_bn(
    ours: str | tuple[str, ...], layer: str, bn: str, kind: str = "conv2d", *, role: str = ""
) -> Iterator[Entry]:
    """A `ConvBN` or `DepthwiseConvBN`."""
    ours = (ours,) if isinstance(ours, str) else ours
    yield from conv((*ours, "conv"), layer, kind, role=role)
    yield from batch_norm((*ours, "bn"), bn)


def vgg16(backbone: vgg.VGG) -> Iterator[Entry]:
    """`VGG16`, which has no BatchNorm."""
    for stage, (count, _) in enumerate(vgg.STAGES, start=1):
        for j in range(1, count + 1):
            role = "stem" if (stage, j) == (1, 1) else ""
            yield from conv((f"conv{stage}_{j}",), f"block{stage}_conv{j}", bias=True, role=role)


def mobilenet_v1(backbone: mobilenet.MobileNetV1) -> Iterator[Entry]:
    """`MobileNet`."""
    yield from conv_bn("stem", "conv1", "conv1_bn", role="stem")
    for i in range(len(mobilenet.V1_BLOCKS)):
        depthwise, pointwise = f"conv_dw_{i + 1}", f"conv_pw_{i + 1}"
        yield from conv_bn(f"block_{i}_depthwise", depthwise, f"{depthwise}_bn", "depthwise_conv2d")
        yield from conv_bn(f"block_{i}_pointwise", pointwise, f"{pointwise}_bn")


def mobilenet_v2(backbone: mobilenet.MobileNetV2) -> Iterator[Entry]:
    """`MobileNetV2`."""
    yield from conv_bn("stem", "Conv1", "bn_Conv1", role="stem")
    for i in range(sum(repeats for _, _, repeats, _ in mobilenet.BLOCKS)):
        ours, theirs = f"block_{i}", f"block_{i}" if i else "expanded_conv"
        if i:
            yield from conv_bn((ours, "expand"), f"{theirs}_expand", f"{theirs}_expand_BN")
        yield from conv_bn((ours, "depthwise"), f"{theirs}_depthwise", f"{theirs}_depthwise_BN", "depthwise_conv2d")
        yield from conv_bn((ours, "project"), f"{theirs}_project", f"{theirs}_project_BN")
    yield from conv_bn("head", "Conv_1", "Conv_1_bn")


def xceptions(backbone: xception.Xception) -> Iterator[Entry]:
    """`Xception`: the shortcuts' layers have no names of their own, and come last in their blocks."""
    for j in (1, 2):
        name = f"block1_conv{j}"
        yield from conv_bn(name, name, f"{name}_bn", role="stem" if j == 1 else "")
    shortcuts = iter(["", "_1", "_2", "_3"])
    for block in range(2, 15):
        for j in range(1, 4 if 5 <= block <= 12 else 3):
            name = f"block{block}_sepconv{j}"
            yield Entry(("params", name, "depthwise", "kernel"), f"{name}/depthwise_kernel", "keras_depthwise")
            yield Entry(("params", name, "pointwise", "kernel"), f"{name}/pointwise_kernel", "keras_conv")
            yield from batch_norm((name, "bn"), f"{name}_bn")
        if block in (2, 3, 4, 13):
            number = next(shortcuts)
            yield from conv_bn(f"block{block}_shortcut", f"conv2d{number}", f"batch_normalization{number}")


def xception65(backbone: xception.Xception65) -> Iterator[Entry]:
    """The encoder of bonlime/keras-deeplab-v3-plus: its names, by which it loads its files."""

    def separable(ours: str, theirs: str) -> Iterator[Entry]:
        for part, kind in (("depthwise", "depthwise_conv2d"), ("pointwise", "conv2d")):
            yield from conv_bn((ours, part), f"{theirs}_{part}", f"{theirs}_{part}_BN", kind)

    for j in (1, 2):
        name = f"entry_flow_conv1_{j}"
        yield from conv_bn(f"entry_conv{j}", name, f"{name}_BN", role="stem" if j == 1 else "")
    blocks = [(f"entry_block{i}", f"entry_flow_block{i}") for i in (1, 2, 3)]
    blocks += [(f"middle_unit{i}", f"middle_flow_unit_{i}") for i in range(1, 17)]
    blocks += [(f"exit_block{i}", f"exit_flow_block{i}") for i in (1, 2)]
    for ours, theirs in blocks:
        for j in (1, 2, 3):
            yield from separable(f"{ours}_conv{j}", f"{theirs}_separable_conv{j}")
        if ours.startswith("entry") or ours == "exit_block1":
            yield from conv_bn(f"{ours}_shortcut", f"{theirs}_shortcut", f"{theirs}_shortcut_BN")


BACKBONES = {
    vgg.VGG: vgg16,
    mobilenet.MobileNetV1: mobilenet_v1,
    mobilenet.MobileNetV2: mobilenet_v2,
    xception.Xception: xceptions,
    xception.Xception65: xception65,
}

# The networks where a field makes the difference between Keras' features and others.
BACKBONE_OPTIONS = {
    mobilenet.MobileNetV1: {"uneven_padding": True, "epsilon": 1e-3},
    mobilenet.MobileNetV2: {"uneven_padding": True, "epsilon": 1e-3},
    xception.Xception: {"stem_padding": 0, "epsilon": 1e-3},
    xception.Xception65: {"uneven_padding": True, "epsilon": 1e-3},
}

# Where `in_order` puts the layers of a classifier. MobileNet's is a convolution, the only one there with a bias.
CLASSIFIER = ("classifier/", "conv_preds/")


def in_order(tensors: Mapping[str, np.ndarray], entries: Iterable[Entry]) -> Mapping[str, np.ndarray]:
    """A file's tensors under the names of `entries`: where its own don't fit, the first BatchNorm is the first, etc.

    Dense layers, which only classifiers have, come below 'classifier/', layers that `entries` has no more of 'more/'.
    """
    if not all("/" in name for name in tensors):
        return tensors
    due, kinds = _by_layer({entry.name: entry.kind for entry in entries}), defaultdict(list)
    for layer, variables in due.items():
        kinds[_kind(variables)].append(layer)
    kinds.setdefault(("bias", "kernel", "keras_conv"), ["conv_preds"])
    names = {kind: iter(layers) for kind, layers in kinds.items()}
    fits, renamed = all(entry.name in tensors for entry in entries), {}
    for layer, variables in _by_layer(tensors).items():
        kind = _kind({name: _axes(name, tensor) for name, tensor in variables.items()})
        if kind[-1] == "dense":
            layer = f"classifier/{layer}"
        elif not fits:
            layer = next(names.get(kind, iter(())), f"more/{layer}")
        renamed.update({f"{layer}/{name}": tensor for name, tensor in variables.items()})
    return renamed


def _by_layer(named: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    layers = defaultdict(dict)
    for name, value in named.items():
        layer, variable = name.rsplit("/", 1)
        layers[layer][variable] = value
    return layers


def _axes(variable: str, tensor: np.ndarray) -> str:
    """How the axes of a tensor in a file lie, a key of `entries.AXES`, or 'dense'."""
    if tensor.ndim == 4:
        return "keras_depthwise" if tensor.shape[-1] == 1 and variable != "pointwise_kernel" else "keras_conv"
    return "dense" if tensor.ndim == 2 else "vector"


def _kind(axes: Mapping[str, str]) -> tuple[str, ...]:
    """What tells the classes of layers apart: the names of their variables and what kind of kernel they have."""
    return (*sorted(axes), axes.get("kernel", ""))


def backbone_layout(backbone: nn.Module) -> Layout | None:
    """Keras' names for a backbone's tensors; None where Keras has no such network."""
    names = BACKBONES.get(type(backbone))
    if names is None or getattr(backbone, "batch_norm", False) or getattr(backbone, "width", None):
        return None
    entries = tuple(names(backbone))
    form = of_backbone(BACKBONE_OPTIONS.get(type(backbone), {}))
    if isinstance(backbone, xception.Xception65):
        # Whole DeepLabs; there is no file of the encoder alone.
        parts = ("entry_flow", "middle_flow", "exit_flow")
        form |= of_backbone({"dilate_first_block": False}) if backbone.output_stride < 32 else {}
        layout = Layout("keras-deeplab-v3-plus", entries, lambda name: not name.startswith(parts), **CENTRED)
    else:
        normalisation = CAFFE if isinstance(backbone, vgg.VGG) else CENTRED
        rename = functools.partial(in_order, entries=entries)
        layout = Layout("keras", entries, lambda name: name.startswith(CLASSIFIER), **normalisation, rename=rename)
    return layout._replace(form=form)
