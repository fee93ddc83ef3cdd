"""3x3 convolution of stride 1 in 4 multiplications a pixel and pair of channels in place of 9.

Winograd's minimal filtering F(2x2, 3x3) (Lavin and Gray, CVPR 2016, section 4.1): a tile of 4x4 pixels and the kernel
are taken to 16 sums each, their products over the channels are 16 matrix products, and sums of those are 2x2 pixels.
The factors of the sums are 1 and 1/2, so that rounding is that of the plain sum, within a small factor.
"""

import jax
import jax.numpy as jnp

from jaxseg.models.layers.onednn import Sides

# What the sums take on a CPU, in multiply-adds of a matrix product: for a value of the input or the output, and for a
# pair of channels of the kernel.
_VALUE, _PAIR = 240, 2000

# What three pixels of a kernel are taken to along an axis: a, (a + b + c) / 2, (a - b + c) / 2 and c.
_SUMS = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))


def pays(shape: tuple[int, ...], kernel: tuple[int, ...], stride: int, padding: Sides, dilation: int) -> bool:
    """Whether `[B, H, W, C]` of `shape` and `[k, k, C, O]` of `kernel` are convolved faster this way on a CPU."""
    if kernel[:2] != (3, 3) or stride != 1:
        return False
    c, o = kernel[2:]
    size = _size(shape, padding, dilation)
    pixels, tiled = (shape[0] * h * w for h, w in (size, _whole_tiles(size, dilation)))
    return 4 * c * o * tiled + _VALUE * (c + o) * tiled + _PAIR * c * o < 9 * c * o * pixels


def convolve(x: jax.Array, kernel: jax.Array, padding: Sides, dilation: int) -> jax.Array:
    """`[B, H, W, C]` with `[3, 3, C, O]` to `[B, H', W', O]`, as `dense_conv` at stride 1."""
    of_kernel = _of_kernel(kernel)
    return _assemble(x, padding, dilation, lambda i, j, of_x: of_x @ of_kernel[i, j])


def input_grad(dy: jax.Array, kernel: jax.Array, padding: Sides, dilation: int) -> jax.Array:
    """The gradient of `convolve` for its input: `dy` `[B, H', W', O]` with the kernel turned about.

    `padding` is that of `convolve`, at most `2 * dilation` pixels a side.
    """
    back = tuple((2 * dilation - low, 2 * dilation - high) for low, high in padding)
    of_kernel = _of_kernel(kernel)
    # Turned about, a kernel has the same sums, the first for the last.
    other = (3, 1, 2, 0)
    return _assemble(dy, back, dilation, lambda i, j, of_dy: of_dy @ of_kernel[other[i], other[j]].T)


def weight_grad(x: jax.Array, dy: jax.Array, padding: Sides, dilation: int) -> jax.Array:
    """The gradient of `convolve` for its kernel, `[3, 3, C, O]` (the transposes of its three sums)."""
    h, w = _whole_tiles(dy.shape[1:3], dilation)
    dy = _phases(jnp.pad(dy, ((0, 0), (0, h - dy.shape[1]), (0, w - dy.shape[2]), (0, 0))), dilation)
    of_dy = _both(lambda a, b: (a, a + b, a - b, -b), [[dy[:, i::2, j::2] for j in range(2)] for i in range(2)])
    of_x = _of_input(_phases(_fill(x, padding, dilation), dilation))
    products = [_rows(a).T @ _rows(b) for a, b in zip(_flat(of_x), _flat(of_dy), strict=True)]
    return _times(_sums(x.dtype).T, jnp.stack(products)).reshape(3, 3, x.shape[-1], dy.shape[-1])


def _assemble(x, padding: Sides, dilation: int, product) -> jax.Array:
    """The convolution, of `product(i, j, ...)` of each of the 4x4 sums of the input's tiles `[tiles, C]`."""
    size = _size(x.shape, padding, dilation)
    of_x = _of_input(_phases(_fill(x, padding, dilation), dilation))
    # 16 products and not one of 16 matrices side by side, which would all be copied to lie so.
    grid = [[product(i, j, _rows(of_x[i][j])) for j in range(4)] for i in range(4)]
    y = _both(lambda a, b, c, d: (a + b + c, b - c - d), grid)
    batch, h, w, _ = of_x[0][0].shape
    y = jnp.stack([jnp.stack([part.reshape(batch, h, w, -1) for part in row], 3) for row in y], 2)
    return _join(y.reshape(batch, 2 * h, 2 * w, -1), dilation)[:, : size[0], : size[1]]


def _size(shape, padding: Sides, dilation: int) -> tuple[int, int]:
    (top, bottom), (left, right) = padding
    return shape[1] + top + bottom - 2 * dilation, shape[2] + left + right - 2 * dilation


def _whole_tiles(size, dilation: int) -> tuple[int, int]:
    """The output's size rounded up to tiles of 2x2 pixels that are `dilation` apart."""
    step = 2 * dilation
    return -(-size[0] // step) * step, -(-size[1] // step) * step


def _fill(x, padding: Sides, dilation: int):
    """`x` with its padding, and as many pixels more as whole tiles take."""
    h, w = _whole_tiles(_size(x.shape, padding, dilation), dilation)
    (top, _), (left, _) = padding
    below, beside = (n + 2 * dilation for n in (h, w))
    return jnp.pad(x, ((0, 0), (top, below - top - x.shape[1]), (left, beside - left - x.shape[2]), (0, 0)))


def _phases(x, dilation: int):
    """Pixels that are `dilation` apart as images of their own, which no pixel of another phase touches."""
    if dilation == 1:
        return x
    batch, h, w, c = x.shape
    x = x.reshape(batch, h // dilation, dilation, w // dilation, dilation, c).transpose(0, 2, 4, 1, 3, 5)
    return x.reshape(-1, h // dilation, w // dilation, c)


def _join(y, dilation: int):
    if dilation == 1:
        return y
    _, h, w, o = y.shape
    y = y.reshape(-1, dilation, dilation, h, w, o).transpose(0, 3, 1, 4, 2, 5)
    return y.reshape(-1, h * dilation, w * dilation, o)


def _of_input(x) -> list[list[jax.Array]]:
    """The 4x4 sums of every tile of 4x4 pixels, two apart: of `[B, H, W, C]`, each `[B, H / 2 - 1, W / 2 - 1, C]`."""
    h, w = x.shape[1] - 2, x.shape[2] - 2
    tiles = [[x[:, i : i + h - 1 : 2, j : j + w - 1 : 2] for j in range(4)] for i in range(4)]
    return _both(lambda a, b, c, d: (a - c, b + c, c - b, b - d), tiles)


def _of_kernel(kernel) -> jax.Array:
    """The 4x4 sums of the kernel, `[4, 4, C, O]`."""
    return _times(_sums(kernel.dtype), kernel).reshape(4, 4, *kernel.shape[2:])


def _sums(dtype) -> jax.Array:
    """`_SUMS` along both axes, `[16, 9]`, made in the program: what is computed by each device may hold no array."""
    sums = jnp.concatenate([jax.lax.full((1,), factor, dtype) for row in _SUMS for factor in row]).reshape(4, 3)
    return (sums[:, None, :, None] * sums[None, :, None, :]).reshape(16, 9)


def _times(sums: jax.Array, x) -> jax.Array:
    """`sums` `[n, m]` over the first axes of `x`, `m` in all, exact: factors are powers of 2, products are added."""
    return jnp.matmul(sums, x.reshape(sums.shape[1], -1), precision=jax.lax.Precision.HIGHEST)


def _both(sums, grid) -> list[list[jax.Array]]:
    """`sums` along the columns of a square of arrays, and then along its rows."""
    columns = [sums(*column) for column in zip(*grid, strict=True)]
    return [sums(*row) for row in zip(*columns, strict=True)]


def _flat(grid):
    return [array for row in grid for array in row]


def _rows(x) -> jax.Array:
    return x.reshape(-1, x.shape[-1])
