"""A run scored under any protocol, while it trains and afterwards, and what is written of it."""

import json
import shutil

import cv2
import numpy as np
import pytest
from helpers import rows, use, write_camvid

import jaxseg
from jaxseg.boundary import boundary_f1, mean_over_images
from jaxseg.data import data_info, open_dataset
from jaxseg.errors import UserError
from jaxseg.metrics import scores
from jaxseg.published import of_a
from jaxseg.score import eval_run
from jaxseg.train import train

pytest_plugins = ["tiny_runs"]

INFO = data_info("camvid")
SLIDE = {"eval.protocol": "slide", "eval.size": (32,), "eval.stride": 16}


def evaluation(workdir, name):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads((workdir / "evaluations" / f"{name}.json").read_text(), parse_constant=refuse)


def run(workdir, **keywords):
    lines = []
    return eval_run(workdir, log=lines.append, **keywords), lines


def test_the_best_evaluation_of_a_run_is_written_as_it_trains(finished_copy):
    written = evaluation(finished_copy, "val-best")
    (row,) = [row for row in rows(finished_copy) if row["step"] == 8 and "val/mean_iou" in row]
    assert {key: written[key] for key in ("split", "checkpoint", "step", "protocol", "images", "published")} == {
        **{"split": "val", "checkpoint": "best", "step": 8, "protocol": "whole image", "images": 3, "published": {}}
    }
    assert written["class_names"] == list(INFO.class_names)
    assert {f"val/{name}": value for name, value in written["scores"].items()} | {"val/loss": written["loss"]} == {
        name: value for name, value in row.items() if name != "step"
    }
    assert scores(np.array(written["counts"]))["mean_iou"] == written["scores"]["mean_iou"]
    assert written["scores"]["iou/car"] is None, "no image has one"
    assert written["seconds"] > 0


def test_the_run_scored_again_writes_the_same_where_its_protocol_stays(finished_copy, tiny):
    before = evaluation(finished_copy, "val-best")
    run(finished_copy)
    after = evaluation(finished_copy, "val-best")
    assert {**after, "seconds": 0} == {**before, "seconds": 0}


@pytest.mark.parametrize(
    ("overrides", "name", "words", "pixels"),
    [
        (SLIDE, "slide32x32-16x16", "windows of 32x32 every 16", 42 * 64),
        (
            {"eval.flip": True, "eval.scales": (1.0, 1.5)},
            "whole-scales1,1.5-flip",
            "whole image, scales 1 and 1.5, mir",
            42 * 64,
        ),
        ({"eval.protocol": "resize", "eval.size": (32, 40)}, "resize32x40", "resized to 32x40 and back", 42 * 64),
        (
            {"eval.protocol": "resize_labels", "eval.size": (32, 40)},
            "resize_labels32x40",
            "resized to 32x40, lab",
            28 * 40,
        ),
        ({"eval.protocol": "center_crop", "eval.size": (36,)}, "center_crop36x36", "centre crop of 36x36, the", None),
    ],
)
def test_any_protocol_on_a_finished_run(overrides, name, words, pixels, finished_copy, tiny):
    found, lines = run(finished_copy, overrides=overrides, split="test")
    written = evaluation(finished_copy, f"test-best-{name}")
    assert written["protocol"].startswith(words) and written["split"] == "test"
    assert lines[0].endswith(f"on camvid test: 2 images, {written['protocol']}")
    assert any(line.endswith(f" pixels, {written['protocol']}") for line in lines[1].splitlines())
    assert lines[-1] == f"written to {finished_copy / 'evaluations' / f'test-best-{name}.json'}"
    assert found["test/pixels"] == np.sum(written["counts"])
    assert pixels is None or found["test/pixels"] == 2 * pixels
    before = evaluation(finished_copy, "val-best")
    assert written["scores"].keys() == before["scores"].keys() and before["protocol"] == "whole image"


def test_the_flags_of_training_may_stand_in_the_command(finished_copy, tiny):
    before = evaluation(finished_copy, "val-best")
    run(finished_copy, overrides={"model.name": "tiny", "data.scale": (0.5, 2.0), "train.num_steps": 12})
    assert evaluation(finished_copy, "val-best")["counts"] == before["counts"]


def test_other_images_than_its_own_do_not_take_the_place_of_its_scores(finished_copy, tiny, tmp_path):
    before = evaluation(finished_copy, "val-best")
    there = write_camvid(tmp_path / "there")
    run(finished_copy, overrides={"data.dir": str(there)})
    assert evaluation(finished_copy, "val-best")["content"] == before["content"], "a copy is the same data"
    mask = there / "valannot" / "val_0.png"
    cv2.imwrite(str(mask), np.zeros_like(cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE)))
    run(finished_copy, overrides={"data.dir": str(there)})
    after = evaluation(finished_copy, "val-best")
    assert {**after, "seconds": 0} == {**before, "seconds": 0}
    [other] = (finished_copy / "evaluations").glob("val-best-*.json")
    written = evaluation(finished_copy, other.stem)
    assert other.stem == f"val-best-{written['content']}" and written["counts"] != before["counts"]


def write_pairs(folder, seeds, values=(0, 1, 2)):
    """Images of stripes in `folder`/images and masks in `folder`/masks, of these values."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for seed in seeds:
        rng = np.random.default_rng(seed)
        labels = np.digitize(np.arange(64), np.sort(rng.integers(8, 56, len(values) - 1)))[None].repeat(48, 0)
        image = 60 * labels[..., None] + rng.integers(0, 120, (48, 64, 3))
        cv2.imwrite(str(folder / "images" / f"p{seed}.png"), image.astype(np.uint8))
        cv2.imwrite(str(folder / "masks" / f"p{seed}.png"), np.array(values, np.uint8)[labels])


def classes_yaml(folder, text):
    (folder / "classes.yaml").write_text(text)
    return folder


@pytest.fixture(scope="session")
def of_folder(workplace):
    """A run of a folder of three classes, labels 7, 8 and 11 beside an ignored 0, divided; not to be changed."""
    home = workplace.root / "home"
    write_pairs(home, range(10), (7, 8, 11, 0))
    classes_yaml(home, "names: {7: road, 8: car, 11: tree}\nignore: 0")
    config = workplace.config(data__name="folder", data__dir=str(home), train__num_steps=4)
    with pytest.MonkeyPatch.context() as monkeypatch:
        use(workplace, monkeypatch)
        train(config, workplace.root / "of_folder", log=lambda line: None)
    return workplace.root / "of_folder"


@pytest.fixture
def run_of_folder(of_folder, tiny, tmp_path):
    return shutil.copytree(of_folder, tmp_path / "run")


def test_an_undivided_folder_is_divided_where_it_is_the_runs_own_and_whole_elsewhere(run_of_folder, tiny, tmp_path):
    here, lines = run(run_of_folder)
    assert not any("not the images and labels" in line for line in lines)
    before = evaluation(run_of_folder, "val-best")
    assert before["images"] == 2
    shutil.copytree(tiny.root / "home", tmp_path / "moved")
    shutil.rmtree(tmp_path / "run" / "evaluations")
    there, _ = run(run_of_folder, overrides={"data.dir": str(tmp_path / "moved")})
    assert {**evaluation(run_of_folder, "val-best"), "seconds": 0} == {**before, "seconds": 0} and there == here
    write_pairs(tmp_path / "flat", range(50, 57), (7, 8, 11, 0))
    found, lines = run(run_of_folder, overrides={"data.dir": str(tmp_path / "flat")})
    assert "on folder val: 7 images" in lines[0] and any("not the images and labels" in line for line in lines)
    predictor = jaxseg.load(run_of_folder)
    counts = np.zeros((3, 3), np.int64)
    for path in sorted((tmp_path / "flat" / "masks").iterdir()):
        image = cv2.cvtColor(cv2.imread(str(tmp_path / "flat" / "images" / path.name)), cv2.COLOR_BGR2RGB)
        mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        for true, value in enumerate((7, 8, 11)):
            counts[true] += np.bincount(predictor(image)[mask == value], minlength=3)
    [other] = (run_of_folder / "evaluations").glob("val-best-*.json")
    assert evaluation(run_of_folder, other.stem)["counts"] == counts.tolist()
    assert found["val/mean_iou"] == scores(counts)["mean_iou"]


def test_only_the_split_that_is_scored_is_needed(run_of_folder, tmp_path):
    write_pairs(tmp_path / "abroad" / "Testing", range(50, 53), (7, 8, 11, 0))
    found, lines = run(run_of_folder, overrides={"data.dir": str(tmp_path / "abroad")}, split="test")
    assert "on folder test: 3 images" in lines[0] and 0 <= found["test/mean_iou"] <= 1
    with pytest.raises(UserError, match=r"no split 'val'; there is test: .*--split"):
        run(run_of_folder, overrides={"data.dir": str(tmp_path / "abroad")})
    # A broken image of another split, and one without a mask, are no matter.
    write_pairs(tmp_path / "abroad" / "train", [60], (7, 8, 11, 0))
    (tmp_path / "abroad" / "train" / "images" / "p60.png").write_bytes(b"none")
    again, _ = run(run_of_folder, overrides={"data.dir": str(tmp_path / "abroad")}, split="test")
    assert again == found


def test_only_the_split_that_is_scored_is_needed_of_other_data_sets(finished_copy, tiny, tmp_path):
    run(finished_copy, split="test")
    before = evaluation(finished_copy, "test-best")
    for name in ("test", "testannot"):
        shutil.copytree(tiny.data / name, tmp_path / "abroad" / name)
    run(finished_copy, split="test", overrides={"data.dir": str(tmp_path / "abroad")})
    assert {**evaluation(finished_copy, "test-best"), "seconds": 0} == {**before, "seconds": 0}
    with pytest.raises(UserError, match=r"abroad .*'val'"):
        run(finished_copy, overrides={"data.dir": str(tmp_path / "abroad")})


@pytest.mark.parametrize(
    ("values", "text", "due"),
    [
        ((7, 8), "", [0, 1]),  # fewer classes than the run has
        ((3, 5), "names: {5: road, 3: tree}", [0, 2]),
        ((7, 8, 9), "ignore: 9", [0, 1]),
    ],
)
def test_the_classes_are_the_runs(values, text, due, run_of_folder, tmp_path):
    write_pairs(tmp_path / "there", range(50, 54), values)
    if text:
        classes_yaml(tmp_path / "there", text)
    run(run_of_folder, overrides={"data.dir": str(tmp_path / "there")})
    [written] = (run_of_folder / "evaluations").glob("val-best-*.json")
    written = evaluation(run_of_folder, written.stem)
    assert written["class_names"] == ["road", "car", "tree"]
    assert np.flatnonzero(np.sum(written["counts"], axis=1)).tolist() == due


@pytest.mark.parametrize(
    ("values", "text", "named"),
    [
        ((0, 1, 2), "", "label [12] in"),  # the run's masks had 7, 8 and 11
        ((0, 1), "names: [road, boat]", "boat"),
        ((7, 255), "names: [a", "classes.yaml"),
    ],
)
def test_classes_that_are_not_the_runs_are_refused(values, text, named, run_of_folder, tmp_path):
    write_pairs(tmp_path / "there", range(50, 54), values)
    if text:
        classes_yaml(tmp_path / "there", text)
    with pytest.raises(UserError, match=named):
        run(run_of_folder, overrides={"data.dir": str(tmp_path / "there")})


@pytest.mark.parametrize(("which", "name"), [("latest", "val-latest"), ("12", "val-12")])
def test_the_checkpoint_asked_for_names_the_file(which, name, finished_copy, tiny):
    run(finished_copy, which=which)
    written = evaluation(finished_copy, name)
    assert (written["checkpoint"], written["step"]) == (which, 12)


def test_a_run_is_scored_by_the_protocol_of_its_config_as_it_trains(tiny, tmp_path):
    fields = {name.replace(".", "__"): value for name, value in SLIDE.items()}
    extra = {"eval__split": "test", "eval__published": "a", "eval__boundary_tolerance": 2.0}
    lines = []
    train(tiny.config(**fields, **extra, train__num_steps=4), tmp_path, log=lines.append)
    (told,) = [line for line in lines if line.startswith("step 4: ")]
    assert told.startswith("step 4: test mean IoU") and "(2 images, windows of 32x32 every 16, " in told
    (row,) = [row for row in rows(tmp_path) if "test/mean_iou" in row]
    written = evaluation(tmp_path, "test-best")
    assert (written["split"], written["protocol"]) == ("test", "windows of 32x32 every 16")
    counts = np.array(written["counts"])
    assert written["published"] == of_a(counts, {})
    assert {name: row[f"test/published/{name}"] for name in written["published"]} == written["published"]
    again, lines = run(tmp_path)
    assert again["test/mean_iou"] == row["test/mean_iou"]
    assert again["test/boundary_f1"] == row["test/boundary_f1"]
    assert evaluation(tmp_path, "test-best")["counts"] == written["counts"]
    assert lines[2].startswith(f"published/accuracy {written['published']['accuracy']:.4f}, published/mean_iou ")


def test_boundary_f1_is_that_of_the_predictions(finished_copy, tiny):
    found, lines = run(finished_copy, overrides={"eval.boundary_tolerance": 1.5})
    predictor, dataset = jaxseg.load(finished_copy), open_dataset("camvid", directory=str(tiny.data), progress=False)
    records = [dataset.source("val")[index] for index in range(3)]
    each = [boundary_f1(predictor(record["images"]), record["labels"], 11, tolerance=1.5) for record in records]
    present = np.array(evaluation(finished_copy, "val-best")["counts"]).sum(1) > 0
    due = mean_over_images(np.array(each), present)
    assert found["val/boundary_f1"] == pytest.approx(np.nanmean(due)) and 0 < found["val/boundary_f1"] < 1
    np.testing.assert_allclose([found[f"val/boundary_f1/{name}"] for name in INFO.class_names], due)
    head, *lines = lines[1].splitlines()
    assert head.split()[-1] == "boundary"
    assert lines[0].split()[-1] == f"{100 * due[0]:.2f}"
    assert lines[11].split()[-1] == f"{100 * np.nanmean(due):.2f}"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eval.protocol": "slide"}, r"eval.size is \(\): eval.protocol slide wants"),
        ({"eval.published": "c"}, "eval.published c scores two classes, and camvid has 11"),
        ({"eval.split": "tset"}, "unknown split of camvid 'tset': did you mean test"),
        ({"eval.boundary_tolerance": -1.0}, "eval.boundary_tolerance is -1.0"),
    ],
)
def test_what_can_not_be_scored_is_refused_before_anything_runs(fields, message, finished_copy, tiny, tmp_path):
    with pytest.raises(UserError, match=message):
        run(finished_copy, overrides=fields)
    with pytest.raises(UserError, match=message):
        train(tiny.config(**{name.replace(".", "__"): value for name, value in fields.items()}), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_scores_that_can_not_be_written_end_in_one_line(finished_copy, tiny):
    for path in (finished_copy / "evaluations").iterdir():
        path.unlink()
    (finished_copy / "evaluations").rmdir()
    (finished_copy / "evaluations").write_text("mine")
    with pytest.raises(UserError, match=r"the scores can't be written to .*evaluations \(File exists\): make room"):
        run(finished_copy)
