"""Dense convolution, plain and transposed, with weight gradients that are fast on a CPU too."""

import functools

import jax
import jax.numpy as jnp

from jaxseg.models.layers import onednn, winograd
from jaxseg.models.layers.onednn import Sides
from jaxseg.models.layers.reach import meets_the_centre_alone, of_the_centre
from jaxseg.partition import on_cpu

# Bytes of unfolded windows at a time in `_weight_grad`, or as many as the gradient has: best from 8x8 to 256x256.
_BLOCK = 4 * 2**20
_LARGEST = 8  # pixels, of a kernel that is unfolded
_FEW = 64  # channels of `dy`, or fewer, that are unfolded in place of `x`


def _plain(x: jax.Array, kernel: jax.Array, stride: int, padding: Sides, dilation: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _weight_grad(x, dy, k: int, stride: int, padding: Sides, dilation: int) -> jax.Array:
    """The kernel's gradient `[k, k, C, O]`: products of `dy` and unfolded windows of `x`, some rows at a time."""
    if stride == dilation == 1 and 1 < k <= min(dy.shape[1:3]) and dy.shape[-1] <= min(_FEW, x.shape[-1]):
        return _weight_grad_of_few(x, dy, k, padding)
    batch, _, width, c = x.shape
    _, h, w, o = dy.shape
    wide = jnp.promote_types(x.dtype, jnp.float32)
    images, blocks, rows = _blocks(batch, h, w * k * k * c * wide.itemsize, k * k * c * o * wide.itemsize)

    # Rows of zeros make all blocks one size; they add nothing. Windows may need fewer pixels than there are.
    (top, bottom), (left, right) = padding
    reach = (rows - 1) * stride + dilation * (k - 1) + 1
    bottom = max(bottom, (blocks - 1) * rows * stride + reach - x.shape[1] - top)
    x = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    # With channels outermost each product is of a plain, not of a transposed matrix, which is a fifth faster or more.
    dy = jnp.pad(dy.transpose(3, 0, 1, 2), ((0, 0), (0, 0), (0, blocks * rows - h), (0, 0)))

    def product(image, block):
        seen = jax.lax.dynamic_slice(x, (image, block * rows * stride, 0, 0), (images, reach, left + width + right, c))
        given = jax.lax.dynamic_slice(dy, (0, image, block * rows, 0), (o, images, rows, w))
        windows = [
            seen[:, a : a + (rows - 1) * stride + 1 : stride, b : b + (w - 1) * stride + 1 : stride]
            for a in range(0, dilation * k, dilation)
            for b in range(0, dilation * k, dilation)
        ]
        unfolded = jnp.concatenate(windows, axis=-1).reshape(-1, k * k * c).astype(wide)
        return given.reshape(o, -1).astype(wide) @ unfolded

    total = _sum(product, batch, images, blocks)
    return total.T.reshape(k, k, c, o)


def _weight_grad_of_few(x, dy, k: int, padding: Sides) -> jax.Array:
    """The same where `dy` has few channels, at stride 1: products of unfolded `dy` and of `x` as it is.

    Windows of `dy` are cut with channels outermost, so whole rows are copied and not a few channels a pixel.
    """
    batch, c = x.shape[0], x.shape[-1]
    _, h, w, o = dy.shape
    wide = jnp.promote_types(x.dtype, jnp.float32)
    high, most = h + k - 1, k - 1  # `dy` moves over all rows of `x`, beyond its own by k - 1
    images, blocks, rows = _blocks(batch, high, (w + most) * k * k * o * wide.itemsize, k * k * c * o * wide.itemsize)

    (top, bottom), (left, right) = padding
    extra = blocks * rows - high
    x = jnp.pad(x, ((0, 0), (top, bottom + extra), (left, right), (0, 0)))
    dy = jnp.pad(dy.transpose(3, 0, 1, 2), ((0, 0), (0, 0), (most, most + extra), (most, most)))

    def product(image, block):
        seen = jax.lax.dynamic_slice(x, (image, block * rows, 0, 0), (images, rows, w + most, c))
        given = jax.lax.dynamic_slice(dy, (0, image, block * rows, 0), (o, images, rows + most, w + 2 * most))
        windows = [
            given[:, :, most - a : most - a + rows, most - b : most - b + w + most] for a in range(k) for b in range(k)
        ]
        return jnp.concatenate(windows).reshape(k * k * o, -1).astype(wide) @ seen.reshape(-1, c).astype(wide)

    return _sum(product, batch, images, blocks).reshape(k, k, o, c).swapaxes(2, 3)


def _weight_grad_by_taps(x, dy, k: int, padding: Sides, dilation: int) -> jax.Array:
    """The same at stride 1: a product of `dy` with the frame of `x` that each of the kernel's pixels sees.

    For GPUs: XLA's gradient of a dilated convolution is one with `dy` as its kernel and a stride, which it does not
    take for cuDNN's gradient, but runs as it stands, with a kernel as large as the image.
    """
    (top, bottom), (left, right) = padding
    x = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    _, h, w, o = dy.shape
    wide = jnp.promote_types(x.dtype, jnp.float32)
    taps = [
        jnp.einsum("bhwc,bhwo->co", x[:, a : a + h, b : b + w], dy, preferred_element_type=wide)
        for a in range(0, dilation * k, dilation)
        for b in range(0, dilation * k, dilation)
    ]
    return jnp.stack(taps).reshape(k, k, -1, o)


def _blocks(batch: int, high: int, row_bytes: int, at_least: int) -> tuple[int, int, int]:
    """How many images are taken at a time, in how many blocks, of how many rows each."""
    block = max(_BLOCK, at_least)
    blocks = -(-high // max(1, min(high, block // row_bytes)))
    # Where a whole image is less than a block, several images are taken at a time.
    most = max(1, block // (high * row_bytes)) if blocks == 1 else 1
    return max(n for n in range(1, batch + 1) if batch % n == 0 and n <= most), blocks, -(-high // blocks)


def _sum(product, batch: int, images: int, blocks: int) -> jax.Array:
    """Of `product(first image, block)` over all of them."""
    steps = batch // images * blocks
    if steps == 1:
        return product(0, 0)
    kind = jax.eval_shape(product, 0, 0)

    def add(i, total):
        return total + product(i // blocks * images, i % blocks)

    return jax.lax.fori_loop(0, steps, add, jnp.zeros(kind.shape, kind.dtype))


def dense_conv(
    x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Sides = ((0, 0), (0, 0)), dilation: int = 1
) -> jax.Array:
    """Convolution over all channels.

    It is XLA's convolution, but for CPUs. There 3x3 kernels of many channels go through `winograd` and others through
    `onednn`. Where that can't be had, weight gradients, which XLA computes as a convolution with `dy` as its kernel,
    are matrix products of a few rows each, up to four times as fast. Values and gradients are equal up to rounding.
    Where only the centre of the kernel meets the image, see `reach`, it is a 1x1 convolution.

    Args:
      x: `[B, H, W, C]`.
      kernel: `[k, k, C, O]`, of `x`'s dtype.
      stride, dilation: pixels, the same for both axes.
      padding: pixels of zeros, ((top, bottom), (left, right)).

    Returns:
      `[B, H', W', O]` with `H' = (H + top + bottom - dilation * (k - 1) - 1) // stride + 1`, in `x`'s dtype.
    """
    if meets_the_centre_alone(x.shape[1:3], kernel.shape[0], stride, padding, dilation):
        whole = functools.partial(_dense, stride=stride, padding=padding, dilation=dilation)
        return of_the_centre(whole, lambda x, kernel: pointwise_conv(x, kernel[0, 0]), x, kernel)
    return _dense(x, kernel, stride, padding, dilation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _dense(x, kernel, stride, padding, dilation):
    return _convolve(x, kernel, stride, padding, dilation)


def _forward(x, kernel, stride, padding, dilation):
    return _convolve(x, kernel, stride, padding, dilation), (x, kernel)


def _backward(stride, padding, dilation, residuals, dy):
    x, kernel = residuals
    dx = _input_grad(x, kernel, dy, stride, padding, dilation)

    def plain(x, dy):
        if stride == 1 < dilation:
            return _weight_grad_by_taps(x, dy, kernel.shape[0], padding, dilation)
        return jax.vjp(lambda kernel: _plain(x, kernel, stride, padding, dilation), kernel)[1](dy)[0]

    return dx, _kernel_grad(kernel, x, dy, stride, padding, dilation, plain)


def _convolve(x, kernel, stride, padding, dilation) -> jax.Array:
    plain = functools.partial(_plain, stride=stride, padding=padding, dilation=dilation)
    if _by_winograd(x, kernel, stride, padding, dilation):
        form = functools.partial(winograd.convolve, padding=padding, dilation=dilation)
    elif onednn.usable(x.dtype, stride, dilation):
        form = functools.partial(onednn.convolve, stride=stride, padding=padding, dilation=dilation)
    else:
        return plain(x, kernel)
    return on_cpu(form, plain, x, kernel, batched=(True, False))


def _input_grad(x, kernel, dy, stride, padding, dilation) -> jax.Array:
    def plain(dy, kernel):
        return jax.vjp(lambda x: _plain(x, kernel, stride, padding, dilation), x)[1](dy)[0]

    if max(max(sides) for sides in padding) <= 2 * dilation and _by_winograd(x, kernel, stride, padding, dilation):
        form = functools.partial(winograd.input_grad, padding=padding, dilation=dilation)
    elif onednn.usable(x.dtype, stride, dilation):
        form = functools.partial(
            onednn.input_grad, size=x.shape[1:3], stride=stride, padding=padding, dilation=dilation
        )
    else:
        return plain(dy, kernel)
    return on_cpu(form, plain, dy, kernel, batched=(True, False))


def _kernel_grad(kernel, image, dy, stride, padding, dilation, plain) -> jax.Array:
    """The gradient of `kernel` as it slides over `image`, `plain(image, dy)` where XLA's own is the better one."""
    # A kernel of k x k pixels is k * k slices in the program of `_weight_grad`, hundreds for a large one.
    k = kernel.shape[0]
    if _by_winograd(image, kernel, stride, padding, dilation):
        form = functools.partial(winograd.weight_grad, padding=padding, dilation=dilation)
    elif onednn.usable(image.dtype, stride, dilation):
        form = functools.partial(onednn.weight_grad, k=k, stride=stride, padding=padding, dilation=dilation)
    elif k <= _LARGEST:
        form = functools.partial(_weight_grad, k=k, stride=stride, padding=padding, dilation=dilation)
    else:
        return plain(image, dy)
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    grad = on_cpu(form, lambda *args: plain(*args).astype(wide), image, dy, batched=(True, True), summed=True)
    return grad.astype(kernel.dtype)


def _by_winograd(x, kernel, stride, padding, dilation) -> bool:
    # Not in bfloat16, which sums of sums would round at every turn.
    return jnp.finfo(x.dtype).bits >= 32 and winograd.pays(x.shape, kernel.shape, stride, padding, dilation)


_dense.defvjp(_forward, _backward)


@jax.custom_vjp
def pointwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """1x1 convolution as a matrix product: XLA's weight gradient of a convolution takes 3 to 10 times as long on a CPU.

    Args:
      x: `[..., C]`.
      kernel: `[C, O]`, of `x`'s dtype.

    Returns:
      `[..., O]`, in `x`'s dtype.
    """
    return _product(x, kernel)


def _product(x, kernel) -> jax.Array:
    if x.dtype != jnp.bfloat16:
        return x @ kernel

    def wide(x, kernel):
        return jnp.matmul(x, kernel, preferred_element_type=jnp.float32).astype(x.dtype)

    # XLA's products for a CPU are eight times as fast with a float32 result.
    return jax.lax.platform_dependent(x, kernel, cpu=wide, default=jnp.matmul)


def _pointwise_forward(x, kernel):
    return _product(x, kernel), (x, kernel)


def _pointwise_backward(residuals, dy):
    x, kernel = residuals
    # One of the two is turned for the weight gradient: the smaller one. Without the barrier XLA writes it a second time
    # in that order together with all that `dy` came from, a cache line a value.
    dy = jax.lax.optimization_barrier(dy)
    rows, rows_of_dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    of_kernel = _product(rows.T, rows_of_dy) if x.shape[-1] <= dy.shape[-1] else _product(rows_of_dy.T, rows).T
    return _product(dy, kernel.T), of_kernel


pointwise_conv.defvjp(_pointwise_forward, _pointwise_backward)


def _transpose(x, kernel, stride, padding, output_padding) -> jax.Array:
    plain = functools.partial(_transposed_plain, stride=stride, padding=padding, output_padding=output_padding)
    if not onednn.usable(x.dtype, stride):
        return plain(x, kernel)
    size = tuple((n - 1) * stride - 2 * padding + kernel.shape[0] + output_padding for n in x.shape[1:3])
    sides = ((padding, padding), (padding, padding))
    form = functools.partial(onednn.input_grad, size=size, stride=stride, padding=sides, dilation=1)
    return on_cpu(form, plain, x, kernel, batched=(True, False))


def _transposed_plain(x, kernel, stride, padding, output_padding):
    low = kernel.shape[0] - 1 - padding
    return jax.lax.conv_transpose(
        x,
        kernel,
        strides=(stride, stride),
        padding=[(low, low + output_padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        transpose_kernel=True,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def dense_conv_transpose(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int = 0, output_padding: int = 0
) -> jax.Array:
    """Transposed convolution, the gradient of `dense_conv` for its input, as PyTorch's `conv_transpose2d`.

    Its own weight gradient is computed as that of `dense_conv`: XLA's takes 14 to 70 times as long on a CPU.

    Args:
      x: `[B, H, W, C]`.
      kernel: `[k, k, O, C]`, of `x`'s dtype.
      stride, padding: pixels, of the convolution that this is the gradient of.
      output_padding: further pixels at the bottom and the right, less than `stride`.

    Returns:
      `[B, H', W', O]` with `H' = (H - 1) * stride - 2 * padding + k + output_padding`, in `x`'s dtype.
    """
    return _transpose(x, kernel, stride, padding, output_padding)


def _transposed_forward(x, kernel, stride, padding, output_padding):
    return _transpose(x, kernel, stride, padding, output_padding), (x, kernel)


def _transposed_backward(stride, padding, output_padding, residuals, dy):
    x, kernel = residuals
    sides = ((padding, padding), (padding, padding))
    dx = _convolve(dy, kernel, stride, sides, 1)

    def plain(dy, x):
        return jax.vjp(lambda kernel: _transposed_plain(x, kernel, stride, padding, output_padding), kernel)[1](dy)[0]

    return dx, _kernel_grad(kernel, dy, x, stride, sides, 1, plain)


dense_conv_transpose.defvjp(_transposed_forward, _transposed_backward)
