"""The layers against plain convolution and against PyTorch."""

import contextlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.errors import UserError
from jaxseg.models.layers import (
    Conv,
    ConvBN,
    DepthwiseConv,
    batch_norm,
    check_images,
    depthwise_conv,
    relu6,
    resize_bilinear,
)


@contextlib.contextmanager
def float64_on_cpu():
    # The CPU is where depthwise convolution has a form of its own.
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        yield


def normal(*shape: int, seed: int = 0, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


def conv_plain(x, kernel, stride=1, padding=0, dilation=1, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


# ---------------------------------------------------------------------------------------------- depthwise convolution


def check_depthwise(shape, kernel_size, stride, padding, dilation):
    """Value, dx and dw of the custom operation against the grouped convolution, all in float64."""
    x = normal(*shape, dtype=np.float64)
    kernel = normal(kernel_size, kernel_size, 1, shape[-1], seed=1, dtype=np.float64)

    def both(x, kernel):
        results = []
        for f in (
            lambda x, k: depthwise_conv(x, k, stride, padding, dilation),
            lambda x, k: conv_plain(x, k, stride, padding, dilation, groups=shape[-1]),
        ):
            y, vjp = jax.vjp(f, x, kernel)
            # Another weight for every place of the output, so that no two errors cancel.
            results.append((y, *vjp(jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))))
        return results

    with float64_on_cpu():
        (y, dx, dw), (y_plain, dx_plain, dw_plain) = jax.jit(both)(x, kernel)
        assert y.dtype == dx.dtype == dw.dtype == np.float64
    np.testing.assert_allclose(y, y_plain, rtol=0, atol=1e-12)
    np.testing.assert_allclose(dx, dx_plain, rtol=0, atol=1e-12)
    # The sums of the weight gradient are accumulated in float32.
    np.testing.assert_allclose(dw, dw_plain, rtol=0, atol=1e-5 * np.abs(dw_plain).max())


SIZES = itertools.cycle([(1, 9, 12, 3), (2, 11, 7, 1), (3, 8, 8, 5), (1, 13, 21, 2), (2, 1, 5, 4)])
DEPTHWISE = [
    (next(SIZES), kernel, stride, dilation) for kernel in (3, 5, 7) for stride in (1, 2) for dilation in (1, 2, 3)
]


@pytest.mark.parametrize(("shape", "kernel_size", "stride", "dilation"), DEPTHWISE)
def test_depthwise_equals_grouped_convolution(shape, kernel_size, stride, dilation):
    check_depthwise(shape, kernel_size, stride, dilation * (kernel_size - 1) // 2, dilation)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(data=st.data())
def test_depthwise_takes_any_padding(data):
    kernel_size, stride, dilation = (data.draw(st.sampled_from(n)) for n in ((2, 3), (1, 2, 3), (1, 2)))
    padding = data.draw(st.integers(0, 4))
    smallest = max(1, dilation * (kernel_size - 1) + 1 - 2 * padding)
    height, width = (data.draw(st.integers(smallest, 12)) for _ in range(2))
    check_depthwise((2, height, width, 3), kernel_size, stride, padding, dilation)


def test_depthwise_in_bfloat16_stays_bfloat16_and_near():
    x, kernel = normal(2, 9, 9, 8), normal(3, 3, 1, 8, seed=1)

    def loss(x, kernel):
        y = depthwise_conv(x, kernel, 1, 1, 1)
        return (y.astype(jnp.float32) ** 2).mean(), y

    grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    with jax.default_device(jax.devices("cpu")[0]):
        (_, y), (dx, dw) = grads(x, kernel)
        (_, y_half), (dx_half, dw_half) = grads(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    for full, half in ((y, y_half), (dx, dx_half), (dw, dw_half)):
        assert half.dtype == jnp.bfloat16
        error = np.abs(full - half.astype(np.float32)).max() / np.abs(full).max()
        assert 0 < error < 0.02


def test_depthwise_initialisation_counts_one_filter_and_not_all_channels():
    variables = DepthwiseConv(5).init(jax.random.key(0), jnp.zeros((1, 8, 8, 512)))
    kernel = np.asarray(variables["params"]["kernel"])
    assert kernel.shape == (5, 5, 1, 512)
    assert kernel.std() == pytest.approx(np.sqrt(2 / 25), rel=0.05)


# -------------------------------------------------------------------------------------------------------- convolution


@pytest.mark.parametrize("stride", [1, 2])
def test_conv_of_one_pixel_as_matrix_product_equals_convolution(stride):
    x, kernel = normal(2, 7, 10, 5), normal(1, 1, 5, 6, seed=1)
    y = Conv(6, 1, stride).apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_allclose(y, conv_plain(x, kernel, stride), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kernel_size", "stride", "dilation"), [(3, 1, 1), (3, 1, 6), (3, 2, 1), (5, 2, 2), (7, 2, 1)])
@pytest.mark.parametrize("size", [(16, 16), (15, 20)])
def test_conv_bn_pads_as_pytorch(kernel_size, stride, dilation, size):
    """XLA's `SAME` would put all the padding of a strided convolution at the end."""
    torch = pytest.importorskip("torch")
    x, kernel = normal(2, *size, 3), normal(kernel_size, kernel_size, 3, 4, seed=1)
    scale, bias, mean = normal(4, seed=2), normal(4, seed=3), normal(4, seed=4)
    var = np.random.default_rng(5).uniform(0.5, 1.5, 4).astype(np.float32)

    conv = torch.nn.Conv2d(3, 4, kernel_size, stride, dilation * (kernel_size // 2), dilation, bias=False)
    bn = torch.nn.BatchNorm2d(4)
    to_torch = torch.from_numpy
    conv.load_state_dict({"weight": to_torch(kernel.transpose(3, 2, 0, 1).copy())})
    tensors = {"weight": scale, "bias": bias, "running_mean": mean, "running_var": var}
    bn.load_state_dict({name: to_torch(value) for name, value in tensors.items()}, strict=False)
    with torch.no_grad():
        due = torch.nn.Sequential(conv, bn, torch.nn.ReLU()).eval()(to_torch(x.transpose(0, 3, 1, 2).copy()))

    variables = {
        "params": {"conv": {"kernel": kernel}, "bn": {"scale": scale, "bias": bias}},
        "batch_stats": {"bn": {"mean": mean, "var": var}},
    }
    y = ConvBN(4, kernel_size, stride, dilation).apply(variables, x, train=False)
    np.testing.assert_allclose(y, due.numpy().transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------- BatchNorm


def test_batch_norm_running_statistics_equal_pytorch_up_to_its_unbiased_variance():
    torch = pytest.importorskip("torch")
    theirs, ours = torch.nn.BatchNorm2d(3), batch_norm(True)
    n = 2 * 2 * 3
    variables = ours.init(jax.random.key(0), jnp.zeros((2, 2, 3, 3)))
    for step in range(3):
        x = 3 * normal(2, 2, 3, 3, seed=step) + 1
        y, updates = ours.apply(variables, x, mutable=["batch_stats"])
        variables = {**variables, **updates}
        due = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
        np.testing.assert_allclose(y, due.detach().numpy().transpose(0, 2, 3, 1), atol=1e-5)
    stats = variables["batch_stats"]
    np.testing.assert_allclose(stats["mean"], theirs.running_mean.numpy(), rtol=1e-5)
    start = 0.9**3  # what is left of the variance of 1 that both began with
    np.testing.assert_allclose(stats["var"] - start, (theirs.running_var.numpy() - start) * (n - 1) / n, rtol=1e-5)


def test_batch_norm_statistics_are_float32_under_bfloat16():
    x = jnp.asarray(normal(2, 4, 4, 3) + 100, jnp.bfloat16)
    variables = batch_norm(True, dtype=jnp.bfloat16).init(jax.random.key(0), x)
    y, updates = batch_norm(True, dtype=jnp.bfloat16).apply(variables, x, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    mean = updates["batch_stats"]["mean"]
    assert mean.dtype == jnp.float32
    np.testing.assert_allclose(mean, 0.1 * np.asarray(x, np.float32).mean((0, 1, 2)), rtol=1e-5)


# --------------------------------------------------------------------------------------------------------- activation


def test_relu6_and_its_gradient_equal_pytorch_at_the_kinks_too():
    torch = pytest.importorskip("torch")
    points = np.array([-1, 0, 1e-3, 3, 5.999, 6, 6.001, 9], np.float32)
    x = torch.from_numpy(points).requires_grad_()
    y = torch.nn.functional.relu6(x)
    y.sum().backward()
    np.testing.assert_array_equal(relu6(points), y.detach().numpy())
    np.testing.assert_array_equal(jax.grad(lambda x: relu6(x).sum())(points), x.grad.numpy())


# ----------------------------------------------------------------------------------------------------------- resizing

RESIZES = [
    ((5, 7), (11, 15)),
    ((4, 4), (16, 16)),
    ((9, 12), (4, 5)),
    ((6, 5), (6, 9)),
    ((8, 3), (1, 1)),
    ((1, 1), (5, 3)),
    ((1, 6), (4, 1)),
    ((31, 17), (32, 16)),
]


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("size", "to"), RESIZES)
def test_resize_equals_pytorch(size, to, align_corners):
    torch = pytest.importorskip("torch")
    x = normal(2, *size, 3)
    due = torch.nn.functional.interpolate(
        torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), to, mode="bilinear", align_corners=align_corners
    )
    y = resize_bilinear(x, to, align_corners=align_corners)
    np.testing.assert_allclose(y, due.numpy().transpose(0, 2, 3, 1), atol=1e-5)


@pytest.mark.parametrize(("size", "to"), RESIZES)
def test_resize_without_aligned_corners_equals_jax_without_antialiasing(size, to):
    x = normal(2, *size, 3)
    due = jax.image.resize(x, (2, *to, 3), "bilinear", antialias=False)
    np.testing.assert_allclose(resize_bilinear(x, to, align_corners=False), due, atol=1e-5)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.tuples(*[st.integers(1, 20)] * 2), st.tuples(*[st.integers(2, 40)] * 2), st.booleans())
def test_resize_of_a_mirrored_image_is_the_mirrored_resize(size, to, align_corners):
    """Sizes of 1 are left out: with aligned corners the one pixel is the left one, in PyTorch too."""
    x = normal(1, *size, 2)
    y = np.asarray(resize_bilinear(x, to, align_corners=align_corners))
    mirrored = resize_bilinear(x[:, ::-1, ::-1], to, align_corners=align_corners)
    np.testing.assert_allclose(mirrored, y[:, ::-1, ::-1], atol=1e-5)


def test_resize_keeps_the_corners_where_they_are_aligned():
    x = normal(1, 5, 6, 2)
    y = resize_bilinear(x, (13, 17), align_corners=True)
    np.testing.assert_allclose(y[:, :: 13 - 1, :: 17 - 1], x[:, :: 5 - 1, :: 6 - 1], atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- checks


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        ((64, 64, 3), jnp.float32, r"\(64, 64, 3\).*\[B, H, W, 3\]"),
        ((2, 3, 64, 64), jnp.float32, r"\(2, 3, 64, 64\).*\[B, H, W, 3\]"),
        ((2, 64, 64, 3), jnp.uint8, "uint8.*normalise"),
        ((2, 31, 64, 3), jnp.float32, "31x64.*32x32"),
        ((2, 64, 31, 3), jnp.float32, "64x31.*32x32"),
    ],
)
def test_images_that_no_network_takes_are_named(shape, dtype, words):
    with pytest.raises(UserError, match=words):
        check_images(jax.ShapeDtypeStruct(shape, dtype))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_smallest_images_are_taken(dtype):
    assert check_images(jax.ShapeDtypeStruct((1, 32, 32, 3), dtype)) is None
