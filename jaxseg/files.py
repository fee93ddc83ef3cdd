"""The files of a workdir, and writing that leaves them whole or not there."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

CONFIG = "config.json"
INFO = "info.json"  # the classes
RUN = "run.json"  # what is known of the run, how far it is, how fast it was
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
EVALUATIONS = "evaluations"
VAL_BEST = "val-best.json"  # in there, the best evaluation of training, whatever split it was of


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


def read_run(workdir: str | os.PathLike) -> dict[str, Any]:
    """What `RUN` tells of a run; {} where it is missing or damaged."""
    try:
        told = json.loads((pathlib.Path(workdir) / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}
