"""Convolution with explicit padding, BatchNorm, and the few combinations of the two that networks are made of.

Padding is a number of pixels, the same on all four sides as in PyTorch, or ((top, bottom), (left, right)): XLA's `SAME`
pads a strided convolution unevenly and gives other features for the same weights.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxseg.models.layers.dense import Sides, dense_conv, dense_conv_transpose, pointwise_conv
from jaxseg.models.layers.depthwise import depthwise_conv

Activation = Callable[[jax.Array], jax.Array]
Padding = int | Sides

# PyTorch's default for ReLU networks (He et al. 2015), over the fan that keeps the size of gradients.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def he_normal_fan_out_depthwise(key, shape, dtype=jnp.float32):
    """He initialisation over a depthwise filter's own fan, k * k: Flax would count all channels."""
    k_h, k_w = shape[:2]
    return jax.random.normal(key, shape, dtype) * np.sqrt(2.0 / (k_h * k_w))


def relu6(x: jax.Array) -> jax.Array:
    """min(max(x, 0), 6) (MobileNetV2, section 3.1), with PyTorch's gradient: none at 0 and at 6."""
    return jnp.where(x <= 0, jnp.asarray(0, x.dtype), jnp.where(x >= 6, jnp.asarray(6, x.dtype), x))


def uneven_padding(size: tuple[int, int], kernel_size: int, stride: int) -> Padding:
    """The padding of TensorFlow and Keras, `SAME`, for an image of `size` (H, W): the odd pixel goes to the end."""

    def sides(n: int) -> tuple[int, int]:
        total = max((-(-n // stride) - 1) * stride + kernel_size - n, 0)
        return total // 2, total - total // 2

    return sides(size[0]), sides(size[1])


def _pairs(padding: Padding) -> Sides:
    return ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding


def _add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    # In bfloat16 too the sum and the gradient of `bias`, a sum over all pixels, are of float32.
    wide = jnp.promote_types(y.dtype, jnp.float32)
    return (y.astype(wide) + bias.astype(wide)).astype(y.dtype)


class Conv(nn.Module):
    """Convolution with explicit padding, `[B, H, W, C]` to `[B, H', W', features]`.

    `padding` None keeps the size at stride 1 for odd kernels (`dilation * (kernel_size - 1) / 2` on all sides).
    Parameters: `kernel` `[k, k, C, features]`, `bias` `[features]`, float32; computed in `dtype`.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    padding: Padding | None = None
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = he_normal_fan_out

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k, stride = self.kernel_size, self.stride
        padding = _pairs(self.dilation * (k - 1) // 2 if self.padding is None else self.padding)
        kernel = self.param("kernel", self.kernel_init, (k, k, x.shape[-1], self.features))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if k == 1 and padding == ((0, 0), (0, 0)):
            y = pointwise_conv(x[:, ::stride, ::stride], kernel[0, 0])
        else:
            y = dense_conv(x, kernel, stride, padding, self.dilation)
        if self.use_bias:
            y = _add_bias(y, self.param("bias", nn.initializers.zeros, (self.features,)))
        return y


class ConvTranspose(nn.Module):
    """Transposed convolution as PyTorch's `ConvTranspose2d`: `[B, H, W, C]` to `[B, H', W', features]`.

    `H' = (H - 1) * stride - 2 * padding + kernel_size + output_padding`.
    Parameters: `kernel` `[k, k, features, C]` (PyTorch's axes turned as those of any kernel), `bias` `[features]`.
    """

    features: int
    kernel_size: int
    stride: int
    padding: int = 0
    output_padding: int = 0
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.variance_scaling(2.0, "fan_in", "normal", -1, -2)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k = self.kernel_size
        kernel = self.param("kernel", self.kernel_init, (k, k, self.features, x.shape[-1]))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if k == self.stride and self.padding == self.output_padding == 0:
            # No two windows overlap: one matrix product, its k * k results laid side by side.
            b, h, w, _ = x.shape
            y = jnp.einsum("bhwc,ijoc->bhiwjo", x, kernel)
            y = y.reshape(b, h * k, w * k, self.features)
        else:
            y = dense_conv_transpose(x, kernel, self.stride, self.padding, self.output_padding)
        if self.use_bias:
            y = _add_bias(y, self.param("bias", nn.initializers.zeros, (self.features,)))
        return y


def classifier(num_classes: int, dtype: jnp.dtype, name: str = "classifier", kernel_size: int = 1) -> Conv:
    """The last convolution, with bias; Glorot's initialisation keeps the first logits near zero."""
    init = nn.initializers.xavier_uniform()
    return Conv(num_classes, kernel_size, use_bias=True, dtype=dtype, kernel_init=init, name=name)


class DepthwiseConv(nn.Module):
    """`depthwise_conv` with its kernel `[k, k, 1, C]`, float32, computed in `dtype`; padding as in `Conv`."""

    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    padding: Padding | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k = self.kernel_size
        kernel = self.param("kernel", he_normal_fan_out_depthwise, (k, k, 1, x.shape[-1]))
        padding = self.dilation * (k - 1) // 2 if self.padding is None else self.padding
        x = x.astype(self.dtype)
        if not isinstance(padding, int):
            x, padding = jnp.pad(x, ((0, 0), *padding, (0, 0))), 0
        return depthwise_conv(x, kernel.astype(self.dtype), self.stride, padding, self.dilation)


def batch_norm(
    train: bool,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    dtype: jnp.dtype = jnp.float32,
    name: str = "bn",
) -> nn.BatchNorm:
    """BatchNorm with PyTorch's constants: epsilon 1e-5 and momentum 0.1, which Flax counts from the other end.

    Statistics are computed in float32 whatever `dtype` is. Under `jit` with a sharded batch they are global. Flax keeps
    the biased variance where PyTorch stores n / (n - 1) of it: running variances differ in training by that factor.
    """
    return nn.BatchNorm(use_running_average=not train, momentum=momentum, epsilon=epsilon, dtype=dtype, name=name)


class ConvBN(nn.Module):
    """Convolution, by default without bias, BatchNorm, if not without `norm`, activation: children `conv` and `bn`."""

    features: int
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    padding: Padding | None = None
    use_bias: bool = False
    activation: Activation | None = nn.relu
    norm: bool = True
    epsilon: float = 1e-5
    momentum: float = 0.9
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = Conv(
            self.features,
            self.kernel_size,
            self.stride,
            self.dilation,
            self.padding,
            self.use_bias,
            dtype=self.dtype,
            name="conv",
        )(x)
        if self.norm:
            x = batch_norm(train, epsilon=self.epsilon, momentum=self.momentum, dtype=self.dtype)(x)
        return x if self.activation is None else self.activation(x)


class DepthwiseConvBN(nn.Module):
    """Depthwise convolution, BatchNorm, activation: children `conv` and `bn`."""

    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    padding: Padding | None = None
    activation: Activation | None = nn.relu
    epsilon: float = 1e-5
    momentum: float = 0.9
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = DepthwiseConv(self.kernel_size, self.stride, self.dilation, self.padding, self.dtype, name="conv")(x)
        x = batch_norm(train, epsilon=self.epsilon, momentum=self.momentum, dtype=self.dtype)(x)
        return x if self.activation is None else self.activation(x)


class SeparableConvBN(nn.Module):
    """Depthwise, then 1x1 convolution, BatchNorm, ReLU; with no norm between the two (SMP's `SeparableConv2d`).

    With `norm_between`, BatchNorm and ReLU there too (TensorFlow's DeepLab): a child `depthwise_bn`.
    """

    features: int
    kernel_size: int = 3
    dilation: int = 1
    norm_between: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = DepthwiseConv(self.kernel_size, dilation=self.dilation, dtype=self.dtype, name="depthwise")(x)
        if self.norm_between:
            x = nn.relu(batch_norm(train, dtype=self.dtype, name="depthwise_bn")(x))
        x = Conv(self.features, 1, dtype=self.dtype, name="pointwise")(x)
        return nn.relu(batch_norm(train, dtype=self.dtype)(x))
