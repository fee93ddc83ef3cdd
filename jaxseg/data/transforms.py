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


def random_scale(
    images: np.ndarray, labels: np.ndarray, rng: np.random.Generator, low: float, high: float
) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels resized by one factor drawn evenly from [low, high]."""
    factor = rng.uniform(low, high)
    height, width = labels.shape
    return resize(images, labels, (max(1, round(height * factor)), max(1, round(width * factor))))


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


def random_crop(
    images: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    size: int | Sequence[int],
    fill: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """A window of `size`, one number or (height, width), at a random place.

    Where the image is smaller it is padded at the bottom and right with the colour `fill` and label 255.
    """
    height, width = as_pair(size)
    top, left = _place(rng, labels.shape, (height, width))
    window = np.s_[top : top + height, left : left + width]
    return pad(images[window], labels[window], (height, width), fill)


def random_flip(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels, mirrored left to right in one of two cases."""
    if rng.random() < 0.5:
        return cv2.flip(images, 1), cv2.flip(labels, 1)
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


def augment(
    example: dict[str, Any],
    rng: np.random.Generator,
    *,
    crop_size: int | Sequence[int],
    scale: Sequence[float] = (1.0, 1.0),
    flip: bool = True,
    jitter: float = 0.0,
    fill: Sequence[int] = (124, 116, 104),
) -> dict[str, Any]:
    """Random scale, crop, flip and colours of one record.

    It does what `random_scale`, `random_crop`, `random_flip` and `colour_jitter` do one after the other, but cuts the
    window out of the image before it resizes it, so that only what is kept is resized.

    Args:
      example: `images` uint8 [H, W, 3] and `labels` uint8 [H, W]; other keys are passed on.
      rng: the only source of chance.
      crop_size: size of the result, one number or (height, width).
      scale: lowest and highest factor.
      flip: whether one of two images is mirrored.
      jitter: strength of the change of colours, 0 for none.
      fill: RGB colour beyond the image, as a rule the mean that normalising takes away.

    Returns:
      A new dict; `images` uint8 [*crop_size, 3], `labels` uint8 [*crop_size] with 255 beyond the image.
    """
    images, labels = example["images"], example["labels"]
    crop = as_pair(crop_size)
    factor = rng.uniform(*scale)
    # The window in the pixels of the source, and what becomes of it: less than the crop where the image ends first.
    window = [min(full, max(1, round(cut / factor))) for full, cut in zip(labels.shape, crop, strict=True)]
    size = [
        cut if part < full else min(cut, max(1, round(full * factor)))
        for full, part, cut in zip(labels.shape, window, crop, strict=True)
    ]
    top, left = _place(rng, labels.shape, window)
    part = np.s_[top : top + window[0], left : left + window[1]]
    images, labels = resize(images[part], labels[part], (size[0], size[1]))
    if flip:
        images, labels = random_flip(images, labels, rng)
    images = colour_jitter(images, rng, jitter)
    images, labels = pad(images, labels, crop, fill)
    return {**example, "images": images, "labels": labels}


def _place(rng: np.random.Generator, full: Sequence[int], window: Sequence[int]) -> list[int]:
    return [int(rng.integers(0, max(0, f - w) + 1)) for f, w in zip(full, window, strict=True)]
