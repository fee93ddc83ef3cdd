"""ImageScope's XML polygons, read and drawn.

Where a region ends: a pixel belongs to it if its centre, which is where its whole-numbered coordinates are, lies within
the polygon, by the even-odd rule; of the outline its left and top are counted to it, right and bottom are not. So the
usual ready masks of MoNuSeg are; intersection over union with those of TCGA-B0-5698-01Z-00-DX1 and
TCGA-B0-5710-01Z-00-DX1:

    this rule                                                 0.998  0.992
    cv2.fillPoly, eroded by a cross of 3x3                    0.916  0.901
    cv2.fillPoly, which fills whatever the outline touches    0.895  0.885
    cv2.fillPoly less cv2.polylines                           0.888  0.876

No function of OpenCV has this rule, so the spans of the rows are found here.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from jaxseg.errors import UserError


def read_polygons(path: Path, size: tuple[int, int]) -> tuple[list[np.ndarray], list[str]]:
    """The polygons of ImageScope's XML that can be drawn, and what there is to say of the others.

    Args:
      path: the file.
      size: height and width of the image.

    Returns:
      float64 [points, 2], x and y in pixels, for every region; and lines on regions of fewer than three points and
      regions beyond the image, which are left out.

    Raises:
      UserError: the file can't be read, has no regions, or none that can be drawn.
    """
    try:
        regions = [
            np.array([(vertex.get("X"), vertex.get("Y")) for vertex in region.iter("Vertex")], np.float64).reshape(
                -1, 2
            )
            for region in ElementTree.parse(path).iter("Region")
        ]
        if not all(np.isfinite(region).all() for region in regions):
            raise ValueError("a Vertex has no numbers X and Y")
    except (OSError, ElementTree.ParseError, ValueError, TypeError) as error:
        raise UserError(f"cannot read the polygons of {path}: {error}; get the file anew.") from error
    if not regions:
        raise UserError(f"{path} has no regions: an annotation has a Region with Vertices for every nucleus.")
    polygons = [region for region in regions if len(region) >= 3]
    height, width = size
    within = [p for p in polygons if (p.max(0) >= 0).all() and (p.min(0) <= (width - 1, height - 1)).all()]
    notes = []
    if len(regions) > len(polygons):
        notes.append(f"{len(regions) - len(polygons)} of {len(regions)} regions have fewer than three points: left out")
    if len(polygons) > len(within):
        outside = len(polygons) - len(within)
        notes.append(f"{outside} of {len(regions)} regions lie wholly outside the image of {height}x{width}: left out")
    if not within:
        raise UserError(f"{path} has nothing to draw on an image of {height}x{width}: {'; '.join(notes)}.")
    return within, notes


def draw(polygons: Sequence[np.ndarray], size: tuple[int, int], *, full: bool = False) -> np.ndarray:
    """Labels uint8 [height, width]: 1 in any of the polygons, which may reach over the border, 0 elsewhere.

    Args:
      polygons: float [points, 2] each, x and y in pixels.
      size: height and width.
      full: fill what the outline touches as well, by cv2.fillPoly, instead of the pixels whose centres lie within.
    """
    labels = np.zeros(size, np.uint8)
    for polygon in polygons:
        if full:
            # One by one: in one call overlapping polygons would cancel each other.
            cv2.fillPoly(labels, [np.rint(polygon).astype(np.int32)], 1)
        else:
            _draw_within(labels, polygon)
    return labels


def _draw_within(labels: np.ndarray, polygon: np.ndarray) -> None:
    (x, y), (next_x, next_y) = polygon.T, np.roll(polygon, -1, axis=0).T
    top, bottom = max(0, int(np.ceil(y.min()))), min(labels.shape[0], int(np.ceil(y.max())))
    left, right = max(0, int(np.ceil(x.min()))), min(labels.shape[1], int(np.ceil(x.max())))
    if top >= bottom or left >= right:
        return
    rows = np.arange(top, bottom)[:, None]
    # Every edge that a row crosses turns inside to outside, or back, for all pixels from there on.
    row, edge = np.nonzero((y <= rows) != (next_y <= rows))
    x, y, next_x, next_y = x[edge], y[edge], next_x[edge], next_y[edge]
    # The product before the quotient: on whole-numbered corners a crossing at a pixel's centre is then exactly there.
    crossing = np.ceil(x + (top + row - y) * (next_x - x) / (next_y - y)).astype(int)
    turns = np.zeros((bottom - top, right - left + 1), np.int32)
    np.add.at(turns, (row, np.clip(crossing, left, right) - left), 1)
    labels[top:bottom, left:right] |= (np.cumsum(turns, axis=1)[:, :-1] & 1).astype(np.uint8)
