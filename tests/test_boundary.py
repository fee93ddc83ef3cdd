"""Boundary F1 by hand, against distances computed the long way, and its laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxseg.boundary import boundary_f1, mean_over_images

MAPS = hnp.arrays(np.uint8, (7, 9), elements=st.integers(0, 2))
LABELS = hnp.arrays(np.uint8, (7, 9), elements=st.sampled_from([0, 1, 2, 255]))
TOLERANCES = st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0])


def halves(split: int, height: int = 20, width: int = 40) -> np.ndarray:
    """Class 0 left of column `split`, class 1 from it on."""
    return (np.arange(width) >= split).astype(np.uint8)[None].repeat(height, 0)


@pytest.mark.parametrize(
    ("shift", "tolerance", "due"), [(0, 1, 1.0), (2, 2, 1.0), (2, 1.9, 0.0), (5, 4, 0.0), (5, 5, 1.0)]
)
def test_a_straight_edge_is_found_within_the_tolerance_and_not_beyond(shift, tolerance, due):
    np.testing.assert_array_equal(boundary_f1(halves(20 + shift), halves(20), 2, tolerance=tolerance), [due, due])


def test_precision_and_recall_by_hand():
    labels = halves(20)
    preds = labels.copy()
    preds[4:8, 30:33] = 0  # twelve pixels, a ring of ten, far from the edge
    # Class 0: precision 20 / 30, recall 1. Class 1: the twenty of the edge and fourteen around the ring, recall 1.
    due = [2 * (20 / 30) / (20 / 30 + 1), 2 * (20 / 34) / (20 / 34 + 1)]
    np.testing.assert_allclose(boundary_f1(preds, labels, 2, tolerance=2), due)
    np.testing.assert_allclose(boundary_f1(labels, preds, 2, tolerance=2), due)


def test_a_class_in_one_of_the_two_alone_scores_0_and_in_neither_has_no_score():
    labels, preds = halves(20), halves(20)
    preds[preds == 1] = 2
    np.testing.assert_array_equal(boundary_f1(preds, labels, 4, tolerance=3), [1, 0, 0, np.nan])
    whole = np.zeros((5, 5), np.uint8)
    np.testing.assert_array_equal(boundary_f1(whole, whole, 2, tolerance=3), [np.nan, np.nan])


def long_way(preds, labels, num_classes, tolerance):
    preds, labels = (np.where(labels == 255, 255, values).astype(int) for values in (preds, labels))

    def outline(values, index):
        found = []
        for y, x in np.argwhere(values == index):
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [place for place in around if 0 <= place[0] < values.shape[0] and 0 <= place[1] < values.shape[1]]
            if any(values[place] != index for place in inside):
                found.append((y, x))
        return np.array(found).reshape(-1, 2)

    def near(some, others):
        if not len(some) or not len(others):
            return 0.0
        squares = ((some[:, None] - others[None]) ** 2).sum(-1)
        return np.mean(squares.min(1) <= tolerance**2)

    result = []
    for index in range(num_classes):
        pred, true = outline(preds, index), outline(labels, index)
        precision, recall = near(pred, true), near(true, pred)
        if not len(pred) and not len(true):
            result.append(np.nan)
        else:
            result.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return result


@settings(max_examples=60, deadline=None)
@given(MAPS, LABELS, TOLERANCES)
def test_it_is_what_the_definition_says(preds, labels, tolerance):
    found = boundary_f1(preds, labels, 3, tolerance=tolerance)
    np.testing.assert_allclose(found, long_way(preds, labels, 3, tolerance))


@settings(max_examples=40, deadline=None)
@given(MAPS, MAPS, LABELS, TOLERANCES)
def test_predictions_of_ignored_pixels_change_nothing(preds, other, labels, tolerance):
    changed = np.where(labels == 255, other, preds)
    np.testing.assert_array_equal(
        boundary_f1(preds, labels, 3, tolerance=tolerance), boundary_f1(changed, labels, 3, tolerance=tolerance)
    )


@settings(max_examples=40, deadline=None)
@given(MAPS, LABELS)
def test_the_labels_themselves_score_1_and_more_tolerance_never_scores_less(preds, labels):
    perfect = boundary_f1(np.where(labels == 255, preds, labels), labels, 3, tolerance=1)
    assert set(perfect[~np.isnan(perfect)]) <= {1.0}
    scores = [boundary_f1(preds, labels, 3, tolerance=tolerance) for tolerance in (0.5, 1, 2, 4, 20)]
    assert (np.diff(np.nan_to_num(scores), axis=0) >= -1e-12).all()


def test_the_score_of_a_split_is_the_mean_over_images_class_by_class():
    rows = np.array([[1.0, 0.0, np.nan, 0.0], [0.5, np.nan, np.nan, 0.0]])
    present = np.array([True, True, True, False])
    np.testing.assert_array_equal(mean_over_images(rows, present), [0.75, 0.0, np.nan, np.nan])
