"""Resizing as PyTorch does it, exact, and fast in both directions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn


def _neighbours(in_size: int, out_size: int, align_corners: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two pixels that each of `out_size` lies between along one axis, and the second one's share."""
    places = np.arange(out_size, dtype=np.float64)
    if align_corners:
        places = places * ((in_size - 1) / max(out_size - 1, 1))
    else:
        places = np.clip((places + 0.5) * (in_size / out_size) - 0.5, 0, in_size - 1)
    low = np.minimum(places.astype(int), in_size - 1)
    return low, np.minimum(low + 1, in_size - 1), places - low


def _interpolation(in_size: int, out_size: int, align_corners: bool) -> np.ndarray:
    """The `[out_size, in_size]` matrix of linear interpolation along one axis, float32: two entries a row."""
    low, high, share = _neighbours(in_size, out_size, align_corners)
    weights = np.zeros((out_size, in_size), np.float64)
    np.add.at(weights, (np.arange(out_size), low), 1 - share)
    np.add.at(weights, (np.arange(out_size), high), share)
    return weights.astype(np.float32)


def _by_products(x: jax.Array, size: tuple[int, int], align_corners: bool) -> jax.Array:
    rows = jnp.asarray(_interpolation(x.shape[1], size[0], align_corners), x.dtype)
    columns = jnp.asarray(_interpolation(x.shape[2], size[1], align_corners), x.dtype)
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return product("bhqc,ph->bpqc", product("bhwc,qw->bhqc", x, columns), rows)


def _by_neighbours(x: jax.Array, size: tuple[int, int], align_corners: bool) -> jax.Array:
    """Columns first, which are fewer numbers."""
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    for axis, length in ((2, size[1]), (1, size[0])):
        low, high, share = _neighbours(x.shape[axis], length, align_corners)
        share = jnp.asarray(np.expand_dims(share, [i for i in range(4) if i != axis]), y.dtype)
        first, second = (jnp.take(y, places, axis=axis, mode="clip", indices_are_sorted=True) for places in (low, high))
        y = first * (1 - share) + second * share
    return y.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _bilinear(x: jax.Array, size: tuple[int, int], align_corners: bool) -> jax.Array:
    by = {"size": size, "align_corners": align_corners}
    return jax.lax.platform_dependent(
        x, cpu=functools.partial(_by_neighbours, **by), default=functools.partial(_by_products, **by)
    )


def _bilinear_forward(x, size, align_corners):
    # An array of no pixels tells the shape.
    return _bilinear(x, size, align_corners), jnp.zeros((0, *x.shape[1:]), x.dtype)


def _bilinear_backward(size, align_corners, like, dy):
    x = jax.ShapeDtypeStruct((dy.shape[0], *like.shape[1:]), like.dtype)
    return jax.linear_transpose(lambda x: _by_products(x, size, align_corners), x)(dy)


_bilinear.defvjp(_bilinear_forward, _bilinear_backward)


def resize_bilinear(x: jax.Array, size: tuple[int, int], *, align_corners: bool) -> jax.Array:
    """Bilinear resizing without antialiasing, as `torch.nn.functional.interpolate` does it.

    On a CPU pixels are mixed with their neighbours; elsewhere, and for the gradient, it is two matrix products along
    the axes.

    Args:
      x: `[B, H, W, C]`.
      size: `(H', W')`.
      align_corners: whether the centres of the corner pixels fall on each other (SMP's heads and decoders) or their
        outer edges do (torchvision).

    Returns:
      `[B, H', W', C]` in `x`'s dtype.
    """
    size = (int(size[0]), int(size[1]))
    return x if x.shape[1:3] == size else _bilinear(x, size, align_corners)


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


class FullSize(nn.Module):
    """The last of a network: `[B, h, w, C]` logits as float32 at the size of the images, `[B, H, W, C]`.

    A module, so that a training step can take the logits before it, see `jaxseg.step`.

    Fields:
      size: (H, W) of the images.
      align_corners: see `resize_bilinear`.
    """

    size: tuple[int, int]
    align_corners: bool

    def __call__(self, logits: jax.Array) -> jax.Array:
        return resize_bilinear(logits.astype(jnp.float32), self.size, align_corners=self.align_corners)
