"""The identities that prove the projects' definitions, and each of them against the library it was computed with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxseg.metrics import confusion_matrix
from jaxseg.metrics import scores as standard
from jaxseg.published import DEFINITIONS, of_a, of_b, of_c, sums_of_c

COUNTS = hnp.arrays(np.int64, (4, 4), elements=st.integers(0, 1000))
SHAPE = (3, 4, 5)
LABELS = hnp.arrays(np.int32, SHAPE, elements=st.sampled_from([0, 1, 255]))
PROBS = hnp.arrays(np.float32, SHAPE, elements=st.floats(0, 1, width=32))
ONES = hnp.arrays(np.int32, SHAPE, elements=st.integers(0, 1))

sums = jax.jit(sums_of_c)


def c(probs, labels):
    """Project C's scores of probabilities of class 1."""
    probs = np.stack([1 - probs, probs], -1).astype(np.float32)
    counts = confusion_matrix(jnp.asarray(probs).argmax(-1), jnp.asarray(labels), 2)
    return of_c(np.asarray(counts), {name: np.asarray(value) for name, value in sums(probs, labels).items()})


# ------------------------------------------------------------------------------------------------------------------- A


@given(COUNTS)
def test_as_f1_and_dice_add_up_to_1_and_its_mean_iou_follows_from_its_accuracy(counts):
    assume(counts.sum())
    scores = of_a(counts, {})
    assert scores["f1"] + scores["dice"] == pytest.approx(1, abs=1e-12)
    assert scores["mean_iou"] == pytest.approx(scores["accuracy"] / (2 - scores["accuracy"]))
    assert scores["mean_iou"] == pytest.approx(standard(counts)["micro_iou"])
    assert scores["accuracy"] == pytest.approx(np.trace(counts) / counts.sum())


def test_as_mean_iou_is_that_of_one_hot_maps():
    rng = np.random.default_rng(0)
    true, pred = rng.integers(0, 4, (2, 500))
    counts = np.zeros((4, 4), int)
    np.add.at(counts, (true, pred), 1)
    one_hot = np.eye(4, dtype=bool)
    both, either = one_hot[true] & one_hot[pred], one_hot[true] | one_hot[pred]
    assert of_a(counts, {})["mean_iou"] == pytest.approx(both.sum() / either.sum())


def test_a_class_that_is_nowhere_scores_1_in_as_f1():
    counts = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    assert of_a(counts, {})["f1"] == pytest.approx((2 * 6 / 15 + 2 * 3 / 9 + 1) / 3, abs=1e-5)


def test_as_figures_fit_its_own_accuracies():
    # Read in the project's notebook: accuracy 0.8492 beside IoU 0.7383, 0.8926 beside 0.8069; F1 0.688080.
    for accuracy, iou in ((0.8492, 0.7383), (0.8926, 0.8069)):
        right = round(10_000 * accuracy)
        counts = np.array([[right, 10_000 - right], [0, 0]])
        assert of_a(counts, {})["mean_iou"] == pytest.approx(iou, abs=2e-3)


# ------------------------------------------------------------------------------------------------------------------- B


@settings(max_examples=30, deadline=None)
@given(
    hnp.arrays(np.uint8, (2, 40), elements=st.integers(0, 3)),
)
def test_bs_scores_are_scikit_learns(maps):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    true, pred = maps
    counts = np.zeros((5, 5), int)  # one class is nowhere
    np.add.at(counts, (true, pred), 1)
    scores, macro = of_b(counts, {}), {"average": "macro", "zero_division": 0}
    assert scores["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(true, pred))
    assert scores["f1"] == pytest.approx(sklearn_metrics.f1_score(true, pred, **macro))
    assert scores["precision"] == pytest.approx(sklearn_metrics.precision_score(true, pred, **macro))
    assert scores["recall"] == pytest.approx(sklearn_metrics.recall_score(true, pred, **macro))
    assert scores["mean_iou"] == pytest.approx(sklearn_metrics.jaccard_score(true, pred, **macro))


# ------------------------------------------------------------------------------------------------------------------- C


@settings(max_examples=30, deadline=None)
@given(ONES, LABELS)
def test_cs_dice_of_hard_maps_follows_from_the_accuracy(preds, labels):
    assume((labels != 255).any())
    scores = c(preds.astype(np.float32), labels)
    assert scores["dice"] == pytest.approx((1 + scores["accuracy"]) / 2, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(PROBS, LABELS)
def test_cs_scores_are_what_the_notebook_computes(probs, labels):
    valid = labels != 255
    assume(valid.any() and (np.abs(probs - 0.5) > 1e-3).all())
    y, p = labels[valid].astype(np.float64), probs[valid].astype(np.float64)
    scores = c(probs, labels)
    assert scores["dice"] == pytest.approx(np.mean((2 * y * p + 1) / (y**2 + p**2 + 1)), rel=1e-5)
    hits, pred, true = np.sum(np.round(y * p)), np.sum(np.round(p)), np.sum(y)
    precision, recall = hits / (pred + 1e-7), hits / (true + 1e-7)
    assert scores["f1"] == pytest.approx(2 * precision * recall / (precision + recall + 1e-7), abs=1e-6)
    assert scores["accuracy"] == pytest.approx(np.mean(np.round(p) == y))


def test_predicting_nothing_scores_what_the_project_printed():
    # Accuracy 0.7240 and F1 0 beside "Dice" 0.8835 and 0.8860, of probabilities that were not quite 0.
    labels = np.zeros((1, 100, 100), np.int32)
    labels[0, :, :28] = 1
    labels[0, :40, 0] = 0
    scores = c(np.zeros(labels.shape, np.float32), labels)
    assert scores["accuracy"] == pytest.approx(0.7240) and scores["f1"] == 0
    assert scores["dice"] == pytest.approx(0.862)


def test_cs_f1_is_a_mean_over_batches_of_32():
    rng = np.random.default_rng(0)
    images = {name: rng.integers(10, 90, 70) for name in ("pred", "true", "pixels", "dice")}
    images["hits"] = np.minimum(images["pred"], images["true"]) // 2
    parts = []
    for rows in (slice(0, 32), slice(32, 64), slice(64, 70)):
        hits, pred, true = (images[name][rows].sum() for name in ("hits", "pred", "true"))
        parts.append(2 * hits / (pred + true))
    assert of_c(np.eye(2), images)["f1"] == pytest.approx(np.mean(parts), abs=1e-6)
    whole = 2 * images["hits"].sum() / (images["pred"].sum() + images["true"].sum())
    assert abs(np.mean(parts) - whole) > 1e-5


# ----------------------------------------------------------------------------------------------------------------- all


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_split_without_a_valid_pixel_has_no_accuracy(name):
    images = {key: np.zeros(0) for key in ("hits", "pred", "true", "pixels", "dice")}
    scores = DEFINITIONS[name](np.zeros((2, 2), int), images)
    assert np.isnan(scores["accuracy"])
    assert all(isinstance(value, float) for value in scores.values())


@pytest.mark.parametrize("name", ["d", "e"])
def test_d_and_e_know_the_accuracy_alone(name):
    assert DEFINITIONS[name](np.array([[3, 1], [0, 4]]), {}) == {"accuracy": 7 / 8}
