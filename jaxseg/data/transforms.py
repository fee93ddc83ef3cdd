"""Augmentation of an image and its labels together; every function is pure but for the generator it is given.

Images are uint8 [H, W, 3] RGB, labels uint8 [H, W]. Labels are resized by picking pixels, with the centre-aligned grid
of the image's bilinear resize (OpenCV's `INTER_NEAREST_EXACT`; its `INTER_NEAREST` is half a pixel off).
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

IGNORE_LABEL = 255

# Luma and the two colour differences of YIQ: turning the latter turns the hue and leaves grey and luma alone.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
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


def random_flip(
    images: np.ndarray, labels: np.ndarray, rng: np.random.Generator, axis: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels, mirrored in one of two cases: left to right (axis 1) or upside down (axis 0)."""
    if rng.random() < 0.5:
        return cv2.flip(images, axis), cv2.flip(labels, axis)
    return images, labels


def colour_jitter(images: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """The image with its brightness, contrast, saturation and hue changed; the image itself where `strength` is 0.

    The first three are multiplied by factors from [1 - strength, 1 + strength], the hue is turned by up to a quarter of
    `strength` of a full turn either way (the proportions of SimCLR, Chen et al. 2020). All of it is one linear map of
    the colours, rounded once.
    """
    if strength == 0:
        return images
    low = max(0.0, 1 - strength)
    brightness, contrast, saturation = rng.uniform(low, 1 + strength, 3)
    angle = 2 * np.pi * rng.uniform(-strength, strength) / 4
    cos, sin = saturation * np.cos(angle), saturation * np.sin(angle)
    colour = _RGB @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _YIQ
    middle = float(_YIQ[0] @ cv2.mean(images)[:3]) * brightness
    matrix = np.concatenate([brightness * contrast * colour, np.full((3, 1), middle * (1 - contrast))], axis=1)
    return cv2.transform(images, matrix)


def random_rotate90(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels turned by 0, 90, 180 or 270 degrees; a quarter turn swaps height and width."""
    return quarter_turns(images, labels, int(rng.integers(4)))


def quarter_turns(images: np.ndarray, labels: np.ndarray, turns: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels turned counter-clockwise by `turns` quarters."""
    return np.ascontiguousarray(np.rot90(images, turns)), np.ascontiguousarray(np.rot90(labels, turns))


def remap(
    images: np.ndarray, labels: np.ndarray, x: np.ndarray, y: np.ndarray, fill: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels read at the places (x, y), float32 [H, W], in pixels: bilinear the one, nearest the other.

    Beyond the image there is `fill`, and label 255.
    """
    x, y = x.astype(np.float32), y.astype(np.float32)
    # The fill comes after: the last half pixel inside would be mixed with it.
    image = cv2.remap(images, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    beyond = cv2.remap(np.ones_like(labels), x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT) == 0
    image[beyond] = np.asarray(fill, np.uint8)
    labels = cv2.remap(labels, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=IGNORE_LABEL)
    return image, labels


def random_grid_distortion(
    images: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    strength: float,
    fill: Sequence[int] = (124, 116, 104),
    cells: int = 5,
) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of a grid of `cells` made wider and narrower by factors of [1 - strength, 1 + strength].

    The borders stay where they are (the distortion of the library Albumentations with `normalized=True`).
    """

    def places(size: int) -> np.ndarray:
        edges = np.concatenate([[0.0], np.cumsum(rng.uniform(1 - strength, 1 + strength, cells))])
        return np.interp(np.arange(size), np.linspace(0, size - 1, cells + 1), edges / edges[-1] * (size - 1))

    height, width = labels.shape
    x, y = np.meshgrid(places(width), places(height))
    return remap(images, labels, x, y, fill)


def random_elastic(
    images: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    strength: float,
    fill: Sequence[int] = (124, 116, 104),
) -> tuple[np.ndarray, np.ndarray]:
    """A smooth deformation (U-Net, Ronneberger et al. 2015, section 3.1).

    Displacements of a standard deviation of `strength` pixels on a grid of 3 by 3, bicubic between them.
    """
    height, width = labels.shape
    shift = cv2.resize(rng.normal(0, strength, (3, 3, 2)), (width, height), interpolation=cv2.INTER_CUBIC)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return remap(images, labels, x + shift[..., 0], y + shift[..., 1], fill)


# Optical densities of haematoxylin, eosin and DAB (Ruifrok & Johnston 2001, table 1), rows of length 1.
_STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
_STAINS /= np.linalg.norm(_STAINS, axis=1, keepdims=True)
_DENSITY = -np.log((np.arange(256) + 1) / 256).astype(np.float32)


def stain_jitter(images: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """The image of a stained tissue with its stains changed (Tellez et al. 2018, "Whole-slide mitosis detection").

    Colours are taken apart into haematoxylin, eosin and DAB; of each the amount is multiplied by a factor from
    [1 - strength, 1 + strength] and moved by up to `strength` / 5 either way; then they are put together again.
    """
    factors = rng.uniform(1 - strength, 1 + strength, 3)
    shifts = rng.uniform(-strength, strength, 3) / 5
    # density = amounts @ stains, so the change is one linear map of the densities.
    matrix = np.linalg.inv(_STAINS) @ np.diag(factors) @ _STAINS
    change = np.concatenate([matrix.T, (shifts @ _STAINS)[:, None]], axis=1)
    density = cv2.transform(_DENSITY[images], change)
    return np.clip(256 * cv2.exp(-density) - 0.5, 0, 255).astype(np.uint8)


def _flipped(code: int):
    return lambda images, labels, rng: (cv2.flip(images, code), cv2.flip(labels, code))


# What `data.variants` may list: each gives one sample of every image.
VARIANTS = {
    "identity": lambda images, labels, rng: (images, labels),
    "rotate90": lambda images, labels, rng: quarter_turns(images, labels),
    "vertical_flip": _flipped(0),
    "flip": _flipped(1),
    "grid_distortion": lambda images, labels, rng: random_grid_distortion(images, labels, rng, 0.3),
}


def augment(
    example: dict[str, Any],
    rng: np.random.Generator,
    *,
    crop_size: int | Sequence[int],
    resize_to: Sequence[int] = (),
    scale: Sequence[float] = (1.0, 1.0),
    center_crop: bool = False,
    flip: bool = True,
    vertical_flip: bool = False,
    rotate90: bool = False,
    grid_distortion: float = 0.0,
    elastic: float = 0.0,
    jitter: float = 0.0,
    stain: float = 0.0,
    fill: Sequence[int] = (124, 116, 104),
) -> dict[str, Any]:
    """All random changes of one record, in the order of the arguments.

    Scale and crop are one: the window is cut out of the image before it is resized, so that only what is kept is.

    Args:
      example: `images` uint8 [H, W, 3] and `labels` uint8 [H, W]; with `variant`, one of `VARIANTS` that is applied to
        the whole image; other keys are passed on.
      rng: the only source of chance.
      crop_size: size of the result, one number or (height, width).
      resize_to: (height, width) that the whole image is brought to first, whatever its proportions; () leaves it.
      scale: lowest and highest factor.
      center_crop: whether the window lies in the middle and not anywhere.
      flip, vertical_flip: whether one of two images is mirrored left to right, upside down.
      rotate90: whether it is turned by a random number of quarters; the crop must be square.
      grid_distortion, elastic, jitter, stain: strengths, see `random_grid_distortion`, `random_elastic`,
        `colour_jitter`, `stain_jitter`; 0 for none.
      fill: RGB colour beyond the image, as a rule the mean that normalising takes away.

    Returns:
      A new dict; `images` uint8 [*crop_size, 3], `labels` uint8 [*crop_size] with 255 beyond the image.
    """
    images, labels = example["images"], example["labels"]
    crop = as_pair(crop_size)
    if len(resize_to):
        images, labels = resize(images, labels, as_pair(resize_to))
    if "variant" in example:
        images, labels = VARIANTS[example["variant"]](images, labels, rng)
    factor = rng.uniform(*scale)
    # The window in the pixels of the source, and what becomes of it: less than the crop where the image ends first.
    window = [min(full, max(1, round(cut / factor))) for full, cut in zip(labels.shape, crop, strict=True)]
    size = [
        cut if part < full else min(cut, max(1, round(full * factor)))
        for full, part, cut in zip(labels.shape, window, crop, strict=True)
    ]
    if center_crop:
        top, left = ((full - part) // 2 for full, part in zip(labels.shape, window, strict=True))
    else:
        top, left = _place(rng, labels.shape, window)
    part = np.s_[top : top + window[0], left : left + window[1]]
    images, labels = resize(images[part], labels[part], (size[0], size[1]))
    # A change that is off takes nothing from the generator: what others draw stays the same.
    if flip:
        images, labels = random_flip(images, labels, rng)
    if vertical_flip:
        images, labels = random_flip(images, labels, rng, axis=0)
    if rotate90:
        images, labels = random_rotate90(images, labels, rng)
    if grid_distortion:
        images, labels = random_grid_distortion(images, labels, rng, grid_distortion, fill)
    if elastic:
        images, labels = random_elastic(images, labels, rng, elastic, fill)
    images = colour_jitter(images, rng, jitter)
    if stain:
        images = stain_jitter(images, rng, stain)
    images, labels = pad(images, labels, crop, fill)
    return {**example, "images": images, "labels": labels}


def _place(rng: np.random.Generator, full: Sequence[int], window: Sequence[int]) -> list[int]:
    return [int(rng.integers(0, max(0, f - w) + 1)) for f, w in zip(full, window, strict=True)]
