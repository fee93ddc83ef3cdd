"""Prepared records, by index."""

import json
import operator
from pathlib import Path
from typing import Any

import cv2
import numpy as np


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
    """JPEG or PNG bytes as uint8 [H, W, 3] RGB; grey images have three equal channels.

    The EXIF orientation is not applied: the mask was drawn on the pixels as they lie in the file.

    Raises:
      ValueError: OpenCV cannot decode it.
    """
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise ValueError("OpenCV cannot decode the image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def read_sizes(path: str) -> dict[str, np.ndarray]:
    """int32 [N, 2] for every split of a prepared data set: its images' heights and widths, as noted while preparing."""
    return {split: np.array(rows, np.int32).reshape(-1, 2) for split, rows in read_notes(path)["sizes"].items()}


def read_notes(path: str) -> dict[str, Any]:
    """What was noted while a data set was prepared: of each split `sizes`, `contents`, a hash of all its records, and
    `pixels`, int [2, 256]: each label's, and those of any class in the images that it is in.
    """
    return json.loads((Path(path) / "metadata.json").read_text())
