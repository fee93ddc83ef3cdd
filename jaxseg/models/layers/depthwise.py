"""Depthwise convolution: every channel with a filter of its own, fast on a CPU too."""

import functools

import jax
import jax.numpy as jnp

from jaxseg.models.layers import onednn
from jaxseg.models.layers.reach import meets_the_centre_alone, of_the_centre
from jaxseg.partition import on_cpu


def _windows(x: jax.Array, size: int, stride: int, dilation: int, out_hw: tuple[int, int]):
    """The size*size shifted and strided views of the padded `x`, each `[B, *out_hw, C]`, in row-major order."""
    for i in range(size):
        for j in range(size):
            top, left = i * dilation, j * dilation
            bottom, right = top + (out_hw[0] - 1) * stride + 1, left + (out_hw[1] - 1) * stride + 1
            yield x[:, top:bottom:stride, left:right:stride]


def _pad(x: jax.Array, padding: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))


def _out_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _depthwise_plain(x, kernel, stride, padding, dilation):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _shifted(x, kernel, stride, padding, dilation):
    size = kernel.shape[0]
    out_hw = tuple(_out_size(n, size, stride, padding, dilation) for n in x.shape[1:3])
    taps = kernel.reshape(size * size, -1)
    windows = _windows(_pad(x, padding), size, stride, dilation, out_hw)
    return functools.reduce(jnp.add, (window * tap for window, tap in zip(windows, taps, strict=True)))


def _shifted_input_grad(dy, kernel, size, stride, padding, dilation):
    """The same sum with the kernel turned, over dy spread out by the stride; `size` is x's (H, W)."""
    k = kernel.shape[0]
    height, width = size
    reach = dilation * (k - 1)
    spread_hw = (height + 2 * padding + reach, width + 2 * padding + reach)
    config = [(0, 0, 0)] + [
        (reach, total - reach - (out - 1) * stride - 1, stride - 1)
        for out, total in zip(dy.shape[1:3], spread_hw, strict=True)
    ]
    spread = jax.lax.pad(dy, jnp.zeros((), dy.dtype), [*config, (0, 0, 0)])
    turned = kernel[::-1, ::-1].reshape(k * k, -1)
    # Only the unpadded part of dx is needed, so the windows start `padding` further in.
    spread = spread[:, padding : padding + height + reach, padding : padding + width + reach]
    windows = _windows(spread, k, 1, dilation, (height, width))
    return functools.reduce(jnp.add, (window * tap for window, tap in zip(windows, turned, strict=True)))


def _shifted_weight_grad(x, dy, k, stride, padding, dilation):
    """A sum over batch and place a tap, `[k, k, 1, C]`, accumulated in float32 at least."""
    # One row of dy at a time, so that all taps read it while it is in cache: three to six times faster than one
    # reduction a tap.
    padded = _pad(x, padding)
    height_out, width_out = dy.shape[1:3]
    wide = jnp.promote_types(dy.dtype, jnp.float32)

    def add_row(i, sums):
        dy_row = jax.lax.dynamic_index_in_dim(dy, i, axis=1, keepdims=False).astype(wide)
        products = []
        for a in range(k):
            row = jax.lax.dynamic_index_in_dim(padded, i * stride + a * dilation, axis=1, keepdims=False)
            for b in range(k):
                left = b * dilation
                window = row[:, left : left + (width_out - 1) * stride + 1 : stride].astype(wide)
                products.append((window * dy_row).sum(axis=(0, 1)))
        return sums + jnp.stack(products)

    dw = jax.lax.fori_loop(0, height_out, add_row, jnp.zeros((k * k, x.shape[-1]), wide))
    return dw.reshape(k, k, 1, -1)


def _weight_grad_by_taps(x, dy, k, padding, dilation):
    """The same at stride 1, a sum a tap, for GPUs: see `dense._weight_grad_by_taps`."""
    h, w = dy.shape[1:3]
    wide = jnp.promote_types(dy.dtype, jnp.float32)
    windows = _windows(_pad(x, padding), k, 1, dilation, (h, w))
    return jnp.stack([(window.astype(wide) * dy.astype(wide)).sum((0, 1, 2)) for window in windows]).reshape(
        k, k, 1, -1
    )


def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0, dilation: int = 1) -> jax.Array:
    """Depthwise convolution: every channel with a filter of its own.

    On a CPU, XLA runs grouped convolutions 5 to 40 times slower than the same sum written as k*k shifted
    multiply-adds, and those run at half the rate of `onednn`: it is the last where it can be had, else the sum;
    elsewhere it is the grouped convolution. Values and gradients are equal up to the order of the sums. Where only the
    centre of the kernel meets the image, see `reach`, the rest is left out.

    Args:
      x: `[B, H, W, C]`.
      kernel: `[k, k, 1, C]`, of `x`'s dtype.
      stride, padding, dilation: pixels, the same for both axes; padding on all four sides.

    Returns:
      `[B, H', W', C]` with `H' = (H + 2 * padding - dilation * (k - 1) - 1) // stride + 1`, in `x`'s dtype.
    """
    if meets_the_centre_alone(x.shape[1:3], kernel.shape[0], stride, ((padding, padding),) * 2, dilation):
        whole = functools.partial(_depthwise, stride=stride, padding=padding, dilation=dilation)
        return of_the_centre(whole, functools.partial(_depthwise, stride=1, padding=0, dilation=1), x, kernel)
    return _depthwise(x, kernel, stride, padding, dilation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _depthwise(x, kernel, stride, padding, dilation):
    return _convolve(x, kernel, stride, padding, dilation)


def _depthwise_fwd(x, kernel, stride, padding, dilation):
    return _convolve(x, kernel, stride, padding, dilation), (x, kernel)


def _depthwise_bwd(stride, padding, dilation, residuals, dy):
    x, kernel = residuals
    k, size, sides = kernel.shape[0], x.shape[1:3], ((padding, padding),) * 2

    def plain_dx(dy, kernel):
        return jax.vjp(lambda x: _depthwise_plain(x, kernel, stride, padding, dilation), x)[1](dy)[0]

    def plain_dw(x, dy):
        if stride == 1 < dilation:
            return _weight_grad_by_taps(x, dy, k, padding, dilation)
        dw = jax.vjp(lambda kernel: _depthwise_plain(x, kernel, stride, padding, dilation), kernel)[1](dy)[0]
        return dw.astype(jnp.promote_types(dw.dtype, jnp.float32))

    if onednn.usable(x.dtype, stride, dilation):
        settings = {"stride": stride, "padding": sides, "dilation": dilation}
        dx = functools.partial(onednn.input_grad, size=size, depthwise=True, **settings)
        dw = functools.partial(onednn.depthwise_weight_grad, k=k, **settings)
    else:
        settings = {"stride": stride, "padding": padding, "dilation": dilation}
        dx = functools.partial(_shifted_input_grad, size=size, **settings)
        dw = functools.partial(_shifted_weight_grad, k=k, **settings)
    dx = on_cpu(dx, plain_dx, dy, kernel, batched=(True, False))
    return dx, on_cpu(dw, plain_dw, x, dy, batched=(True, True), summed=True).astype(kernel.dtype)


def _convolve(x, kernel, stride, padding, dilation):
    plain = functools.partial(_depthwise_plain, stride=stride, padding=padding, dilation=dilation)
    if onednn.usable(x.dtype, stride, dilation):
        sides = ((padding, padding),) * 2
        form = functools.partial(onednn.convolve, stride=stride, padding=sides, dilation=dilation)
    else:
        form = functools.partial(_shifted, stride=stride, padding=padding, dilation=dilation)
    return on_cpu(form, plain, x, kernel, batched=(True, False))


_depthwise.defvjp(_depthwise_fwd, _depthwise_bwd)
