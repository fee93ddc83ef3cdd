"""Preparing: a recipe's images and labels become ArrayRecord files, written by TensorFlow Datasets.

TensorFlow is not needed for it and must not be loaded: image features are given encoded bytes (arrays would be encoded
by TensorFlow), this module lies in a package, and the `DatasetInfo` is made directly. Only for a split of more than a
gigabyte tfds takes it, for the files that the records are put in order in.
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import itertools
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.shuffle import HKEY_SIZE

from jaxseg import forms
from jaxseg.data.fitting import check_orientation, remarks
from jaxseg.data.layout import data_root
from jaxseg.data.progress import bar, counted, say
from jaxseg.data.recipe import Recipe, check_labels, encode_labels
from jaxseg.data.source import decode_image
from jaxseg.errors import UserError
from jaxseg.files import NOTES

_AHEAD = 64


class SegmentationRecords(tfds.core.GeneratorBasedBuilder):
    """The builder of every data set: what differs between them is the recipe."""

    name = "jaxseg"
    # To be raised when records or metadata change their form: everything is then prepared anew.
    VERSION = tfds.core.Version("1.2.0")
    # tfds would look beside this file for checksums of downloads, by way of a package it does not declare.
    code_path = None

    def __init__(self, recipe: Recipe, root: Path, counter=None):
        self._recipe, self._counter = recipe, counter
        # Of each split, see `source.read_notes`; filled while the records are written.
        self._notes: dict[str, dict[str, Any]] = {"sizes": {}, "contents": {}, "pixels": {}}
        self._remarks: list[str] = []
        config = tfds.core.BuilderConfig(name=_config_name(recipe))
        super().__init__(data_dir=str(root), config=config, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Images and labels of {self._recipe.key}.",
            features=tfds.features.FeaturesDict(
                {
                    "images": tfds.features.Image(shape=(None, None, 3)),
                    "labels": tfds.features.Image(shape=(None, None, 1)),
                    "id": tfds.features.Text(),
                }
            ),
            metadata=tfds.core.MetadataDict(
                origin=self._recipe.origin, key=self._recipe.key, remarks=self._remarks, **self._notes
            ),
            # The records keep the order of the lists.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in self._recipe.splits()}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        sizes, content, pixels = [], hashlib.sha256(), np.zeros((2, 256), np.int64)
        items = self._recipe.splits()[split]
        records = _read_ahead(self._recipe, items)
        # tfds sorts a large split by thousandths of the range of keys, each of them in memory: neighbours 0, 1, 2 would
        # all come into the first.
        distance = 2**HKEY_SIZE // max(1, len(items))
        for index, (name, image, labels, size, digest, of_image) in enumerate(counted(records, self._counter)):
            sizes.append(size)
            content.update(digest)
            pixels += [of_image, (of_image > 0) * np.delete(of_image, self._recipe.info.ignore_label).sum()]
            yield index * distance, {"images": io.BytesIO(image), "labels": io.BytesIO(labels), "id": name}
        noted = {"sizes": sizes, "contents": content.hexdigest()[:12], "pixels": pixels.tolist()}
        for name, value in noted.items():
            self._notes[name][split] = value
        check_orientation(self._recipe.facts, self._recipe.orientation)
        self._remarks[:] = remarks(self._recipe.facts)


def _read_ahead(recipe: Recipe, items: Sequence[Any]) -> Iterator[tuple]:
    """Of each item its name, image and labels, both encoded, size, a hash of these, and its pixels of each label."""

    def read(item):
        name, image, labels = recipe.read(item)
        check_labels(labels, recipe.info, str(getattr(item, "labels", name)))
        try:
            size = decode_image(image).shape[:2]
            if size != labels.shape:
                raise ValueError(
                    f"OpenCV reads it as {size[0]}x{size[1]} instead of {labels.shape[0]}x{labels.shape[1]}"
                )
        except ValueError as error:
            raise UserError(f"cannot use {getattr(item, 'image', name)}: {error}; save it anew.") from error
        # Of the labels as they are, not of what one version of OpenCV makes of them.
        digest = hashlib.sha256(b"\0".join((name.encode(), image, labels.tobytes()))).digest()
        return name, image, encode_labels(labels), size, digest, np.bincount(labels.ravel(), minlength=256)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        todo = iter(items)
        while chunk := list(itertools.islice(todo, _AHEAD)):
            yield from pool.map(read, chunk)


def _config_name(recipe: Recipe) -> str:
    return "-".join(filter(None, (recipe.key, recipe.orientation, recipe.fingerprint)))


def prepared_at(recipe: Recipe) -> Path:
    """The folder of the records of `recipe`, whether they are there or not."""
    # What tfds makes of a builder's name, its config's name and its version.
    folder = _config_name(recipe)
    return data_root() / SegmentationRecords.name / folder / str(SegmentationRecords.VERSION)


def prepare(recipe: Recipe, progress: bool) -> Path:
    """Writes the records of `recipe` unless they are there; returns their folder.

    The folder gets its name only when everything is written, so one that has the name is complete. Processes that
    start together wait for the one that prepares.

    Raises:
      UserError: the data is not as it should be, or the folder cannot be written.
    """
    root, path = data_root(), prepared_at(recipe)
    if path.is_dir():
        return path
    try:
        with _locked(path.parent.with_name(f"{path.parent.name}.lock"), progress):
            if not path.is_dir():
                _write(recipe, root, path, progress)
    except (OSError, RuntimeError) as error:
        # What writes the records knows one kind of error alone.
        full = error.errno == errno.ENOSPC if isinstance(error, OSError) else shutil.disk_usage(root).free < 2**24
        if not full and not isinstance(error, OSError):
            raise
        why = "the disk is full" if full else error.strerror or error
        raise UserError(
            f"cannot write the prepared data of {recipe.key} to {path}: {why}. Set the environment variable "
            "TFDS_DATA_DIR to a folder that can be written and has room."
        ) from error
    return path


def _write(recipe: Recipe, root: Path, path: Path, progress: bool) -> None:
    splits = recipe.splits()
    total = sum(len(items) for items in splits.values())
    older = _same_origin(recipe, path)
    if older:
        say(
            f"{recipe.origin} has changed since it was prepared in {older}, which can be removed: preparing it anew",
            progress,
        )
    say(f"preparing {recipe.key}: {total} images of {recipe.origin} to {path}", progress)
    # Whoever holds the lock is the only writer: these are what an interrupted preparation left.
    for left in path.parent.glob("incomplete.*"):
        shutil.rmtree(left)
    start = time.monotonic()
    with bar(total, f"preparing {recipe.key}", " images", progress) as counter, _quiet_tfds():
        SegmentationRecords(recipe, root, counter).download_and_prepare(file_format="array_record")
    sizes = ", ".join(f"{name} {len(items)}" for name, items in splits.items())
    say(f"prepared {recipe.key} in {time.monotonic() - start:.0f} s: {sizes}", progress)


def _same_origin(recipe: Recipe, path: Path) -> Path | None:
    for notes in path.parent.parent.glob(f"{recipe.key}-*/{path.name}/{NOTES}"):
        with contextlib.suppress(OSError, UserError):
            noted = forms.read_json(notes, forms.FORMS[NOTES])
            if (noted.get("key"), noted.get("origin")) == (recipe.key, recipe.origin):
                return notes.parent
    return None


@contextlib.contextmanager
def _locked(path: Path, progress: bool) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that prepares {path.stem}", progress)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        # It prints two paragraphs in bold about sizes it does not know.
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logger.setLevel(level)
