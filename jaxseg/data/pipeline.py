"""Batches: the endless stream that is trained on and the finite one that is scored on, both read ahead by Grain."""

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from jaxseg.data.transforms import IGNORE_LABEL
from jaxseg.errors import UserError

Augment = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]

# A compiled program is needed for every size: more than these are gathered into fewer.
_MOST_SIZES = 8
_PIXELS = 512 * 512  # of an image; of larger ones fewer are scored at a time


def train_batches(
    source,
    *,
    seed: int,
    batch_size: int,
    augment: Augment,
    variants: Sequence[str] = (),
    start_step: int = 0,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, Any]]:
    """The endless stream of training batches, from step `start_step` on.

    The records of all steps are one stream: each epoch is a shuffle of the source of its own, and a batch may reach
    from one epoch into the next. Which record lies where, and what chance its augmentation has, follow from `seed` and
    the place in the stream alone. So the batch of a step is the same whatever `workers`, `process_count` and
    `start_step` are, and starting late costs nothing.

    Args:
      source: what `Dataset.source` returns, or anything with `len()` and such records that pickles.
      seed: of order and augmentation.
      batch_size: images of a step, over all processes; the batches of the processes in a row are the whole one.
      augment: makes all records one size; it must pickle where `workers` is not 0.
      variants: names of `transforms.VARIANTS`; an epoch has every record once in each. () for every record once.
      start_step: the first step.
      workers: processes that read and augment; with 0 threads of this process do it. They are started anew, so a
        script that uses them needs its `if __name__ == "__main__":`.
      process_index, process_count: which of how many processes this is.

    Yields:
      `images` uint8 [b, H, W, 3], `labels` uint8 [b, H, W], or whatever arrays `augment` gives, and `ids`, a list of b
      str; b is `batch_size // process_count`.

    Raises:
      UserError: the source is empty, the batch size is no multiple of the number of processes, or the augmented images
        differ in size.
    """
    if len(source) == 0:
        raise UserError("there is no image to train on: the source is empty.")
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"a batch of {batch_size} images cannot be divided among {process_count} process(es): make it a multiple."
        )
    order, chance = (int(word) for word in np.random.SeedSequence(seed).generate_state(2))
    batches = (
        grain.MapDataset.source(_Variants(source, variants) if variants else source)
        .shuffle(seed=order)
        .repeat()
        .random_map(augment, seed=chance)
        .batch(batch_size // process_count, drop_remainder=True, batch_fn=_stack)
        .slice(slice(start_step * process_count + process_index, None, process_count))
    )
    if workers == 0:
        return iter(batches.to_iter_dataset(_read_ahead()))
    # Grain's worker processes read absl's flags, which nobody has parsed in a notebook or a test.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    # What workers have read ahead when the run ends, Python's resource tracker clears away, and warns of it.
    quiet = "ignore:resource_tracker:UserWarning"
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), quiet]))
    stream = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    return iter(stream.mp_prefetch(options, worker_init_fn=_end_with_parent))


def _end_with_parent(worker: int, workers: int) -> None:
    """In a worker process: it ends with the one that started it, which may be killed, and leaves signals to it.

    A terminal, `timeout` or a batch system sends them to all processes of a run, and what saves needs its next batch.
    """

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=wait, daemon=True).start()


class _Variants:
    """The records of `source`, each once a variant, whose name they carry."""

    def __init__(self, source, variants: Sequence[str]):
        self.source, self.variants = source, tuple(variants)

    def __len__(self) -> int:
        return len(self.source) * len(self.variants)

    def __repr__(self) -> str:
        return f"{self.source!r} in {len(self.variants)} variants"

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, variant = divmod(index, len(self.variants))
        return {**self.source[number], "variant": self.variants[variant]}


def padded_sizes(sizes: np.ndarray, multiple: int = 0) -> np.ndarray:
    """The sizes that images are padded to: few, so that few programs are compiled.

    Args:
      sizes: integers [N, 2], heights and widths.
      multiple: heights and widths are rounded up to multiples of it; 0 for `padding_multiple`.

    Returns:
      int32 [N, 2].
    """
    sizes = np.asarray(sizes, np.int32).reshape(-1, 2)
    multiple = multiple or padding_multiple(sizes)
    return (-(-sizes // multiple) * multiple).astype(np.int32)


def padding_multiple(sizes: np.ndarray) -> int:
    """32, doubled until images of `sizes`, integers [N, 2], rounded up to multiples of it have at most eight sizes."""
    multiple = 32
    while len(np.unique(-(-np.asarray(sizes).reshape(-1, 2) // multiple), axis=0)) > _MOST_SIZES:
        multiple *= 2
    return multiple


def most_rows(batch_size: int, pixels: int, devices: int = 1) -> int:
    """How many images of so many pixels go through a network at a time: `batch_size` of them up to 512x512, and of
    larger ones as many as have no more pixels, but at least one; a multiple of `devices`."""
    rows = min(batch_size, batch_size * _PIXELS // max(1, pixels))
    return max(1, rows // devices) * devices


def eval_plan(
    sizes: np.ndarray,
    *,
    batch_size: int,
    multiple: int = 0,
    pixels: Callable[[tuple[int, int]], int] = math.prod,
    devices: int = 1,
    process_index: int = 0,
    process_count: int = 1,
) -> list[tuple[tuple[int, int], int, np.ndarray]]:
    """(height, width), number of rows and indices of the images of each of `eval_batches`, which says the rest."""
    padded = padded_sizes(sizes, multiple)
    plan = []
    for size in np.unique(padded, axis=0):
        indices = np.flatnonzero((padded == size).all(axis=1))
        there_are = -(-len(indices) // (process_count * devices)) * devices
        rows = min(there_are, most_rows(batch_size, pixels(tuple(size.tolist())), devices))
        step = rows * process_count
        for start in range(0, len(indices), step):
            plan.append((tuple(size.tolist()), rows, indices[start : start + step][process_index::process_count]))
    return plan


def eval_batches(
    source, sizes: np.ndarray, *, fill: Sequence[int] = (124, 116, 104), **how: Any
) -> Iterator[dict[str, Any]]:
    """Every image of `source` once, in batches of one padded size, always in the same order.

    All batches of a padded size have equally many rows, for one program: `most_rows`, and no more than there are images
    of that size. The last one is filled up with empty rows. Over several processes every image comes once, and all of
    them yield equally many batches, of the same sizes and rows in the same order.

    Args:
      source: what `Dataset.source` returns, or anything with `len()` and such records.
      sizes: integers [len(source), 2], what `Dataset.sizes` returns.
      fill: RGB colour beyond an image.
      **how: of `eval_plan`:
      batch_size: rows of a batch of one process, of images up to 512x512.
      multiple: see `padded_sizes`.
      pixels: that the network sees of an image of a padded size, (height, width).
      devices: of one process; rows are a multiple of it.
      process_index, process_count: which of how many processes this is.

    Yields:
      `images` uint8 [rows, H, W, 3], padded at the bottom and right with `fill`; `labels` uint8 [rows, H, W], 255 in
      the padding; `valid` bool [rows], False in empty rows; `ids`, a list of str, '' in empty rows; `sizes` int32
      [rows, 2], height and width within the padding, 0 in empty rows.
    """

    def load(entry: tuple[tuple[int, int], int, np.ndarray]) -> dict[str, Any]:
        (height, width), rows, indices = entry
        batch = {
            "images": np.empty((rows, height, width, 3), np.uint8),
            "labels": np.full((rows, height, width), IGNORE_LABEL, np.uint8),
            "valid": np.arange(rows) < len(indices),
            "ids": [""] * rows,
            "sizes": np.zeros((rows, 2), np.int32),
        }
        batch["images"][:] = np.asarray(fill, np.uint8)
        for row, index in enumerate(indices):
            record = source[int(index)]
            high, wide = batch["sizes"][row] = record["labels"].shape
            batch["images"][row, :high, :wide] = record["images"]
            batch["labels"][row, :high, :wide] = record["labels"]
            batch["ids"][row] = record["id"]
        return batch

    return iter(grain.MapDataset.source(eval_plan(sizes, **how)).map(load).to_iter_dataset(_read_ahead()))


def _read_ahead() -> grain.ReadOptions:
    # Whole batches are read ahead, so a few suffice; more threads than cores gain nothing.
    threads = min(8, os.cpu_count() or 1)
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)


def _stack(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = [name for name, value in records[0].items() if isinstance(value, np.ndarray)]
    for name in names:
        shapes = {record[name].shape for record in records}
        if len(shapes) > 1:
            raise UserError(f"the {name} of a batch differ in size, {sorted(shapes)}: training needs a crop size.")
    arrays = {name: np.stack([record[name] for record in records]) for name in names}
    return {**arrays, "ids": [record["id"] for record in records]}
