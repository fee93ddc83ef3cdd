"""Augmentation: image and labels never part, labels are never made up."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.data import transforms

FILL = (10, 20, 30)


def twins(height: int, width: int, seed: int = 0):
    """An image whose red channel is its labels: blocks of 0..20, some of 255."""
    blocks = np.random.default_rng(seed).choice([*range(21), 255], (-(-height // 12), -(-width // 12)))
    labels = np.kron(blocks, np.ones((12, 12))).astype(np.uint8)[:height, :width]
    return np.repeat(labels[..., None], 3, axis=2), labels


def agree(images, labels, most=0.35):
    """Whether the image's blocks lie where the labels' do; within a block bilinear and nearest give the same."""
    inside = cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8)) == 0
    return inside.mean() > most and (images[inside] == labels[inside][:, None]).all()


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 90), st.integers(1, 90))
@settings(max_examples=60, deadline=None)
def test_labels_are_picked_on_the_grid_of_the_image(height, width, high, wide):
    ramp = np.add.outer(np.arange(height), np.arange(width)).astype(np.float32)
    picked = np.arange(height * width, dtype=np.uint16).reshape(height, width)
    _, labels = transforms.resize(ramp, picked, (high, wide))
    rows, columns = np.divmod(labels.astype(int), width)
    # A place midway between two pixels may go to either.
    assert np.abs(rows - ((np.arange(high)[:, None] + 0.5) * height / high - 0.5)).max() < 0.5 + 1e-3
    assert np.abs(columns - ((np.arange(wide) + 0.5) * width / wide - 0.5)).max() < 0.5 + 1e-3


def test_nearest_and_bilinear_share_a_centre():
    step = np.zeros((8, 8), np.uint8)
    step[:, 4:] = 200
    for wide in (4, 5, 16, 23, 40):
        image, labels = transforms.resize(np.repeat(step[..., None], 3, 2), step, (8, wide))
        # Where bilinear says clearly one side, nearest says the same.
        clear = (image[..., 0] < 60) | (image[..., 0] > 140)
        assert ((image[..., 0] > 100) == (labels > 100))[clear].all()


@given(st.integers(0, 10**6), st.floats(0.3, 3))
@settings(max_examples=40, deadline=None)
def test_scaling_makes_no_new_label(seed, factor):
    images, labels = twins(50, 70, seed)
    image, new = transforms.random_scale(images, labels, np.random.default_rng(seed), factor, factor)
    assert image.shape[:2] == new.shape == (round(50 * factor), round(70 * factor))
    assert set(np.unique(new)) <= set(np.unique(labels))


def test_scaling_keeps_the_two_together():
    images, labels = twins(120, 150)
    for seed in range(10):
        assert agree(*transforms.random_scale(images, labels, np.random.default_rng(seed), 0.9, 2))


@pytest.mark.parametrize("size", [32, (20, 44), (60, 30), (64, 96)])
def test_crop_is_a_window_with_void_beyond_the_image(size):
    images, labels = twins(48, 64)
    height, width = transforms.as_pair(size)
    seen = set()
    for seed in range(30):
        image, new = transforms.random_crop(images, labels, np.random.default_rng(seed), size, FILL)
        assert image.shape == (height, width, 3) and new.shape == (height, width)
        assert (new[48:] == 255).all() and (new[:, 64:] == 255).all()
        assert (image[48:] == FILL).all() and (image[:, 64:] == FILL).all()
        np.testing.assert_array_equal(image[:48, :64, 0], new[:48, :64])
        seen.add(new.tobytes())
    assert len(seen) > 10 or (height >= 48 and width >= 64)


def test_the_flip_mirrors_both_in_half_of_the_cases():
    images, labels = twins(24, 36)
    flips = 0
    for seed in range(200):
        image, new = transforms.random_flip(images, labels, np.random.default_rng(seed))
        np.testing.assert_array_equal(image[..., 0], new)
        flips += not np.array_equal(new, labels)
        assert np.array_equal(new, labels) or np.array_equal(new, labels[:, ::-1])
    assert 70 < flips < 130


def test_no_jitter_changes_nothing_and_some_does():
    images, _ = twins(24, 36)
    assert transforms.colour_jitter(images, np.random.default_rng(0), 0) is images
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (24, 36, 3), dtype=np.uint8)
    before = colour.copy()
    changed = transforms.colour_jitter(colour, rng, 0.4)
    assert changed.dtype == np.uint8 and changed.shape == colour.shape and not np.array_equal(changed, colour)
    np.testing.assert_array_equal(colour, before)


def test_jitter_leaves_grey_grey_and_means_what_it_says():
    grey = np.full((8, 8, 3), 100, np.uint8)
    levels = set()
    for seed in range(50):
        changed = transforms.colour_jitter(grey, np.random.default_rng(seed), 0.3)
        assert np.ptp(changed.astype(int), axis=2).max() <= 1
        levels.add(int(changed[0, 0, 0]))
    # A flat image shows brightness alone: its contrast is none.
    assert 69 <= min(levels) < 80 and 120 < max(levels) <= 131


@given(
    st.integers(0, 10**6),
    st.tuples(st.integers(10, 80), st.integers(10, 80)),
    st.tuples(st.integers(8, 90), st.integers(8, 90)),
    st.floats(0.4, 1.0),
    st.floats(1.0, 2.5),
)
@settings(max_examples=80, deadline=None)
def test_augment_gives_the_crop_and_only_known_labels(seed, full, crop, low, high):
    images, labels = twins(*full, seed)
    example = {"images": images, "labels": labels, "id": "x"}

    def run():
        rng = np.random.default_rng(seed)
        return transforms.augment(example, rng, crop_size=crop, scale=(low, high), jitter=0.5, fill=FILL)

    one, two = run(), run()
    assert one["images"].shape == (*crop, 3) and one["labels"].shape == crop and one["id"] == "x"
    assert one["images"].dtype == one["labels"].dtype == np.uint8
    assert set(np.unique(one["labels"])) <= set(np.unique(labels)) | {255}
    assert np.array_equal(one["images"], two["images"]) and np.array_equal(one["labels"], two["labels"])
    assert np.array_equal(images[..., 0], labels)


def test_augment_keeps_the_two_together_and_pads_at_the_end():
    images, labels = twins(120, 150)
    example = {"images": images, "labels": labels}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        out = transforms.augment(example, rng, crop_size=64, scale=(0.8, 2.0), fill=FILL)
        assert agree(out["images"], out["labels"], most=0.3)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        out = transforms.augment(example, rng, crop_size=(90, 200), scale=(0.5, 0.5), jitter=0.4, fill=FILL)
        beyond = np.zeros((90, 200), bool)
        beyond[60:], beyond[:, 75:] = True, True
        assert (out["labels"][beyond] == 255).all() and (out["images"][beyond] == FILL).all()


def test_augment_draws_the_scale_it_was_given():
    rows = np.arange(200, dtype=np.uint8)
    labels = np.broadcast_to(rows[:, None], (200, 200)).copy()
    example = {"images": np.repeat(labels[..., None], 3, 2), "labels": labels}
    for low, high in ((0.5, 0.5), (1, 1), (2, 2), (0.5, 2)):
        steps = []
        for seed in range(60):
            rng = np.random.default_rng(seed)
            out = transforms.augment(example, rng, crop_size=80, scale=(low, high))["labels"]
            steps.append((int(out[-1, 0]) - int(out[0, 0])) / 79)
        assert 1 / high - 0.05 < min(steps) and max(steps) < 1 / low + 0.05
        assert low == high or (min(steps) < 0.6 and max(steps) > 1.5)


def test_augment_reaches_every_corner():
    labels = np.arange(100, dtype=np.uint8).reshape(10, 10)
    example = {"images": np.repeat(labels[..., None], 3, 2), "labels": labels}
    corners = {
        int(transforms.augment(example, np.random.default_rng(seed), crop_size=8, flip=False)["labels"][0, 0])
        for seed in range(200)
    }
    assert corners == {0, 1, 2, 10, 11, 12, 20, 21, 22}
