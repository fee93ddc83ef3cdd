"""How an image meets the network when it is scored: whole, resized, cropped or in windows; at several scales, mirrored.

A protocol changes what is scored, so its words stand beside every score. `whole`, the default, is what
`step.create_eval_step` does; the steps here give the same things in the same places.

- `resize`: the image is brought to `size`, the probabilities back to the labels' size.
- `resize_labels`: the labels are brought to `size` too, as many projects score: borders and small things are lost.
- `center_crop`: the shorter side is brought to `size`, the labels' too, and the square in the middle is scored.
- `slide`: windows of `size` every `stride` pixels; a pixel's probabilities are the mean over the windows it is in.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from jaxseg import views
from jaxseg.errors import UserError
from jaxseg.lookup import lookup
from jaxseg.step import fill_colour, normalise, put_batch, scored
from jaxseg.windows import stitched

WORDS = {
    "whole": "whole image",
    "resize": "resized to {size} and back",
    "resize_labels": "resized to {size}, labels too",
    "center_crop": "centre crop of {size}, the shorter side resized to it, labels too",
    "slide": "windows of {size} every {stride}",
}

FITTING = ("resize_labels", "center_crop")  # bring image and labels to one size before anything else

Step = Callable[[Mapping[str, Any], Mapping[str, jax.Array]], dict[str, Any]]
# Sums over the pixels of each image from probabilities [B, H, W, C] and labels [B, H, W].
PerImage = Callable[[jax.Array, jax.Array], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A protocol of this module by its name.

    Fields:
      size, stride: (height, width) in pixels; (0, 0) where the protocol has none.
      scales: factors of the image (of `size` where it is resized) that the network sees it at.
      flip: whether it sees the mirror image too; probabilities are averaged over scales and mirror images.
      multiple: pixels that sides are padded to multiples of; 0 leaves it to the split that is scored.
    """

    name: str = "whole"
    size: tuple[int, int] = (0, 0)
    stride: tuple[int, int] = (0, 0)
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    multiple: int = 0

    @property
    def once(self) -> bool:
        """Whether the network sees each image, or window, once."""
        return self.scales == (1.0,) and not self.flip

    def pixels(self, canvas: tuple[int, int]) -> int:
        """Of the largest thing that is computed of an image padded to `canvas`, (height, width), but for windows."""
        seen = max(math.prod(canvas), math.prod(self.size))
        return math.prod(canvas) if self.name == "slide" else int(seen * max(1.0, *self.scales) ** 2)

    @property
    def averages(self) -> bool:
        """Whether the class of a pixel is that of probabilities that are averaged or resized, and not of logits."""
        return not self.once or self.name in ("resize", "slide")

    @property
    def words(self) -> str:
        """`windows of 256x256 every 128, scales 0.5 and 1, mirrored too`."""
        stride = "x".join(map(str, dict.fromkeys(self.stride)))
        words = WORDS[self.name].format(size="x".join(map(str, self.size)), stride=stride)
        scales = [f"{scale:g}" for scale in self.scales]
        if len(scales) > 1:
            words += f", scales {', '.join(scales[:-1])} and {scales[-1]}"
        elif self.scales != (1.0,):
            words += f", scale {scales[0]}"
        return words + (", mirrored too" if self.flip else "")

    @property
    def slug(self) -> str:
        """The words for the name of a file, `slide256x256-128x128-scales0.5,1-flip`."""
        parts = [self.name + ("x".join(map(str, self.size)) if any(self.size) else "")]
        parts += ["x".join(map(str, self.stride))] if any(self.stride) else []
        parts += [f"multiple{self.multiple}"] if self.multiple > 32 else []
        parts += ["scales" + ",".join(f"{scale:g}" for scale in self.scales)] if self.scales != (1.0,) else []
        return "-".join([*parts, *["flip"][: self.flip]])


WHOLE = Protocol()


def from_config(config: ConfigDict) -> Protocol:
    """The protocol of the fields of `eval`.

    Raises:
      UserError: an unknown name, or numbers that are missing, out of range or not used by it.
    """
    name = config.protocol
    lookup(WORDS, name, "protocol (eval.protocol)")
    size, stride, scales = tuple(config.size), config.stride, tuple(config.scales)
    if name == "whole" and size:
        raise UserError(f"eval.size is {size}, but eval.protocol whole has none: set the protocol or leave it ()")
    if name != "slide" and stride:
        raise UserError(f"eval.stride is {stride}, but eval.protocol is {name}: only slide has one, leave it 0")
    if name != "whole" and not (len(size) in (1, 2) and all(isinstance(side, int) and side >= 32 for side in size)):
        raise UserError(f"eval.size is {size}: eval.protocol {name} wants pixels or (height, width), each at least 32")
    height, width = size if len(size) == 2 else (size or (0,)) * 2
    if name == "center_crop" and height != width:
        raise UserError(f"eval.size is {size}: a centre crop is square, give one number")
    if stride > min(height, width):
        raise UserError(f"eval.stride is {stride}: it must be at most eval.size {size}, or pixels are left out")
    if not scales or not all(isinstance(scale, int | float) and 0 < scale <= 8 for scale in scales):
        raise UserError(f"eval.scales is {scales}: it must be factors above 0, at most 8, such as (0.5, 1.0)")
    multiple = config.multiple
    if multiple % 32 or multiple < 0:
        raise UserError(f"eval.multiple is {multiple}: it must be a multiple of 32, or 0")
    strides = (0, 0)
    if name == "slide":
        strides = (stride, stride) if stride else (max(1, height // 2), max(1, width // 2))
    return Protocol(name, (height, width), strides, tuple(map(float, scales)), bool(config.flip), multiple)


# ---------------------------------------------------------------------------------------------------------- the images


class FittedSource:
    """The records of `source` with image and labels brought to a protocol's size, for those of `FITTING`."""

    def __init__(self, source, protocol: Protocol):
        self.source, self.protocol = source, protocol

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from jaxseg.data import transforms

        record = self.source[index]
        images, labels = record["images"], record["labels"]
        if self.protocol.name == "resize_labels":
            images, labels = transforms.resize(images, labels, self.protocol.size)
        else:
            images, labels = center_crop(images, labels, self.protocol.size[0])
        return {**record, "images": images, "labels": labels}


def center_crop(images: np.ndarray, labels: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels with the shorter side brought to `side`, and of that the square in the middle.

    As VainF's DeepLabV3Plus-Pytorch scores VOC with `crop_val`: the longer side is rounded down, the window's place is
    rounded (`ExtResize`, `ExtCenterCrop`); its filter is Pillow's, this is `transforms.resize`.
    """
    from jaxseg.data import transforms

    height, width = shorter_side_at(labels.shape, side)
    images, labels = transforms.resize(images, labels, (height, width))
    top, left = round((height - side) / 2), round((width - side) / 2)
    window = np.s_[top : top + side, left : left + side]
    return images[window], labels[window]


def shorter_side_at(shape: Sequence[int], side: int) -> tuple[int, int]:
    """(height, width) of an image whose shorter side is brought to `side`."""
    height, width = (side * length // min(shape) for length in shape)
    return height, width


# ------------------------------------------------------------------------------------------------------------ the steps


def create_averaging_step(
    model: nn.Module,
    mesh: Mesh,
    protocol: Protocol,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    ignore_label: int = 255,
    per_image: PerImage | None = None,
) -> Step:
    """`step.create_eval_step` for every protocol but `slide`, on batches that have `sizes` too.

    Its loss is that of the averaged probabilities. `per_image` adds sums over the pixels of each image, whole on every
    device.
    """

    def eval_step(variables, batch):
        def apply(images):
            return model.apply(variables, images, train=False)

        images, sizes = normalise(batch["images"], mean, std), batch["sizes"]
        if not protocol.averages:
            return _scored(apply(images), None, batch["labels"], ignore_label, per_image)
        canvas = images.shape[1:3]
        probs = views.mean_on_device(apply, views.on_device(images, sizes, protocol), sizes, canvas, protocol)
        if protocol.name == "resize":
            probs = views.back(probs, sizes, canvas)
        return _scored(None, probs, batch["labels"], ignore_label, per_image)

    whole, by_row = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    return jax.jit(
        eval_step,
        in_shardings=(whole, by_row),
        out_shardings={"counts": whole, "loss_sum": whole, "nonfinite": whole, "preds": by_row, "per_image": whole},
    )


def create_window_step(
    model: nn.Module,
    mesh: Mesh,
    protocol: Protocol,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    ignore_label: int = 255,
    per_image: PerImage | None = None,
) -> Step:
    """`step.create_eval_step` for `slide`: windows on the devices, put together on the host.

    At most `batch_size` of them go through the network at a time, a multiple of the devices; where there are fewer, the
    next power of two for each device. Windows lie on the image as each scale has it, and on its mirror image; the
    probabilities of these are brought back to the image's size and averaged.
    """
    whole, by_row = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    probabilities = jax.jit(
        lambda variables, images: views.softmax(model.apply(variables, normalise(images, mean, std), train=False)),
        in_shardings=(whole, by_row),
        out_shardings=by_row,
    )
    score = jax.jit(lambda probs, labels: _scored(None, probs, labels, ignore_label, per_image))

    def eval_step(variables, batch):
        images, labels = np.asarray(batch["images"]), np.asarray(batch["labels"])
        rows = [(row, high, wide) for row, (high, wide) in enumerate(np.asarray(batch["sizes"])) if high]
        count = sum(views.number_of_windows((high, wide), protocol) for _, high, wide in rows)
        of_views = stitched(
            lambda windows: np.asarray(probabilities(variables, put_batch({"images": windows}, mesh)["images"])),
            (view for row, high, wide in rows for view in views.on_host(images[row, :high, :wide], protocol)),
            size=protocol.size,
            stride=protocol.stride,
            batch_size=views.rows_of_windows(count, batch_size, mesh.size),
            fill=fill_colour(mean),
        )
        result = {"counts": np.int64(0), "loss_sum": 0.0, "nonfinite": 0, "per_image": {}}
        result["preds"] = np.zeros(labels.shape, np.uint8)
        for row, high, wide in rows:
            probs = views.mean_on_host(of_views, (high, wide), protocol)
            padding = [(0, length - size) for length, size in zip(labels.shape[1:], (high, wide), strict=True)]
            out = jax.device_get(score(np.pad(probs, [*padding, (0, 0)])[None], labels[row : row + 1]))
            result["counts"] = result["counts"] + out["counts"]
            result["loss_sum"] += float(out["loss_sum"])
            result["nonfinite"] += int(out["nonfinite"])
            result["preds"][row] = out["preds"][0]
            for name, value in out["per_image"].items():
                result["per_image"].setdefault(name, np.zeros(len(labels)))[row] = value[0]
        return result

    return eval_step


def _scored(logits, probs, labels: jax.Array, ignore_label: int, per_image: PerImage | None) -> dict[str, Any]:
    """Of either; the class of a pixel is that of the largest: two probabilities may share a logarithm."""
    labels = labels.astype(jnp.int32)
    if probs is None:
        result = scored(logits, labels, ignore_label)
        return {**result, "per_image": per_image(jax.nn.softmax(logits), labels) if per_image else {}}
    logarithm = jnp.log(jnp.maximum(probs, jnp.finfo(jnp.float32).tiny))
    result = scored(logarithm, labels, ignore_label, preds=probs.argmax(-1))
    return {**result, "per_image": per_image(probs, labels) if per_image else {}}
