"""Counts are exact, scores are what their definitions say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxseg.metrics import confusion_matrix, scores, table

COUNTS = hnp.arrays(np.int64, (4, 4), elements=st.integers(0, 1000))

# Of one shape, so that one compiled program serves all examples.
SHAPE, NUM_CLASSES = (2, 3, 5), 4
PREDS = hnp.arrays(np.uint8, SHAPE, elements=st.integers(0, NUM_CLASSES - 1))
LABELS = hnp.arrays(np.uint8, SHAPE, elements=st.sampled_from([*range(NUM_CLASSES), 255]))


def count(preds, labels, num_classes=NUM_CLASSES, **options):
    """What both forms of it give, that of one CPU device and the other."""
    forms = []
    for devices in (1, 2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax, "device_count", lambda devices=devices: devices)
            forms.append(confusion_matrix(jnp.asarray(preds), jnp.asarray(labels), num_classes, **options))
    np.testing.assert_array_equal(*forms)
    return np.asarray(forms[0])


def same_scores(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_allclose(a[key], b[key], rtol=1e-12, err_msg=key)


# -------------------------------------------------------------------------------------------------------------- counts


def test_counts_by_hand():
    labels = np.array([[[0, 0, 1], [1, 2, 255], [2, 255, 2]]], np.uint8)
    preds = np.array([[[0, 1, 1], [1, 2, 2], [0, 1, 2]]], np.uint8)
    np.testing.assert_array_equal(count(preds, labels, 3), [[1, 1, 0], [0, 2, 0], [1, 0, 2]])
    assert count(preds, labels, 3).dtype == np.int32


@settings(max_examples=30, deadline=None)
@given(PREDS, LABELS)
def test_counts_equal_those_of_scikit_learn(preds, labels):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    valid = labels != 255
    got = count(preds, labels)
    assert got.sum() == valid.sum()
    if valid.any():
        due = sklearn_metrics.confusion_matrix(labels[valid], preds[valid], labels=range(NUM_CLASSES))
        np.testing.assert_array_equal(got, due)


@settings(max_examples=20, deadline=None)
@given(PREDS, LABELS)
def test_counts_of_parts_add_up(preds, labels):
    rows = sum(count(preds[i : i + 1], labels[i : i + 1]) for i in range(len(preds)))
    np.testing.assert_array_equal(count(preds, labels), rows)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_the_ignore_label_may_be_a_class(dtype):
    labels, preds = np.array([[[0, 1, 2]]], dtype), np.array([[[2, 1, 0]]], dtype)
    np.testing.assert_array_equal(count(preds, labels, 3, ignore_label=0), [[0, 0, 0], [0, 1, 0], [1, 0, 0]])


def test_counts_are_exact_beyond_what_float32_can_count():
    shape = (1, 4099, 4095)
    pixels = 4099 * 4095  # odd and above 2^24: float32 does not have it
    assert int(np.float32(pixels)) != pixels
    zeros = np.zeros(shape, np.uint8)
    assert count(zeros, zeros, 1) == pixels


# -------------------------------------------------------------------------------------------------------------- scores


def test_scores_by_hand():
    result = scores(np.array([[5, 1, 0], [2, 3, 0], [0, 1, 8]]))
    due = {
        "pixel_accuracy": 16 / 20,
        "mean_accuracy": (5 / 6 + 3 / 5 + 8 / 9) / 3,
        "mean_iou": (5 / 8 + 3 / 7 + 8 / 9) / 3,
        "frequency_weighted_iou": (6 * 5 / 8 + 5 * 3 / 7 + 9 * 8 / 9) / 20,
        "micro_iou": 16 / 24,
        "mean_dice": (10 / 13 + 6 / 10 + 16 / 17) / 3,
        "micro_dice": 16 / 20,
        "mean_precision": (5 / 7 + 3 / 5 + 8 / 8) / 3,
        "mean_recall": (5 / 6 + 3 / 5 + 8 / 9) / 3,
        "absent_classes": 0,
        "pixels": 20,
        "iou": [5 / 8, 3 / 7, 8 / 9],
        "dice": [10 / 13, 6 / 10, 16 / 17],
        "precision": [5 / 7, 3 / 5, 1],
        "recall": [5 / 6, 3 / 5, 8 / 9],
    }
    same_scores(result, due)


def test_an_absent_class_is_left_out_of_the_means():
    """Classes 1 and 2 are in no label, and class 2 is predicted; class 3 is in the labels and never predicted."""
    result = scores(np.array([[4, 0, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0]]))
    nan = np.nan
    assert result["absent_classes"] == 2
    np.testing.assert_array_equal(result["iou"], [0.5, nan, nan, 0])
    np.testing.assert_array_equal(result["dice"], [8 / 12, nan, nan, 0])
    np.testing.assert_array_equal(result["precision"], [4 / 6, nan, nan, 0])
    np.testing.assert_array_equal(result["recall"], [4 / 6, nan, nan, 0])
    assert result["mean_iou"] == pytest.approx(0.5 / 2)
    assert result["mean_dice"] == pytest.approx(8 / 12 / 2)
    assert result["mean_precision"] == pytest.approx(4 / 6 / 2)
    assert result["mean_recall"] == result["mean_accuracy"] == pytest.approx(4 / 6 / 2)
    assert result["frequency_weighted_iou"] == pytest.approx(6 / 8 * 0.5)


def test_without_a_valid_pixel_every_score_is_nan():
    result = scores(np.zeros((3, 3), np.int64))
    assert (result.pop("pixels"), result.pop("absent_classes")) == (0, 3)
    assert all(np.isnan(value).all() for value in result.values())


@given(COUNTS)
def test_relations_between_scores(counts):
    result = scores(counts)
    if counts.sum():
        accuracy = result["pixel_accuracy"]
        assert result["micro_iou"] == pytest.approx(accuracy / (2 - accuracy))
        assert result["micro_dice"] == pytest.approx(accuracy)
    assert result["mean_accuracy"] == pytest.approx(result["mean_recall"], nan_ok=True)
    np.testing.assert_allclose(result["dice"], 2 * result["iou"] / (1 + result["iou"]), rtol=1e-12)
    values = np.concatenate([result[key] for key in ("iou", "dice", "precision", "recall")])
    values = values[~np.isnan(values)]
    assert ((values >= 0) & (values <= 1)).all()


@given(COUNTS, st.permutations(range(4)))
def test_permuting_classes_permutes_scores(counts, order):
    order = np.array(order)
    result = scores(counts)
    due = {key: value[order] if np.ndim(value) else value for key, value in result.items()}
    same_scores(scores(counts[np.ix_(order, order)]), due)


@given(COUNTS)
def test_swapping_labels_and_predictions_swaps_precision_and_recall(counts):
    counts = counts + np.eye(len(counts), dtype=counts.dtype)  # every class in labels and predictions
    result, swapped = scores(counts), scores(counts.T)
    for a, b in (("precision", "recall"), ("recall", "precision"), ("iou", "iou"), ("dice", "dice")):
        np.testing.assert_array_equal(result[a], swapped[b])


@given(hnp.arrays(np.uint8, 30, elements=st.integers(0, 3)), hnp.arrays(np.uint8, 30, elements=st.integers(0, 3)))
def test_scores_equal_those_of_scikit_learn(true, pred):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    result = scores(sklearn_metrics.confusion_matrix(true, pred, labels=range(4)))
    options = {"labels": np.unique(true), "average": "macro", "zero_division": 0}
    assert result["mean_iou"] == pytest.approx(sklearn_metrics.jaccard_score(true, pred, **options))
    assert result["mean_dice"] == pytest.approx(sklearn_metrics.f1_score(true, pred, **options))
    assert result["mean_precision"] == pytest.approx(sklearn_metrics.precision_score(true, pred, **options))
    assert result["mean_recall"] == pytest.approx(sklearn_metrics.recall_score(true, pred, **options))
    assert result["pixel_accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(true, pred))


def test_counts_of_a_large_split_neither_round_nor_overflow():
    result = scores(np.array([[2**40, 1], [0, 2**40]]))
    assert result["pixels"] == 2**41 + 1
    assert 0 < 1 - result["pixel_accuracy"] < 1e-11
    many = scores(np.full((2, 2), 2**31 - 1, np.int32))
    assert many["pixels"] == 4 * (2**31 - 1)
    assert many["mean_iou"] == pytest.approx(1 / 3)


# --------------------------------------------------------------------------------------------------------------- table


def test_the_table_has_a_line_a_class_and_dashes_for_an_absent_one():
    text = table(np.array([[3, 0, 1], [0, 0, 0], [0, 0, 4]]), ("sky", "fence", "road"))
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["class", "pixels", "iou", "dice", "precision", "recall"]
    assert lines[1] == ["sky", "50.00%", "75.00", "85.71", "100.00", "75.00"]
    assert lines[2] == ["fence", "0.00%", "-", "-", "-", "-"]
    assert lines[3] == ["road", "50.00%", "80.00", "88.89", "80.00", "100.00"]
    assert lines[4] == ["mean", "77.50", "87.30", "90.00", "87.50"]
    assert text.splitlines()[5] == (
        "mean IoU 77.50 over 2 of 3 classes (absent: fence), pixel accuracy 87.50, mean accuracy 87.50, "
        "frequency-weighted IoU 77.50, 8 pixels"
    )
    assert len({len(line) for line in text.splitlines()[:5]}) == 1


def test_the_table_of_nothing_is_dashes():
    lines = table(np.zeros((2, 2), np.int64), ("a", "b")).splitlines()
    assert [line.split()[-4:] for line in lines[1:4]] == [["-"] * 4] * 3
