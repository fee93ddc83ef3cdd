"""How a tensor of ours is called and laid out in another library: the words that the name tables are written in."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from flax import linen as nn

from jaxseg.errors import UserError, shown

BACKBONE_OPTIONS = "backbone_options."

# From their axes to ours. Convolutions of PyTorch, plain (OIHW), depthwise ([C, 1, k, k]) and transposed (IOHW), are
# all turned alike; Keras' are ours but for the depthwise ones ([k, k, C, 1]).
AXES = {"conv": (2, 3, 1, 0), "vector": (0,), "keras_conv": (0, 1, 2, 3), "keras_depthwise": (0, 1, 3, 2)}


# What PyTorch's libraries train their classifiers on ImageNet with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused so
            return np.ascontiguousarray(tensor.transpose(AXES[self.kind]).astype(np.float32))

    def to_theirs(self, tensor: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.asarray(tensor).transpose(np.argsort(AXES[self.kind])))

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(shape[i] for i in np.argsort(AXES[self.kind]))

    def our_shape(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """None where a tensor of that shape has another number of axes."""
        axes = AXES[self.kind]
        return tuple(shape[i] for i in axes) if len(shape) == len(axes) else None


class Layout(NamedTuple):
    """A library's names for all tensors of a network or of its backbone, and what its weights were trained with.

    Fields:
      name: for messages, 'torchvision' say.
      entries: every tensor of ours, once.
      unused: whether a tensor of the file that is none of ours is one that a segmentation network has no use for.
      mean, std: the normalisation of RGB images in [0, 1].
      bgr: whether the network saw its channels the other way round.
      auxiliary: what the names of auxiliary heads begin with, which a file or a model may lack.
      rename: a file's tensors to the same under these names, for libraries whose files call them differently; to be
        called before anything is looked up.
      form: options of the library's own network that decide values and leave no tensor, by the names that `option`
        takes; only those that matter in the model at hand.
      choices: those of them that the library lets its users choose, or words for what only the library has an option
        for: a file may be of another choice than the default, and nothing in it tells.
      twins: networks of the library whose files hold the same tensors and whose values are others.
    """

    name: str
    entries: tuple[Entry, ...]
    unused: Callable[[str], bool]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    bgr: bool = False
    auxiliary: tuple[str, ...] = ()
    rename: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = lambda tensors: tensors
    form: Mapping[str, Any] = MappingProxyType({})
    choices: tuple[str, ...] = ()
    twins: tuple[str, ...] = ()


def option(model: nn.Module, name: str) -> Any:
    """An option of a model as `create_model` takes it: 'rates', 'output_stride', 'backbone_options.epsilon'.

    Raises:
      UserError: the model has none of that name.
    """
    *within_backbone, field = name.removeprefix(BACKBONE_OPTIONS).split(".")
    of_backbone = name == "output_stride" or name.startswith(BACKBONE_OPTIONS)
    holder = getattr(model, "backbone", None) if of_backbone else model
    if within_backbone or field not in getattr(holder, "__dataclass_fields__", ()):
        raise UserError(f"{type(model).__name__} has no option '{shown(name)}'")
    value = getattr(holder, field)
    return tuple(value) if isinstance(value, list) else value


def of_backbone(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a backbone as a `Layout.form` has them."""
    return {BACKBONE_OPTIONS + name: value for name, value in options.items()}


def is_dilated(model: nn.Module) -> bool:
    """Whether a stage of the backbone that the model reads has lost its stride."""
    return 2 ** getattr(model, "depth", 5) > model.backbone.output_stride


def is_counter(name: str) -> bool:
    """Whether PyTorch's tensor `name` is a BatchNorm's number of steps, which nothing depends on."""
    return name.endswith("num_batches_tracked")


def conv(ours: Iterable[str], theirs: str, *, bias: bool = False, role: str = "") -> Iterator[Entry]:
    """A convolution, plain, depthwise or transposed, at `ours`; `theirs` is the name of their module."""
    yield Entry(("params", *ours, "kernel"), f"{theirs}.weight", "conv", role)
    if bias:
        yield Entry(("params", *ours, "bias"), f"{theirs}.bias", role="head" if role == "head" else "")


def scale_and_bias(ours: Iterable[str], theirs: str) -> Iterator[Entry]:
    """The two tensors of a GroupNorm, or of any norm without running statistics."""
    yield Entry(("params", *ours, "scale"), f"{theirs}.weight")
    yield Entry(("params", *ours, "bias"), f"{theirs}.bias")


def batch_norm(ours: Iterable[str], theirs: str) -> Iterator[Entry]:
    """The four tensors of a BatchNorm."""
    yield from scale_and_bias(ours, theirs)
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
