"""Pooling: of maxima, with their places and the inverse, and to a fixed number of bins."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxseg.models.layers.dense import Sides


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool(x: jax.Array, size: int = 2, stride: int = 2, padding: Sides = ((0, 0), (0, 0))) -> jax.Array:
    """Max pooling over size x size windows, `torch.nn.MaxPool2d(size, stride, padding)`.

    It is XLA's, with another gradient on a CPU, two to fourteen times as fast, and equal: of the same values in a
    window the first in row-major order has it.

    Args:
      x: `[B, H, W, C]`, floating point.
      size, stride: pixels, the same for both axes.
      padding: pixels of minus infinity, ((top, bottom), (left, right)).

    Returns:
      `[B, H', W', C]` with `H' = (H + top + bottom - size) // stride + 1`.
    """
    return nn.max_pool(x, (size, size), (stride, stride), padding)


def _max_pool_forward(x, size, stride, padding):
    y = max_pool(x, size, stride, padding)
    return y, (x, y)


def _max_pool_backward(size, stride, padding, residuals, dy):
    x, y = residuals

    def plain(x, y, dy):
        return jax.vjp(lambda x: nn.max_pool(x, (size, size), (stride, stride), padding), x)[1](dy)[0]

    def places(x, y, dy):
        return max_unpool(dy, max_pool_with_places(x)[1], x.shape[1:3])

    def phased(x, y, dy):
        (top, bottom), (left, right) = padding
        padded = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
        (height, width), (h, w) = padded.shape[1:3], y.shape[1:3]
        # Which pixel of its window, `size * row + column`, each maximum is: the first of those that equal it.
        place = jnp.zeros(y.shape, jnp.int32)
        for a, b in reversed([(a, b) for a in range(size) for b in range(size)]):
            rows, columns = (slice(i, i + (n - 1) * stride + 1, stride) for i, n in ((a, h), (b, w)))
            place = jnp.where(padded[:, rows, columns] == y, size * a + b, place)
        # Pixels whose rows, and columns, leave the same rest by the stride lie at the same places of their windows.
        high, wide = -(-height // stride), -(-width // stride)

        def pixels(row, column):
            total = jnp.zeros((x.shape[0], high, wide, x.shape[-1]), dy.dtype)
            for a in range(row, size, stride):
                for b in range(column, size, stride):
                    up, back = a // stride, b // stride
                    here = jnp.where(place == size * a + b, dy, jnp.zeros((), dy.dtype))
                    total += jnp.pad(here, ((0, 0), (up, high - h - up), (back, wide - w - back), (0, 0)))
            return total

        by_row = [jnp.stack([pixels(a, b) for b in range(stride)], axis=3) for a in range(stride)]
        full = jnp.stack(by_row, axis=2).reshape(x.shape[0], high * stride, wide * stride, x.shape[-1])
        return full[:, top : height - bottom, left : width - right]

    on_cpu = places if (size, stride, padding) == (2, 2, ((0, 0), (0, 0))) else phased
    return (jax.lax.platform_dependent(x, y, dy, cpu=on_cpu, default=plain),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


@jax.custom_vjp
def max_pool_with_places(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """2x2 max pooling of stride 2 that tells where each maximum was, `torch.nn.MaxPool2d(2, return_indices=True)`.

    An odd last row or column is left out. Of equal values the first in row-major order counts, in the gradient too.

    Args:
      x: `[B, H, W, C]`.

    Returns:
      The maxima `[B, H // 2, W // 2, C]`, and their places in the windows, int8 of 0 to 3 in row-major order: unlike
      indices into the image they mean the same in every shard of a batch.
    """
    b, h, w, c = x.shape
    windows = x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c)
    pixels = [windows[:, :, row, :, column] for row in (0, 1) for column in (0, 1)]
    maxima = functools.reduce(jnp.maximum, pixels)
    places = functools.reduce(lambda later, i: jnp.where(pixels[i] == maxima, i, later), (2, 1, 0), 3)
    return maxima, places.astype(jnp.int8)


def _with_places_forward(x):
    maxima, places = max_pool_with_places(x)
    # An array of no pixels tells the size.
    return (maxima, places), (places, jnp.zeros((0, *x.shape[1:3]), jnp.int8))


def _with_places_backward(residuals, cotangents):
    places, like = residuals
    return (max_unpool(cotangents[0], places, like.shape[1:]),)


max_pool_with_places.defvjp(_with_places_forward, _with_places_backward)


def max_unpool(x: jax.Array, places: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The inverse of `max_pool_with_places`: every value back to its place, zeros elsewhere, `torch.nn.MaxUnpool2d`.

    Args:
      x: `[B, h, w, C]`.
      places: int8 `[B, h, w, C]`, 0 to 3.
      size: (H, W) of what was pooled, `2 * h` or one more; the odd row and column stay zero.

    Returns:
      `[B, H, W, C]` in `x`'s dtype.
    """
    b, h, w, c = x.shape
    pixels = jnp.arange(4, dtype=places.dtype).reshape(2, 1, 2, 1)
    chosen = places[:, :, None, :, None] == pixels
    full = jnp.where(chosen, x[:, :, None, :, None], jnp.zeros((), x.dtype)).reshape(b, 2 * h, 2 * w, c)
    return jnp.pad(full, ((0, 0), (0, size[0] - 2 * h), (0, size[1] - 2 * w), (0, 0)))


def _bins(in_size: int, bins: int) -> np.ndarray:
    """The `[bins, in_size]` matrix of means over bin i's pixels, floor(i n / bins) to ceil((i + 1) n / bins)."""
    matrix = np.zeros((bins, in_size), np.float32)
    for i in range(bins):
        low, high = i * in_size // bins, -(-(i + 1) * in_size // bins)
        matrix[i, low:high] = 1 / (high - low)
    return matrix


def adaptive_avg_pool(x: jax.Array, bins: int) -> jax.Array:
    """Means over bins x bins windows, `[B, H, W, C]` to `[B, bins, bins, C]`, as `torch.nn.AdaptiveAvgPool2d`.

    Windows overlap where the bins don't divide the size.
    """
    rows, columns = (jnp.asarray(_bins(n, bins), x.dtype) for n in x.shape[1:3])
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return product("bhqc,ph->bpqc", product("bhwc,qw->bhqc", x, columns), rows)
