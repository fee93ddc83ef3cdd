"""The stream of batches: what a step holds follows from the seed and the step alone."""

import functools
import multiprocessing
import os
import signal
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.data.pipeline import eval_batches, eval_plan, most_rows, padded_sizes, train_batches
from jaxseg.data.transforms import augment
from jaxseg.errors import UserError

CROP = functools.partial(augment, crop_size=(12, 16), scale=(0.5, 2.0), jitter=0.2)


class Numbered:
    """Records that know their number; images of the given sizes."""

    def __init__(self, sizes):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def __repr__(self):
        return f"Numbered({len(self)})"

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        size = tuple(self.sizes[index])
        images = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        return {"images": images, "labels": np.full(size, index, np.uint8), "id": f"r{index}"}


EVEN = Numbered([(20, 24)] * 13)


def take(count, source=EVEN, *, seed=5, batch_size=4, augment=CROP, **more):
    return list(islice(train_batches(source, seed=seed, batch_size=batch_size, augment=augment, **more), count))


def same(one, two):
    return one["ids"] == two["ids"] and all(np.array_equal(one[key], two[key]) for key in ("images", "labels"))


def test_a_batch_is_what_it_should_be():
    batch = take(1)[0]
    assert batch["images"].shape == (4, 12, 16, 3) and batch["images"].dtype == np.uint8
    assert batch["labels"].shape == (4, 12, 16) and batch["labels"].dtype == np.uint8
    assert len(batch["ids"]) == 4 and all(type(name) is str for name in batch["ids"])
    for name, labels in zip(batch["ids"], batch["labels"], strict=True):
        assert set(np.unique(labels)) <= {int(name[1:]), 255}


def test_an_epoch_has_every_record_once_in_each_variant():
    def keep(example, rng):
        return {**example, "id": f"{example['id']} {example['variant']}"}

    batches = take(13, augment=keep, batch_size=2, variants=("identity", "flip"))
    names = [name for batch in batches for name in batch["ids"]]
    assert sorted(names) == sorted(f"r{i} {variant}" for i in range(13) for variant in ("identity", "flip"))


def test_the_same_seed_gives_the_same_stream_and_another_another():
    assert all(map(same, take(8), take(8)))
    assert [batch["ids"] for batch in take(8)] != [batch["ids"] for batch in take(8, seed=6)]


@pytest.mark.parametrize("more", [{}, {"process_index": 1, "process_count": 2}])
@pytest.mark.parametrize("start", [1, 3, 4, 11])
def test_starting_late_is_skipping(start, more):
    assert all(map(same, take(15, **more)[start:], take(15 - start, start_step=start, **more)))


def test_starting_very_late_costs_nothing():
    read = []

    class Counting(Numbered):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    take(1, Counting(EVEN.sizes), start_step=10**9)
    assert len(read) < 4 * 30


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_the_batch(processes):
    parts = [take(6, process_index=index, process_count=processes) for index in range(processes)]
    for step, whole in enumerate(take(6)):
        rows = [part[step] for part in parts]
        assert [name for row in rows for name in row["ids"]] == whole["ids"]
        for key in ("images", "labels"):
            np.testing.assert_array_equal(np.concatenate([row[key] for row in rows]), whole[key])


@pytest.mark.parametrize("more", [{}, {"start_step": 3, "process_index": 1, "process_count": 2}])
def test_worker_processes_change_nothing(more):
    assert all(map(same, take(5, **more), take(5, workers=2, **more)))


def test_worker_processes_leave_signals_to_the_run():
    """A terminal that is closed, or `timeout`, sends them to all of its processes."""
    batches = train_batches(EVEN, seed=5, batch_size=4, augment=CROP, workers=1)
    found = [next(batches)]
    workers = multiprocessing.active_children()
    assert workers
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        for worker in workers:
            os.kill(worker.pid, number)
    found += islice(batches, 11)
    batches.close()
    assert all(map(same, take(12), found))


@given(st.integers(0, 2**40), st.integers(1, 40), st.integers(1, 9))
@settings(max_examples=15, deadline=None)
def test_every_epoch_is_a_shuffle_of_its_own(seed, length, batch_size):
    source = Numbered([(2, 2)] * length)
    steps = -(-3 * length // batch_size)
    batches = take(steps, source, seed=seed, batch_size=batch_size, augment=_nothing)
    stream = [name for batch in batches for name in batch["ids"]]
    epochs = [stream[start : start + length] for start in (0, length, 2 * length)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(f"r{i}" for i in range(length))
    if length > 12:
        assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def _nothing(example, rng):
    return example


def _draws(example, rng):
    return {**example, "images": rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)}


def test_chance_differs_from_record_to_record_and_epoch_to_epoch():
    drawn = [image.tobytes() for batch in take(26, augment=_draws) for image in batch["images"]]
    assert len(set(drawn)) == len(drawn) == 8 * 13


def test_order_and_chance_of_two_seeds_are_unrelated():
    one = [name for batch in take(13, seed=0) for name in batch["ids"]]
    two = [name for batch in take(13, seed=1) for name in batch["ids"]]
    assert one[13:26] != two[:13]


def test_what_cannot_be_is_said():
    with pytest.raises(UserError, match=r"a batch of 4 images cannot be divided among 3 process\(es\)"):
        take(1, process_count=3)
    with pytest.raises(UserError, match="the source is empty"):
        take(1, Numbered([]))
    with pytest.raises(UserError, match="training needs a crop size"):
        take(1, Numbered([(4, 4), (4, 5)]), batch_size=2, augment=_nothing)


SIZES = [(20, 24), (33, 10), (20, 30), (64, 64), (31, 32), (33, 33), (1, 1), (20, 24), (50, 64), (64, 60), (30, 30)]


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_every_image_is_scored_once(batch_size, processes, devices):
    source = Numbered(SIZES)
    runs = [
        list(
            eval_batches(
                source,
                np.array(SIZES),
                batch_size=batch_size,
                fill=(1, 2, 3),
                devices=devices,
                process_index=index,
                process_count=processes,
            )
        )
        for index in range(processes)
    ]
    assert len({tuple(batch["images"].shape for batch in run) for run in runs}) == 1
    seen = []
    for batch in (batch for run in runs for batch in run):
        rows, height, width, _ = batch["images"].shape
        of_size = sum(tuple(size) == (height, width) for size in padded_sizes(np.array(SIZES)))
        assert rows == len(batch["ids"]) and rows % devices == 0 and height % 32 == 0 and width % 32 == 0
        assert rows <= max(devices, batch_size) and rows < -(-of_size // processes) + devices
        assert batch["images"].dtype == batch["labels"].dtype == np.uint8
        assert batch["valid"].dtype == bool and batch["sizes"].dtype == np.int32
        for row in range(rows):
            high, wide = batch["sizes"][row]
            image, labels, name = batch["images"][row], batch["labels"][row], batch["ids"][row]
            if batch["valid"][row]:
                record = source[int(name[1:])]
                np.testing.assert_array_equal(image[:high, :wide], record["images"])
                np.testing.assert_array_equal(labels[:high, :wide], record["labels"])
                seen.append(name)
            else:
                assert (high, wide, name) == (0, 0, "")
            assert (labels[high:] == 255).all() and (labels[:, wide:] == 255).all()
            assert (image[high:] == (1, 2, 3)).all() and (image[:, wide:] == (1, 2, 3)).all()
    assert sorted(seen) == sorted(f"r{i}" for i in range(len(SIZES)))


@given(
    st.lists(st.sampled_from([(40, 40), (400, 500), (700, 600), (1500, 2000)]), min_size=1, max_size=40),
    st.integers(1, 20),
    st.integers(1, 3),
    st.integers(1, 4),
)
@settings(max_examples=100, deadline=None)
def test_rows_are_bounded_by_images_and_by_pixels(sizes, batch_size, processes, devices):
    keywords = {"batch_size": batch_size, "process_count": processes, "devices": devices}
    plans = [eval_plan(np.array(sizes), process_index=index, **keywords) for index in range(processes)]
    shapes = [[(size, rows) for size, rows, _ in plan] for plan in plans]
    assert all(of_process == shapes[0] for of_process in shapes)
    assert len(set(shapes[0])) == len({size for size, _ in shapes[0]}), "a program a size"
    for (height, width), rows in shapes[0]:
        of_size = sum((-(-h // 32) * 32, -(-w // 32) * 32) == (height, width) for h, w in sizes)
        assert rows % devices == 0
        assert rows < -(-of_size // processes) + devices
        assert rows <= max(devices, min(batch_size, batch_size * 512 * 512 // (height * width)))
    assert sorted(np.concatenate([i for plan in plans for *_, i in plan]).tolist()) == list(range(len(sizes)))


@pytest.mark.parametrize(
    ("batch_size", "pixels", "devices", "due"),
    [
        (16, 128 * 128, 1, 16),
        (16, 512 * 512, 1, 16),
        (16, 1024 * 1024, 1, 4),
        (16, 1536 * 2048, 1, 1),
        (16, 1024 * 1024, 8, 8),
        (1, 10**9, 1, 1),
        (2, 10**9, 2, 2),
        (12, 700 * 700, 4, 4),
    ],
)
def test_larger_images_come_fewer_at_a_time(batch_size, pixels, devices, due):
    assert most_rows(batch_size, pixels, devices) == due


def test_the_order_of_scoring_is_fixed():
    def run():
        return [batch["ids"] for batch in eval_batches(Numbered(SIZES), np.array(SIZES), batch_size=3)]

    assert run() == run()


@given(st.lists(st.tuples(st.integers(1, 700), st.integers(1, 700)), min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_there_are_few_padded_sizes(sizes):
    padded = padded_sizes(np.array(sizes))
    assert padded.dtype == np.int32 and (padded >= sizes).all() and len(np.unique(padded, axis=0)) <= 8
    tight = -(-np.array(sizes) // 32) * 32
    if len(np.unique(tight, axis=0)) <= 8:
        np.testing.assert_array_equal(padded, tight)
