"""Prepared records, by index."""

import operator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jaxseg import forms
from jaxseg.data.headers import jpeg_orientation
from jaxseg.data.pictures import decode_trusted, turned
from jaxseg.files import NOTES


class RecordSource:
    """The records of one split in the order of its list.

    `source[i]` is `{'images': uint8 [H, W, 3] RGB, 'labels': uint8 [H, W], 'id': str}`. It pickles as its path and
    opens the files where it is first read, so that it can be sent to worker processes, and may be read from several
    threads.
    """

    def __init__(self, path: str, split: str, length: int):
        self.path, self.split = str(path), split
        self._length = length
        self._records = None

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        # Grain writes it into its iterators' state.
        return f"RecordSource({Path(self.path).parent.name}, {self.split}, {self._length})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_records": None}

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = operator.index(index)
        if not 0 <= index < self._length:
            raise IndexError(f"{self!r} has no record {index}")
        if self._records is None:
            # Records are small and read by many threads or processes at a time: OpenCV's own threads would only be in
            # their way. The setting is one of the whole process.
            cv2.setNumThreads(0)
            self._records = _open_records(self.path, self.split)
        record = self._records[index]
        return {
            "images": decode_image(record["images"]),
            "labels": cv2.imdecode(np.frombuffer(record["labels"], np.uint8), cv2.IMREAD_GRAYSCALE),
            "id": record["id"].decode(),
        }


def _open_records(path: str, split: str):
    import tensorflow_datasets as tfds

    # Decoding stays here: tfds would return colour images as BGR on some paths and cannot be told about EXIF.
    skip = {"images": tfds.decode.SkipDecoding(), "labels": tfds.decode.SkipDecoding()}
    return tfds.builder_from_directory(path).as_data_source(split, decoders=skip)


def decode_image(data: bytes) -> np.ndarray:
    """The JPEG or PNG bytes of a record as uint8 [H, W, 3] RGB; grey images have three equal channels.

    A JPEG is turned by its orientation, as `fitting.kept` left it there; a PNG in a record lies as it should.

    Raises:
      ValueError: OpenCV cannot decode it.
    """
    pixels = decode_trusted(data)
    orientation = jpeg_orientation(data)
    return turned(pixels, orientation) if orientation > 1 else pixels


def read_sizes(path: str) -> dict[str, np.ndarray]:
    """int32 [N, 2] for every split of a prepared data set: its images' heights and widths, as noted while preparing."""
    return {split: np.array(rows, np.int32).reshape(-1, 2) for split, rows in read_notes(path)["sizes"].items()}


def read_notes(path: str) -> dict[str, Any]:
    """What was noted while a data set was prepared: of each split `sizes`, `contents`, a hash of all its records, and
    `pixels`, int [2, 256]: each label's, and those of any class in the images that it is in; and of all `remarks`,
    lines on images that are turned, dark or transparent.
    """
    return forms.read_json(Path(path) / NOTES, forms.FORMS[NOTES])
