"""An image as the network sees it, at each scale and mirrored, and the probabilities brought back: on the device, where
images of a batch have sizes of their own, and on the host for windows.

Evaluation and `predict` both bring images to size and probabilities back by the functions here, and by no others.
A protocol is one of `jaxseg.protocols.Protocol`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.windows import places

# ---------------------------------------------------------------------------------------------------------- on a device


def resample(
    x: jax.Array, sizes: jax.Array, to_sizes: jax.Array, canvas: Sequence[int], *, mirror: bool = False
) -> jax.Array:
    """Each image of a padded batch resized bilinearly by its own factor, as `layers.resize_bilinear` without corners.

    Its neighbours are looked up on the device from each image's size: one program for all sizes in a canvas. A pixel is
    mixed of four and of nothing else, so that it is the same in any batch and any canvas.

    Args:
      x: `[B, H, W, C]`; image b is its top left `sizes[b]`.
      sizes, to_sizes: `[B, 2]`, heights and widths before and after.
      canvas: (height, width) of what comes out, 0 beyond `to_sizes`.
      mirror: whether left and right are exchanged.
    """
    return _resample_rows(_resample_columns(x, sizes, to_sizes, canvas[1], mirror), sizes, to_sizes, canvas[0])


def _resample_columns(x, sizes, to_sizes, width: int, mirror: bool = False) -> jax.Array:
    low, high, share, inside = _neighbours(sizes[:, 1], to_sizes[:, 1], jnp.arange(width), mirror)
    left, right = (jnp.take_along_axis(x, places[:, None, :, None], axis=2) for places in (low, high))
    share, inside = (value[:, None, :, None] for value in (share, inside))
    return jnp.where(inside, left * (1 - share) + right * share, 0)


def _resample_rows(x, sizes, to_sizes, height: int, top: int | jax.Array = 0) -> jax.Array:
    """The `height` rows from `top` on."""
    low, high, share, inside = _neighbours(sizes[:, 0], to_sizes[:, 0], top + jnp.arange(height))
    above, below = (jnp.take_along_axis(x, places[:, :, None, None], axis=1) for places in (low, high))
    share, inside = (value[:, :, None, None] for value in (share, inside))
    return jnp.where(inside, above * (1 - share) + below * share, 0)


def _neighbours(size: jax.Array, to_size: jax.Array, out: jax.Array, mirror: bool = False) -> tuple[jax.Array, ...]:
    """`[B, len(out)]` each: the two places that the places `out` lie between, the second's share, whether it is one."""
    # An empty row of a batch has no size.
    size, to_size = (jnp.maximum(value, 1).astype(jnp.int32)[:, None] for value in (size, to_size))
    place = jnp.clip((out + 0.5) * (size.astype(jnp.float32) / to_size) - 0.5, 0, size - 1)
    if mirror:
        place = size - 1 - place
    low = jnp.floor(place).astype(jnp.int32)
    return low, jnp.minimum(low + 1, size - 1), place - low, out < to_size


def softmax(logits: jax.Array) -> jax.Array:
    """NaN where any logit is infinite, too: a class at minus infinity would look like one that is merely unlikely."""
    return jnp.where(jnp.isfinite(logits).all(-1, keepdims=True), jax.nn.softmax(logits), jnp.nan)


def on_device(images: jax.Array, sizes: jax.Array, protocol) -> list[jax.Array]:
    """Float images `[B, H, W, 3]`, padded beyond `sizes` `[B, 2]`, as the network sees them: an array a view."""
    seen, at = _seen(sizes, images.shape[1:3], protocol)
    views = [resample(images, sizes, to, canvas, mirror=m) for to, canvas, m in _each(seen, at, protocol)]
    # Each stage rounds by itself, whether one program has them all or, as in predict, one has each.
    return jax.lax.optimization_barrier(views)


def mean_on_device(
    apply: Callable, views: Sequence[jax.Array], sizes: jax.Array, canvas: Sequence[int], protocol
) -> jax.Array:
    """float32 probabilities of `views` averaged, at the size that the protocol sees images at.

    `apply` gives the logits of a view; `canvas` is that of the images, (height, width).
    """
    seen, at = _seen(sizes, canvas, protocol)
    probs = 0.0
    for view, (to, _, mirror) in zip(views, _each(seen, at, protocol), strict=True):
        logits = jax.lax.optimization_barrier(apply(view))
        probs += jax.nn.softmax(resample(logits, to, seen, at, mirror=mirror))
    return jax.lax.optimization_barrier(probs / len(views))


def back(probs: jax.Array, sizes: jax.Array, canvas: Sequence[int]) -> jax.Array:
    """Probabilities at one size, `[B, h, w, C]`, brought to `sizes` in a canvas."""
    of = jnp.broadcast_to(jnp.asarray(probs.shape[1:3]), sizes.shape)
    return jax.lax.optimization_barrier(resample(probs, of, sizes, canvas))


def in_strips(probs: jax.Array, size: tuple[int, int], canvas: tuple[int, int], most: int) -> Iterator[np.ndarray]:
    """`back` of one image, `[1, h, w, C]` to `size`: float32 `[rows, width, C]`, strips from the top down.

    One strip where the canvas holds at most `most` numbers, or else of about so many, and at least 32 rows.
    """
    height, width = canvas
    high = 32 * max(1, most // (32 * width * probs.shape[-1]))
    of, to = jnp.array([probs.shape[1:3]]), jnp.array([size])
    if high >= height:  # as evaluation does it: an order of sums of its own may round otherwise
        yield np.asarray(_BACK(probs, to, canvas))[0, : size[0], : size[1]]
        return
    columns = _COLUMNS(probs, of, to, width)
    for top in range(0, size[0], high):
        yield np.asarray(_ROWS(columns, of, to, high, top))[0, : size[0] - top, : size[1]]


_BACK = jax.jit(back, static_argnums=2)
_COLUMNS = jax.jit(_resample_columns, static_argnums=3)
_ROWS = jax.jit(_resample_rows, static_argnums=3)


def _seen(sizes: jax.Array, canvas: Sequence[int], protocol) -> tuple[jax.Array, Sequence[int]]:
    """Sizes that images are seen at, at scale 1, and their canvas."""
    if protocol.name == "whole":
        return sizes, canvas
    return jnp.broadcast_to(jnp.asarray(protocol.size), sizes.shape), protocol.size


def _each(seen: jax.Array, at: Sequence[int], protocol) -> Iterator[tuple[jax.Array, list[int], bool]]:
    """Sizes, canvas and whether it is mirrored, a view."""
    for scale in protocol.scales:
        to = jnp.maximum(1, jnp.floor(scale * seen + 0.5))
        canvas = [int(scale * side + 0.5) for side in at]
        # One size is left as it is, several are padded as the pipeline pads them.
        canvas = [-(-side // 32) * 32 for side in canvas] if protocol.name == "whole" else canvas
        for mirror in (False, True)[: 1 + protocol.flip]:
            yield to, canvas, mirror


# ---------------------------------------------------------------------------------------------------------- on the host


def _sizes(size: Sequence[int], protocol) -> list[tuple[int, ...]]:
    return [tuple(max(1, int(scale * side + 0.5)) for side in size) for scale in protocol.scales]


def number_of_windows(size: Sequence[int], protocol) -> int:
    """On all views of an image of `size`, (height, width)."""
    sides = [zip(view, protocol.size, protocol.stride, strict=True) for view in _sizes(size, protocol)]
    return (1 + protocol.flip) * sum(math.prod(len(places(*side)) for side in view) for view in sides)


def rows_of_windows(count: int, most: int, devices: int = 1) -> int:
    """Windows at a time where there are `count`: at most `most`, or else the next power of two for each device."""
    return min(most, devices * 2 ** math.ceil(math.log2(max(1, count / devices))))


def on_host(image: np.ndarray, protocol) -> Iterator[np.ndarray]:
    """uint8 `[H, W, 3]` at each scale, and mirrored, for windows."""
    from jaxseg.data import transforms

    for size in _sizes(image.shape[:2], protocol):
        view, _ = transforms.resize(image, image[..., 0], size)
        yield view
        if protocol.flip:
            yield view[:, ::-1]


def mean_on_host(probs_of_views: Iterable[np.ndarray], size: tuple[int, int], protocol) -> np.ndarray:
    """The next image's float32 probabilities `[*size, C]` from those of its views."""
    import cv2

    views, total, count = iter(probs_of_views), 0.0, 0
    for _ in protocol.scales:
        for mirror in (False, True)[: 1 + protocol.flip]:
            probs = next(views)
            probs = probs[:, ::-1] if mirror else probs
            if probs.shape[:2] != size:
                probs = cv2.resize(probs, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
            total, count = total + probs, count + 1
    return total / count
