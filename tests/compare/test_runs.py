"""Workdirs read: finished, running, old and broken ones; seeds gathered; what can't be compared told apart."""

import json
import math
import pathlib
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from written_runs import COUNTS, scores_of

from jaxseg.compare import runs
from jaxseg.data import DataInfo
from jaxseg.errors import UserError


def read(*folders) -> tuple[list[runs.Row], list[str]]:
    found, notes = runs.read_runs(folders)
    groups = runs.group(found)
    return runs.rows(groups), [*notes, *runs.warnings(groups)]


def test_a_run_is_read_as_it_was_written(write_run):
    [row], notes = read(write_run("a"))
    assert not notes
    assert (row.split, row.checkpoint, row.protocol) == ("val", "best", "whole image")
    assert row.mean("pixel_accuracy") == pytest.approx(200 / 250)
    assert row.iou == pytest.approx({"sky": 90 / 110, "road": 80 / 115, "car": 30 / 75})
    np.testing.assert_array_equal(row.counts, COUNTS)
    run = row.group.runs[0]
    assert (run.step, run.num_steps, run.status, run.train_seconds) == (12, 12, "finished", 90.0)
    assert (row.group.network, row.group.data) == ("tiny, tiny", "camvid")


def test_an_old_run_is_read_from_its_metrics(write_run):
    [row], notes = read(write_run("old", old=True))
    assert not notes
    assert row.mean("pixel_accuracy") == pytest.approx(200 / 250), "the better of two evaluations"
    assert row.counts is None
    assert tuple(row.iou) == ("sky", "road", "car")
    assert "mean_iou" in row.evaluations[0].scores and "iou/sky" not in row.evaluations[0].scores
    run = row.group.runs[0]
    assert (run.step, run.status, run.images_per_second) == (12, "finished", 8.0)
    assert run.train_seconds == pytest.approx(12 / 4.0)
    assert run.about == {}


def test_a_loss_that_is_the_best_score_is_the_lowest(write_run):
    folder = write_run("old", old=True)
    config = json.loads((folder / "config.json").read_text())
    config["train"]["best"] = "loss"
    (folder / "config.json").write_text(json.dumps(config))
    [row], _ = read(folder)
    assert row.mean("loss") == pytest.approx(1 / 12)


def test_a_class_without_pixels_is_nan_old_or_new(write_run):
    counts = COUNTS.copy()
    counts[2] = 0
    for old in (False, True):
        [row], _ = read(write_run(f"old {old}", counts=counts, old=old))
        assert math.isnan(row.iou["car"])
        assert row.mean("mean_iou") == pytest.approx((90 / 100 + 80 / 105) / 2)


def test_seeds_of_one_config_are_gathered_to_mean_and_sample_deviation(write_run):
    accuracies = []
    for seed in range(3):
        counts = COUNTS + 10 * seed * np.eye(3, dtype=int)
        accuracies.append(np.trace(counts) / counts.sum())
        write_run(f"net-seed={seed}", counts=counts, train__seed=seed, train__log_every=seed + 1)
    folder = write_run("other", train__seed=1, optim__learning_rate=0.5)
    rows, notes = read(*sorted(folder.parent.iterdir()))
    assert not notes
    assert [row.group.label for row in rows] == ["net", "other"]
    seeds = rows[0]
    assert len(seeds.group.runs) == 3
    assert seeds.mean("pixel_accuracy") == pytest.approx(statistics.mean(accuracies))
    assert seeds.deviation("pixel_accuracy") == pytest.approx(statistics.stdev(accuracies))
    np.testing.assert_array_equal(seeds.counts, 3 * COUNTS + 30 * np.eye(3, dtype=int))
    assert math.isnan(rows[1].deviation("pixel_accuracy"))


def test_each_split_and_protocol_has_a_row_and_rows_that_can_be_compared_stand_together(write_run):
    for name in ("a", "b"):
        folder = write_run(name, optim__learning_rate=0.1 if name == "a" else 0.2)
        value = json.loads((folder / "evaluations" / "val-best.json").read_text())
        for split, protocol in (("test", "whole image"), ("val", "windows of 32x32 every 16")):
            path = folder / "evaluations" / f"{split}-best-{protocol[:4]}.json"
            path.write_text(json.dumps(value | {"split": split, "protocol": protocol}))
    rows, _ = read(folder.parent / "a", folder.parent / "b")
    order = [(row.split, row.protocol, row.group.label) for row in rows]
    assert len(order) == 6
    assert [place[2] for place in order] == ["a", "b"] * 3
    assert len({place[:2] for place in order}) == 3


def test_a_run_with_test_scores_alone_keeps_those_of_its_metrics(write_run):
    rows, _ = read(write_run("a", evaluation={"split": "test"}))
    assert [row.split for row in rows] == ["val", "test"]


def test_scores_of_another_split_while_training_are_no_val_scores_and_count_once(write_run):
    folder = write_run("a", evaluation={"split": "test"})
    text = (folder / "evaluations" / "test-best.json").read_text()
    (folder / "evaluations" / "val-best.json").write_text(text)
    [row], _ = read(folder)
    assert (row.split, len(row.evaluations)) == ("test", 1)


def test_scores_of_a_checkpoint_that_is_no_more_are_left_out(write_run):
    folder = write_run("a", evaluation={"split": "test", "step": 6}, about={"best_step": 12})
    rows, notes = read(folder)
    assert [row.split for row in rows] == ["val"]
    assert "test-best.json is left out: it scored step 6, and the best checkpoint is of step 12 now" in notes[0]


def test_a_seed_without_a_score_yet_stands_with_the_others(write_run):
    first, second = write_run("seed=0"), write_run("seed=1", train__seed=1)
    for file in (second / "evaluations").iterdir():
        file.unlink()
    rows = [line for line in (second / "metrics.jsonl").read_text().splitlines(True) if "val/" not in line]
    (second / "metrics.jsonl").write_text("".join(rows))
    names = json.loads((first / "evaluations" / "val-best.json").read_text())["class_names"]
    info = DataInfo("camvid", tuple(names), np.zeros((len(names), 3), np.uint8))
    (second / "info.json").write_text(info.to_json())
    [row], _ = read(first, second)
    assert len(row.group.runs) == 2 and len(row.evaluations) == 1


def test_a_running_run_with_half_a_line_is_shown(write_run):
    folder = write_run("a", about={"status": "running", "step": 6})
    text = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(text[:7]) + "\n" + text[7][:20])
    [row], notes = read(folder)
    assert not notes
    assert (row.group.runs[0].step, row.group.runs[0].status) == (7, "running")


def test_a_run_without_a_score_yet_has_a_row_of_gaps(write_run):
    folder = write_run("a", old=True)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines if "val/" not in line))
    [row], notes = read(folder)
    assert not notes
    assert (row.split, row.iou, row.counts) == ("", {}, None)
    assert math.isnan(row.mean("mean_iou"))


def spoil_metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([lines[0], '{"step": 5, ', *lines[1:]]))


def spoil_results(folder):
    for path in (folder / "metrics.jsonl", folder / "evaluations" / "val-best.json"):
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no workdir of a run"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json"),
        (spoil_metrics, "line 2 of .*metrics.jsonl"),
        (spoil_results, "has no results yet"),
    ],
)
def test_a_spoilt_workdir_is_named_and_skipped(write_run, spoil, why):
    folder = write_run("spoilt")
    spoil(folder)
    rows, [note] = read(write_run("sound"), folder)
    assert [row.group.label for row in rows] == ["sound"]
    assert note.startswith("skipped: ") and "spoilt" in note
    with pytest.raises(UserError, match=why):
        runs.read_run(folder)


def test_nothing_to_compare_is_one_error_that_names_all(tmp_path):
    with pytest.raises(UserError, match=r"first.*second"):
        runs.read_runs([tmp_path / "first", tmp_path / "second"])


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("run.json", "{"),
        ("run.json", "[]"),
        ("evaluations/val-best.json", "{}"),
        ("evaluations/val-best.json", '{"split": "val", "checkpoint": "best", "protocol": "", "class_names": ["a"]}'),
        ("evaluations/val-best.json", "null"),
        ("evaluations/another.json", "\x00"),
    ],
)
def test_a_broken_file_is_named_and_the_rest_is_shown(write_run, file, text):
    folder = write_run("a")
    (folder / file).write_text(text)
    [row], [note] = read(folder)
    assert note.startswith("a: ") and file.rpartition("/")[2] in note and "left out" in note
    assert row.mean("pixel_accuracy") == pytest.approx(200 / 250)


def test_a_row_of_another_kind_is_named_with_its_entry(write_run):
    folder = write_run("a")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 13, "train/loss": "low"}\n')
    with pytest.raises(UserError, match=r"line 15 of .*metrics.jsonl.*train/loss.*'low'"):
        runs.read_run(folder)


def test_a_failed_run_is_named_and_ranked_nowhere(write_run):
    rows, [note] = read(write_run("sound"), write_run("broken", about={"status": "failed", "step": 7}))
    assert [row.group.label for row in rows] == ["sound"]
    assert "broken" in note and "failed at step 7" in note


@pytest.mark.parametrize("evaluation", [{"nonfinite": 5}, {"loss": None}])
def test_an_evaluation_that_is_not_finite_is_left_out(write_run, evaluation):
    folder = write_run("a", evaluation=evaluation)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # Of the two in the metrics the better one is not finite either.
    rows[-1] |= {"val/nonfinite_pixels": 5} if "nonfinite" in evaluation else {"val/loss": None}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    [row], [note] = read(folder)
    assert "val-best.json" in note and "not finite" in note
    assert row.mean("mean_iou") == rows[-2]["val/mean_iou"] < rows[-1]["val/mean_iou"]


def test_scores_that_are_not_those_of_the_counts_are_left_out(write_run):
    folder = write_run("a", evaluation={"scores": {"mean_iou": 0.9}})
    [row], [note] = read(folder)
    assert "val-best.json" in note and "scores.mean_iou" in note and "0.9" in note
    assert row.mean("mean_iou") != 0.9


def score_latest(folder, counts) -> None:
    """Writes the evaluation of the latest checkpoint beside that of the best."""
    told = json.loads((folder / "evaluations" / "val-best.json").read_text())
    told |= {"checkpoint": "latest", "counts": counts.tolist(), "scores": scores_of(counts)}
    (folder / "evaluations" / "val-latest.json").write_text(json.dumps(told))


def test_the_latest_checkpoints_have_a_line_unless_all_of_them_are_the_best(write_run):
    a, b = write_run("a", train__seed=0), write_run("b", train__seed=1)
    for folder in (a, b):
        score_latest(folder, COUNTS)
    [row], _ = read(a, b)
    assert row.checkpoint == "best" and len(row.evaluations) == 2
    score_latest(b, COUNTS.T)
    rows, _ = read(a, b)
    # Both seeds are in both lines, or their mean would be over other seeds than that of the best.
    assert sorted((row.checkpoint, len(row.evaluations)) for row in rows) == [("best", 2), ("latest", 2)]


def test_a_workdir_given_twice_is_compared_once(write_run):
    folder = write_run("a")
    rows, [note] = read(folder, folder.parent / "." / "a" / "evaluations" / "..")
    assert len(rows) == 1
    assert "given twice" in note


def test_other_data_and_other_classes_are_warned_of(write_run):
    here = write_run("here")
    classes = write_run("classes", class_names=("sky", "road", "bus"))
    rows, [note] = read(here, classes)
    assert "different class lists" in note and "here" in note and "classes" in note
    assert len({runs.block(row) for row in rows}) == 2
    _, [note] = read(here, write_run("elsewhere", data__name="voc"))
    assert "different data" in note and "camvid (here)" in note and "voc (elsewhere)" in note


def test_one_name_for_other_images_is_told_apart_and_copies_are_not(write_run):
    def at(name, scored, **fields):
        contents = {"train": "11", "val": scored}
        return write_run(
            name, about={"contents": contents}, evaluation={"content": scored}, data__dir=f"/{name}", **fields
        )

    here, copy = at("here", "22"), at("copy", "22", train__seed=1)
    [row], notes = read(here, copy)
    assert len(row.evaluations) == 2 and notes == []
    # Another split of a run, scored afterwards, is no other data.
    text = (here / "evaluations" / "val-best.json").read_text().replace('"val"', '"test"').replace('"22"', '"44"')
    (here / "evaluations" / "test-best.json").write_text(text)
    _, notes = read(here, at("rate", "22", optim__learning_rate=0.5))
    assert notes == []
    (here / "evaluations" / "test-best.json").unlink()
    # Neither do scores of other images, whose file comes first, take the place of its own.
    text = (here / "evaluations" / "val-best.json").read_text().replace('"22"', '"55"')
    (here / "evaluations" / "val-best-55.json").write_text(text)
    rows, notes = read(here, at("third", "22", optim__learning_rate=0.25))
    assert notes == [] and sorted(row.content for row in rows) == ["22", "22", "55"]
    (here / "evaluations" / "val-best-55.json").unlink()
    rows, [note] = read(here, at("other", "33"))
    assert "different data" in note and "camvid 22 (here)" in note and "camvid 33 (other)" in note
    assert len({runs.block(row) for row in rows}) == 2


def test_figures_are_of_their_split(write_run):
    published = {"setting": "elsewhere", "split": "val", "published/mean_iou": 0.54, "pixel_accuracy": 0.89, "a": None}
    folder = write_run("a", published=published, evaluation={"published": {"mean_iou": 0.8, "f1": None}})
    [row], _ = read(folder)
    assert row.mean("published/mean_iou") == 0.8
    assert row.published == {"published/mean_iou": 0.54, "pixel_accuracy": 0.89}
    published["split"] = "test"
    [row], _ = read(write_run("b", published=published))
    assert row.published == {}


def test_a_seed_that_was_run_twice_is_warned_of(write_run):
    _, [note] = read(write_run("a"), write_run("b"))
    assert "a, b have the same config and seed" in note


def test_config_differences_leave_out_seed_and_figures(write_run):
    first = write_run("a", train__seed=1, published={"mean_iou": 0.5})
    second = write_run("b", optim__learning_rate=0.5)
    groups = runs.group(runs.read_runs([first, second])[0])
    assert runs.differences(groups) == {"optim.learning_rate": [0.05, 0.5]}


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), min_size=1, max_size=6, unique_by=tuple))
def test_short_names_tell_paths_apart_and_end_them(parts):
    paths = [pathlib.Path("/", *of_path) for of_path in parts]
    names = runs.short_names(paths)
    assert len(set(names)) == len(paths)
    assert all(str(path).endswith(name) for path, name in zip(paths, names, strict=True))


@pytest.mark.parametrize(
    ("names", "label"),
    [
        (["unet"], "unet"),
        (["cam0", "cam1", "cam2"], "cam"),
        (["lr=0.1,train.seed=0", "lr=0.1,train.seed=1"], "lr=0.1"),
        (["run10", "run11"], "run"),
        (["seed=0", "seed=1"], "folder"),
    ],
)
def test_seeds_are_called_by_what_their_names_begin_with(names, label):
    of_seeds = [runs.Run(pathlib.Path("/folder", name), {}, [], {}, [], [], name) for name in names]
    assert runs._label(of_seeds) == label
