"""What a run writes while it goes: metrics.jsonl, TensorBoard events and a line or a bar of progress.

TensorFlow, which TensorBoard's event files are written with, takes seconds to import. It is imported on a thread of its
own when a writer is opened, and every call for an event file waits in that thread's queue, so that no step waits. Where
it is missing, all but the event files goes on.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxseg import forms
from jaxseg.errors import UserError, printable, shown
from jaxseg.files import METRICS, read_bytes, replacing
from jaxseg.streams import print_line

EVENTS = "events"
PACKAGES = {"tensorflow": ("TensorFlow", "tensorflow-cpu"), "tensorboard": ("TensorBoard", "tensorboard")}
Log = Callable[[str], object]


def read_metrics(path: str | os.PathLike) -> list[dict[str, float]]:
    """The rows of a `metrics.jsonl`: `step` and the values written at it; null reads as NaN.

    A half-written last line, which a killed run leaves behind, is skipped.

    Raises:
      UserError: another line is not a row, see `forms.FORMS`; or the file is no regular one or too large.
      FileNotFoundError: there is no such file.
    """
    rows = []
    for number, line in enumerate(_lines(path), 1):
        if not line.endswith(b"\n") and _row(line) is None:
            break
        row = forms.parse(line, forms.FORMS[METRICS], f"line {number} of {os.fspath(path)}")
        rows.append({key: math.nan if value is None else value for key, value in row.items()})
    return rows


def _lines(path: str | os.PathLike) -> list[bytes]:
    if not os.path.lexists(path):
        raise FileNotFoundError(f"there is no {shown(path)}")
    return read_bytes(path, most=forms.FORMS[METRICS].most).splitlines(keepends=True)


def _row(line: bytes) -> dict | None:
    try:
        return forms.parse(line, forms.FORMS[METRICS], METRICS)
    except UserError:
        return None


def _cut(path: Path, last_step: int, scored_step: int) -> int:
    """Leaves the whole rows up to `last_step` in the file, scores up to `scored_step`; none where `last_step` is 0.

    Lines that are no rows go, too; how many of them there were, a half-written last one not counted.
    """
    if not os.path.lexists(path):
        return 0
    lines = _lines(path) if last_step else []
    rows = [(line, _row(line)) for line in lines]
    kept = [
        line.rstrip(b"\r\n") + b"\n"
        for line, row in rows
        if row is not None and row["step"] <= (scored_step if is_evaluation(row) else last_step)
    ]
    with replacing(path) as temporary:
        temporary.write_bytes(b"".join(kept))
    return sum(row is None and line.endswith(b"\n") for line, row in rows)


def is_evaluation(row: Mapping[str, float]) -> bool:
    """Whether a row of metrics has the scores of a split; those of training have a learning rate, or their loss."""
    return "train/learning_rate" not in row and "train/loss" not in row


def scored_split(rows: Iterable[Mapping[str, float]]) -> str:
    """The split whose scores are in the last row that has any; '' where none has."""
    found = [name.partition("/")[0] for row in rows for name in row if name.endswith("/mean_iou")]
    return found[-1] if found else ""


def duration(seconds: float) -> str:
    """`12 s`, `3 min 05 s` or `2 h 10 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def _event_writer(directory: Path):
    """clu's writer of event files; TensorFlow is kept quiet and off the GPU, all of whose memory it would take."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Its notice about oneDNN is logged at any level.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    from clu.metric_writers import SummaryWriter

    return SummaryWriter(str(directory))


def _tagged(values: Mapping[str, Any]) -> dict[str, Any]:
    """For an event file: names as they can be shown, two that are shown alike with numbers behind."""
    tagged: dict[str, Any] = {}
    for name, value in values.items():
        tag, number = shown(name), 2
        while tag in tagged:
            tag, number = f"{shown(name)} ({number})", number + 1
        tagged[tag] = value
    return tagged


def _reason(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and "." not in error.name:
        name, package = PACKAGES.get(error.name, (error.name, error.name))
        return f"{name} is missing (pip install {package})"
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


class Writers:
    """What a process that writes nothing gets: every call does nothing. `open_writers` gives process 0 a real one."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a line to metrics.jsonl, NaN and infinity as null, and adds the values to the event file."""

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Adds pictures, uint8 [h, w, 3], to the event file.

        Raises:
          ValueError: a picture is not uint8 [h, w, 3].
        """

    def text(self, step: int, texts: Mapping[str, str]) -> None:
        """Adds texts, read as Markdown by TensorBoard, to the event file."""

    def hparams(self, values: Mapping[str, object]) -> None:
        """Adds the settings of the run, a flat dict, to the event file; what is no number, bool or str as its str."""

    def overview(self, variables: Mapping) -> None:
        """Adds a table of the model's variables, their shapes and their spread, to the event file."""

    def progress(self, step: int, *, loss: float, images_per_second: float, lr: float | None = None) -> None:
        """Moves the bar to `step` on a terminal, and logs a line elsewhere, with the time left."""

    def message(self, text: str) -> None:
        """Logs a line, above the bar where there is one."""

    def flush(self) -> None:
        """Waits until all that was given so far is in the files."""

    def close(self) -> None:
        """Flushes, and closes files and bar; may be called twice."""

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


class _FileWriters(Writers):
    def __init__(self, workdir: Path, num_steps: int, resume_step: int, scored_step: int, log: Log):
        workdir.mkdir(parents=True, exist_ok=True)
        self._log = log
        if dropped := _cut(workdir / METRICS, resume_step, scored_step):
            log(f"{dropped} lines of {workdir / METRICS} are no rows of metrics and are dropped")
        self._metrics = open(workdir / METRICS, "a", encoding="utf-8")  # noqa: SIM115
        self._num_steps = num_steps
        self._start: tuple[int, float] | None = None
        self._bar = None
        if sys.stderr is not None and sys.stderr.isatty():
            layout = "{percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt}{postfix}"
            self._bar = tqdm(total=num_steps, initial=resume_step, file=sys.stderr, bar_format=layout)
        self._events = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="events")
        self._last: Future = self._thread.submit(self._open_events, workdir / EVENTS)

    def _open_events(self, directory: Path) -> None:
        try:
            self._events = _event_writer(directory)
        except Exception as error:  # a broken TensorFlow fails in many ways, and none of them should end a run
            self.message(f"no TensorBoard events: {_reason(error)}; {METRICS} and figures go on")

    def _event(self, method: str, *arguments) -> None:
        self._last = self._thread.submit(self._write_event, method, *arguments)

    def _write_event(self, method: str, *arguments) -> None:
        if self._events is None:
            return
        try:
            getattr(self._events, method)(*arguments)
        except Exception as error:
            self._events = None
            self.message(f"no more TensorBoard events: {_reason(error)}; {METRICS} and figures go on")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        values = {name: float(value) for name, value in values.items()}
        row = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._metrics.write(json.dumps({"step": int(step), **row}, allow_nan=False) + "\n")
        self._metrics.flush()
        self._event("write_scalars", step, _tagged(values))

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        for name, image in images.items():
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(f"picture '{name}' is {image.dtype} {list(image.shape)}, due is uint8 [h, w, 3]")
        self._event("write_images", step, _tagged(images))

    def text(self, step: int, texts: Mapping[str, str]) -> None:
        self._event("write_texts", step, _tagged({name: printable(text) for name, text in texts.items()}))

    def hparams(self, values: Mapping[str, object]) -> None:
        plain = {name: v if isinstance(v, bool | int | float) else shown(v) for name, v in values.items()}
        self._event("write_hparams", _tagged(plain))

    def overview(self, variables: Mapping) -> None:
        import jax

        # Copied now: by the time the thread comes to it, a training step may have taken the buffers over.
        arrays = jax.tree.map(np.array, dict(variables))
        self._last = self._thread.submit(self._write_overview, arrays)

    def _write_overview(self, variables: Mapping) -> None:
        if self._events is None:
            return
        from clu.parameter_overview import get_parameter_overview

        table = get_parameter_overview(variables)
        self._write_event("write_texts", 0, {"parameters": f"```\n{table}\n```"})

    def progress(self, step: int, *, loss: float, images_per_second: float, lr: float | None = None) -> None:
        parts = [f"loss {loss:.3f}"]
        if lr is not None:
            parts.append(f"lr {lr:.1e}")
        parts.append(f"{images_per_second:.1f} images/s")
        now = time.monotonic()
        # The steps before the first call hold the compilation and say nothing about the time left.
        if self._start is None:
            self._start = (step, now)
        first_step, first_time = self._start
        if first_step < step < self._num_steps:
            left = (now - first_time) / (step - first_step) * (self._num_steps - step)
            parts.append(f"{duration(left)} left")
        if self._bar is None:
            self._log("  ".join([f"step {step}/{self._num_steps}", *parts]))
            return
        self._bar.set_postfix_str("  ".join(parts), refresh=False)
        self._bar.n = step
        self._bar.refresh()

    def message(self, text: str) -> None:
        if self._bar is None:
            self._log(text)
            return
        with tqdm.external_write_mode():
            self._log(text)

    def flush(self) -> None:
        if self._metrics.closed:
            return
        self._event("flush")
        self._last.result()

    def close(self) -> None:
        if self._metrics.closed:
            return
        self._event("close")
        self._thread.shutdown(wait=True)
        self._metrics.close()
        if self._bar is not None:
            self._bar.close()


def open_writers(
    workdir: str | os.PathLike,
    *,
    num_steps: int,
    resume_step: int,
    scored_step: int | None = None,
    log: Log = print_line,
    enabled: bool = True,
) -> Writers:
    """Opens WORKDIR/metrics.jsonl and event files in WORKDIR/events; use it as a context manager.

    Args:
      workdir: the folder of the run; made where it is missing.
      num_steps: the step that the run ends at.
      resume_step: the step that the run goes on from. Lines of metrics.jsonl that are later, or half written, are cut
        off; at 0 the file starts empty.
      scored_step: the last step whose scores stay, where that is before `resume_step`: those of a later one will come
        again.
      log: is called with each line of text.
      enabled: whether this process writes; the others get a writer that does nothing.
    """
    if not enabled:
        return Writers()
    scored_step = resume_step if scored_step is None else scored_step
    return _FileWriters(Path(workdir), num_steps, resume_step, scored_step, log)
