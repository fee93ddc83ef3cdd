import hashlib

import numpy as np
import pytest

from jaxseg.data import shapes_draw
from jaxseg.data.shapes_draw import CLASS_NAMES, PALETTE, SILHOUETTES, TEXTURES, VAL, _borders, draw


@pytest.fixture(scope="module")
def val():
    return [draw(1, index) for index in range(VAL)]


def test_same_bytes_every_time():
    image, labels = draw(0, 3)
    again, labels_again = draw(0, 3)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(labels, labels_again)
    digest = hashlib.sha256(image.tobytes() + labels.tobytes()).hexdigest()[:16]
    assert digest == "b6a568d71b6a8e5e", "the data set changed: published scores on it no longer hold"


def test_seeds_and_indices_differ():
    first = draw(0, 0)
    for other in (draw(1, 0), draw(0, 1)):
        assert not np.array_equal(first[0], other[0])
        assert not np.array_equal(first[1], other[1])


def test_shapes_and_types(val):
    for image, labels in val:
        assert image.shape == (128, 128, 3) and image.dtype == np.uint8
        assert labels.shape == (128, 128) and labels.dtype == np.uint8
        assert set(np.unique(labels)) <= {*range(13), 255}


def test_every_class_is_common(val):
    images = np.zeros(13, int)
    pixels = np.zeros(13, int)
    for _, labels in val:
        counts = np.bincount(labels.ravel(), minlength=256)[:13]
        images += counts > 0
        pixels += counts
    assert images.min() >= 8
    assert pixels[1:].max() < 4 * pixels[1:].min()
    assert 0.5 < pixels[0] / pixels.sum() < 0.9


def test_borders_part_all_classes(val):
    for _, labels in val:
        for one, other in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
            touching = (one != other) & (one != 255) & (other != 255)
            assert not touching.any()
        assert 0 < (labels == 255).mean() < 0.2


def test_borders_are_two_pixels_wide():
    objects = np.zeros((8, 8), np.uint8)
    objects[3:] = 1
    borders = _borders(objects)
    assert borders[2:4].all()
    assert borders.sum() == 16


def test_colour_alone_tells_nothing(val):
    means = np.array([image[labels == label].mean(0) for image, labels in val for label in np.unique(labels)[1:-1]])
    assert means.std(0).min() > 30


def test_tables_agree():
    assert PALETTE.shape == (13, 3) and PALETTE.dtype == np.uint8
    assert len(np.unique(PALETTE, axis=0)) == 13
    assert CLASS_NAMES[0] == "background" and len(CLASS_NAMES) == 13
    assert set(SILHOUETTES) == set(TEXTURES) == set(CLASS_NAMES[1:])
    assert (shapes_draw.TRAIN, shapes_draw.VAL) == (2048, 64)


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, -1)])
def test_negative_is_refused(seed, index):
    with pytest.raises(ValueError, match="at least 0"):
        draw(seed, index)
