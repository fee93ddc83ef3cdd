"""The input pipeline alone: images a second, where an image's time goes, and PyTorch's DataLoader at the same work."""

import functools
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxseg import build
from jaxseg.benchmark.measure import machine, num_cores, ratio
from jaxseg.benchmark.peers import import_torch
from jaxseg.data import Dataset, transforms
from jaxseg.score import open_data
from jaxseg.step import create_mesh

SECONDS = 5.0  # of a figure, at least
AHEAD = 4  # batches a worker may have read ahead, which a figure must not begin with
ALONE = 64  # images that the shares are measured on


def measure(config: ConfigDict, *, rounds: int, against_torch: bool, log: Callable[[str], None]) -> dict[str, Any]:
    """Prints images a second of a config's training batches, and gives the figures.

    With `data.on_device` they are batches on the device. With `against_torch` a `torch.utils.data.DataLoader` does the
    same work beside it, in turns: the same records through the same augmentation, with the same number of worker
    processes. Where the config has none it gets as many as there are cores, at most two: it has no threads.
    """
    dataset = open_data(config)
    data, cores = config.data, num_cores()
    processes = {"jaxseg": data.workers}
    if against_torch:
        processes["PyTorch DataLoader"] = data.workers or min(2, cores)
    workers = ", ".join(f"{name} in {n or 'threads and no'} worker processes" for name, n in processes.items())
    size = "x".join(map(str, transforms.as_pair(data.crop_size)))
    log(f"{data.name}, batches of {data.batch_size} x {size}, {workers}; {machine()}")
    starts = {"jaxseg": lambda: build.train_batches(config, dataset, 0)}
    if data.on_device:
        images = build.open_resident(config, dataset, create_mesh(jax.devices()[:1]))
        log(f"{len(images.ids)} images are on the device, {images.nbytes / 2**20:.0f} MiB")
        places = functools.partial(build.train_batches, config, dataset, 0, images)
        starts["jaxseg"] = lambda: (jax.block_until_ready(images(batch)) for batch in places())
    if against_torch:
        starts["PyTorch DataLoader"] = lambda: _torch_batches(config, dataset, processes["PyTorch DataLoader"])
    rates: dict[str, list[float]] = {name: [] for name in starts}
    for _ in range(rounds):
        for name, start in starts.items():
            rates[name].append(_rate(start(), data.batch_size, AHEAD * max(1, processes[name])))
            gc.collect()  # workers of an iterator end with it
    shares = _shares(config, dataset)

    result = {"data": data.name, "batch": data.batch_size, "size": data.crop_size, "workers": processes}
    result |= {"mode": "input", "machine": machine(), "milliseconds_an_image": shares, "images_per_second": {}}
    log("\n| | images a second | a core |\n|---|---:|---:|")
    for name, values in rates.items():
        result["images_per_second"][name] = median = statistics.median(values)
        log(f"| {name} | {median:.1f} | {median / cores:.1f} |")
    if against_torch:
        seconds = {name: [1 / rate for rate in values] for name, values in rates.items()}
        median, least, most = ratio(seconds, *seconds)
        result["times_as_fast"] = {"median": median, "least": least, "most": most}
        log(f"\njaxseg is {median:.2f} times as fast ({least:.2f} to {most:.2f})")
    parts = ", ".join(f"{what} {spent:.2f} ms" for what, spent in shares.items())
    log(f"\nAn image, in one process: {parts}")
    return result


def _rate(batches: Iterator, batch_size: int, ahead: int) -> float:
    """Images a second once all that was read ahead is used up."""
    for _ in range(ahead):
        next(batches)
    started, count = time.perf_counter(), 0
    while count < ahead or time.perf_counter() - started < SECONDS:
        next(batches)
        count += 1
    return count * batch_size / (time.perf_counter() - started)


def _shares(config: ConfigDict, dataset: Dataset) -> dict[str, float]:
    """Milliseconds of an image in each stage, one after another in this process."""
    source, augment = dataset.source(dataset.train_split), build.augmentation(config)
    indices = np.random.default_rng(0).permutation(len(source))[:ALONE]
    started = time.perf_counter()
    records = [source[int(i)] for i in indices]
    decoded = time.perf_counter()
    augmented = [augment(record, np.random.default_rng(int(i))) for i, record in zip(indices, records, strict=True)]
    changed = time.perf_counter()
    for name in ("images", "labels"):
        np.stack([record[name] for record in augmented])
    stacked = time.perf_counter()
    spent = {"read and decode": decoded - started, "resize and augment": changed - decoded}
    return {what: 1000 * t / len(indices) for what, t in (spent | {"batch": stacked - changed}).items()}


class TorchDataset:
    """Augmented records by number, as a map-style data set."""

    def __init__(self, source, augment):
        self.source, self.augment = source, augment

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        record = self.augment(self.source[index], np.random.default_rng(index))
        return {name: record[name] for name in ("images", "labels")}


def _torch_batches(config: ConfigDict, dataset: Dataset, workers: int) -> Iterator:
    torch = import_torch()
    loader = torch.utils.data.DataLoader(
        TorchDataset(dataset.source(dataset.train_split), build.augmentation(config)),
        batch_size=config.data.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        multiprocessing_context="spawn",  # JAX's threads do not outlive a fork
        persistent_workers=True,
    )
    while True:
        yield from loader
