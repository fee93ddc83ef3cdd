"""Boundary F1: how well the outlines of a prediction lie on those of the labels."""

import cv2
import numpy as np


def boundary_f1(
    preds: np.ndarray, labels: np.ndarray, num_classes: int, *, tolerance: float, ignore_label: int = 255
) -> np.ndarray:
    """The boundary F1 of each class in one image (Csurka et al. 2013; F of Perazzi et al. 2016, there for objects).

    A pixel of a class is on its boundary where one of its four neighbours within the image is of another class, or
    ignored. Precision is the share of the predicted boundary that lies at most `tolerance` from the labels' boundary of
    that class, recall the share of the labels' boundary that lies so near the predicted one, distances between pixel
    centres; F1 is 2PR / (P + R). Csurka et al. take 0.75 % of the diagonal for the tolerance.

    Ignored pixels are ignored in the prediction too: what it says there changes nothing.

    Args:
      preds: integers `[H, W]` in [0, num_classes).
      labels: integers `[H, W]`.
      tolerance: pixels.

    Returns:
      float64 `[num_classes]` in [0, 1]; 0 where a class has a boundary in one of the two alone, NaN where in neither.
    """
    ignored = np.asarray(labels) == ignore_label
    preds, labels = (np.where(ignored, -1, np.asarray(values, np.int32)) for values in (preds, labels))
    outlines = [np.where(_on_boundary(values), values, -1) for values in (preds, labels)]
    result = np.full(num_classes, np.nan)
    for index in np.union1d(*map(np.unique, outlines)):
        if index < 0:
            continue
        pred, true = (outline == index for outline in outlines)
        precision, recall = _share_near(pred, true, tolerance), _share_near(true, pred, tolerance)
        result[index] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return result


def mean_over_images(scores: np.ndarray, present: np.ndarray) -> np.ndarray:
    """The score of each class over a split: its mean over the images where the class has a boundary in either.

    Args:
      scores: `[N, num_classes]`, rows of `boundary_f1`.
      present: bool `[num_classes]`, whether the labels of the split have the class.

    Returns:
      float64 `[num_classes]`; NaN where a class is not present, or has a boundary nowhere.
    """
    there = ~np.isnan(scores)
    images = there.sum(0)
    sums = np.where(there, scores, 0.0).sum(0)
    return np.where(present & (images > 0), sums / np.maximum(images, 1), np.nan)


def _on_boundary(values: np.ndarray) -> np.ndarray:
    edge = np.zeros(values.shape, bool)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = values[one] != values[other]
        edge[one] |= differ
        edge[other] |= differ
    return edge


def _share_near(pixels: np.ndarray, others: np.ndarray, tolerance: float) -> float:
    """The share of `pixels` that have one of `others` at most `tolerance` away; 0 where there are none of either."""
    if not pixels.any() or not others.any():
        return 0.0
    near = cv2.dilate(others.astype(np.uint8), _disk(tolerance))
    return float(np.mean(near[pixels]))


def _disk(radius: float) -> np.ndarray:
    y, x = np.ogrid[-int(radius) : int(radius) + 1, -int(radius) : int(radius) + 1]
    return (y * y + x * x <= radius * radius).astype(np.uint8)
