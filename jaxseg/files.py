"""The files of a workdir, and writing that leaves them whole or not there."""

import contextlib
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import BinaryIO

from jaxseg.errors import UserError, shown

CONFIG = "config.json"
INFO = "info.json"  # the classes
RUN = "run.json"  # what is known of the run, how far it is, how fast it was
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
EVALUATIONS = "evaluations"
NOTES = "metadata.json"  # beside prepared data, under the name that tfds gives it


def evaluation(split: str, checkpoint: str, *others: str) -> str:
    """The name of a file in `EVALUATIONS`: `test-best.json`, which training writes too, `val-latest-PROTOCOL.json`."""
    return "-".join([split, checkpoint, *others]) + ".json"


def score_key(split: str, score: str) -> str:
    """The name of a score of a split in rows of metrics and TensorBoard: `test/mean_iou`.

    `train/loss` is the mean loss of steps, in the rows of training; where the training split is scored, its loss is
    `train/split_loss`.
    """
    return f"{split}/{'split_loss' if (split, score) == ('train', 'loss') else score}"


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """A regular file, or a link to one, opened to be read.

    Nothing else is opened, anywhere: a FIFO, a socket or a device (`/dev/random`) blocks or never ends.

    Raises:
      UserError: `path` is something else, or can't be opened.
    """
    try:
        # Without O_NONBLOCK the opening of a FIFO waits for whoever writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"cannot read {shown(path)}: {error.strerror or error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"cannot read {shown(path)}: it is no regular file; give a file or a link to one")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: str | os.PathLike, *, most: int) -> bytes:
    """All bytes of a regular file of at most `most` bytes.

    Raises:
      UserError: it is no regular file, is larger, or can't be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise UserError(f"{shown(path)} has {size:,} bytes; at most {most:,} are read")
        try:
            return file.read()
        except OSError as error:
            raise UserError(f"cannot read {shown(path)}: {error.strerror or error}") from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A name beside `path` to write to, which takes `path`'s place at the end and is deleted after an error."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        # Where the folder can't be reached either, the error that is on its way says so.
        with contextlib.suppress(OSError):
            temporary.unlink()
