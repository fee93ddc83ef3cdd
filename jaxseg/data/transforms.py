"""Augmentation of an image and its labels together; every function is pure but for the generator it is given.

Images are uint8 [H, W, 3] RGB, labels uint8 [H, W]. Labels are resized by picking pixels, with the centre-aligned grid
of the image's bilinear resize (OpenCV's `INTER_NEAREST_EXACT`; its `INTER_NEAREST` is half a pixel off).

What lies beyond the picture has label 255 and exactly the fill colour: it is set last, after every change of colours,
and no change of colours looks at it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

IGNORE_LABEL = 255

# Luma and the two colour differences of YIQ: turning the latter turns the hue and leaves grey and luma alone.
LUMA = np.array([0.299, 0.587, 0.114])
_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB = np.linalg.inv(_YIQ)


def as_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) from one number or two."""
    height, width = (size, size) if np.isscalar(size) else size
    return int(height), int(width)


def resize(images: np.ndarray, labels: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels brought to `size`, (height, width): bilinear the one, nearest the other, on one grid."""
    if images.shape[:2] == tuple(size):
        return images, labels
    to = (size[1], size[0])
    image = cv2.resize(images, to, interpolation=cv2.INTER_LINEAR)
    return image, cv2.resize(labels, to, interpolation=cv2.INTER_NEAREST_EXACT)


def pad(
    images: np.ndarray, labels: np.ndarray, size: tuple[int, int], fill: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels made at least `size`, (height, width), at the bottom and right: `fill` there, label 255."""
    below, right = max(0, size[0] - labels.shape[0]), max(0, size[1] - labels.shape[1])
    if below or right:
        border = (0, below, 0, right, cv2.BORDER_CONSTANT)
        images = cv2.copyMakeBorder(images, *border, value=[int(v) for v in fill])
        labels = cv2.copyMakeBorder(labels, *border, value=IGNORE_LABEL)
    return images, labels


def mirror(images: np.ndarray, labels: np.ndarray, axis: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels mirrored left to right (axis 1) or upside down (axis 0)."""
    return cv2.flip(images, axis), cv2.flip(labels, axis)


def draw_jitter(rng: np.random.Generator, strength: float) -> np.ndarray:
    """A change of brightness, contrast, saturation and hue, for `colour_jitter`: float64 [3, 4].

    The first three are multiplied by factors from [1 - strength, 1 + strength], the hue is turned by up to a quarter of
    `strength` of a full turn either way (the proportions of SimCLR, Chen et al. 2020).
    """
    low = max(0.0, 1 - strength)
    brightness, contrast, saturation = rng.uniform(low, 1 + strength, 3)
    angle = 2 * np.pi * rng.uniform(-strength, strength) / 4
    cos, sin = saturation * np.cos(angle), saturation * np.sin(angle)
    colour = _RGB @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _YIQ
    towards_grey = np.full((3, 1), brightness * (1 - contrast))
    return np.concatenate([brightness * contrast * colour, towards_grey], axis=1)


def colour_jitter(images: np.ndarray, jitter: np.ndarray, inside: np.ndarray | None = None) -> np.ndarray:
    """The image with its colours changed by one linear map, rounded once: `jitter` [3, 4], of RGB and the mean luma.

    That mean is over the pixels where `inside`, uint8 [H, W], is not 0; None for all.
    """
    matrix = jitter.copy()
    matrix[:, 3] *= LUMA @ cv2.mean(images, mask=inside)[:3]
    return cv2.transform(images, matrix)


def quarter_turns(images: np.ndarray, labels: np.ndarray, turns: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels turned counter-clockwise by `turns` quarters."""
    return np.ascontiguousarray(np.rot90(images, turns)), np.ascontiguousarray(np.rot90(labels, turns))


def remap(
    images: np.ndarray, labels: np.ndarray, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image and labels read at the places (x, y), float32 [H, W], in pixels: bilinear the one, nearest the other.

    Returns:
      The image, whose border goes on beyond it; the labels, 255 there; and uint8 [H, W], 0 there and 1 inside.
    """
    x, y = x.astype(np.float32), y.astype(np.float32)
    image = cv2.remap(images, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    inside = cv2.remap(np.ones_like(labels), x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)
    labels = cv2.remap(labels, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=IGNORE_LABEL)
    return image, labels, inside


def draw_grid(rng: np.random.Generator, strength: float, cells: int = 5) -> np.ndarray:
    """Where the columns and rows of a grid come to lie, for `grid_distortion`: float64 [2, cells + 1] from 0 to 1.

    Each of the `cells` is made wider or narrower by a factor of [1 - strength, 1 + strength].
    """
    widths = rng.uniform(1 - strength, 1 + strength, (2, cells))
    edges = np.concatenate([np.zeros((2, 1)), np.cumsum(widths, axis=1)], axis=1)
    return edges / edges[:, -1:]


def grid_distortion(images: np.ndarray, labels: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows moved as `draw_grid` has it.

    The borders stay where they are (the distortion of the library Albumentations with `normalized=True`), so nothing
    beyond the image comes in.
    """

    def places(size: int, edges: np.ndarray) -> np.ndarray:
        return np.interp(np.arange(size), np.linspace(0, size - 1, len(edges)), edges * (size - 1))

    height, width = labels.shape
    x, y = np.meshgrid(places(width, grid[0]), places(height, grid[1]))
    images, labels, _ = remap(images, labels, x, y)
    return images, labels


def draw_elastic(rng: np.random.Generator, strength: float) -> np.ndarray:
    """Displacements along x and y on a grid of 3 by 3, for `elastic`: float64 [3, 3, 2], in pixels.

    Their standard deviation is `strength`.
    """
    return rng.normal(0, strength, (3, 3, 2))


def elastic(images: np.ndarray, labels: np.ndarray, shifts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A smooth deformation (U-Net, Ronneberger et al. 2015, section 3.1): `draw_elastic`, bicubic in between.

    Returns what `remap` does: what comes from beyond the image is marked.
    """
    height, width = labels.shape
    shift = cv2.resize(shifts, (width, height), interpolation=cv2.INTER_CUBIC)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return remap(images, labels, x + shift[..., 0], y + shift[..., 1])


# Optical densities of haematoxylin, eosin and DAB (Ruifrok & Johnston 2001, table 1), rows of length 1.
_STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
_STAINS /= np.linalg.norm(_STAINS, axis=1, keepdims=True)
_DENSITY = -np.log((np.arange(256) + 1) / 256).astype(np.float32)


def draw_stain(rng: np.random.Generator, strength: float) -> np.ndarray:
    """A change of a tissue's stains, for `stain_jitter`: float64 [3, 4] (Tellez et al. 2018, "Whole-slide mitosis
    detection").

    Colours are taken apart into haematoxylin, eosin and DAB; of each the amount is multiplied by a factor from
    [1 - strength, 1 + strength] and moved by up to `strength` / 5 either way; then they are put together again.
    """
    factors = rng.uniform(1 - strength, 1 + strength, 3)
    shifts = rng.uniform(-strength, strength, 3) / 5
    # density = amounts @ stains, so the change is one linear map of the densities.
    matrix = np.linalg.inv(_STAINS) @ np.diag(factors) @ _STAINS
    return np.concatenate([matrix.T, (shifts @ _STAINS)[:, None]], axis=1)


def stain_jitter(images: np.ndarray, stain: np.ndarray) -> np.ndarray:
    """The image of a stained tissue with its optical densities changed by a linear map, `stain` [3, 4]."""
    density = cv2.transform(_DENSITY[images], stain)
    return np.clip(256 * cv2.exp(-density) - 0.5, 0, 255).astype(np.uint8)


# What `data.variants` may list: each gives one sample of every image.
VARIANTS = {
    "identity": lambda images, labels, rng: (images, labels),
    "rotate90": lambda images, labels, rng: quarter_turns(images, labels),
    "vertical_flip": lambda images, labels, rng: mirror(images, labels, 0),
    "flip": lambda images, labels, rng: mirror(images, labels, 1),
    "grid_distortion": lambda images, labels, rng: grid_distortion(images, labels, draw_grid(rng, 0.3)),
}


def draw(
    shape: Sequence[int],
    rng: np.random.Generator,
    *,
    crop_size: int | Sequence[int],
    scale: Sequence[float] = (1.0, 1.0),
    center_crop: bool = False,
    flip: bool = True,
    vertical_flip: bool = False,
    rotate90: bool = False,
    grid_distortion: float = 0.0,
    elastic: float = 0.0,
    jitter: float = 0.0,
    stain: float = 0.0,
) -> dict[str, np.ndarray]:
    """What becomes of an image, as numbers: all that chance decides, for `apply` or for `jaxseg.resident`.

    Scale and crop are one: the window is cut out of the image before it is resized, so that only what is kept is.

    Args:
      shape: (height, width) of the image.
      rng: the only source of chance.
      crop_size: size of the result, one number or (height, width).
      scale: lowest and highest factor.
      center_crop: whether the window lies in the middle and not anywhere.
      flip, vertical_flip: whether one of two images is mirrored left to right, upside down.
      rotate90: whether it is turned by a random number of quarters; the crop must be square.
      grid_distortion, elastic, jitter, stain: strengths, see `draw_grid`, `draw_elastic`, `draw_jitter`, `draw_stain`;
        0 for none.

    Returns:
      `window` int32 [4], top, left, height and width in the image; `size` int32 [2], which the window is resized to;
      and of the changes that are on `flip` and `vertical_flip` (bool), `turns` (int32 quarters), `grid` float64 [2, 6],
      `elastic` float64 [3, 3, 2], `jitter` float64 [3, 4], `stain` float64 [3, 4].
    """
    crop, factor = as_pair(crop_size), rng.uniform(*scale)
    # The window in the pixels of the source, and what becomes of it: less than the crop where the image ends first.
    window = [min(full, max(1, round(cut / factor))) for full, cut in zip(shape, crop, strict=True)]
    size = [
        cut if part < full else min(cut, max(1, round(full * factor)))
        for full, part, cut in zip(shape, window, crop, strict=True)
    ]
    room = [full - part for full, part in zip(shape, window, strict=True)]
    corner = [most // 2 if center_crop else rng.integers(0, most + 1) for most in room]
    chance = {"window": np.array([*corner, *window], np.int32), "size": np.array(size, np.int32)}
    # A change that is off takes nothing from the generator: what others draw stays the same.
    if flip:
        chance["flip"] = np.array(rng.random() < 0.5)
    if vertical_flip:
        chance["vertical_flip"] = np.array(rng.random() < 0.5)
    if rotate90:
        chance["turns"] = np.array(rng.integers(4), np.int32)
    if grid_distortion:
        chance["grid"] = draw_grid(rng, grid_distortion)
    if elastic:
        chance["elastic"] = draw_elastic(rng, elastic)
    if jitter:
        chance["jitter"] = draw_jitter(rng, jitter)
    if stain:
        chance["stain"] = draw_stain(rng, stain)
    return chance


def apply(
    images: np.ndarray,
    labels: np.ndarray,
    chance: Mapping[str, np.ndarray],
    *,
    crop_size: int | Sequence[int],
    fill: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels changed as `draw` has it, and padded to `crop_size`: beyond the image `fill` and label 255."""
    top, left, height, width = chance["window"]
    part = np.s_[top : top + height, left : left + width]
    images, labels = resize(images[part], labels[part], as_pair(chance["size"]))
    for name, axis in (("flip", 1), ("vertical_flip", 0)):
        if chance.get(name):
            images, labels = mirror(images, labels, axis)
    if "turns" in chance:
        images, labels = quarter_turns(images, labels, int(chance["turns"]))
    if "grid" in chance:
        images, labels = grid_distortion(images, labels, chance["grid"])
    inside = None  # everywhere
    if "elastic" in chance:
        images, labels, inside = elastic(images, labels, chance["elastic"])
    if "jitter" in chance:
        images = colour_jitter(images, chance["jitter"], inside)
    if "stain" in chance:
        images = stain_jitter(images, chance["stain"])
    if inside is not None:
        images[inside == 0] = np.asarray(fill, np.uint8)
    return pad(images, labels, as_pair(crop_size), fill)


def augment(
    example: dict[str, Any],
    rng: np.random.Generator,
    *,
    crop_size: int | Sequence[int],
    resize_to: Sequence[int] = (),
    fill: Sequence[int] = (124, 116, 104),
    **changes: Any,
) -> dict[str, Any]:
    """All random changes of one record.

    Args:
      example: `images` uint8 [H, W, 3] and `labels` uint8 [H, W]; with `variant`, one of `VARIANTS` that is applied to
        the whole image; other keys are passed on.
      rng: the only source of chance.
      crop_size: size of the result, one number or (height, width).
      resize_to: (height, width) that the whole image is brought to first, whatever its proportions; () leaves it.
      fill: RGB colour beyond the image, as a rule the mean that normalising takes away.
      **changes: of `draw`.

    Returns:
      A new dict; `images` uint8 [*crop_size, 3], `labels` uint8 [*crop_size] with 255 beyond the image.
    """
    images, labels = example["images"], example["labels"]
    if len(resize_to):
        images, labels = resize(images, labels, as_pair(resize_to))
    if "variant" in example:
        images, labels = VARIANTS[example["variant"]](images, labels, rng)
    chance = draw(labels.shape, rng, crop_size=crop_size, **changes)
    images, labels = apply(images, labels, chance, crop_size=crop_size, fill=fill)
    return {**example, "images": images, "labels": labels}
