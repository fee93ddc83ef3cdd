"""Cross entropy against PyTorch's and by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.losses import cross_entropy

WEIGHTS = np.array([0.5, 2.0, 0.0, 1.25], np.float32)


def case(seed: int = 0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (2, 5, 6, 4)).astype(np.float32)
    labels = rng.integers(0, 4, (2, 5, 6))
    labels[rng.random(labels.shape) < 0.3] = 255
    return logits, labels


@pytest.mark.parametrize(("weights", "smoothing"), [*itertools.product([None, WEIGHTS], [0.0, 0.1])])
def test_value_and_gradient_equal_pytorch(weights, smoothing):
    torch = pytest.importorskip("torch")
    logits, labels = case()
    theirs = torch.from_numpy(logits.transpose(0, 3, 1, 2).copy()).requires_grad_()
    due = torch.nn.functional.cross_entropy(
        theirs,
        torch.from_numpy(labels),
        weight=None if weights is None else torch.from_numpy(weights),
        ignore_index=255,
        label_smoothing=smoothing,
    )
    due.backward()

    def loss_fn(logits):
        return cross_entropy(logits, labels, class_weights=weights, label_smoothing=smoothing)

    loss, grad = jax.value_and_grad(loss_fn)(logits)
    assert float(loss) == pytest.approx(due.item(), rel=1e-5)
    np.testing.assert_allclose(grad, theirs.grad.numpy().transpose(0, 2, 3, 1), atol=1e-6)


def test_by_hand():
    """Two valid pixels of three: probabilities 3/4 and 1/5 of their classes, of weights 1 and 3."""
    probabilities = np.array([[[3 / 4, 1 / 4], [4 / 5, 1 / 5], [1 / 2, 1 / 2]]])
    labels = np.array([[0, 1, 255]], np.uint8)
    loss = cross_entropy(np.log(probabilities), labels)
    assert float(loss) == pytest.approx((np.log(4 / 3) + np.log(5)) / 2, rel=1e-6)
    loss = cross_entropy(np.log(probabilities), labels, class_weights=np.array([1.0, 3.0]))
    assert float(loss) == pytest.approx((np.log(4 / 3) + 3 * np.log(5)) / 4, rel=1e-6)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_without_a_valid_pixel_it_is_0_and_so_is_its_gradient(weights):
    logits, labels = case()
    labels = np.full_like(labels, 255)
    loss, grad = jax.value_and_grad(lambda x: cross_entropy(x, labels, class_weights=weights))(logits)
    assert loss == 0
    np.testing.assert_array_equal(grad, np.zeros_like(logits))


def test_pixels_of_classes_without_weight_alone_give_0():
    logits, labels = case()
    loss, grad = jax.value_and_grad(lambda x: cross_entropy(x, np.full_like(labels, 2), class_weights=WEIGHTS))(logits)
    assert loss == 0
    np.testing.assert_array_equal(grad, np.zeros_like(logits))


def test_ignored_pixels_have_no_say_whatever_their_logits():
    """Not even NaN: what a network does where nothing is labelled reaches neither the value nor the other gradients."""
    logits, labels = case()
    wild = np.where((labels == 255)[..., None], np.nan, logits)
    loss_fn = jax.value_and_grad(lambda x: cross_entropy(x, labels, label_smoothing=0.1))
    (loss, grad), (wild_loss, wild_grad) = loss_fn(logits), loss_fn(wild)
    assert wild_loss == loss
    np.testing.assert_array_equal(wild_grad[labels != 255], grad[labels != 255])
    np.testing.assert_array_equal(grad[labels == 255], 0)


def test_the_label_to_ignore_can_be_a_class():
    logits, labels = case()
    due = cross_entropy(logits, np.where(labels == 0, 255, labels))
    assert cross_entropy(logits, np.where(labels == 255, 0, labels), ignore_label=0) == due


def test_bytes_as_labels_and_bfloat16_logits_give_a_float32_loss():
    logits, labels = case()
    loss = cross_entropy(jnp.asarray(logits, jnp.bfloat16), jnp.asarray(labels, jnp.uint8))
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(float(cross_entropy(logits, labels)), rel=0.02)


def test_logits_of_any_size_stay_finite():
    logits = np.array([[[1e5, -1e5]]], np.float32)
    loss, grad = jax.value_and_grad(lambda x: cross_entropy(x, np.array([[1]])))(logits)
    assert loss == 2e5
    np.testing.assert_array_equal(grad, [[[1, -1]]])
