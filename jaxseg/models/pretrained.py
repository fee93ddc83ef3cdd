"""Backbone weights of the PyTorch world: name tables made by loops over stages, and a strict reader.

A table lists, for every tensor of ours, where it lies in the variables and what torchvision calls it. Reading is all or
nothing: every tensor of ours must be in the file, in its shape, and every tensor of the file must be ours, or one of
those that a segmentation network has no use for (the classifier, BatchNorm's step counters).
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxseg.errors import UserError
from jaxseg.lookup import lookup
from jaxseg.models.backbones import mobilenet

# (collection, path of ours, name of theirs); `Entry.layout` says how the axes lie.
BN_TENSORS = (
    ("params", "scale", "weight"),
    ("params", "bias", "bias"),
    ("batch_stats", "mean", "running_mean"),
    ("batch_stats", "var", "running_var"),
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor: its path in the variables, collection first; its name in the file; conv, depthwise or vector."""

    path: tuple[str, ...]
    name: str
    kind: str = "vector"


def _conv_bn(ours: tuple[str, ...], conv: str, bn: str, kind: str = "conv") -> Iterator[Entry]:
    yield Entry(("params", *ours, "conv", "kernel"), f"{conv}.weight", kind)
    for collection, leaf, name in BN_TENSORS:
        yield Entry((collection, *ours, "bn", leaf), f"{bn}.{name}")


def mobilenet_v2_table() -> Iterator[Entry]:
    """torchvision's `mobilenet_v2`: `features.0` the stem, `features.18` the head, blocks between."""
    yield from _conv_bn(("stem",), "features.0.0", "features.0.1")
    index = 0
    for expansion, _, repeats, _ in mobilenet.BLOCKS:
        for _ in range(repeats):
            ours, theirs, part = f"block_{index}", f"features.{index + 1}.conv", 0
            if expansion != 1:
                yield from _conv_bn((ours, "expand"), f"{theirs}.0.0", f"{theirs}.0.1")
                part = 1
            yield from _conv_bn((ours, "depthwise"), f"{theirs}.{part}.0", f"{theirs}.{part}.1", "depthwise")
            yield from _conv_bn((ours, "project"), f"{theirs}.{part + 1}", f"{theirs}.{part + 2}")
            index += 1
    yield from _conv_bn(("head",), f"features.{index + 1}.0", f"features.{index + 1}.1")


def resnet_table(repeats: tuple[int, ...], convs: int) -> Iterator[Entry]:
    """torchvision's ResNets: `convs` convolutions a block, a shortcut in the first block of a stage that needs one."""
    yield from _conv_bn(("stem",), "conv1", "bn1")
    for stage, count in enumerate(repeats, start=1):
        for block in range(count):
            ours, theirs = f"layer{stage}_{block}", f"layer{stage}.{block}"
            for i in range(1, convs + 1):
                yield from _conv_bn((ours, f"conv{i}"), f"{theirs}.conv{i}", f"{theirs}.bn{i}")
            if block == 0 and (stage > 1 or convs == 3):
                yield from _conv_bn((ours, "downsample"), f"{theirs}.downsample.0", f"{theirs}.downsample.1")


TABLES = {
    "mobilenet_v2": mobilenet_v2_table,
    "resnet18": lambda: resnet_table((2, 2, 2, 2), 2),
    "resnet34": lambda: resnet_table((3, 4, 6, 3), 2),
    "resnet50": lambda: resnet_table((3, 4, 6, 3), 3),
    "resnet101": lambda: resnet_table((3, 4, 23, 3), 3),
}

# Their axes to ours: OIHW to HWIO; depthwise [C, 1, k, k] to [k, k, 1, C].
AXES = {"conv": (2, 3, 1, 0), "depthwise": (2, 3, 1, 0), "vector": (0,)}


def _unused(name: str) -> bool:
    return name.startswith(("classifier.", "fc.")) or name.endswith(".num_batches_tracked")


def read_safetensors(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a `.safetensors` file.

    Raises:
      UserError: there is no such file, or it is none of that kind, or it is cut short.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"weights: there is no file {path}")
    try:
        return load_file(path)
    except (SafetensorError, json.JSONDecodeError, OSError, KeyError, ValueError) as error:
        raise UserError(
            f"weights: {path} can't be read as safetensors ({error}); it is another kind of file, or cut short"
        ) from error


def load_backbone(variables: Mapping, path: str | pathlib.Path, backbone: str) -> tuple[dict, str]:
    """`variables` of a segmentation model with its backbone's tensors taken from a torchvision file.

    Args:
      variables: `{'params': {'backbone': ..., ...}, 'batch_stats': {...}}`; arrays or `jax.ShapeDtypeStruct`s.
      path: a `.safetensors` file under torchvision's names.
      backbone: its name in `BACKBONES`.

    Returns:
      New variables of the same structure, float32 numpy arrays where they were read, and one line that says how many
      tensors were used and which were left out.

    Raises:
      UserError: the file can't be read, or a tensor is missing, left over or of another shape; all are listed.
    """
    table = list(lookup(TABLES, backbone, "backbone with a table of weight names")())
    tensors = read_safetensors(path)
    flat = flatten_dict(variables)
    faults, loaded = [], {}
    for entry in table:
        key = (entry.path[0], "backbone", *entry.path[1:])
        due = flat[key].shape
        if entry.name not in tensors:
            faults.append(f"missing {entry.name} {_their_shape(due, entry.kind)}")
            continue
        tensor = tensors[entry.name]
        if tensor.shape != _their_shape(due, entry.kind):
            faults.append(f"{entry.name} is {tensor.shape}, {_their_shape(due, entry.kind)} is due")
            continue
        loaded[key] = np.ascontiguousarray(tensor.transpose(AXES[entry.kind]).astype(np.float32))
    names = {entry.name for entry in table}
    rest = [name for name in tensors if name not in names]
    faults += [f"left over {name} {tensors[name].shape}" for name in rest if not _unused(name)]
    if faults:
        shown = "\n  ".join(faults[:12] + ([f"... and {len(faults) - 12} more"] if len(faults) > 12 else []))
        raise UserError(f"weights: {path} is not a {backbone} under torchvision's names:\n  {shown}")
    left_out = f", {len(rest)} without use here left out (classifier, step counters)" if rest else ""
    return unflatten_dict({**flat, **loaded}), f"{len(loaded)} tensors of {backbone} from {path}{left_out}"


def _their_shape(shape: tuple[int, ...], kind: str) -> tuple[int, ...]:
    return tuple(shape[i] for i in np.argsort(AXES[kind]))
