"""Resizing as PyTorch does it, as matrix products along the axes: exact, and fast in both directions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def _interpolation(in_size: int, out_size: int, align_corners: bool) -> np.ndarray:
    """The `[out_size, in_size]` matrix of linear interpolation along one axis, float32: two entries a row."""
    places = np.arange(out_size, dtype=np.float64)
    if align_corners:
        places = places * ((in_size - 1) / max(out_size - 1, 1))
    else:
        places = np.clip((places + 0.5) * (in_size / out_size) - 0.5, 0, in_size - 1)
    low = np.minimum(places.astype(int), in_size - 1)
    high = np.minimum(low + 1, in_size - 1)
    weights = np.zeros((out_size, in_size), np.float64)
    np.add.at(weights, (np.arange(out_size), low), 1 - (places - low))
    np.add.at(weights, (np.arange(out_size), high), places - low)
    return weights.astype(np.float32)


def resize_bilinear(x: jax.Array, size: tuple[int, int], *, align_corners: bool) -> jax.Array:
    """Bilinear resizing without antialiasing, as `torch.nn.functional.interpolate` does it.

    Two matrix products along the axes: exact, fast on every platform, and its gradient is the transposed product.

    Args:
      x: `[B, H, W, C]`.
      size: `(H', W')`.
      align_corners: whether the centres of the corner pixels fall on each other (SMP's heads and decoders) or their
        outer edges do (torchvision).

    Returns:
      `[B, H', W', C]` in `x`'s dtype.
    """
    if x.shape[1:3] == tuple(size):
        return x
    rows = jnp.asarray(_interpolation(x.shape[1], size[0], align_corners), x.dtype)
    columns = jnp.asarray(_interpolation(x.shape[2], size[1], align_corners), x.dtype)
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return product("bhqc,ph->bpqc", product("bhwc,qw->bhqc", x, columns), rows)


def resize_nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Nearest-neighbour resizing, `torch.nn.functional.interpolate(mode='nearest')`: from pixel floor(i * in / out).

    PyTorch rounds in / out, and takes at a few sizes the pixel before; at none that is a
    doubling, give or take a pixel.

    Args:
      x: `[B, H, W, C]`.
      size: `(H', W')`.

    Returns:
      `[B, H', W', C]` in `x`'s dtype.
    """
    b, h, w, c = x.shape
    if size[0] % h == 0 and size[1] % w == 0:
        # Copies side by side: the gradient is a plain sum, where that of a gather is a slow scatter.
        shape = (b, h, size[0] // h, w, size[1] // w, c)
        return jnp.broadcast_to(x[:, :, None, :, None], shape).reshape(b, *size, c)
    rows, columns = (
        jnp.asarray(np.eye(old)[np.arange(new) * old // new], x.dtype) for old, new in zip((h, w), size, strict=True)
    )
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return product("bhqc,ph->bpqc", product("bhwc,qw->bhqc", x, columns), rows)
