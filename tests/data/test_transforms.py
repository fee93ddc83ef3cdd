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


@pytest.mark.parametrize(("change", "axis"), [("flip", 1), ("vertical_flip", 0)])
def test_a_flip_mirrors_both_in_half_of_the_cases(change, axis):
    images, labels = twins(24, 36)
    example, mirrored, flips = {"images": images, "labels": labels}, np.flip(labels, axis), 0
    for seed in range(200):
        off = {"flip": False, "vertical_flip": False}
        out = transforms.augment(example, np.random.default_rng(seed), crop_size=(24, 36), **{**off, change: True})
        assert all_alike(out["images"], out["labels"])
        flips += np.array_equal(out["labels"], mirrored)
        assert np.array_equal(out["labels"], labels) or np.array_equal(out["labels"], mirrored)
    assert 70 < flips < 130


def test_no_jitter_changes_nothing_and_some_does():
    images, _ = twins(24, 36)
    still = transforms.colour_jitter(images, transforms.draw_jitter(np.random.default_rng(0), 0))
    np.testing.assert_array_equal(still, images)
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (24, 36, 3), dtype=np.uint8)
    before = colour.copy()
    changed = transforms.colour_jitter(colour, transforms.draw_jitter(rng, 0.4))
    assert changed.dtype == np.uint8 and changed.shape == colour.shape and not np.array_equal(changed, colour)
    np.testing.assert_array_equal(colour, before)


def test_jitter_leaves_grey_grey_and_means_what_it_says():
    grey = np.full((8, 8, 3), 100, np.uint8)
    levels = set()
    for seed in range(50):
        changed = transforms.colour_jitter(grey, transforms.draw_jitter(np.random.default_rng(seed), 0.3))
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


def all_alike(images, labels):
    """The image of `twins` has its labels in every channel."""
    return np.array_equal(images, np.repeat(labels[..., None], 3, axis=2))


def test_quarter_turns_come_back_and_all_four_are_drawn():
    images, labels = twins(24, 36)
    turned, both = transforms.quarter_turns(images, labels)
    assert both.shape == (36, 24) and all_alike(turned, both)
    np.testing.assert_array_equal(both[0], labels[:, -1])
    np.testing.assert_array_equal(transforms.quarter_turns(turned, both, 3)[1], labels)
    seen = {
        int(transforms.draw((9, 9), np.random.default_rng(i), crop_size=9, rotate90=True)["turns"]) for i in range(40)
    }
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("change", "draw", "strength"),
    [
        (transforms.grid_distortion, transforms.draw_grid, 0.3),
        (transforms.elastic, transforms.draw_elastic, 5),
    ],
)
def test_a_deformation_keeps_the_two_together_and_makes_no_label(change, draw, strength):
    images, labels = twins(120, 150)
    for seed in range(10):
        image, new, *inside = change(images, labels, draw(np.random.default_rng(seed), strength))
        image[np.equal(inside, 0).any(0)] = 255
        assert agree(image, new, most=0.3) and image.shape == images.shape
        assert set(np.unique(new)) <= set(np.unique(labels)) | {255}
        assert not np.array_equal(new, labels)
    still, same, *inside = change(images, labels, draw(np.random.default_rng(0), 0))
    assert all(array.all() for array in inside)
    np.testing.assert_array_equal(same, labels)
    np.testing.assert_array_equal(still, images)


def test_a_distorted_grid_keeps_its_borders():
    images, labels = twins(60, 84)
    for seed in range(10):
        _, new = transforms.grid_distortion(images, labels, transforms.draw_grid(np.random.default_rng(seed), 0.3))
        assert {tuple(corner) for corner in (new[[0, 0, -1, -1], [0, -1, 0, -1]],)} == {
            tuple(labels[[0, 0, -1, -1], [0, -1, 0, -1]])
        }


def test_an_elastic_deformation_is_as_strong_as_it_says():
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[None], 200, axis=0)
    images = np.repeat(ramp[..., None], 3, axis=2)
    moved = [
        transforms.elastic(images, ramp, transforms.draw_elastic(np.random.default_rng(seed), 6))[1][100, 100] - 100.0
        for seed in range(200)
    ]
    assert 4.8 < np.std(moved) < 7.2


def stained(images, seed, strength):
    return transforms.stain_jitter(images, transforms.draw_stain(np.random.default_rng(seed), strength))


def test_stains_change_by_their_strength_and_white_stays_light():
    tissue = np.random.default_rng(0).integers(60, 230, (16, 16, 3), dtype=np.uint8)
    nearly = stained(tissue, 0, 1e-6)
    assert np.abs(nearly.astype(int) - tissue).max() <= 1
    changes = [np.abs(stained(tissue, seed, 0.2).astype(int) - tissue).mean() for seed in range(20)]
    assert 3 < np.mean(changes) < 30
    white = stained(np.full((4, 4, 3), 255, np.uint8), 1, 0.2)
    assert white.min() > 225


def test_a_change_of_one_stain_moves_along_its_colour():
    """More haematoxylin takes light away in the proportions of its optical density."""
    stains = transforms._STAINS
    pixel = np.round(256 * np.exp(-(0.8 * stains[0])) - 1).astype(np.uint8)[None, None]
    changed = stained(pixel, 3, 0.2)
    factors = np.random.default_rng(3)
    factor, shifts = factors.uniform(0.8, 1.2, 3)[0], factors.uniform(-0.2, 0.2, 3) / 5
    due = 256 * np.exp(-(0.8 * factor * stains[0] + shifts @ stains)) - 1
    np.testing.assert_allclose(changed[0, 0], np.clip(due, 0, 255), atol=2)


@pytest.mark.parametrize("name", transforms.VARIANTS)
def test_a_variant_changes_both_alike(name):
    images, labels = twins(48, 48)
    example = {"images": images, "labels": labels, "variant": name}
    out = transforms.augment(example, np.random.default_rng(0), crop_size=48, flip=False)
    assert agree(out["images"], out["labels"], most=0.3)
    assert np.array_equal(out["labels"], labels) == (name == "identity")


def test_what_is_off_draws_nothing():
    """A run from before these changes were there goes on with the same stream."""
    images, labels = twins(60, 60)
    kwargs = {"crop_size": 32, "scale": (0.8, 1.5), "jitter": 0.3}
    one, two = np.random.default_rng(0), np.random.default_rng(0)
    example = {"images": images, "labels": labels}
    off = {"vertical_flip": False, "rotate90": False, "grid_distortion": 0.0, "elastic": 0.0, "stain": 0.0}
    before = transforms.augment(example, one, **kwargs)
    after = transforms.augment(example, two, **kwargs, **off)
    np.testing.assert_array_equal(before["images"], after["images"])
    assert one.random() == two.random()


@pytest.mark.parametrize(
    "change",
    [{"vertical_flip": True}, {"rotate90": True}, {"grid_distortion": 0.3}, {"elastic": 4.0}, {"stain": 0.2}],
    ids=lambda change: next(iter(change)),
)
def test_each_change_that_is_on_does_something(change):
    example = dict(zip(("images", "labels"), twins(60, 60), strict=True))
    still = transforms.augment(example, np.random.default_rng(1), crop_size=60, flip=False)
    moved = [
        transforms.augment(example, np.random.default_rng(seed), crop_size=60, flip=False, **change)
        for seed in range(5)
    ]
    assert any(not np.array_equal(out["images"], still["images"]) for out in moved)
    assert all(out["images"].shape == (60, 60, 3) for out in moved)


def test_images_are_brought_to_a_size_first_and_cropped_in_the_middle():
    images, labels = twins(48, 96)
    example = {"images": images, "labels": labels}
    out = transforms.augment(example, np.random.default_rng(0), crop_size=48, resize_to=(48, 48), flip=False)
    np.testing.assert_array_equal(out["labels"], transforms.resize(images, labels, (48, 48))[1])
    for seed in range(3):
        out = transforms.augment(example, np.random.default_rng(seed), crop_size=32, center_crop=True, flip=False)
        np.testing.assert_array_equal(out["labels"], labels[8:40, 32:64])


changes = st.fixed_dictionaries(
    {
        "scale": st.sampled_from([(1.0, 1.0), (0.3, 0.7), (0.5, 2.0)]),
        "flip": st.booleans(),
        "vertical_flip": st.booleans(),
        "rotate90": st.booleans(),
        "grid_distortion": st.sampled_from([0.0, 0.3, 0.9]),
        "elastic": st.sampled_from([0.0, 4.0, 40.0]),
        "jitter": st.sampled_from([0.0, 0.4, 1.0]),
        "stain": st.sampled_from([0.0, 0.2, 0.9]),
    }
)


@given(changes, st.sampled_from([None, *transforms.VARIANTS]), st.integers(0, 10**6), st.booleans())
@settings(max_examples=200, deadline=None)
def test_beyond_the_picture_there_is_the_fill_and_no_change_looks_at_it(changes, variant, seed, resized):
    images = np.random.default_rng(seed).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    example = {"images": images, "labels": np.zeros((30, 41), np.uint8)} | ({"variant": variant} if variant else {})

    def run(fill, **more):
        frame = {"crop_size": 36, "resize_to": (44, 28) if resized else (), "fill": fill}
        return transforms.augment({**example, **more}, np.random.default_rng(seed), **frame, **changes)

    out, other = run(FILL), run((200, 250, 0))
    beyond = out["labels"] == 255
    assert (out["images"][beyond] == FILL).all()
    assert (other["images"][beyond] == (200, 250, 0)).all()
    np.testing.assert_array_equal(out["images"][~beyond], other["images"][~beyond])
    # Void inside the picture keeps its colours.
    void = run(FILL, labels=np.full((30, 41), 255, np.uint8))
    np.testing.assert_array_equal(void["images"], out["images"])


@pytest.mark.parametrize("change", [{"jitter": 0.5}, {"stain": 0.5}, {"jitter": 0.5, "stain": 0.5}])
def test_what_an_elastic_deformation_brings_in_keeps_the_fill(change):
    """A fill that is changed with the colours is not 0 for the network, up to 2.6 of its standard deviations."""
    example = {"images": np.full((40, 40, 3), 90, np.uint8), "labels": np.zeros((40, 40), np.uint8)}
    for seed in range(5):
        rng = np.random.default_rng(seed)
        out = transforms.augment(example, rng, crop_size=40, elastic=20.0, fill=FILL, **change)
        beyond = out["labels"] == 255
        assert 0.05 < beyond.mean() < 0.95
        assert (out["images"][beyond] == FILL).all()
        assert len(np.unique(out["images"][~beyond], axis=0)) == 1, "a flat picture stays flat"
