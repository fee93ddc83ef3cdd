"""An image in overlapping windows: where they lie, and their probabilities put together again.

One batch of windows and one strip of the image are held at a time, whatever the image's size.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np


class _Window(NamedTuple):
    image: int
    width: int  # of the whole image
    top: int
    left: int
    next_top: int  # of the row of windows below, or the image's height
    ends_row: bool
    pixels: np.ndarray


def places(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along an axis: every `stride` pixels, the last shifted back to end where the image ends.

    Where the window is as long as the image or longer, it begins at 0.
    """
    last = max(0, length - window)
    return [*range(0, last, stride), last]


def strips(
    probabilities: Callable[[np.ndarray], np.ndarray],
    images: Iterable[np.ndarray],
    *,
    size: tuple[int, int],
    stride: tuple[int, int],
    batch_size: int,
    fill: Sequence[int],
) -> Iterator[tuple[int, int, np.ndarray]]:
    """The probabilities of images from windows that overlap: their mean, by how many windows a pixel is in.

    A batch takes the windows of the next image where those of one don't fill it. What a window has beyond an image that
    is smaller is filled and counts nowhere.

    Args:
      probabilities: uint8 `[batch_size, *size, 3]` to float32 `[batch_size, *size, C]`; rows left over hold anything.
      images: uint8 `[H, W, 3]`, of any sizes.
      size, stride: (height, width); `stride` is at most `size`.
      fill: RGB colour beyond an image.

    Yields:
      The number of the image, the first row, and float32 `[rows, W, C]`: strips from the top down, image by image.
    """
    batch = np.empty((batch_size, *size, 3), np.uint8)
    cuts = _cut(images, size, stride)
    while chunk := list(itertools.islice(cuts, batch_size)):
        batch[:] = np.asarray(fill, np.uint8)
        for row, window in enumerate(chunk):
            high, wide = window.pixels.shape[:2]
            batch[row, :high, :wide] = window.pixels
        for window, probs in zip(chunk, probabilities(batch), strict=False):
            high, wide = window.pixels.shape[:2]
            if (window.top, window.left) == (0, 0):
                sums = np.zeros((high, window.width, probs.shape[-1]), np.float32)
                counts = np.zeros((high, window.width, 1), np.float32)
            across = np.s_[:, window.left : window.left + wide]
            sums[across] += probs[:high, :wide]
            counts[across] += 1
            if window.ends_row:
                done = window.next_top - window.top
                yield window.image, window.top, sums[:done] / counts[:done]
                for array in (sums, counts):
                    array[: high - done] = array[done:]
                    array[high - done :] = 0


def stitched(
    probabilities: Callable[[np.ndarray], np.ndarray], images: Iterable[np.ndarray], **keywords
) -> Iterator[np.ndarray]:
    """float32 `[H, W, C]` for each image, from `strips` with the same arguments."""
    for _, parts in itertools.groupby(strips(probabilities, images, **keywords), key=lambda strip: strip[0]):
        yield np.concatenate([probs for _, _, probs in parts])


def _cut(images: Iterable[np.ndarray], size: tuple[int, int], stride: tuple[int, int]) -> Iterator[_Window]:
    for number, image in enumerate(images):
        height, width = image.shape[:2]
        tops, lefts = places(height, size[0], stride[0]), places(width, size[1], stride[1])
        for top, next_top in itertools.pairwise([*tops, height]):
            for left in lefts:
                pixels = image[top : top + size[0], left : left + size[1]]
                yield _Window(number, width, top, left, next_top, left == lefts[-1], pixels)
