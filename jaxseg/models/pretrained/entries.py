"""How a tensor of ours is called and laid out in another library: the words that the name tables are written in."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

# From their axes to ours. Convolutions of PyTorch, plain (OIHW), depthwise ([C, 1, k, k]) and transposed (IOHW), are
# all turned alike; Keras' are ours but for the depthwise ones ([k, k, C, 1]).
AXES = {"conv": (2, 3, 1, 0), "vector": (0,), "keras_conv": (0, 1, 2, 3), "keras_depthwise": (0, 1, 3, 2)}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor.

    Fields:
      path: where it lies in the variables, collection first.
      name: what the file calls it.
      kind: how its axes lie, a key of `AXES`.
      role: 'stem' for the kernel that sees the image, 'head' for what has a value a class, else ''.
    """

    path: tuple[str, ...]
    name: str
    kind: str = "vector"
    role: str = ""

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(tensor.transpose(AXES[self.kind]).astype(np.float32))

    def to_theirs(self, tensor: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.asarray(tensor).transpose(np.argsort(AXES[self.kind])))

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(shape[i] for i in np.argsort(AXES[self.kind]))


class Layout(NamedTuple):
    """A library's names for all tensors of a network or of its backbone, and what its weights were trained with.

    Fields:
      name: for messages, 'torchvision' say.
      entries: every tensor of ours, once.
      unused: whether a tensor of the file that is none of ours is one that a segmentation network has no use for.
      mean, std: the normalisation of RGB images in [0, 1].
      bgr: whether the network saw its channels the other way round.
    """

    name: str
    entries: tuple[Entry, ...]
    unused: Callable[[str], bool]
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    bgr: bool = False


def conv(ours: Iterable[str], theirs: str, *, bias: bool = False, role: str = "") -> Iterator[Entry]:
    """A convolution, plain, depthwise or transposed, at `ours`; `theirs` is the name of their module."""
    yield Entry(("params", *ours, "kernel"), f"{theirs}.weight", "conv", role)
    if bias:
        yield Entry(("params", *ours, "bias"), f"{theirs}.bias", role="head" if role == "head" else "")


def batch_norm(ours: Iterable[str], theirs: str) -> Iterator[Entry]:
    """The four tensors of a BatchNorm."""
    yield Entry(("params", *ours, "scale"), f"{theirs}.weight")
    yield Entry(("params", *ours, "bias"), f"{theirs}.bias")
    yield Entry(("batch_stats", *ours, "mean"), f"{theirs}.running_mean")
    yield Entry(("batch_stats", *ours, "var"), f"{theirs}.running_var")


def conv_bn(ours: tuple[str, ...], conv_name: str, bn_name: str, *, bias=False, role="") -> Iterator[Entry]:
    """A `ConvBN` or `DepthwiseConvBN`: their names for its convolution and its BatchNorm."""
    yield from conv((*ours, "conv"), conv_name, bias=bias, role=role)
    yield from batch_norm((*ours, "bn"), bn_name)


def separable(ours: tuple[str, ...], depthwise: str, pointwise: str, bn: str) -> Iterator[Entry]:
    """A `SeparableConvBN`."""
    yield from conv((*ours, "depthwise"), depthwise)
    yield from conv((*ours, "pointwise"), pointwise)
    yield from batch_norm((*ours, "bn"), bn)


def within(ours: tuple[str, ...], theirs: str, entries: Iterable[Entry]) -> Iterator[Entry]:
    """`entries` of a part, as those of the whole: below `ours` in the variables, `theirs` before every name."""
    for entry in entries:
        path = (entry.path[0], *ours, *entry.path[1:])
        yield dataclasses.replace(entry, path=path, name=theirs + entry.name)
