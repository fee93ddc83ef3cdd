"""Cross entropy against PyTorch's; every loss by hand, against its definition in NumPy, and by the laws it obeys."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import default
from jaxseg.errors import UserError
from jaxseg.losses import LOSSES, binary_cross_entropy, cross_entropy, focal, ohem, total_loss, tversky

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


# ---------------------------------------------------------------------------------------------------------- all of them

every_loss = pytest.mark.parametrize("name", LOSSES)


@functools.cache
def _compiled(name: str):
    return jax.jit(
        jax.value_and_grad(lambda logits, labels, weights: LOSSES[name](logits, labels, class_weights=weights))
    )


def of(name: str, logits, labels, weights=None):
    """Value and gradient, compiled once a loss and shape."""
    return _compiled(name)(logits, np.asarray(labels, np.int32), weights)


def softmax(logits):
    exponent = np.exp(logits - logits.max(-1, keepdims=True))
    return exponent / exponent.sum(-1, keepdims=True)


def defined(name: str, logits, labels, weights=None, ignore_label: int = 255) -> float:
    """The loss by its definition, in float64, over the valid pixels alone."""
    valid = labels != ignore_label
    logits, labels = logits[valid].astype(np.float64), labels[valid]
    classes = logits.shape[-1]
    weights = np.ones(classes) if weights is None else weights.astype(np.float64)
    probs, one_hot, of_class = softmax(logits), np.eye(classes)[labels], weights[labels]
    right = probs[np.arange(len(labels)), labels]
    present = np.unique(labels)
    areas = [(one_hot[:, c] @ probs[:, c], probs[:, c].sum(), one_hot[:, c].sum()) for c in range(classes)]
    if name == "cross_entropy":
        return (of_class @ -np.log(right)) / of_class.sum()
    if name == "binary_cross_entropy":
        sigmoid = 1 / (1 + np.exp(-logits))
        entropy = -np.log(np.where(one_hot == 1, sigmoid, 1 - sigmoid))
        return (entropy * weights).sum() / len(labels) / weights.sum()
    if name == "focal":
        return (of_class @ ((1 - right) ** 2 * -np.log(right))) / of_class.sum()
    if name == "ohem":
        kept = int(valid.size * 100_000 / 524_288)
        hard = right < max(0.7, np.sort(right)[min(kept, len(right) - 1)])
        return (of_class @ (hard * -np.log(right))) / (of_class @ hard)
    if name == "lovasz":
        values = [_lovasz_of_a_class(one_hot[:, c], probs[:, c]) for c in range(classes)]
    else:
        alpha, beta = {"dice": (0.5, 0.5), "jaccard": (1, 1), "tversky": (0.3, 0.7)}[name]
        values = [1 - hit / (hit + alpha * (pred - hit) + beta * (true - hit)) for hit, pred, true in areas]
    return np.average(np.array(values)[present], weights=weights[present])


def _lovasz_of_a_class(truth, probs) -> float:
    """The extension at the errors: each, largest first, times the growth of the Jaccard distance of those so far."""
    errors = np.abs(truth - probs)
    before, total = 0.0, 0.0
    wrong = np.zeros(len(truth), bool)
    for pixel in np.argsort(-errors, kind="stable"):
        wrong[pixel] = True
        preds = np.where(wrong, 1 - truth, truth)
        distance = 1 - np.minimum(preds, truth).sum() / np.maximum(preds, truth).sum()
        total += errors[pixel] * (distance - before)
        before = distance
    return total


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@every_loss
def test_a_loss_is_what_its_definition_says(name, weights):
    logits, labels = case()
    loss, _ = of(name, logits, labels, weights)
    assert float(loss) == pytest.approx(defined(name, logits, labels, weights), rel=2e-6)


@every_loss
def test_a_class_that_is_absent_has_no_say(name):
    """Of its own: the pixels that are taken for it are still wrong."""
    logits, labels = case()
    labels[labels == 1] = 3
    loss, _ = of(name, logits, labels, WEIGHTS)
    assert float(loss) == pytest.approx(defined(name, logits, labels, WEIGHTS), rel=2e-6)


P, Q = np.log([0.75, 0.25]), np.log([0.8, 0.2])  # two pixels, of the classes 0 and 1


@pytest.mark.parametrize(
    ("name", "due"),
    [
        ("dice", (1 - 2 * 0.75 / (1.55 + 1) + 1 - 2 * 0.2 / (0.45 + 1)) / 2),
        ("jaccard", (1 - 0.75 / (1.55 + 1 - 0.75) + 1 - 0.2 / (0.45 + 1 - 0.2)) / 2),
        ("tversky", (1 - 0.75 / (0.75 + 0.3 * 0.8 + 0.7 * 0.25) + 1 - 0.2 / (0.2 + 0.3 * 0.25 + 0.7 * 0.8)) / 2),
        ("focal", (0.25**2 * np.log(4 / 3) + 0.8**2 * np.log(5)) / 2),
        ("ohem", np.log(5)),
        # Of class 0 the false pixel has the larger error, of class 1 the missed one.
        ("lovasz", (0.8 / 2 + 0.25 / 2 + 0.8) / 2),
    ],
)
def test_two_pixels_by_hand(name, due):
    assert float(LOSSES[name](np.stack([P, Q, Q]), np.array([0, 1, 255]))) == pytest.approx(due, rel=1e-6)


def test_binary_cross_entropy_by_hand():
    """Sigmoids of 3/4 and 1/5 for a pixel of class 0, of 1/2 and 1/2 for one of class 1."""
    logits = np.array([[np.log(3), -np.log(4)], [0, 0], [9, 9]])
    due = -np.log([3 / 4, 4 / 5, 1 / 2, 1 / 2])
    labels = np.array([0, 1, 255])
    assert float(binary_cross_entropy(logits, labels)) == pytest.approx(due.mean(), rel=1e-6)
    weighted = binary_cross_entropy(logits, labels, class_weights=np.array([1.0, 3.0]))
    assert float(weighted) == pytest.approx((due @ [1, 3, 1, 3]) / 8, rel=1e-6)


def test_focal_of_0_is_cross_entropy():
    logits, labels = case()

    def of(loss, **options):
        return jax.value_and_grad(lambda x: loss(x, labels, class_weights=WEIGHTS, **options))(logits)

    (value, grad), (due, due_grad) = of(focal, gamma=0.0), of(cross_entropy)
    assert float(value) == pytest.approx(float(due), rel=1e-6)
    np.testing.assert_allclose(grad, due_grad, atol=1e-7)


def test_tversky_weighs_false_pixels_by_alpha_and_missed_ones_by_beta():
    truth = np.array([0, 0, 1, 1])
    logits = np.array([[9.0, -9.0]] * 3 + [[-9.0, 9.0]])  # of class 0 one false, of class 1 one missed
    for alpha, beta in ((0.3, 0.7), (1.0, 0.0), (0.0, 1.0)):
        due = 1 - (2 / (2 + alpha) + 1 / (1 + beta)) / 2
        assert float(tversky(logits, truth, alpha=alpha, beta=beta)) == pytest.approx(due, abs=1e-6)


@pytest.mark.parametrize(
    ("threshold", "min_kept", "hard"), [(0.7, 0.0, 2), (0.95, 0.0, 4), (0.0, 0.6, 3), (0.7, 1.0, 4)]
)
def test_ohem_keeps_what_is_below_the_threshold_and_at_least_so_many(threshold, min_kept, hard):
    """Of five pixels; at most all but the easiest, as where it comes from."""
    probs = np.array([0.9, 0.1, 0.95, 0.6, 0.8])
    logits = np.log(np.stack([probs, 1 - probs], -1))
    loss = ohem(logits, np.zeros(5, int), threshold=threshold, min_kept=min_kept)
    assert float(loss) == pytest.approx(-np.log(np.sort(probs)[:hard]).mean(), rel=1e-6)


@every_loss
def test_what_is_predicted_right_without_a_doubt_costs_nothing(name):
    _, labels = case()
    logits = 1e5 * np.where(np.eye(4)[labels * (labels != 255)] == 1, 1.0, -1.0)
    assert of(name, logits.astype(np.float32), labels)[0] == 0


@every_loss
def test_the_gradient_of_logits_of_any_size_is_finite(name):
    logits, labels = case()
    for scale in (0.0, 1e-3, 1e5):
        loss, grad = of(name, np.float32(scale) * logits, labels, WEIGHTS)
        assert np.isfinite(loss) and np.isfinite(grad).all(), scale


@every_loss
def test_without_a_valid_pixel_every_loss_is_0_and_so_is_its_gradient(name):
    logits, labels = case()
    loss, grad = of(name, logits, np.full_like(labels, 255))
    assert loss == 0
    np.testing.assert_array_equal(grad, np.zeros_like(logits))


@every_loss
def test_ignored_pixels_have_no_say_in_any_loss(name):
    logits, labels = case()
    wild = np.where((labels == 255)[..., None], np.nan, logits)
    (loss, grad), (wild_loss, wild_grad) = (of(name, x, labels, WEIGHTS) for x in (logits, wild))
    assert wild_loss == loss
    np.testing.assert_array_equal(wild_grad[labels != 255], grad[labels != 255])
    np.testing.assert_array_equal(grad[labels == 255], 0)
    due, _ = of(name, logits, np.where(labels == 0, 255, labels))
    zeros_ignored = LOSSES[name](logits, np.where(labels == 255, 0, labels), ignore_label=0)
    assert float(zeros_ignored) == pytest.approx(float(due), rel=1e-6)


@every_loss
def test_every_loss_is_float32_of_bytes_and_bfloat16(name):
    logits, labels = case()
    half = jnp.asarray(logits, jnp.bfloat16)
    loss = LOSSES[name](half, jnp.asarray(labels, jnp.uint8))
    assert loss.dtype == jnp.float32
    assert loss == LOSSES[name](half.astype(jnp.float32), labels)


@every_loss
def test_the_size_of_class_weights_does_not_matter_and_their_ratios_do(name):
    logits, labels = case()
    plain, ones, weighted, sevenfold = (
        float(of(name, logits, labels, w)[0]) for w in (None, np.ones(4, np.float32), WEIGHTS, 7 * WEIGHTS)
    )
    assert ones == pytest.approx(plain, rel=1e-6) and sevenfold == pytest.approx(weighted, rel=1e-6)
    assert weighted != pytest.approx(plain, rel=1e-3)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_order_of_the_pixels_does_not_matter(seed):
    logits, labels = case(seed)
    order = np.random.default_rng(seed).permutation(labels.size)
    shuffled = logits.reshape(-1, 4)[order].reshape(logits.shape), labels.ravel()[order].reshape(labels.shape)
    for name in LOSSES:
        (loss, grad), (again, grad_again) = of(name, logits, labels), of(name, *shuffled)
        assert float(again) == pytest.approx(float(loss), rel=1e-5), name
        np.testing.assert_allclose(grad_again.reshape(-1, 4), grad.reshape(-1, 4)[order], atol=1e-6, err_msg=name)


def test_lovasz_of_many_pixels_keeps_the_digits_of_its_gradient():
    """By how much the distance grows with one pixel of 16384 is near float32's rounding of the distance itself."""
    rng = np.random.default_rng(0)
    labels = (rng.random(1 << 14) < 0.5).astype(np.int32)
    probs = softmax(rng.normal(0, 2, (labels.size, 2)))
    by_error = np.zeros_like(probs)
    for c in (0, 1):
        truth = labels == c
        order = np.argsort(-np.abs(truth - probs[:, c]))
        missed = np.cumsum(truth[order])
        distance = 1 - (truth.sum() - missed) / (truth.sum() + np.arange(1, labels.size + 1) - missed)
        by_error[order, c] = np.diff(distance, prepend=0) * np.where(truth, -1, 1)[order] / 2
    due = probs * (by_error - (probs * by_error).sum(-1, keepdims=True))
    _, grad = of("lovasz", np.log(probs).astype(np.float32), labels)
    np.testing.assert_allclose(grad, due, rtol=1e-4, atol=1e-4 * np.abs(due).max())


# ------------------------------------------------------------------------------------------------------------- the sum


def test_the_total_is_the_weighted_sum_with_all_options():
    logits, labels = case()
    relabelled = np.where(labels == 0, 7, labels)
    options = {"ignore_label": 7, "class_weights": WEIGHTS}
    relabelled[relabelled == 255] = 7
    total = total_loss(
        logits, relabelled, {"cross_entropy": 0.5, "dice": 2.0, "ohem": 0.0}, label_smoothing=0.1, **options
    )
    due = 0.5 * cross_entropy(logits, relabelled, label_smoothing=0.1, **options)
    due += 2.0 * LOSSES["dice"](logits, relabelled, **options)
    assert float(total) == pytest.approx(float(due), rel=1e-6)


def test_a_loss_of_weight_0_is_not_computed(monkeypatch):
    logits, labels = case()
    monkeypatch.setitem(LOSSES, "lovasz", lambda *arguments, **options: pytest.fail("computed"))
    assert total_loss(logits, labels, {"cross_entropy": 1.0, "lovasz": 0.0}) == cross_entropy(logits, labels)


def test_a_loss_that_there_is_not_names_the_nearest():
    with pytest.raises(UserError, match="unknown loss 'dise': did you mean dice"):
        total_loss(*case(), {"dise": 1.0})


def test_every_loss_has_its_weight_in_the_config():
    fields = set(default.get_config().loss) - {"auxiliary", "label_smoothing", "class_weights"}
    assert fields == set(LOSSES)
