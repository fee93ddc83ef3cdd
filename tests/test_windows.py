"""Windows cover an image, and put together again they are what a loop over them gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.windows import places, stitched, strips

SIDES = st.integers(1, 30)


def by_place(batch):
    """Two probabilities a pixel that depend on where in its window it lies, as those of a real network do."""
    inside = np.arange(batch.shape[1])[:, None] + 2.0 * np.arange(batch.shape[2])
    first = (batch[..., 0] + inside) / 1000
    return np.stack([first, 1 - first], -1).astype(np.float32)


@given(SIDES, st.integers(1, 12), st.data())
def test_windows_lie_inside_and_leave_no_pixel_out(length, window, data):
    stride = data.draw(st.integers(1, window))
    starts = places(length, window, stride)
    assert starts == sorted(set(starts)) and starts[0] == 0
    assert set(range(length)) == {i for start in starts for i in range(start, min(start + window, length))}
    assert all(start + window <= length for start in starts) or starts == [0]
    assert all(start % stride == 0 for start in starts[:-1])


def test_the_patches_of_a_known_layout():
    assert places(1000, 256, 128) == [0, 128, 256, 384, 512, 640, 744]
    assert places(256, 256, 128) == places(100, 256, 128) == [0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=3), st.integers(1, 5), st.data())
def test_probabilities_are_the_mean_over_the_windows_of_a_pixel(sizes, batch_size, data):
    size = data.draw(st.tuples(st.integers(2, 12), st.integers(2, 12)))
    stride = tuple(data.draw(st.integers(1, side)) for side in size)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in sizes]
    found = stitched(by_place, images, size=size, stride=stride, batch_size=batch_size, fill=(9, 9, 9))
    for image, probs in zip(images, found, strict=True):
        height, width = image.shape[:2]
        padded = np.zeros((max(height, size[0]), max(width, size[1]), 3), np.uint8)
        padded[:height, :width] = image
        sums, counts = np.zeros((*padded.shape[:2], 2)), np.zeros(padded.shape[:2])
        for top in places(height, size[0], stride[0]):
            for left in places(width, size[1], stride[1]):
                window = np.s_[top : top + size[0], left : left + size[1]]
                sums[window] += by_place(padded[window][None])[0]
                counts[window] += 1
        due = (sums / np.maximum(counts, 1)[..., None])[:height, :width]
        assert probs.dtype == np.float32
        np.testing.assert_allclose(probs, due, atol=1e-5)


def test_no_more_than_a_strip_is_held_however_tall_the_image():
    shapes = [
        (number, top, probs.shape)
        for number, top, probs in strips(
            by_place, [np.zeros((40, 7, 3), np.uint8)], size=(8, 4), stride=(4, 4), batch_size=3, fill=(0, 0, 0)
        )
    ]
    assert shapes == [(0, top, (8 if top == 32 else 4, 7, 2)) for top in range(0, 33, 4)]


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_batches_are_full_but_for_the_last_and_of_one_size(batch_size):
    seen = []

    def probabilities(batch):
        seen.append(batch.shape)
        return by_place(batch)

    images = [np.zeros((10, 6, 3), np.uint8)] * 3  # of 2 x 2 windows each
    assert (
        len(list(stitched(probabilities, images, size=(8, 4), stride=(4, 4), batch_size=batch_size, fill=(0,) * 3)))
        == 3
    )
    assert seen == [(batch_size, 8, 4, 3)] * -(-12 // batch_size)


def test_what_lies_beyond_a_small_image_is_the_fill():
    def probabilities(batch):
        assert (batch[0, :3, :2] == 7).all()
        batch[0, :3, :2] = (1, 2, 3)
        assert (batch == (1, 2, 3)).all()
        return by_place(batch)

    image = np.full((3, 2, 3), 7, np.uint8)
    (probs,) = stitched(probabilities, [image], size=(5, 5), stride=(2, 2), batch_size=2, fill=(1, 2, 3))
    assert probs.shape == (3, 2, 2)
