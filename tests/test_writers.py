import importlib.util
import io
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from jaxseg import writers
from jaxseg.errors import UserError
from jaxseg.writers import open_writers, read_metrics


@pytest.fixture
def no_events(monkeypatch):
    """Opens writers without TensorFlow, whose import takes seconds."""

    class Nothing:
        def __getattr__(self, name):
            return lambda *arguments: None

    monkeypatch.setattr(writers, "_event_writer", lambda directory: Nothing())


def _need_tensorflow():
    # Looked for, not imported: its import must be the writer's own, which keeps it quiet.
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("TensorFlow is not installed")


def _terminal(monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_metrics_are_lines_of_json(tmp_path, no_events):
    path = tmp_path / "run" / "metrics.jsonl"
    with open_writers(tmp_path / "run", num_steps=20, resume_step=0) as run:
        run.scalars(10, {"train/loss": np.float32(0.5), "lr": 1e-3})
        assert json.loads(path.read_text()) == {"step": 10, "train/loss": 0.5, "lr": 0.001}
        run.scalars(20, {"val/mean_iou": 0.25})
    assert [list(row) for row in read_metrics(path)] == [["step", "train/loss", "lr"], ["step", "val/mean_iou"]]


def test_nan_and_infinity_are_null(tmp_path, no_events):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    with open_writers(tmp_path, num_steps=20, resume_step=0) as run:
        run.scalars(10, {"a": math.nan, "b": math.inf, "c": np.float32("-inf"), "d": 1})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=refuse) == {"step": 10, "a": None, "b": None, "c": None, "d": 1.0}
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(row["a"]) and row["d"] == 1


@pytest.mark.parametrize(
    ("resume_step", "kept"), [(0, []), (15, [0, 10]), (20, [0, 10, 20, 20]), (99, [0, 10, 20, 20, 30])]
)
def test_resuming_cuts_later_and_half_lines(tmp_path, no_events, resume_step, kept):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 0}, {"step": 10, "a": 1.0}, {"step": 20, "a": 2.0}, {"step": 20, "b": None}, {"step": 30}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 12, "a"')
    with open_writers(tmp_path, num_steps=100, resume_step=resume_step) as run:
        run.scalars(resume_step + 1, {"a": 4.0})
    assert [row["step"] for row in read_metrics(path)] == [*kept, resume_step + 1]
    assert path.read_text().count("\n") == len(kept) + 1
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))


def test_half_a_last_line_is_skipped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "a": 1.0}\n{"step": 20, "a": 2.')
    assert read_metrics(path) == [{"step": 10, "a": 1.0}]
    path.write_text('{"step": 10, "a": \n{"step": 20, "a": 2.0}\n')
    with pytest.raises(UserError, match="line 1 of"):
        read_metrics(path)


def test_events_read_back(tmp_path):
    _need_tensorflow()
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2
    from tensorboard.util.tensor_util import make_ndarray

    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    lines = []
    with open_writers(tmp_path, num_steps=20, resume_step=0, log=lines.append) as run:
        run.hparams({"optim.lr": 0.1, "model": "unet", "size": (64, 64), "seed": 3, "flip": True, "path": None})
        run.scalars(10, {"train/loss": 0.5})
        run.scalars(20, {"train/loss": math.nan})
        run.images(20, {"val/predictions": picture})
        run.text(0, {"config": "**lr** 0.1"})
        run.flush()
        events = EventAccumulator(str(tmp_path / "events"), size_guidance={"tensors": 0}).Reload()
        assert make_ndarray(events.Tensors("train/loss")[0].tensor_proto) == 0.5
    assert lines == []

    assert [event.step for event in events.Tensors("train/loss")] == [10, 20]
    assert events.Tensors("config")[0].tensor_proto.string_val[0] == b"**lr** 0.1"
    (event,) = events.Tensors("val/predictions")
    width, height, png = event.tensor_proto.string_val
    assert (event.step, width, height) == (20, b"30", b"20")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), picture)
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    read = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert read["optim.lr"].number_value == 0.1
    assert read["model"].string_value == "unet"
    assert read["size"].string_value == "(64, 64)"
    assert read["flip"].bool_value is True


WITHOUT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == MISSING:
            raise ERROR

sys.meta_path.insert(0, Refuse())
import numpy as np
from jaxseg.writers import open_writers

with open_writers(sys.argv[1], num_steps=20, resume_step=0) as run:
    run.scalars(10, {"loss": 0.5})
    run.images(10, {"a": np.zeros((4, 4, 3), np.uint8)})
    run.text(10, {"a": "b"})
    run.hparams({"a": 1})
    run.flush()
"""


@pytest.mark.parametrize(
    ("missing", "error", "reason"),
    [
        ("tensorflow", "ModuleNotFoundError('no', name=name)", "TensorFlow is missing (pip install tensorflow-cpu)"),
        ("tensorflow", "TypeError('Descriptors cannot be created')", "TypeError: Descriptors cannot be created"),
        ("clu", "ModuleNotFoundError('no', name=name)", "clu is missing (pip install clu)"),
    ],
)
def test_all_but_events_goes_on_without(tmp_path, missing, error, reason):
    if missing == "clu":
        _need_tensorflow()
    program = WITHOUT.replace("MISSING", repr(missing)).replace("ERROR", error)
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"no TensorBoard events: {reason}; metrics.jsonl and figures go on"]
    assert done.stderr == ""
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 10, "loss": 0.5}]
    assert not (tmp_path / "events").exists()


def test_events_that_fail_later_are_told_once(tmp_path, monkeypatch):
    class Full:
        def write_scalars(self, step, values):
            raise OSError("disk full")

    monkeypatch.setattr(writers, "_event_writer", lambda directory: Full())
    lines = []
    with open_writers(tmp_path, num_steps=20, resume_step=0, log=lines.append) as run:
        run.scalars(1, {"a": 1.0})
        run.scalars(2, {"a": 1.0})
    assert lines == ["no more TensorBoard events: OSError: disk full; metrics.jsonl and figures go on"]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2


def test_tensorflow_is_imported_only_when_a_writer_is_opened():
    program = """
import sys
import jaxseg.writers
jaxseg.writers.open_writers("unused", num_steps=1, resume_step=0, enabled=False).close()
print(sorted({"tensorflow", "clu", "jax", "tensorboard"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_pictures_are_checked_where_they_are_given(tmp_path, no_events):
    with open_writers(tmp_path, num_steps=20, resume_step=0) as run:
        for picture in (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((1, 4, 4, 3), np.uint8)):
            with pytest.raises(ValueError, match=r"'a' is .* due is uint8"):
                run.images(1, {"a": picture})


def test_plain_lines_where_there_is_no_terminal(tmp_path, no_events, monkeypatch):
    clock = iter([0.0, 50.0, 100.0, 400.0])
    monkeypatch.setattr(writers.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    lines = []
    with open_writers(tmp_path, num_steps=900, resume_step=0, log=lines.append) as run:
        run.progress(100, loss=1.2341, lr=1e-3, images_per_second=35.21)
        run.message("checkpoint")
        run.progress(300, loss=1.0, lr=1e-3, images_per_second=35.0)
        run.progress(500, loss=1.0, images_per_second=35.0)
        run.progress(900, loss=0.5, lr=0, images_per_second=35.0)
    assert lines == [
        "step 100/900  loss 1.234  lr 1.0e-03  35.2 images/s",
        "checkpoint",
        "step 300/900  loss 1.000  lr 1.0e-03  35.0 images/s  2 min 30 s left",
        "step 500/900  loss 1.000  35.0 images/s  1 min 40 s left",
        "step 900/900  loss 0.500  lr 0.0e+00  35.0 images/s",
    ]
    assert sys.stderr.getvalue() == ""


def test_bar_on_a_terminal(tmp_path, no_events, monkeypatch):
    stream = _terminal(monkeypatch)
    lines = []
    with open_writers(tmp_path, num_steps=900, resume_step=300, log=lines.append) as run:
        run.progress(450, loss=1.234, lr=1e-3, images_per_second=35.2)
        run.message("checkpoint")
    shown = stream.getvalue()
    assert lines == ["checkpoint"]
    assert "step 300/900" in shown
    assert " 50%" in shown and "step 450/900, loss 1.234  lr 1.0e-03  35.2 images/s" in shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3720, "1 h 02 min")]
)
def test_durations(seconds, text):
    assert writers.duration(seconds) == text


def test_disabled_writes_nothing(tmp_path, monkeypatch):
    stream = _terminal(monkeypatch)
    lines = []
    with open_writers(tmp_path / "run", num_steps=9, resume_step=0, log=lines.append, enabled=False) as run:
        run.scalars(1, {"a": 1.0})
        run.images(1, {"a": np.zeros((4, 4, 3), np.uint8)})
        run.text(1, {"a": "b"})
        run.hparams({"a": 1})
        run.progress(1, loss=1.0, images_per_second=1.0)
        run.message("text")
        run.flush()
    assert not lines and not stream.getvalue() and not (tmp_path / "run").exists()


def test_closing_twice(tmp_path, no_events):
    run = open_writers(tmp_path, num_steps=9, resume_step=0)
    run.close()
    run.close()
    run.flush()


def test_real_and_empty_writers_have_the_same_calls():
    def calls(kind):
        return {name for name, value in vars(kind).items() if callable(value) and not name.startswith("_")}

    assert calls(writers.Writers) == calls(writers._FileWriters)
