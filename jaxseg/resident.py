"""The training images decoded on the devices, and augmented there: what `data.on_device` switches on.

A batch costs the host a few numbers an image, those of `data.transforms.draw`; cutting, resizing and colouring are a
jitted function. Order and chance are those of the host's pipeline, so a step sees the same images, and a run resumes as
any other; pixels may be rounded otherwise, by a level or two of 256.
"""

import concurrent.futures
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxseg.data import transforms
from jaxseg.errors import UserError

SHARE = 0.5  # of a device's memory that the images may take; the step needs the rest


class Resident:
    """All images of a split, whole on every device, and called on the chance of a batch.

    Attributes:
      ids: of the records, in the order of the source.
      shapes: int32 [N, 2], heights and widths.
      nbytes: on each device.
    """

    def __init__(
        self,
        source,
        sizes: np.ndarray,
        mesh: Mesh,
        *,
        crop_size: int | Sequence[int],
        resize_to: Sequence[int] = (),
        fill: Sequence[int],
    ):
        """Decodes the records of `source`, as `Dataset.source` gives them, and sends them to the devices of `mesh`.

        Args:
          source: the records.
          sizes: integers [N, 2], what `Dataset.sizes` gives.
          mesh: with the axis `data`, which batches are sharded over.
          crop_size, resize_to, fill: as in `transforms.augment`.

        Raises:
          UserError: the images take more than half of a device's memory.
        """
        self.shapes = np.asarray(sizes, np.int32)
        if len(resize_to):
            self.shapes = np.broadcast_to(np.int32(transforms.as_pair(resize_to)), self.shapes.shape)
        count, (height, width) = len(self.shapes), (int(side) for side in self.shapes.max(axis=0))
        self.nbytes = 4 * count * height * width
        _check_memory(self.nbytes, f"{count} images of up to {height}x{width}", mesh)
        images, labels = np.zeros((count, height, width, 3), np.uint8), np.zeros((count, height, width), np.uint8)

        def decode(index: int) -> str:
            record = source[index]
            image, label = record["images"], record["labels"]
            if len(resize_to):
                image, label = transforms.resize(image, label, transforms.as_pair(resize_to))
            high, wide = label.shape
            images[index, :high, :wide], labels[index, :high, :wide] = image, label
            return record["id"]

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            self.ids = list(pool.map(decode, range(count)))
        whole, by_row = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
        self._by_row = by_row
        self._images = jax.make_array_from_process_local_data(whole, images)
        self._labels = jax.make_array_from_process_local_data(whole, labels)
        crop, fill = transforms.as_pair(crop_size), tuple(int(value) for value in fill)

        def cut(images, labels, index, chance):
            return jax.vmap(functools.partial(augment, images, labels, crop=crop, fill=fill))(index, chance)

        self._cut = jax.jit(cut, in_shardings=(whole, whole, by_row, by_row), out_shardings=by_row)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """`images` uint8 [B, *crop, 3] and `labels` uint8 [B, *crop] on the mesh, sharded by row.

        Args:
          batch: `index` int32 [b] into the records and what `transforms.draw` gives for each, stacked: this process's
            rows of the batch; anything else in it is left alone.
        """
        arrays = {key: value for key, value in batch.items() if isinstance(value, np.ndarray)}
        # JAX has no float64 unless it is told to.
        arrays = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in arrays.items()}
        chance = {k: jax.make_array_from_process_local_data(self._by_row, v) for k, v in arrays.items()}
        images, labels = self._cut(self._images, self._labels, chance.pop("index"), chance)
        return {"images": images, "labels": labels}


class Places:
    """Records that are no images but where these lie, for `pipeline.train_batches`: `index`, `shape` and `id`."""

    def __init__(self, resident: Resident):
        self.shapes, self.ids = resident.shapes, resident.ids

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Places({len(self)})"

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"index": np.array(index, np.int32), "shape": self.shapes[index], "id": self.ids[index]}


def draw(record: dict[str, Any], rng: np.random.Generator, **changes: Any) -> dict[str, Any]:
    """A record of `Places` with its chance, `transforms.draw` of `changes`, in place of its shape."""
    chance = transforms.draw([int(side) for side in record["shape"]], rng, **changes)
    return {"index": record["index"], "id": record["id"], **chance}


def _check_memory(needed: int, what: str, mesh: Mesh) -> None:
    device = mesh.local_devices[0]
    there = (device.memory_stats() or {}).get("bytes_limit")
    if there is None:  # a CPU's memory is the machine's
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > SHARE * there:
        raise UserError(
            f"data.on_device is set, but {what} take {needed / 2**30:.1f} GiB, and {device.device_kind} has "
            f"{there / 2**30:.1f}: leave it False, or make them smaller by data.resize"
        )


# ----------------------------------------------------------------------------------------------- one image, on a device


def augment(
    images: jax.Array,
    labels: jax.Array,
    index: jax.Array,
    chance: Mapping[str, jax.Array],
    *,
    crop: tuple[int, int],
    fill: Sequence[int],
) -> tuple[jax.Array, jax.Array]:
    """What `transforms.apply` does to an image, of sizes that are known when it runs.

    Args:
      images, labels: uint8 [N, H, W, 3] and [N, H, W], of which `index` is taken; images may be smaller than H, W.
      chance: of `transforms.draw`.
      crop: (height, width) of the result.
      fill: RGB colour beyond the image.

    Returns:
      uint8 [*crop, 3] and uint8 [*crop], with `fill` and 255 beyond the image.
    """
    top, left, high, wide = chance["window"]
    height, width = chance["size"]
    turns = chance.get("turns", 0)
    # A mirrored or turned image is one whose rows and columns are read backwards, and swapped for odd quarters.
    rows = _reading(height, crop[0], chance.get("vertical_flip", False) ^ (turns // 2 == 1))
    columns = _reading(width, crop[1], chance.get("flip", False) ^ ((turns == 1) | (turns == 2)))
    (row, next_row, down), (column, next_column, right) = _between(rows, high, height), _between(columns, wide, width)
    image = _mix(images[index, top + row], images[index, top + next_row], down[:, None, None])
    image = _mix(image[:, left + column], image[:, left + next_column], right[:, None])
    image = _rounded(image)
    label = labels[index, (top + _nearest(rows, high, height))[:, None], left + _nearest(columns, wide, width)]
    if "turns" in chance:
        odd = turns % 2 == 1
        image = jnp.where(odd, image.swapaxes(0, 1), image)
        label = jnp.where(odd, label.T, label)
        height, width = jnp.where(odd, width, height), jnp.where(odd, height, width)

    ys, xs = jnp.arange(crop[0]), jnp.arange(crop[1])
    inside = (ys < height)[:, None] & (xs < width)
    if "grid" in chance:
        x, y = _distorted(xs, width, chance["grid"][0]), _distorted(ys, height, chance["grid"][1])
        image, label, _ = _remap(image, label, x[None], y[:, None], (height, width))
    if "elastic" in chance:
        weights = (_bicubic(ys, height), _bicubic(xs, width))
        # A GPU would take products in TF32, whose rounding moves pixels.
        shift = jnp.einsum("ya,xb,abc->yxc", *weights, chance["elastic"], precision=jax.lax.Precision.HIGHEST)
        x, y = xs + shift[..., 0], ys[:, None] + shift[..., 1]
        image, label, known = _remap(image, label, x, y, (height, width))
        inside &= known
    if "jitter" in chance:
        luma = jnp.asarray(transforms.LUMA, jnp.float32)
        mean = jnp.sum(jnp.where(inside, (image * luma).sum(-1), 0.0)) / jnp.maximum(1, inside.sum())
        image = _rounded(_linear(image, chance["jitter"].at[:, 3].multiply(mean)))
    if "stain" in chance:
        density = _linear(-jnp.log((image + 1) / 256), chance["stain"])
        image = jnp.clip(jnp.floor(256 * jnp.exp(-density) - 0.5), 0, 255)
    image = jnp.where(inside[..., None], image, jnp.asarray(fill, jnp.float32))
    label = jnp.where(inside, label, transforms.IGNORE_LABEL)
    return image.astype(jnp.uint8), label.astype(jnp.uint8)


def _reading(size: jax.Array, length: int, backwards: jax.Array) -> jax.Array:
    """The `size` places that are there, in order or backwards, as int32 [length]; what is beyond is anything there."""
    places = jnp.arange(length)
    return jnp.clip(jnp.where(backwards, size - 1 - places, places), 0, size - 1)


def _between(places: jax.Array, source: jax.Array, size: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For places of `size` pixels the two of `source` they lie between, centres aligned, and the second's share."""
    twice = jnp.clip((2 * places + 1) * source - size, 0, 2 * size * (source - 1))
    low = twice // (2 * size)
    return low, jnp.minimum(low + 1, source - 1), (twice % (2 * size)) / (2 * size)


def _nearest(places: jax.Array, source: jax.Array, size: jax.Array) -> jax.Array:
    return (2 * places + 1) * source // (2 * size)


def _mix(a: jax.Array, b: jax.Array, share: jax.Array) -> jax.Array:
    return a * (1 - share) + b * share


def _rounded(image: jax.Array) -> jax.Array:
    return jnp.clip(jnp.round(image), 0, 255)


def _linear(image: jax.Array, matrix: jax.Array) -> jax.Array:
    # Written out: a matrix product of three channels may be rounded to bfloat16 on the way.
    return sum(image[..., i, None] * matrix[:, i] for i in range(3)) + matrix[:, 3]


def _distorted(places: jax.Array, size: jax.Array, edges: jax.Array) -> jax.Array:
    last = (size - 1).astype(jnp.float32)
    return jnp.interp(places.astype(jnp.float32), jnp.linspace(0.0, 1.0, len(edges)) * last, edges * last)


def _bicubic(places: jax.Array, size: jax.Array) -> jax.Array:
    """Weights [len(places), 3] of three values spread over `size` pixels, OpenCV's cubic (Keys 1981, a = -0.75)."""
    centre = (places + 0.5) * 3 / size - 0.5
    low = jnp.floor(centre)
    weights = jnp.zeros((len(places), 3))
    for tap in range(-1, 3):
        t = jnp.abs(centre - low - tap)
        near, far = (1.25 * t - 2.25) * t * t + 1, ((-0.75 * t + 3.75) * t - 6) * t + 3
        at = jnp.clip(low + tap, 0, 2)[:, None] == jnp.arange(3)
        weights += at * jnp.where(t <= 1, near, far)[:, None]
    return weights


def _remap(image, label, x, y, size):
    """As `transforms.remap`, of the `size` pixels that there are; places are thirty-seconds of a pixel, as OpenCV's."""
    height, width = size
    x, y = jnp.broadcast_arrays(jnp.round(32 * x) / 32, jnp.round(32 * y) / 32)

    def at(array, row, column):
        row, column = row.astype(jnp.int32), column.astype(jnp.int32)
        return array[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)]

    left, top = jnp.floor(x), jnp.floor(y)
    right, down = (x - left)[..., None], (y - top)[..., None]
    above = _mix(at(image, top, left), at(image, top, left + 1), right)
    below = _mix(at(image, top + 1, left), at(image, top + 1, left + 1), right)
    row, column = jnp.round(y), jnp.round(x)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    label = jnp.where(inside, at(label, row, column), transforms.IGNORE_LABEL)
    return _rounded(_mix(above, below, down)), label, inside
