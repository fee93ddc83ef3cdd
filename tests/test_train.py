"""Runs: what they leave behind, what each field of a config changes, and going on after any kind of end."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import time

import cv2
import jax
import numpy as np
import pytest
from helpers import TIMES, assert_same_run, at_step, flags_of, rows, saved, seal_again, steps, use

import jaxseg
from jaxseg import checkpoint, score
from jaxseg import config as configs
from jaxseg.compare import runs
from jaxseg.data import data_info
from jaxseg.errors import UserError
from jaxseg.models.layers import onednn
from jaxseg.process import Interrupted
from jaxseg.score import eval_run
from jaxseg.state import init_variables
from jaxseg.train import train

pytest_plugins = ["tiny_runs"]

CLASSES = data_info("camvid").class_names


def scored(workdir):
    return {row["step"]: row["val/mean_iou"] for row in rows(workdir) if "val/mean_iou" in row}


def logged(workdir):
    return [row["step"] for row in rows(workdir) if "train/loss" in row]


def contents(workdir):
    """A hash of every file but the events: every start opens a new file of those."""
    files = (path for path in sorted(workdir.rglob("*")) if path.is_file() and "events" not in path.parts)
    return {str(path.relative_to(workdir)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def signal_this(number):
    return lambda: os.kill(os.getpid(), number)


def crash():
    raise RuntimeError("the machine went away")


# ---------------------------------------------------------------------------------------------------- an unbroken run


def test_a_run_writes_its_config(finished, workplace):
    due = json.loads(json.dumps(workplace.config().to_dict()))  # tuples become lists
    due["data"] |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}  # left open in the config
    due["eval"]["multiple"] = 32  # likewise
    assert json.loads((finished / "config.json").read_text()) == due


def test_a_run_writes_its_classes(finished):
    assert (finished / "info.json").read_text() == data_info("camvid").to_json()


def test_rows_of_training_come_when_due_with_all_their_values(finished):
    written = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert logged(finished) == [2, 4, 6, 8, 10, 12]
    for row in written:
        if "train/loss" in row:
            assert set(row) == {"step", "train/loss", "train/learning_rate", *TIMES}
            assert row["train/loss"] > 0 and row["train/images_per_second"] > 0
            assert row["train/images_per_second"] == pytest.approx(2 * row["train/steps_per_second"])


def test_rows_of_evaluation_come_when_due_with_all_their_values(finished):
    evaluations = [row for row in rows(finished) if "train/loss" not in row]
    assert [row["step"] for row in evaluations] == [4, 8, 12]
    for row in evaluations:
        assert {"val/loss", "val/mean_iou", "val/pixel_accuracy", "val/mean_dice", "val/absent_classes"} <= set(row)
        assert {f"val/iou/{name}" for name in CLASSES} <= set(row)
        present = [row[f"val/iou/{name}"] for name in CLASSES if row[f"val/iou/{name}"] is not None]
        assert len(present) == len(CLASSES) - row["val/absent_classes"] < len(CLASSES)
        assert row["val/mean_iou"] == pytest.approx(np.mean(present))
        assert row["val/pixels"] == 3 * (48 - 6) * 64  # the strip of void does not count


def test_the_learning_rate_of_a_row_is_that_of_its_step(finished):
    for row in rows(finished):
        if "train/learning_rate" in row:
            # The first step is taken with the schedule at 0.
            due = 0.05 * (1 - (row["step"] - 1) / 12) ** 0.9
            assert row["train/learning_rate"] == pytest.approx(due, rel=1e-5)


def test_best_is_the_best_row(finished):
    scores = scored(finished)
    best = max(scores, key=scores.get)
    assert best != 12, "the test needs a run whose last score is not its best"
    assert steps(finished, "best") == [best] and steps(finished, "latest") == [12]
    progress = saved(finished, "best")["progress"]
    assert (progress["best_step"], progress["best_score"], progress["evaluated"]) == (best, scores[best], best)


def test_pictures_curves_and_events_are_written(finished):
    names = [f"step_{step:07d}.png" for step in (4, 8, 12)]
    assert sorted(path.name for path in (finished / "figures").iterdir()) == names
    for path in [*(finished / "figures").iterdir(), finished / "curves.png"]:
        assert cv2.imread(str(path)).std() > 0
    (events,) = (finished / "events").iterdir()
    for name in ("train/loss", "val/mean_iou", "val/iou/sky", "val/predictions", "config", "parameters"):
        assert name.encode() in events.read_bytes()


def test_nothing_half_written_is_left(finished):
    assert [path for path in finished.rglob("*") if ".tmp" in path.name or "orbax-checkpoint-tmp" in path.name] == []
    assert sorted(path.name for path in finished.iterdir()) == [
        *("B2SUMS", "checkpoints", "config.json", "curves.png", "evaluations", "events", "figures", "info.json"),
        *("metrics.jsonl", "run.json"),
    ]


# ------------------------------------------------------------------------------------------------- the split's own name


@pytest.mark.parametrize("split", ["test", "train"])
def test_scores_carry_the_name_of_their_split_everywhere(split, workplace, monkeypatch, tmp_path):
    lines = []
    use(workplace, monkeypatch, events=True)
    train(workplace.config(eval__split=split, train__num_steps=4), tmp_path, log=lines.append)
    evaluations = [row for row in rows(tmp_path) if "train/learning_rate" not in row]
    assert [row["step"] for row in evaluations] == [4]
    assert {name.partition("/")[0] for name in evaluations[0]} == {"step", split}
    # The mean loss of steps is called train/loss.
    loss = "train/split_loss" if split == "train" else "test/loss"
    assert {loss, f"{split}/mean_iou", f"{split}/iou/sky"} <= evaluations[0].keys()
    assert [path.name for path in (tmp_path / "evaluations").iterdir()] == [f"{split}-best.json"]
    assert json.loads((tmp_path / "evaluations" / f"{split}-best.json").read_text())["split"] == split
    assert told(tmp_path)["split"] == split
    assert any(line.startswith(f"step 4: {split} mean IoU") for line in lines) and f" on {split} " in lines[-1]
    assert not any("val" in line.split() for line in lines[-2:])
    events = b"".join(path.read_bytes() for path in (tmp_path / "events").iterdir())
    assert f"{split}/mean_iou".encode() in events and f"{split}/predictions".encode() in events
    assert b"val/" not in events
    [row] = runs.rows(runs.group(runs.read_runs([tmp_path])[0]))
    assert (row.split, row.group.eval_split) == (split, split)
    assert row.mean("mean_iou") == evaluations[0][f"{split}/mean_iou"]


def test_another_split_that_is_scored_later_leaves_the_record_of_the_first(tiny, tmp_path):
    train(tiny.config(eval__split="test", train__num_steps=4), tmp_path, log=lambda line: None)
    before = (tmp_path / "evaluations" / "test-best.json").read_bytes()
    scores = eval_run(tmp_path, split="val", log=lambda line: None)
    assert (tmp_path / "evaluations" / "test-best.json").read_bytes() == before
    after = json.loads((tmp_path / "evaluations" / "val-best.json").read_text())
    assert after["split"] == "val" and after["scores"]["mean_iou"] == scores["val/mean_iou"]
    found = runs.rows(runs.group(runs.read_runs([tmp_path])[0]))
    assert {row.split: len(row.evaluations) for row in found} == {"test": 1, "val": 1}


# ------------------------------------------------------------------------------------------------ what a field changes


@pytest.mark.parametrize(
    ("fields", "scores_at", "rows_at", "saved_at"),
    [
        ({"train__eval_every": 5}, [5, 10, 12], [2, 4, 6, 8, 10, 12], [3, 6, 9, 12]),
        ({"train__eval_every": 0, "train__eval_epochs": 1.25}, [5, 10, 12], [2, 4, 6, 8, 10, 12], [3, 6, 9, 12]),
        ({"train__eval_every": 0}, [12], [2, 4, 6, 8, 10, 12], [3, 6, 9, 12]),
        ({"train__checkpoint_every": 5}, [4, 8, 12], [2, 4, 6, 8, 10, 12], [5, 10, 12]),
        ({"train__log_every": 5}, [4, 8, 12], [5, 10, 12], [3, 6, 9, 12]),
        ({"train__num_steps": 0, "train__num_epochs": 3.0}, [4, 8, 12], [2, 4, 6, 8, 10, 12], [3, 6, 9, 12]),
    ],
)
def test_an_interval_changes_when_and_not_what(
    fields, scores_at, rows_at, saved_at, finished, tiny, tmp_path, monkeypatch
):
    seen, save = [], checkpoint.Checkpoints.save

    def noted(self, kind, state, progress):
        seen.extend([int(state.step)] * (kind == "latest"))
        save(self, kind, state, progress)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", noted)
    train(tiny.config(**fields), tmp_path, log=lambda line: None)
    assert (list(scored(tmp_path)), logged(tmp_path), seen) == (scores_at, rows_at, saved_at)
    left, right = saved(tmp_path, "latest"), saved(finished, "latest")
    del left["progress"], right["progress"]
    jax.tree.map(np.testing.assert_array_equal, left, right)
    same = scored(tmp_path).keys() & scored(finished).keys()
    assert {step: scored(tmp_path)[step] for step in same} == {step: scored(finished)[step] for step in same}


def test_a_row_has_the_mean_loss_since_the_row_before(finished, tiny, tmp_path):
    train(tiny.config(train__log_every=1), tmp_path, log=lambda line: None)
    one_by_one = [row["train/loss"] for row in rows(tmp_path) if "train/loss" in row]
    in_pairs = [row["train/loss"] for row in rows(finished) if "train/loss" in row]
    np.testing.assert_allclose(in_pairs, np.reshape(one_by_one, (6, 2)).mean(1), rtol=1e-12)
    assert len(set(one_by_one)) == 12


def test_the_seed_changes_the_run(finished, tiny, tmp_path):
    train(tiny.config(train__seed=1, train__num_steps=2), tmp_path, log=lambda line: None)
    assert rows(tmp_path)[0]["train/loss"] != rows(finished)[0]["train/loss"]


# ------------------------------------------------------------------------------------------------------------- run.json


def told(workdir):
    return json.loads((workdir / "run.json").read_text())


def test_a_run_says_what_it_is_and_how_far_it_came(finished, tiny):
    told_now = told(finished)
    variables = saved(finished, "latest")
    due = {
        "split": "val",
        "parameters": sum(value.size for name, value in variables.items() if name.startswith("variables['params']")),
        # 3x3x3x8 at a sixteenth of the places, then 8x8 and 8x11.
        "multiply_adds": (3 * 3 * 3 * 8 + 8 * 8 + 8 * 11) * 8 * 8,
        "image_size": [32, 32],
        "device": "cpu",
        "num_devices": 2,
        "step": 12,
        "num_steps": 12,
        "epochs": 3.0,
        "status": "finished",
        "best_step": saved(finished, "best")["progress"]["best_step"],
        "best_score": max(scored(finished).values()),
    }
    assert {key: told_now[key] for key in due} == due
    assert told_now.keys() - due.keys() == {"versions", "contents", "train_seconds", "images_per_second"}
    assert told_now["versions"]["jax"] == jax.__version__
    # Of every step but the first.
    assert told_now["images_per_second"] * told_now["train_seconds"] == pytest.approx(11 * 2)


def test_time_adds_up_over_starts_and_the_status_is_that_of_the_end(tiny, tmp_path, monkeypatch):
    seen = []

    def end_here():
        seen.append(told(tmp_path))
        raise RuntimeError("the machine went away")

    for step in (6, 4):  # the seventh of all, then the tenth
        with monkeypatch.context() as patch:
            at_step(patch, step, end_here)
            with pytest.raises(RuntimeError, match="went away"):
                train(tiny.config(), tmp_path, log=lambda line: None)
        assert seen[-1]["status"] == "running" and told(tmp_path)["status"] == "failed"
    # As of the last checkpoint or evaluation.
    assert [(row["step"], row["best_step"]) for row in seen] == [(4, 4), (6, 4)]
    train(tiny.config(), tmp_path, log=lambda line: None)
    assert told(tmp_path)["status"] == "finished"
    # All steps but the first of each start are timed, and batches are of two images.
    timed = [round(row["images_per_second"] * row["train_seconds"], 6) for row in (*seen, told(tmp_path))]
    assert timed == [2 * 3, 2 * 4, 2 * 9]


# ------------------------------------------------------------------------------------------------------------ going on


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 1), (signal.SIGINT, 5), (signal.SIGTERM, 12)])
def test_a_signal_saves_and_the_run_goes_on_bit_for_bit(number, step, finished, tiny, tmp_path, monkeypatch):
    lines = []
    with monkeypatch.context() as patch:
        at_step(patch, step, signal_this(number))
        with pytest.raises(Interrupted) as interrupted:
            train(tiny.config(), tmp_path, log=lines.append)
    assert interrupted.value.number == number
    assert lines[-1] == f"stopped by {number.name}; step {step} is saved, start again to go on"
    assert steps(tmp_path, "latest") == [step]
    train(tiny.config(), tmp_path, log=lines.append)
    assert f"going on from step {step}" in lines
    # A checkpoint is not written anew for the score that came after it: the next start scores it once more.
    assert_same_run(tmp_path, finished, progress=step < 12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_goes_on_bit_for_bit_with_onednn_too(dtype, tiny, tmp_path, monkeypatch, no_compile_cache):
    """All other runs here read programs that were kept on disk, which none with oneDNN's convolutions can be."""
    if not onednn.usable(jax.numpy.dtype(dtype)):
        pytest.skip(f"this machine has no oneDNN in {dtype}")
    config = tiny.config(model__dtype=dtype, train__num_steps=6, train__eval_every=3)
    train(config, tmp_path / "whole", log=lambda line: None)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        at_step(patch, 3, signal_this(signal.SIGTERM))
        train(config, tmp_path / "stopped", log=lambda line: None)
    train(config, tmp_path / "stopped", log=lambda line: None)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_signals_are_handled_as_before_once_a_run_ends(tiny, tmp_path, monkeypatch):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    at_step(monkeypatch, 1, signal_this(signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(tiny.config(), tmp_path, log=lambda line: None)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize("at", [4, 12])
def test_a_signal_in_an_evaluation_ends_it_and_it_is_done_again(at, finished, tiny, tmp_path, monkeypatch):
    evaluate, calls = score.evaluate, []

    def signalled(*arguments, **keywords):
        calls.append(None)
        if 4 * len(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(score, "evaluate", signalled)
        with pytest.raises(Interrupted):
            train(tiny.config(), tmp_path, log=lambda line: None)
    assert steps(tmp_path, "latest") == [at] and at not in scored(tmp_path)
    # What goes on scores that step first; if it dies before its next checkpoint, the next one scores it again.
    with monkeypatch.context() as patch:
        at_step(patch, 1, crash)
        if at < 12:
            with pytest.raises(RuntimeError, match="went away"):
                train(tiny.config(), tmp_path, log=lambda line: None)
        else:
            train(tiny.config(), tmp_path, log=lambda line: None)
    assert at in scored(tmp_path)
    train(tiny.config(), tmp_path, log=lambda line: None)
    assert rows(tmp_path) == rows(finished)
    assert steps(tmp_path, "best") == steps(finished, "best")


def test_a_crash_goes_on_from_the_last_checkpoint_bit_for_bit(finished, tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at_step(patch, 9, crash)
        with pytest.raises(RuntimeError, match="went away"):
            train(tiny.config(), tmp_path, log=lambda line: None)
    assert steps(tmp_path, "latest") == [6] and steps(tmp_path, "best") == [8]
    assert logged(tmp_path)[-1] == 8
    train(tiny.config(), tmp_path, log=lambda line: None)
    assert_same_run(tmp_path, finished)


FEATURES = {
    "data__batch_size": 4,
    "train__accumulate": 2,
    "train__ema_decay": 0.8,
    "train__best": "loss",
    "train__patience": 3,
    "train__eval_every": 2,
    "train__num_steps": 20,
    "optim__learning_rate": 0.3,  # so that the loss rises twice, the second time for good
    "optim__schedule": "plateau",
    "optim__plateau_factor": 0.5,
    "optim__plateau_patience": 1,
    "optim__plateau_floor": 0.01,
    "loss__cross_entropy": 0.5,
    "loss__dice": 0.5,
}


@pytest.fixture(scope="module")
def featured(workplace):
    """An unbroken run with everything that has a state of its own; it ends early."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        use(workplace, monkeypatch)
        train(workplace.config(**FEATURES), workplace.root / "featured", log=lambda line: None)
    return workplace.root / "featured"


def test_a_run_ends_early_with_all_it_knows(featured, tiny):
    losses = {row["step"]: row["val/loss"] for row in rows(featured) if "val/loss" in row}
    best = min(losses, key=losses.get)
    last = max(losses)
    assert list(losses) == list(range(2, last + 1, 2)) and last == best + 6 < 20
    assert steps(featured, "best") == [best] and steps(featured, "latest") == [last]
    progress = saved(featured, "latest")["progress"]
    assert (progress["best_score"], progress["best_step"], progress["stale"]) == (losses[best], best, 3)
    assert (told(featured)["status"], told(featured)["step"], told(featured)["num_steps"]) == (
        "stopped early",
        last,
        20,
    )


def test_the_rate_in_a_row_is_what_plateaus_made_of_it(featured, tiny):
    best, rate, due = float("inf"), 0.3, {}
    for row in rows(featured):
        if "val/loss" in row:
            better = row["val/loss"] < best - 1e-4
            best, rate = (row["val/loss"], rate) if better else (best, max(rate / 2, 0.01))
        else:
            due[row["step"]] = rate
    found = {row["step"]: row["train/learning_rate"] for row in rows(featured) if "train/loss" in row}
    assert found == pytest.approx(due)
    assert len(set(found.values())) > 2


def test_what_is_scored_and_saved_is_the_moving_average(featured, tiny):
    """And the parameters that training goes on with lie beside it."""
    latest = saved(featured, "latest")
    pairs = [(name.replace("variables", "optimizer"), name) for name in latest if name.startswith("variables")]
    assert pairs and all(raw in latest for raw, _ in pairs)
    assert all(np.abs(latest[raw] - latest[average]).max() > 0 for raw, average in pairs if "params" in raw)
    scores = score.eval_run(featured, which="best", log=lambda line: None)
    assert scores["val/loss"] == saved(featured, "best")["progress"]["best_score"]


@pytest.mark.parametrize("step", [5, 14])
def test_a_run_with_every_feature_goes_on_bit_for_bit_after_a_crash(step, featured, tiny, tmp_path, monkeypatch):
    for place in (step, 2):
        with monkeypatch.context() as patch:
            at_step(patch, place, crash)
            with pytest.raises(RuntimeError, match="went away"):
                train(tiny.config(**FEATURES), tmp_path, log=lambda line: None)
    train(tiny.config(**FEATURES), tmp_path, log=lambda line: None)
    assert_same_run(tmp_path, featured)


def test_a_signal_in_the_evaluation_that_ends_a_run_early_ends_it_there_later(featured, tiny, tmp_path, monkeypatch):
    last = steps(featured, "latest")[0]
    evaluate, calls = score.evaluate, []

    def signalled(*arguments, **keywords):
        calls.append(None)
        if 2 * len(calls) == last:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(score, "evaluate", signalled)
        with pytest.raises(Interrupted):
            train(tiny.config(**FEATURES), tmp_path, log=lambda line: None)
    assert told(tmp_path)["status"] == "stopped"
    train(tiny.config(**FEATURES), tmp_path, log=lambda line: None)
    assert told(tmp_path)["status"] == "stopped early"
    # The checkpoint of that step is from before its score, which the next start would take once more.
    assert rows(tmp_path) == rows(featured)
    for kind in ("latest", "best"):
        assert steps(tmp_path, kind) == steps(featured, kind)


def test_a_run_that_ended_early_says_so_and_goes_on_with_more_patience(featured, tiny, tmp_path):
    workdir, lines = shutil.copytree(featured, tmp_path / "run"), []
    before = contents(workdir)
    train(tiny.config(**FEATURES), workdir, log=lines.append)
    assert lines[-2] == "stopped early: 3 evaluations without a better loss"
    assert contents(workdir) == before
    last = steps(featured, "latest")[0]
    train(tiny.config(**FEATURES | {"train__patience": 0, "train__num_steps": last + 1}), workdir, log=lines.append)
    assert steps(workdir, "latest") == [last + 1]
    assert told(workdir)["status"] == "finished"


def test_a_frozen_backbone_is_still_that_of_the_start_after_a_crash(tiny, tmp_path, monkeypatch):
    config = tiny.config(optim__freeze_backbone=True, optim__weight_decay=0.1, train__num_steps=6)
    with monkeypatch.context() as patch:
        at_step(patch, 5, crash)
        with pytest.raises(RuntimeError, match="went away"):
            train(config, tmp_path, log=lambda line: None)
    train(config, tmp_path, log=lambda line: None)
    start = init_variables(configs.build_model(config, len(CLASSES)), config.train.seed)
    latest = saved(tmp_path, "latest")
    for path, value in jax.tree_util.tree_flatten_with_path(start)[0]:
        name = "variables" + jax.tree_util.keystr(path)
        assert np.array_equal(latest[name], value) == ("backbone" in name), name


def test_a_run_from_before_there_was_a_choice_of_scores_goes_on(finished_copy, tiny):
    (folder,) = (finished_copy / "checkpoints" / "latest").iterdir()
    path = folder / "progress" / "metadata"
    progress = json.loads(path.read_text())
    best = progress["best_score"]
    path.write_text(
        json.dumps({"best_mean_iou": 2.0, **{key: progress[key] for key in ("best_step", "evaluated", "losses")}})
    )
    seal_again(folder)
    (finished_copy / "run.json").unlink()
    train(tiny.config(train__num_steps=14), finished_copy, log=lambda line: None)
    progress = saved(finished_copy, "latest")["progress"]
    assert (progress["best_score"], progress["stale"]) == (2.0, 1) and best < 2.0
    assert "best_mean_iou" not in progress
    assert told(finished_copy)["step"] == 14


def test_a_run_that_goes_on_with_other_data_says_so(finished_copy, tiny):
    about, lines = told(finished_copy), []
    other = about["contents"] | {"val": "0123", "train": "4567"}
    (finished_copy / "run.json").write_text(json.dumps(about | {"contents": other}))
    train(tiny.config(train__num_steps=13), finished_copy, log=lines.append)
    assert "the data is not that of the steps before: images or labels of train, val have changed" in lines
    assert told(finished_copy)["contents"] == about["contents"]
    train(tiny.config(train__num_steps=14), finished_copy, log=lines.append)
    assert sum("the data is not that" in line for line in lines) == 1


def test_a_run_goes_on_wherever_its_data_has_moved_and_nowhere_else(finished_copy, tiny, tmp_path):
    config, lines = tiny.config(train__num_steps=13), []
    config.data.dir = str(shutil.copytree(tiny.data, tmp_path / "disk2", copy_function=shutil.copyfile))
    train(config, finished_copy, log=lines.append)
    assert "going on from step 12" in lines and not any("the data is not that" in line for line in lines)
    assert configs.read(finished_copy).data.dir == config.data.dir
    # The test split is not read: what it holds is no matter. A training mask is.
    shutil.rmtree(tmp_path / "disk2" / "test")
    shutil.rmtree(tmp_path / "disk2" / "testannot")
    shutil.copytree(tmp_path / "disk2", tmp_path / "disk3")
    config.data.dir, config.train.num_steps = str(tmp_path / "disk3"), 14
    train(config, finished_copy, log=lines.append)
    for split in ("val", "train"):
        other = shutil.copytree(tmp_path / "disk2", tmp_path / split)
        shutil.copyfile(other / f"{split}annot" / f"{split}_0.png", other / f"{split}annot" / f"{split}_1.png")
        config.data.dir, config.train.num_steps, before = str(other), 15, contents(finished_copy)
        with pytest.raises(UserError, match=f"split {split} .*disk3"):
            train(config, finished_copy, log=lines.append)
        assert contents(finished_copy) == before


def test_the_lowest_is_the_best_of_a_score_that_is_a_loss(finished, tiny, tmp_path):
    train(tiny.config(train__best="published/dice", eval__published="a"), tmp_path, log=lambda line: None)
    losses = {row["step"]: row["val/published/dice"] for row in rows(tmp_path) if "val/published/dice" in row}
    assert told(tmp_path)["best_step"] == min(losses, key=losses.get)
    assert told(tmp_path)["best_score"] == min(losses.values()) < max(losses.values())


def test_a_finished_run_says_so_and_stays_as_it_is(finished_copy, tiny):
    before, lines = contents(finished_copy), []
    train(tiny.config(), finished_copy, log=lines.append)
    assert lines[-1].startswith("done: best mean IoU")
    after = contents(finished_copy)
    assert after.keys() == before.keys()
    assert [name for name in before if before[name] != after[name]] == []


def test_a_run_goes_on_for_longer_and_with_other_intervals(finished, finished_copy, tiny):
    longer = tiny.config(
        train__num_steps=16,
        train__eval_every=5,
        train__checkpoint_every=2,
        train__log_every=1,
        data__eval_batch_size=4,
        data__workers=0,
    )
    train(longer, finished_copy, log=lambda line: None)
    assert rows(finished_copy)[: len(rows(finished))] == rows(finished)
    assert list(scored(finished_copy)) == [4, 8, 12, 15, 16]
    assert logged(finished_copy)[-5:] == [12, 13, 14, 15, 16]
    assert steps(finished_copy, "latest") == [16]
    assert json.loads((finished_copy / "config.json").read_text())["train"]["num_steps"] == 16


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optim__learning_rate": 0.1}, "another config; .*\n  optim.learning_rate: 0.05 there, 0.1 now$"),
        ({"model__options": {"width": 16}}, "\n  model.options.width: not set there, 16 now$"),
        ({"train__num_steps": 6}, "is trained to step 12 already, beyond train.num_steps 6"),
    ],
)
def test_another_run_is_refused_and_nothing_changes(fields, message, finished_copy, tiny):
    before = contents(finished_copy)
    config = tiny.config()
    with config.unlocked():
        config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    with pytest.raises(UserError, match=message):
        train(config, finished_copy, log=lambda line: None)
    assert contents(finished_copy) == before


def test_images_of_ones_own(tiny, tmp_path, capfd):
    """A folder with two classes and a name for each: trained, scored and used."""
    source = tiny.data / "train"
    for kind, files in (("images", source), ("masks", source.with_name("trainannot"))):
        shutil.copytree(files, tmp_path / "mine" / kind)
    (tmp_path / "mine" / "classes.yaml").write_text("names: {0: left, 1: middle, 2: right}\nignore: 11")
    config = tiny.config(data__name="folder", data__dir=str(tmp_path / "mine"), train__num_steps=2)
    train(config, tmp_path / "run", log=lambda line: None)
    assert "8 pairs of image and mask: train 6, val 2 (divided 80/20 by seed 42)" in capfd.readouterr().err
    assert {"val/iou/left", "val/iou/right", "val/mean_iou"} <= eval_run(tmp_path / "run", log=lambda line: None).keys()
    shutil.rmtree(tmp_path / "mine")
    assert jaxseg.load(tmp_path / "run").info.class_names == ("left", "middle", "right")


def test_data_with_other_classes_is_refused(finished_copy, tiny):
    info = finished_copy / "info.json"
    info.write_text(info.read_text().replace('"sky"', '"ceiling"'))
    seal_again(finished_copy)
    before = info.read_text()
    message = r"run was trained with the classes ceiling, building, .*; the data has sky, building, .* now: give it"
    with pytest.raises(UserError, match=message):
        train(tiny.config(), finished_copy, log=lambda line: None)
    with pytest.raises(UserError, match=message):
        eval_run(finished_copy)
    assert info.read_text() == before


def test_a_run_that_saved_nothing_may_change_its_config(tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at_step(patch, 3, crash)
        with pytest.raises(RuntimeError, match="went away"):
            train(tiny.config(), tmp_path, log=lambda line: None)
    assert logged(tmp_path) == [2]
    train(tiny.config(optim__learning_rate=0.01, train__num_steps=1), tmp_path, log=lambda line: None)
    assert logged(tmp_path) == [1]
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["learning_rate"] == 0.01


@pytest.mark.slow
def test_kills_at_any_moment_change_no_bit(tiny, tmp_path):
    kills = int(os.environ.get("JAXSEG_KILLS", "2"))  # .ci/nightly has twenty
    num_steps = max(60, 12 * kills)
    fields = {"train__num_steps": num_steps, "train__eval_every": 7, "train__patience": num_steps}
    config = tiny.config(**FEATURES | fields)
    train(config, tmp_path / "unbroken", log=lambda line: None)
    chance = random.Random(0)
    arguments = ["jaxseg.main", *flags_of(config), f"--workdir={tmp_path / 'killed'}"]
    # A step takes long enough here to be hit.
    before = (
        "import time\n"
        "helpers.without_tensorflow()\n"
        "put = helpers.running.put_batch\n"
        "helpers.running.put_batch = lambda batch, mesh: (time.sleep(0.05), put(batch, mesh))[1]\n"
    )
    reached = []
    for _ in range(kills):
        process = tiny.start(*arguments, before=before)
        # Rows, of two steps each: far enough, most of the time, for a checkpoint that was not there at the start.
        wanted = chance.randint(1, max(4, 20 // kills))
        for line in process.stdout:
            if found := re.match(rf"step (\d+)/{num_steps} ", line):
                wanted -= 1
                if not wanted:
                    reached.append(int(found[1]))
                    break
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert len(reached) == kills and reached[-1] > reached[0]
    status, _, err = tiny.run(*arguments, before=before)
    assert status == 0, err
    assert_same_run(tmp_path / "killed", tmp_path / "unbroken")
