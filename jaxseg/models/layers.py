"""What every network is made of: convolution with explicit padding, depthwise convolution, BatchNorm, resizing.

All arrays are `[B, H, W, C]`. Padding is always a number of pixels, the same on all four sides as in PyTorch: XLA's
`SAME` pads a strided convolution unevenly and gives other features for the same weights.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxseg.errors import UserError

Activation = Callable[[jax.Array], jax.Array]

# PyTorch's default for ReLU networks (He et al. 2015), over the fan that keeps the size of gradients.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

MIN_SIZE = 32  # pixels: below it the coarsest feature has nothing left to see


def check_images(images: jax.Array) -> None:
    """Refuses what no network here can take.

    Raises:
      UserError: `images` is not floating point `[B, H, W, 3]` with H and W of at least `MIN_SIZE`.
    """
    if images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(f"images have the shape {images.shape}: [B, H, W, 3] is due")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(f"images are {images.dtype}: normalised floating point is due (see jaxseg.step.normalise)")
    if min(images.shape[1:3]) < MIN_SIZE:
        raise UserError(f"images are {images.shape[1]}x{images.shape[2]}: at least {MIN_SIZE}x{MIN_SIZE} is due")


def relu6(x: jax.Array) -> jax.Array:
    """min(max(x, 0), 6) (MobileNetV2, section 3.1), with PyTorch's gradient: none at 0 and at 6."""
    return jnp.where((x > 0) & (x < 6), x, jnp.where(x >= 6, jnp.asarray(6, x.dtype), jnp.asarray(0, x.dtype)))


# ---------------------------------------------------------------------------------------------- depthwise convolution


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


def _depthwise_shifted(x, kernel, stride, padding, dilation):
    size = kernel.shape[0]
    out_hw = tuple(_out_size(n, size, stride, padding, dilation) for n in x.shape[1:3])
    taps = kernel.reshape(size * size, -1)
    windows = _windows(_pad(x, padding), size, stride, dilation, out_hw)
    return functools.reduce(jnp.add, (window * tap for window, tap in zip(windows, taps, strict=True)))


def _depthwise_shifted_grads(x, kernel, dy, stride, padding, dilation):
    size = kernel.shape[0]
    height, width = x.shape[1:3]
    padded = _pad(x, padding)
    out_hw = dy.shape[1:3]

    # dx: the same sum with the kernel turned, over dy spread out by the stride.
    reach = dilation * (size - 1)
    spread_hw = (padded.shape[1] + reach, padded.shape[2] + reach)
    low = reach
    config = [(0, 0, 0)] + [
        (low, total - low - (out - 1) * stride - 1, stride - 1) for out, total in zip(out_hw, spread_hw, strict=True)
    ]
    spread = jax.lax.pad(dy, jnp.zeros((), dy.dtype), [*config, (0, 0, 0)])
    turned = kernel[::-1, ::-1].reshape(size * size, -1)
    # Only the unpadded part of dx is needed, so the windows start `padding` further in.
    spread = spread[:, padding : padding + height + reach, padding : padding + width + reach]
    windows = _windows(spread, size, 1, dilation, (height, width))
    dx = functools.reduce(jnp.add, (window * tap for window, tap in zip(windows, turned, strict=True)))

    # dw: a sum over batch and place a tap, one row of dy at a time so that all taps read it while it is in cache (three
    # to six times faster than one reduction a tap). The sum over the batch comes last: with a batch sharded over
    # devices it is then one exchange instead of one a row. Accumulated in float32 at least.
    batch, width_out = x.shape[0], out_hw[1]
    wide = jnp.promote_types(dy.dtype, jnp.float32)

    def add_row(i, sums):
        dy_row = jax.lax.dynamic_index_in_dim(dy, i, axis=1, keepdims=False).astype(wide)
        products = []
        for a in range(size):
            row = jax.lax.dynamic_index_in_dim(padded, i * stride + a * dilation, axis=1, keepdims=False)
            for b in range(size):
                left = b * dilation
                window = row[:, left : left + (width_out - 1) * stride + 1 : stride].astype(wide)
                products.append((window * dy_row).sum(axis=1))
        return sums + jnp.stack(products)

    sums = jnp.zeros((size * size, batch, x.shape[-1]), wide)
    dw = jax.lax.fori_loop(0, out_hw[0], add_row, sums).sum(axis=1)
    return dx, dw.reshape(kernel.shape).astype(kernel.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0, dilation: int = 1) -> jax.Array:
    """Depthwise convolution: every channel with a filter of its own.

    On a CPU, XLA runs grouped convolutions 5 to 40 times slower than the same sum written as k*k shifted
    multiply-adds, so that is what runs there; elsewhere it is the grouped convolution. Values and gradients are equal
    up to the order of the sums.

    Args:
      x: `[B, H, W, C]`.
      kernel: `[k, k, 1, C]`, of `x`'s dtype.
      stride, padding, dilation: pixels, the same for both axes; padding on all four sides.

    Returns:
      `[B, H', W', C]` with `H' = (H + 2 * padding - dilation * (k - 1) - 1) // stride + 1`, in `x`'s dtype.
    """
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_depthwise_shifted, stride=stride, padding=padding, dilation=dilation),
        default=functools.partial(_depthwise_plain, stride=stride, padding=padding, dilation=dilation),
    )


def _depthwise_fwd(x, kernel, stride, padding, dilation):
    return depthwise_conv(x, kernel, stride, padding, dilation), (x, kernel)


def _depthwise_bwd(stride, padding, dilation, residuals, dy):
    x, kernel = residuals

    def plain(x, kernel, dy):
        _, vjp = jax.vjp(lambda x, kernel: _depthwise_plain(x, kernel, stride, padding, dilation), x, kernel)
        return vjp(dy)

    def shifted(x, kernel, dy):
        return _depthwise_shifted_grads(x, kernel, dy, stride, padding, dilation)

    return jax.lax.platform_dependent(x, kernel, dy, cpu=shifted, default=plain)


depthwise_conv.defvjp(_depthwise_fwd, _depthwise_bwd)


# ------------------------------------------------------------------------------------------------------------- modules


class Conv(nn.Module):
    """Convolution with explicit padding, `[B, H, W, C]` to `[B, H', W', features]`.

    `padding` is in pixels on all four sides; None keeps the size at stride 1 (`dilation * (kernel_size - 1) / 2`).
    Parameters: `kernel` `[k, k, C, features]`, `bias` `[features]`, float32; computed in `dtype`.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    padding: int | None = None
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = he_normal_fan_out

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k, stride = self.kernel_size, self.stride
        padding = self.dilation * (k - 1) // 2 if self.padding is None else self.padding
        kernel = self.param("kernel", self.kernel_init, (k, k, x.shape[-1], self.features))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if k == 1 and padding == 0:
            # As a matrix product the weight gradient is 3 to 10 times faster on a CPU, and nothing is lost elsewhere.
            y = x[:, ::stride, ::stride] @ kernel[0, 0]
        else:
            y = jax.lax.conv_general_dilated(
                x,
                kernel,
                window_strides=(stride, stride),
                padding=[(padding, padding)] * 2,
                rhs_dilation=(self.dilation, self.dilation),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return y


def classifier(num_classes: int, dtype: jnp.dtype, name: str = "classifier") -> Conv:
    """The last 1x1 convolution, with bias; Glorot's initialisation keeps the first logits near zero."""
    init = nn.initializers.xavier_uniform()
    return Conv(num_classes, 1, use_bias=True, dtype=dtype, kernel_init=init, name=name)


class DepthwiseConv(nn.Module):
    """`depthwise_conv` with its kernel `[k, k, 1, C]`, float32, computed in `dtype`; padding as in `Conv`."""

    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k = self.kernel_size
        kernel = self.param("kernel", he_normal_fan_out_depthwise, (k, k, 1, x.shape[-1]))
        padding = self.dilation * (k - 1) // 2
        return depthwise_conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, padding, self.dilation)


def he_normal_fan_out_depthwise(key, shape, dtype=jnp.float32):
    """He initialisation over a depthwise filter's own fan, k * k: Flax would count all channels."""
    k_h, k_w = shape[:2]
    return jax.random.normal(key, shape, dtype) * np.sqrt(2.0 / (k_h * k_w))


def batch_norm(train: bool, *, epsilon: float = 1e-5, dtype: jnp.dtype = jnp.float32, name: str = "bn") -> nn.BatchNorm:
    """BatchNorm with PyTorch's constants: epsilon 1e-5 and momentum 0.1, which Flax counts from the other end.

    Statistics are computed in float32 whatever `dtype` is. Under `jit` with a sharded batch they are global. Flax keeps
    the biased variance where PyTorch stores n / (n - 1) of it: running variances differ in training by that factor.
    """
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=epsilon, dtype=dtype, name=name)


class ConvBN(nn.Module):
    """Convolution without bias, BatchNorm, activation: children `conv` and `bn`."""

    features: int
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    padding: int | None = None
    activation: Activation | None = nn.relu
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = Conv(
            self.features, self.kernel_size, self.stride, self.dilation, self.padding, dtype=self.dtype, name="conv"
        )(x)
        x = batch_norm(train, dtype=self.dtype)(x)
        return x if self.activation is None else self.activation(x)


class DepthwiseConvBN(nn.Module):
    """Depthwise convolution, BatchNorm, activation: children `conv` and `bn`."""

    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    activation: Activation | None = nn.relu
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = DepthwiseConv(self.kernel_size, self.stride, self.dilation, dtype=self.dtype, name="conv")(x)
        x = batch_norm(train, dtype=self.dtype)(x)
        return x if self.activation is None else self.activation(x)


class SeparableConvBN(nn.Module):
    """Depthwise, then 1x1 convolution, BatchNorm, ReLU with no norm between the two (SMP's `SeparableConv2d`)."""

    features: int
    kernel_size: int = 3
    dilation: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = DepthwiseConv(self.kernel_size, dilation=self.dilation, dtype=self.dtype, name="depthwise")(x)
        x = Conv(self.features, 1, dtype=self.dtype, name="pointwise")(x)
        return nn.relu(batch_norm(train, dtype=self.dtype)(x))


# ------------------------------------------------------------------------------------------------------------ resizing


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
