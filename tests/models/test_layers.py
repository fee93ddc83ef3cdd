"""The layers against plain convolution and against PyTorch."""

import contextlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.benchmark.layers import plain_conv
from jaxseg.errors import UserError
from jaxseg.models.layers import (
    Conv,
    ConvBN,
    ConvTranspose,
    DepthwiseConv,
    adaptive_avg_pool,
    batch_norm,
    check_images,
    dense,
    dense_conv,
    dense_conv_transpose,
    depthwise,
    depthwise_conv,
    max_pool,
    max_pool_with_places,
    max_unpool,
    onednn,
    pointwise_conv,
    relu6,
    resize_bilinear,
    resize_nearest,
    uneven_padding,
    winograd,
)


@contextlib.contextmanager
def float64_on_cpu():
    # The CPU is where convolution has forms of its own.
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        yield


def normal(*shape: int, seed: int = 0, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


def to_torch(x: np.ndarray):
    """`[B, H, W, C]` as a tensor `[B, C, H, W]` that takes a gradient."""
    torch = pytest.importorskip("torch")
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))).requires_grad_()


def from_torch(tensor) -> np.ndarray:
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


def values_and_gradients(f, x, kernel):
    """`f(x, kernel)`, its gradient for x and its gradient for the kernel, compiled, in float64."""

    def both(x, kernel):
        y, vjp = jax.vjp(f, x, kernel)
        # Another weight for every place of the output, so that no two errors cancel.
        return y, *vjp(jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    with float64_on_cpu():
        results = jax.jit(both)(x, kernel)
    assert {a.dtype.name for a in results} == {"float64"}
    return results


# -------------------------------------------------------------------------------------------------- dense convolution


def dense_plain(x, kernel, stride, padding, dilation):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride,) * 2, padding, rhs_dilation=(dilation,) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize(
    ("shape", "features", "kernel_size", "stride", "dilation", "block"),
    [
        ((3, 9, 7, 2), 4, 3, 1, 1, 2**20),  # all in one block
        ((4, 5, 6, 3), 2, 3, 1, 1, 2 * 5 * 6 * 27 * 8),  # two images a block
        ((3, 5, 6, 3), 2, 3, 1, 1, 2 * 5 * 6 * 27 * 8),  # two would fit but do not divide three
        ((2, 11, 6, 3), 5, 3, 1, 1, 4 * 6 * 27 * 8),  # blocks of four rows: the last has three
        ((2, 11, 13, 3), 5, 3, 2, 1, 4 * 7 * 27 * 8),
        ((1, 12, 13, 3), 5, 5, 2, 1, 1),  # a row is more than a block
        ((2, 10, 9, 3), 5, 3, 1, 3, 3 * 9 * 27 * 8),
        ((2, 10, 9, 1), 1, 7, 3, 1, 2 * 3 * 49 * 8),
        # of no more channels than there were, which are unfolded in place of these
        ((3, 9, 7, 4), 2, 3, 1, 1, 2**20),
        ((4, 5, 6, 3), 3, 3, 1, 1, 2 * 7 * 8 * 27 * 8),  # two images a block
        ((2, 11, 6, 4), 3, 3, 1, 1, 4 * 8 * 27 * 8),  # blocks of four rows: the last has one
        ((2, 12, 9, 3), 2, 5, 1, 1, 1),  # a row is more than a block
        ((2, 9, 8, 2), 1, 2, 1, 1, 2**20),
    ],
)
@pytest.mark.parametrize("padding", ["same", ((0, 1), (2, 0))])
def test_dense_convolution_has_the_gradients_of_xlas(
    shape, features, kernel_size, stride, dilation, block, padding, monkeypatch
):
    monkeypatch.setattr(dense, "_BLOCK", block)
    if padding == "same":
        padding = ((dilation * (kernel_size - 1) // 2,) * 2,) * 2
    x = normal(*shape, dtype=np.float64)
    kernel = normal(kernel_size, kernel_size, shape[-1], features, seed=1, dtype=np.float64)

    ours = values_and_gradients(lambda x, kernel: dense_conv(x, kernel, stride, padding, dilation), x, kernel)
    plain = values_and_gradients(lambda x, kernel: dense_plain(x, kernel, stride, padding, dilation), x, kernel)
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "dilation", "padding"),
    [
        ((8, 6), 1, ((1, 1), (1, 1))),
        ((7, 9), 1, ((0, 2), (1, 0))),
        ((5, 6), 1, ((3, 3), (1, 1))),  # more than a kernel's reach: the gradient for x leaves pixels out
        ((13, 16), 2, ((2, 2), (2, 2))),
        ((9, 10), 3, ((3, 2), (0, 1))),
    ],
)
def test_few_multiplications_give_the_same_convolution(size, dilation, padding, monkeypatch):
    monkeypatch.setattr(winograd, "pays", lambda *a: True)
    x = normal(2, *size, 3, dtype=np.float64)
    kernel = normal(3, 3, 3, 2, seed=1, dtype=np.float64)
    ours = values_and_gradients(lambda x, kernel: dense_conv(x, kernel, 1, padding, dilation), x, kernel)
    plain = values_and_gradients(lambda x, kernel: dense_plain(x, kernel, 1, padding, dilation), x, kernel)
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "features", "settings", "dtype", "pays"),
    [
        ((4, 32, 32, 256), 256, {}, jnp.float32, True),
        ((4, 32, 32, 512), 512, {"padding": ((4, 4), (4, 4)), "dilation": 4}, jnp.float32, True),
        ((4, 32, 32, 256), 256, {}, jnp.bfloat16, False),
        ((4, 32, 32, 256), 256, {"stride": 2}, jnp.float32, False),
        ((4, 32, 32, 64), 64, {}, jnp.float32, False),  # the sums cost more than the products save
        ((4, 4, 4, 512), 512, {}, jnp.float32, False),  # the kernel's sums alone do
        ((4, 9, 9, 256), 256, {"padding": ((8, 8), (8, 8)), "dilation": 8}, jnp.float32, False),  # half-empty tiles
    ],
)
def test_few_multiplications_are_taken_where_they_pay(shape, features, settings, dtype, pays, monkeypatch):
    monkeypatch.setattr(onednn, "usable", lambda *a: False)
    x, kernel = (jax.ShapeDtypeStruct(s, dtype) for s in (shape, (3, 3, shape[-1], features)))
    settings = {"padding": ((1, 1), (1, 1))} | settings

    def both(x, kernel):
        y, vjp = jax.vjp(lambda x, kernel: dense_conv(x, kernel, **settings), x, kernel)
        return y, *vjp(y)

    program = jax.jit(both).trace(x, kernel).lower(lowering_platforms=("cpu",)).as_text()
    assert ("stablehlo.convolution" not in program) == pays


@pytest.mark.parametrize("features", [2, 4])
def test_dense_convolution_in_bfloat16_sums_in_float32(features, monkeypatch):
    monkeypatch.setattr(onednn, "usable", lambda *a: False)
    monkeypatch.setattr(dense, "_BLOCK", 2**14)
    # 8,192 ones summed one by one in bfloat16 would stop at 256.
    x, kernel = jnp.ones((2, 64, 64, 3), jnp.bfloat16), jnp.ones((3, 3, 3, features), jnp.bfloat16)
    with jax.default_device(jax.devices("cpu")[0]):
        dw = jax.jit(jax.grad(lambda kernel: dense_conv(x, kernel, 1, ((1, 1), (1, 1))).astype(jnp.float32).sum()))(
            kernel
        )
    assert dw.dtype == jnp.bfloat16
    assert float(dw[1, 1, 0, 0]) == 8192


@pytest.mark.parametrize(("before", "after"), [(3, 5), (5, 3), (4, 4)])
def test_a_pointwise_convolution_has_the_gradients_of_a_matrix_product(before, after):
    x, kernel = normal(2, 4, 3, before, dtype=np.float64), normal(before, after, seed=1, dtype=np.float64)
    ours = values_and_gradients(pointwise_conv, x, kernel)
    for a, b in zip(ours, values_and_gradients(lambda x, kernel: x @ kernel, x, kernel), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "output_padding"), [(3, 2, 0, 0), (3, 2, 1, 1), (4, 2, 1, 0), (5, 3, 1, 2)]
)
@pytest.mark.parametrize("block", [2**20, 2 * 7 * 2 * 9 * 8])
def test_transposed_convolution_has_the_gradients_of_xlas(
    kernel_size, stride, padding, output_padding, block, monkeypatch
):
    monkeypatch.setattr(dense, "_BLOCK", block)
    x = normal(2, 6, 7, 3, dtype=np.float64)
    kernel = normal(kernel_size, kernel_size, 2, 3, seed=1, dtype=np.float64)
    low = kernel_size - 1 - padding

    def plain(x, kernel):
        return jax.lax.conv_transpose(
            x,
            kernel,
            (stride, stride),
            [(low, low + output_padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            transpose_kernel=True,
        )

    ours = values_and_gradients(
        lambda x, kernel: dense_conv_transpose(x, kernel, stride, padding, output_padding), x, kernel
    )
    for a, b in zip(ours, values_and_gradients(plain, x, kernel), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


# ---------------------------------------------------------------------------------------------- depthwise convolution


def check_depthwise(shape, kernel_size, stride, padding, dilation):
    """Value, dx and dw of the custom operation against the grouped convolution, all in float64."""
    x = normal(*shape, dtype=np.float64)
    kernel = normal(kernel_size, kernel_size, 1, shape[-1], seed=1, dtype=np.float64)

    y, dx, dw = values_and_gradients(lambda x, k: depthwise_conv(x, k, stride, padding, dilation), x, kernel)
    y_plain, dx_plain, dw_plain = values_and_gradients(
        lambda x, k: plain_conv(x, k, stride, padding, dilation, groups=shape[-1]), x, kernel
    )
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


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(
    ("k", "dilation", "size", "alone"),
    [(3, 9, (7, 9), True), (3, 12, (1, 1), True), (5, 8, (8, 5), True), (3, 8, (7, 9), False), (5, 3, (4, 4), False)],
)
def test_of_a_kernel_whose_centre_alone_meets_the_image_the_rest_is_left_out(k, dilation, size, alone, groups):
    x, padding = normal(2, *size, 4, dtype=np.float64), dilation * (k - 1) // 2
    kernel = normal(k, k, 4 // groups, 4, seed=1, dtype=np.float64)

    def ours(x, kernel):
        if groups == 4:
            return depthwise_conv(x, kernel, 1, padding, dilation)
        return dense_conv(x, kernel, 1, ((padding, padding),) * 2, dilation)

    plain = values_and_gradients(lambda x, k: plain_conv(x, k, 1, padding, dilation, groups=groups), x, kernel)
    for a, b in zip(values_and_gradients(ours, x, kernel), plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
    # Nothing is as large as the image with its padding.
    whole = f"{size[0] + 2 * padding},{size[1] + 2 * padding}"
    one = f"{size[0]},{size[1]},"
    program = jax.jit(ours).lower(x, kernel).compile().as_text()
    assert one in program
    assert ("window={size=" in program or whole in program) != alone


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("k", "padding", "dilation", "size"), [(3, 2, 2, (9, 7)), (3, 5, 12, (24, 29)), (5, 4, 3, (13, 12))]
)
def test_weight_gradients_by_taps_are_those_of_the_convolution(k, padding, dilation, size, dtype):
    """What GPUs run for dilated convolutions, here on a CPU."""
    h, w = (n + 2 * padding - dilation * (k - 1) for n in size)
    keys = jax.random.split(jax.random.key(k), 3)
    x, dense_dy, dy = (
        jax.random.normal(key, shape, dtype)
        for key, shape in zip(keys, [(2, *size, 6), (2, h, w, 5), (2, h, w, 6)], strict=True)
    )

    def due(dy, kernel, groups):
        def convolve(kernel):
            return jax.lax.conv_general_dilated(
                x.astype(jnp.float32),
                kernel,
                (1, 1),
                [(padding, padding)] * 2,
                rhs_dilation=(dilation, dilation),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
            )

        return jax.vjp(convolve, kernel)[1](dy.astype(jnp.float32))[0]

    sides = ((padding, padding), (padding, padding))
    found = dense._weight_grad_by_taps(x, dense_dy, k, sides, dilation)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, due(dense_dy, jnp.zeros((k, k, 6, 5)), 1), rtol=1e-4, atol=1e-3)
    found = depthwise._weight_grad_by_taps(x, dy, k, padding, dilation)
    np.testing.assert_allclose(found, due(dy, jnp.zeros((k, k, 1, 6)), 6), rtol=1e-4, atol=1e-3)


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
    np.testing.assert_allclose(y, plain_conv(x, kernel, stride), rtol=1e-5, atol=1e-5)


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
    points = np.array([-1, 0, 1e-3, 3, 5.999, 6, 6.001, 9, np.nan], np.float32)
    x = torch.from_numpy(points).requires_grad_()
    y = torch.nn.functional.relu6(x)
    y.sum().backward()
    np.testing.assert_array_equal(relu6(points), y.detach().numpy())
    np.testing.assert_array_equal(jax.grad(lambda x: relu6(x).sum())(points), x.grad.numpy())


# --------------------------------------------------------------------------------------------- transposed convolution


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "output_padding"),
    [
        (2, 2, 0, 0),  # the fast path, as is the next
        (4, 4, 0, 0),
        (2, 2, 0, 1),
        (3, 3, 1, 0),
        (3, 2, 0, 0),
        (3, 2, 1, 1),
        (4, 2, 1, 0),
        (5, 3, 2, 2),
        (3, 1, 1, 0),
        (16, 8, 4, 0),
    ],
)
def test_transposed_convolution_equals_pytorch(kernel_size, stride, padding, output_padding):
    torch = pytest.importorskip("torch")
    k, x, due_x = kernel_size, normal(2, 5, 4, 3), to_torch(normal(2, 5, 4, 3))
    params = {"kernel": normal(k, k, 6, 3, seed=1), "bias": normal(6, seed=2)}
    theirs = torch.nn.ConvTranspose2d(3, 6, k, stride, padding, output_padding)
    weight = torch.from_numpy(params["kernel"].transpose(3, 2, 0, 1).copy())
    theirs.load_state_dict({"weight": weight, "bias": torch.from_numpy(params["bias"])})
    due = theirs(due_x)
    dy = normal(*from_torch(due).shape, seed=3)
    due.backward(to_torch(dy).detach())

    ours = ConvTranspose(6, k, stride, padding, output_padding)
    y, vjp = jax.vjp(lambda params, x: ours.apply({"params": params}, x), params, x)
    grads, dx = vjp(dy)
    for got, wanted in (
        (y, from_torch(due)),
        (dx, from_torch(due_x.grad)),
        (grads["kernel"], theirs.weight.grad.numpy().transpose(2, 3, 1, 0)),
        (grads["bias"], theirs.bias.grad.numpy()),
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_transposed_convolution_in_bfloat16_has_float32_parameters():
    y, variables = ConvTranspose(4, 2, 2, dtype=jnp.bfloat16).init_with_output(jax.random.key(0), normal(1, 3, 3, 2))
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


# -------------------------------------------------------------------------------------- pooling and its inverse

POOLED = [(8, 8), (7, 9), (2, 3), (5, 4)]


def tied(*shape: int) -> np.ndarray:
    """Of few values, also negative, so that most windows have their maximum twice."""
    return np.random.default_rng([*shape]).integers(-3, 1, shape).astype(np.float32)


@pytest.mark.parametrize("values", [normal, tied])
@pytest.mark.parametrize("size", POOLED)
def test_pooling_with_places_equals_pytorch(size, values):
    torch = pytest.importorskip("torch")
    x, due_x = values(2, *size, 3), to_torch(values(2, *size, 3))
    due, indices = torch.nn.MaxPool2d(2, return_indices=True)(due_x)
    dy = normal(*from_torch(due).shape, seed=1)
    due.backward(to_torch(dy).detach())

    (y, places), vjp = jax.vjp(max_pool_with_places, x)
    (dx,) = vjp((dy, np.zeros(places.shape, jax.dtypes.float0)))
    assert places.dtype == jnp.int8
    np.testing.assert_array_equal(y, from_torch(due))
    np.testing.assert_array_equal(dx, from_torch(due_x.grad))
    row, column = np.divmod(from_torch(indices), size[1])
    np.testing.assert_array_equal(places, row % 2 * 2 + column % 2)


@pytest.mark.parametrize(
    ("shape", "size", "stride", "padding"),
    [
        ((2, 8, 6, 3), 2, 2, ((0, 0), (0, 0))),
        ((2, 9, 7, 3), 2, 2, ((0, 0), (0, 0))),
        ((2, 8, 9, 3), 3, 2, ((1, 1), (1, 1))),
        ((1, 9, 8, 3), 3, 2, ((0, 1), (0, 1))),
        ((1, 7, 8, 3), 3, 1, ((1, 1), (1, 1))),
        ((1, 11, 8, 2), 2, 3, ((0, 0), (1, 0))),
    ],
)
def test_the_gradient_of_max_pooling_is_xlas(shape, size, stride, padding):
    # Of a few whole numbers, as after a ReLU, many windows have their maximum more than once.
    x = np.maximum(np.random.default_rng(0).integers(-3, 3, shape), 0).astype(np.float32)

    def gradient(pool):
        y, vjp = jax.vjp(pool, x)
        return y, vjp(1 + jnp.arange(y.size, dtype=y.dtype).reshape(y.shape))[0]

    with jax.default_device(jax.devices("cpu")[0]):
        ours = jax.jit(lambda: gradient(lambda x: max_pool(x, size, stride, padding)))()
        theirs = jax.jit(lambda: gradient(lambda x: nn.max_pool(x, (size, size), (stride, stride), padding)))()
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("values", [normal, tied])
@pytest.mark.parametrize("size", POOLED)
def test_unpooling_equals_pytorch(size, values):
    torch = pytest.importorskip("torch")
    x = values(2, *size, 3)
    pooled, indices = torch.nn.MaxPool2d(2, return_indices=True)(to_torch(x))
    small = normal(*from_torch(pooled).shape, seed=1)
    due_small, dy = to_torch(small), normal(*x.shape, seed=2)
    due = torch.nn.MaxUnpool2d(2)(due_small, indices, output_size=size)
    due.backward(to_torch(dy).detach())

    _, places = max_pool_with_places(x)
    y, vjp = jax.vjp(lambda small: max_unpool(small, places, size), small)
    np.testing.assert_array_equal(y, from_torch(due))
    np.testing.assert_array_equal(vjp(dy)[0], from_torch(due_small.grad))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.tuples(*[st.integers(2, 9)] * 2), st.booleans())
def test_unpooling_is_the_gradient_of_pooling_and_pooling_takes_it_back(size, with_ties):
    x = (tied if with_ties else normal)(2, *size, 3)
    (y, places), vjp = jax.vjp(max_pool_with_places, x)
    dy = np.abs(normal(*y.shape, seed=1))
    spread = max_unpool(dy, places, size)
    np.testing.assert_array_equal(spread, vjp((dy, np.zeros(places.shape, jax.dtypes.float0)))[0])
    again, same_places = max_pool_with_places(spread)
    np.testing.assert_array_equal(again, dy)
    np.testing.assert_array_equal(same_places, places)


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


@pytest.mark.parametrize(("size", "to"), [*RESIZES, ((4, 6), (8, 18)), ((6, 5), (11, 11)), ((16, 12), (31, 24))])
def test_nearest_equals_pytorch(size, to):
    """At odd sizes JAX's own takes other pixels."""
    torch = pytest.importorskip("torch")
    x, due_x, dy = normal(2, *size, 3), to_torch(normal(2, *size, 3)), normal(2, *to, 3, seed=1)
    due = torch.nn.functional.interpolate(due_x, to, mode="nearest")
    due.backward(to_torch(dy).detach())
    y, vjp = jax.vjp(lambda x: resize_nearest(x, to), x)
    np.testing.assert_array_equal(y, from_torch(due))
    np.testing.assert_allclose(vjp(dy)[0], from_torch(due_x.grad), rtol=1e-5, atol=1e-5)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.tuples(*[st.integers(1, 12)] * 2), st.tuples(*[st.integers(1, 40)] * 2))
def test_nearest_takes_the_pixel_at_the_floor(size, to):
    """PyTorch rounds the quotient first, so the law holds of it at most sizes alone."""
    x = normal(1, *size, 2)
    rows, columns = ([i * n // m for i in range(m)] for n, m in zip(size, to, strict=True))
    np.testing.assert_array_equal(resize_nearest(x, to), x[:, rows][:, :, columns])


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


# ---------------------------------------------------------------------------------------------------- adaptive pooling


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(6, 12), (60, 60), (65, 65), (7, 10), (4, 5), (1, 2)])
def test_adaptive_pooling_equals_pytorch(size, bins):
    """Windows overlap where the bins don't divide the size, and repeat pixels where there are more bins than those."""
    torch = pytest.importorskip("torch")
    x, due_x, dy = normal(2, *size, 3), to_torch(normal(2, *size, 3)), normal(2, bins, bins, 3, seed=1)
    due = torch.nn.AdaptiveAvgPool2d(bins)(due_x)
    due.backward(to_torch(dy).detach())
    y, vjp = jax.vjp(lambda x: adaptive_avg_pool(x, bins), x)
    np.testing.assert_allclose(y, from_torch(due), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(vjp(dy)[0], from_torch(due_x.grad), rtol=1e-5, atol=1e-6)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.tuples(*[st.integers(1, 5)] * 2), st.integers(1, 6))
def test_adaptive_pooling_by_bins_that_divide_is_average_pooling(windows, bins):
    x = normal(2, windows[0] * bins, windows[1] * bins, 3)
    due = x.reshape(2, bins, windows[0], bins, windows[1], 3).mean((2, 4))
    np.testing.assert_allclose(adaptive_avg_pool(x, bins), due, rtol=1e-5, atol=1e-6)


def test_adaptive_pooling_keeps_bfloat16():
    assert adaptive_avg_pool(jnp.ones((1, 7, 7, 2), jnp.bfloat16), 3).dtype == jnp.bfloat16


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


# ------------------------------------------------------------------------------------------------------ uneven padding


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 2), (3, 1), (1, 2), (5, 3), (2, 2)])
def test_uneven_padding_is_that_of_tensorflow(kernel_size, stride):
    for size in itertools.product((5, 6, 7, 8, 9), repeat=2):
        due = jax.lax.padtype_to_pads(size, (kernel_size,) * 2, (stride,) * 2, "SAME")
        assert list(uneven_padding(size, kernel_size, stride)) == due


def test_a_depthwise_convolution_takes_another_padding_on_every_side():
    x, kernel, padding = normal(2, 7, 6, 4), normal(3, 3, 1, 4), ((0, 1), (2, 3))
    layer = DepthwiseConv(3, 2, padding=padding)

    def plain(x, kernel):
        padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        return plain_conv(padded, kernel, 2, groups=4)

    def ours(x, kernel):
        return layer.apply({"params": {"kernel": kernel}}, x)

    np.testing.assert_allclose(ours(x, kernel), plain(x, kernel), atol=1e-5)
    weights = normal(*plain(x, kernel).shape)
    grads, due = (jax.grad(lambda *a, f=f: (f(*a) * weights).sum(), (0, 1))(x, kernel) for f in (ours, plain))
    jax.tree.map(lambda grad, due: np.testing.assert_allclose(grad, due, atol=1e-4), grads, due)
