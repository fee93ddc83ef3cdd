"""What each device computes of its part of a batch."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg.metrics import confusion_matrix
from jaxseg.models.layers import dense_conv, depthwise_conv, onednn, winograd
from jaxseg.partition import by_batch, on_cpu


@pytest.fixture
def mesh():
    return Mesh(np.asarray(jax.devices("cpu")[:2]), ("data",))


def placed(mesh, *arrays, batched):
    return [
        jax.device_put(a, NamedSharding(mesh, PartitionSpec("data") if b else PartitionSpec()))
        for a, b in zip(arrays, batched, strict=True)
    ]


def exchanges(program: str) -> list[str]:
    return re.findall(r" (all-\w+|collective-permute|reduce-scatter)\(", program)


def test_a_result_stays_with_its_images_and_a_sum_is_exchanged(mesh):
    seen = []

    def form(x, scale):
        seen.append(x.shape)
        return jnp.cumsum(x, axis=1) * scale

    x, scale = jnp.arange(24.0).reshape(4, 3, 2), jnp.asarray([2.0, 3.0])
    args = placed(mesh, x, scale, batched=(True, False))
    apart = jax.jit(lambda *a: by_batch(form, *a, batched=(True, False)))
    np.testing.assert_array_equal(apart(*args), form(x, scale))
    assert apart(*args).sharding.spec == PartitionSpec("data")
    assert (2, 3, 2) in seen  # half of the images each
    assert exchanges(apart.lower(*args).compile().as_text()) == []

    both = jax.jit(lambda *a: by_batch(lambda x, s: form(x, s).sum(axis=0), *a, batched=(True, False), summed=True))
    np.testing.assert_array_equal(both(*args), form(x, scale).sum(axis=0))
    assert exchanges(both.lower(*args).compile().as_text()) == ["all-reduce"]


def test_one_device_and_a_batch_that_all_have_need_no_exchange(mesh):
    def form(x):
        return x.sum(axis=0)

    x = jnp.arange(6.0).reshape(3, 2)
    total = jax.jit(lambda x: by_batch(form, x, batched=(True,), summed=True))
    np.testing.assert_array_equal(total(x), form(x))
    # A batch of three is not divided between two; each has all of it, and no sum is taken twice.
    (whole,) = placed(mesh, x, batched=(False,))
    np.testing.assert_array_equal(total(whole), form(x))


def test_other_devices_take_the_plain_form():
    def lowered(platform):
        x = jax.ShapeDtypeStruct((2, 3), jnp.float32)
        f = jax.jit(lambda x: on_cpu(lambda x: jnp.sin(x), lambda x: jnp.cos(x), x, batched=(True,)))
        return f.trace(x).lower(lowering_platforms=(platform,)).as_text()

    assert "sine" in lowered("cpu") and "cosine" not in lowered("cpu")
    assert "cosine" in lowered("cuda")


@pytest.mark.parametrize("form", ["onednn", "winograd", "products"])
@pytest.mark.parametrize("depthwise", [False, True])
def test_convolutions_over_two_devices_are_those_of_one(mesh, form, depthwise, monkeypatch, no_compile_cache):
    if form == "onednn" and not onednn.usable(jnp.float32):
        pytest.skip("no oneDNN here")
    monkeypatch.setattr(onednn, "usable", lambda *a: form == "onednn")
    monkeypatch.setattr(winograd, "pays", lambda *a: form == "winograd")
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 9, 10, 6)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 1 if depthwise else 6, 6)), jnp.float32)

    def loss(x, kernel):
        conv = depthwise_conv(x, kernel, 1, 1) if depthwise else dense_conv(x, kernel, 1, ((1, 1), (1, 1)))
        return (jnp.sin(conv) ** 2).sum()

    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    one = step(x, kernel)
    args = placed(mesh, x, kernel, batched=(True, False))
    two = step(*args)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    # The loss and the kernel's gradient are summed; no image leaves its device.
    assert set(exchanges(step.lower(*args).compile().as_text())) == {"all-reduce"}


def test_counts_over_two_devices_are_those_of_one(mesh):
    rng = np.random.default_rng(0)
    preds, labels = (jnp.asarray(rng.integers(0, 5, (4, 8, 9))) for _ in range(2))
    count = jax.jit(lambda p, y: confusion_matrix(p, y, 5))
    args = placed(mesh, preds, labels, batched=(True, True))
    np.testing.assert_array_equal(count(*args), count(preds, labels))
    assert int(count(preds, labels).sum()) == preds.size
