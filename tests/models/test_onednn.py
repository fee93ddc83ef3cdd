"""oneDNN's convolutions against XLA's, whose forms the layers take where it can't be had."""

import os
import random
import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

from jaxseg.models.layers import dense_conv, dense_conv_transpose, depthwise_conv, onednn
from jaxseg.process import use_compile_cache

ROUNDING = {"float32": 2e-5, "bfloat16": 2e-2}


@pytest.fixture(autouse=True)
def on_a_cpu_that_has_it(no_compile_cache):
    if not onednn._processor():
        pytest.skip("this jaxlib's oneDNN was not tried, or this is no x86 processor under Linux")
    with jax.default_device(jax.devices("cpu")[0]):
        yield


def plain(x, kernel, stride, padding, dilation):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def values_and_gradients(f, x, kernel, seed=0):
    """Of `f`, with normal weights of the output; and the program that gave them."""

    def both(x, kernel):
        y, vjp = jax.vjp(f, x, kernel)
        weights = jax.random.normal(jax.random.key(seed), y.shape, y.dtype)
        return y, *vjp(weights)

    compiled = jax.jit(both).lower(x, kernel).compile()
    return [np.asarray(a, np.float32) for a in compiled(x, kernel)], compiled.as_text()


def check(ours, theirs, x, kernel):
    got, program = values_and_gradients(ours, x, kernel)
    wide = [a.astype(jnp.float32) for a in (x, kernel)]
    with jax.default_matmul_precision("highest"):
        right, _ = values_and_gradients(lambda *a: theirs(*a).astype(x.dtype), *wide)
    for a, b in zip(got, right, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=ROUNDING[x.dtype.name] * np.abs(b).max() + 1e-6)
    return program.count("__onednn$convolution")


def normal(*shape, seed=0, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def needs(dtype):
    if not onednn.usable(dtype):
        pytest.skip(f"this processor computes no {dtype}")


SHAPES = [  # image, kernel, stride, padding, dilation
    ((2, 33, 31, 3), (7, 7, 3, 64), 2, 3, 1),
    ((4, 16, 20, 40), (3, 3, 40, 40), 1, 1, 1),
    ((3, 17, 15, 16), (3, 3, 16, 24), 2, 1, 1),
    ((2, 16, 16, 8), (3, 3, 8, 19), 1, 4, 4),
    ((2, 8, 8, 16), (3, 3, 16, 16), 1, 6, 6),  # reaches beyond the image
    ((1, 1, 2, 16), (3, 3, 16, 8), 1, 1, 1),
    ((5, 12, 11, 6), (1, 1, 6, 4), 1, 0, 1),
    ((2, 9, 13, 8), (2, 2, 8, 8), 2, 0, 1),
    ((2, 21, 18, 1), (5, 5, 1, 8), 3, ((0, 3), (2, 1)), 1),
    ((4, 16, 20, 24), (3, 3, 1, 24), 1, 1, 1),
    ((3, 15, 17, 40), (5, 5, 1, 40), 2, 2, 1),
    ((2, 16, 9, 17), (3, 3, 1, 17), 1, 2, 2),
    ((1, 4, 4, 16), (7, 7, 1, 16), 1, 3, 1),
    ((2, 33, 30, 17), (3, 3, 1, 17), 1, 12, 12),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("image", "kernel", "stride", "padding", "dilation"), SHAPES)
def test_values_and_gradients_are_those_of_xla(image, kernel, stride, padding, dilation, dtype):
    needs(dtype)
    x, kernel = normal(*image, dtype=dtype), normal(*kernel, seed=1, dtype=dtype)
    depthwise = kernel.shape[2] == 1 and image[3] > 1
    sides = ((padding, padding),) * 2 if isinstance(padding, int) else padding

    def ours(x, kernel):
        if depthwise:
            return depthwise_conv(x, kernel, stride, padding, dilation)
        return dense_conv(x, kernel, stride, sides, dilation)

    calls = check(ours, lambda *a: plain(*a, stride, sides, dilation), x, kernel)
    assert calls >= 3  # one forward, for x and for the kernel; for x, one a phase of the stride


def test_any_other_shape_too():
    """Drawn at random, a thousand in .ci/nightly: sizes of kernel, image, batch and channels, uneven padding."""
    draw = random.Random(0)
    for seed in range(int(os.environ.get("JAXSEG_SHAPES", 20))):
        depthwise, k, stride = draw.random() < 0.35, draw.choice([1, 2, 3, 3, 5, 7]), draw.choice([1, 1, 2, 3])
        dilation = draw.choice([1, 1, 2, 3, 5]) if stride == 1 else 1
        c, o = draw.choice([2, 3, 8, 16, 17, 40]), draw.choice([1, 2, 8, 16, 19, 40])
        reach = dilation * (k - 1)
        sides = tuple((draw.randint(0, reach), draw.randint(0, reach)) for _ in range(2))
        h, w = (max(1, reach + 1 - sum(side)) + draw.choice([0, 1, 2, 7, 14]) for side in sides)
        dtype = draw.choice([t for t in ("float32", "bfloat16") if onednn.usable(t)])
        x = normal(draw.choice([1, 2, 3, 5]), h, w, c, seed=seed, dtype=dtype)
        kernel = normal(k, k, 1 if depthwise else c, c if depthwise else o, seed=seed + 1, dtype=dtype)

        def both(x, kernel, dy, settings=(stride, sides, dilation), size=(h, w), depthwise=depthwise):
            weight_grad = onednn.depthwise_weight_grad if depthwise else onednn.weight_grad
            return (
                onednn.convolve(x, kernel, *settings),
                onednn.input_grad(dy, kernel, size, *settings, depthwise=depthwise),
                weight_grad(x, dy, kernel.shape[0], *settings),
            )

        def wide(*a, settings=(stride, sides, dilation)):
            return plain(*(array.astype(jnp.float32) for array in a), *settings)

        y, vjp = jax.vjp(wide, x, kernel)
        dy = normal(*y.shape, seed=seed + 2, dtype=dtype)
        right = (y, *vjp(dy.astype(jnp.float32)))
        for a, b in zip(jax.jit(both)(x, kernel, dy), right, strict=True):
            a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
            given = (x.shape, kernel.shape, stride, sides, dilation, dtype)
            np.testing.assert_allclose(a, b, rtol=0, atol=ROUNDING[dtype] * np.abs(b).max() + 1e-6, err_msg=str(given))


@pytest.mark.parametrize("stride", [2, 3])
def test_a_transposed_convolution_is_one_a_phase(stride):
    x, kernel = normal(2, 6, 7, 8), normal(3, 3, 4, 8, seed=1)

    def theirs(x, kernel):
        spread = plain(jnp.zeros((2, 5 * stride + 3, 6 * stride + 3, 4)), kernel, stride, ((0, 0), (0, 0)), 1)
        assert spread.shape == x.shape
        _, vjp = jax.vjp(
            lambda image: plain(image, kernel, stride, ((0, 0), (0, 0)), 1),
            jnp.zeros((2, 5 * stride + 3, 6 * stride + 3, 4)),
        )
        return vjp(x)[0]

    assert check(lambda x, kernel: dense_conv_transpose(x, kernel, stride), theirs, x, kernel) == stride**2 + 2


def test_what_it_is_not_taken_for(monkeypatch, tmp_path):
    assert onednn.usable(jnp.float32)
    assert not onednn.usable(jnp.float64)
    assert not onednn.usable(jnp.float16)
    # Some convolutions that are both never end.
    assert onednn.usable(jnp.float32, 2, 1) and onednn.usable(jnp.float32, 1, 2)
    assert not onednn.usable(jnp.float32, 2, 2)
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path))
        assert not onednn.usable(jnp.float32)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        (jaxlib, "__version__", "99.0.0"),
        (onednn.platform, "system", lambda: "Darwin"),
        (onednn.platform, "machine", lambda: "aarch64"),
    ],
)
def test_nor_on_other_machines_and_releases(where, name, value, monkeypatch):
    onednn._processor.cache_clear()
    try:
        monkeypatch.setattr(where, name, value)
        assert not onednn.usable(jnp.float32)
    finally:
        onednn._processor.cache_clear()


def test_nor_when_the_environment_says_so(monkeypatch):
    onednn._processor.cache_clear()
    try:
        monkeypatch.setenv("JAXSEG_ONEDNN", "0")
        assert not onednn.usable(jnp.float32)
    finally:
        onednn._processor.cache_clear()


def test_depthwise_convolutions_take_fast_forms_however_dilated():
    """The general one is slow, and with this padding it corrupts memory: predictions in windows of 1024 crashed."""
    program = (
        "import jax.numpy as jnp\n"
        "from jaxseg.models.layers import depthwise_conv\n"
        "for size, d in ((64, 6), (64, 12), (64, 24), (128, 36)):\n"
        "    depthwise_conv(jnp.ones((1, size, size, 32)), jnp.ones((3, 3, 1, 32)), 1, d, d).block_until_ready()\n"
    )
    environment = os.environ | {"ONEDNN_VERBOSE": "1", "PYTHONPATH": os.getcwd()}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    forms = [line.split(",")[6] for line in run.stdout.splitlines() if "exec,cpu,convolution" in line]
    assert len(forms) == 4
    assert not [form for form in forms if "dw" not in form]


def test_programs_are_not_kept_where_it_is_used():
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        use_compile_cache()
        assert (jax.config.jax_compilation_cache_dir is None) == (jax.default_backend() == "cpu")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
