"""A trained run on images from anywhere, and a run scored again."""

import dataclasses
import json
import os
import shutil

import cv2
import numpy as np
import pytest
from helpers import one_error, rows, seal_again, steps
from image_bytes import png, tiff
from PIL import Image

import jaxseg
from jaxseg import predictor as predictor_module
from jaxseg.checksums import seal
from jaxseg.data import data_info, open_dataset
from jaxseg.errors import UserError
from jaxseg.predict import main, predict_files, read_image, write_palette_png
from jaxseg.protocols import Protocol
from jaxseg.score import eval_run, score_split
from jaxseg.train import train
from jaxseg.windows import places

pytest_plugins = ["tiny_runs"]

INFO = data_info("camvid")


@pytest.fixture(scope="module")
def predictor(finished, workplace):
    from helpers import use

    with pytest.MonkeyPatch.context() as monkeypatch:
        use(workplace, monkeypatch)
        return jaxseg.load(finished)


def an_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# ----------------------------------------------------------------------------------------------------------- in Python


def test_classes_are_uint8_of_the_images_own_size(predictor):
    preds = predictor(an_image(48, 64))
    assert preds.dtype == np.uint8 and preds.shape == (48, 64)
    assert preds.max() < INFO.num_classes


@pytest.mark.parametrize("size", [(33, 65), (7, 9), (1, 1), (31, 97)])
def test_odd_and_small_images_are_predicted(predictor, size):
    probabilities = predictor(an_image(*size), probabilities=True)
    assert probabilities.dtype == np.float32 and probabilities.shape == (*size, INFO.num_classes)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    assert probabilities.min() >= 0
    np.testing.assert_array_equal(predictor(an_image(*size)), probabilities.argmax(-1))


@pytest.mark.parametrize("size", [(70, 100), (33, 20)])
def test_an_image_is_brought_to_the_size_that_its_run_was_scored_at(predictor, size, monkeypatch):
    image = an_image(*size)
    small = predictor(cv2.resize(image, (96, 64), interpolation=cv2.INTER_LINEAR), probabilities=True)
    due = cv2.resize(small, size[::-1], interpolation=cv2.INTER_LINEAR)
    whole = predictor(image)
    monkeypatch.setattr(predictor, "protocol", Protocol("resize", (64, 96)))
    found = predictor(image, probabilities=True)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, due, atol=0.02, err_msg="but for the bytes' rounding")
    preds = predictor(image)
    assert preds.dtype == np.uint8
    np.testing.assert_array_equal(preds, found.argmax(-1))
    np.testing.assert_array_equal(predictor(image, window=0), whole)


def test_images_are_seen_as_the_run_was_scored(tiny, tmp_path):
    scored = {"eval__protocol": "resize", "eval__size": (40, 72), "eval__flip": True}
    train(tiny.config(**scored, train__num_steps=2), tmp_path / "run", log=lambda line: None)
    predictor = jaxseg.load(tmp_path / "run")
    assert predictor.protocol == Protocol("resize", (40, 72), flip=True, multiple=32)
    dataset = open_dataset("camvid", directory=str(tiny.data), progress=False)
    counts = np.zeros((11, 11), int)
    for record in (dataset.source("val")[index] for index in range(3)):
        valid = record["labels"] != 255
        np.add.at(counts, (record["labels"][valid], predictor(record["images"])[valid]), 1)
    lines = []
    eval_run(tmp_path / "run", log=lines.append)
    written = json.loads((tmp_path / "run" / "evaluations" / "val-best.json").read_text())
    np.testing.assert_array_equal(counts, written["counts"])


@pytest.mark.parametrize("size", [(70, 100), (33, 90), (90, 20)])
def test_a_large_image_is_predicted_from_windows(predictor, size):
    image = an_image(*size)
    padded = np.tile(np.array(predictor._fill, np.uint8), (max(size[0], 32), max(size[1], 32), 1))
    padded[: size[0], : size[1]] = image
    sums, counts = np.zeros((*padded.shape[:2], INFO.num_classes)), np.zeros((*padded.shape[:2], 1))
    for top in places(size[0], 32, 16):
        for left in places(size[1], 32, 16):
            window = np.s_[top : top + 32, left : left + 32]
            sums[window] += predictor(padded[window], probabilities=True)
            counts[window] += 1
    due = (sums / np.maximum(counts, 1))[: size[0], : size[1]]
    found = predictor(image, probabilities=True, window=32)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, due, atol=1e-5)
    preds = predictor(image, window=32)
    assert preds.dtype == np.uint8
    np.testing.assert_array_equal(preds, found.argmax(-1))


def test_a_large_image_is_seen_in_windows_by_default(predictor, monkeypatch):
    monkeypatch.setattr(predictor_module, "LARGE", 60)
    monkeypatch.setattr(predictor_module, "WINDOW", 32)
    image = np.random.default_rng(0).integers(0, 256, (61, 50, 3), dtype=np.uint8)
    assert not np.array_equal(predictor(image, window=32), predictor(image, window=0))
    np.testing.assert_array_equal(predictor(image), predictor(image, window=32))
    np.testing.assert_array_equal(predictor(image[:60]), predictor(image[:60], window=0))


def test_an_image_no_larger_than_the_window_is_seen_whole(predictor):
    image = an_image(48, 64)
    np.testing.assert_array_equal(predictor(image, window=64), predictor(image))
    with pytest.raises(UserError, match="the window is 31 pixels: at least 32 are due, or 0 for the whole image"):
        predictor(image, window=31)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((48, 64, 3), np.float32),
        np.zeros((48, 64), np.uint8),
        np.zeros((48, 64, 4), np.uint8),
        np.zeros((1, 48, 64, 3), np.uint8),
        np.zeros((0, 64, 3), np.uint8),
    ],
)
def test_what_is_no_image_is_refused(predictor, image):
    with pytest.raises(UserError, match=rf"the image is {image.dtype} \[.*\]: uint8 \[H, W, 3\], RGB, is due"):
        predictor(image)


def test_predictions_are_those_of_the_evaluation(predictor, finished, tiny):
    import jax

    from jaxseg import config as configs
    from jaxseg.step import create_eval_step, create_mesh

    config = configs.read(finished)
    dataset = open_dataset("camvid", directory=config.data.dir, progress=False)
    mesh, model = create_mesh(), configs.build_model(config, INFO.num_classes)
    eval_step = create_eval_step(model, mesh, mean=config.data.mean, std=config.data.std)
    variables = jax.tree.map(np.asarray, predictor.variables)
    result = score_split(config, dataset, "val", eval_step, variables, mesh)
    assert len(result.examples) == 3
    for example in result.examples:
        np.testing.assert_array_equal(predictor(example["images"]), example["preds"])
    assert len(np.unique(example["preds"])) > 1


def test_load_takes_the_best_and_any_other(finished, tiny):
    assert jaxseg.load(finished).step == steps(finished, "best")[0] == 8
    assert jaxseg.load(finished, checkpoint="latest").step == jaxseg.load(finished, checkpoint="12").step == 12
    with pytest.raises(UserError, match=r"no checkpoint '11' in .*: there are latest \(12\), best \(8\)"):
        jaxseg.load(finished, checkpoint="11")


def test_the_classes_are_those_of_the_run_and_need_no_data(finished_copy, tiny):
    (finished_copy / "info.json").unlink()  # as runs are from before it was written
    seal_again(finished_copy)
    assert jaxseg.load(finished_copy).info is INFO
    config = finished_copy / "config.json"
    text = config.read_text().replace(str(tiny.data), "/gone")
    config.write_text(text.replace('"name": "camvid"', '"name": "folder"'))
    seal_again(finished_copy)
    with pytest.raises(UserError, match=r"the data folder /gone does not exist"):
        jaxseg.load(finished_copy)
    info = dataclasses.replace(INFO, name="folder", class_names=("sea", *INFO.class_names[1:]))
    (finished_copy / "info.json").write_text(info.to_json())
    (finished_copy / "B2SUMS").unlink()
    seal(finished_copy, {"config.json": config.read_text(), "info.json": info.to_json()})
    assert jaxseg.load(finished_copy).info.class_names[:2] == ("sea", "building")
    (finished_copy / "info.json").write_text("{}")
    seal_again(finished_copy)
    with pytest.raises(UserError, match=r"info\.json"):
        jaxseg.load(finished_copy)


def test_best_and_latest_are_different_networks(finished, tiny, predictor):
    image = an_image(48, 64)
    latest = jaxseg.load(finished, checkpoint="latest")
    assert np.abs(latest(image, probabilities=True) - predictor(image, probabilities=True)).max() > 1e-4


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} is no workdir of a run: it has no config.json"):
        jaxseg.load(tmp_path)


# ------------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(an_image(50, 70, 1)).save(folder / "colour.jpg")
    Image.fromarray(an_image(20, 30, 2)).save(folder / "small.png")
    Image.fromarray(an_image(41, 53, 3)[..., 0]).save(folder / "grey.png")
    Image.fromarray(np.dstack([an_image(33, 47, 4), an_image(33, 47, 5)[..., :1]])).save(folder / "alpha.png")
    return folder


SIZES = {"colour": (50, 70), "small": (20, 30), "grey": (41, 53), "alpha": (33, 47)}


def test_every_image_gets_a_mask_and_an_overlay(photos, finished, tiny, tmp_path, predictor):
    (photos / "notes.txt").write_text("no image")
    (photos / "empty.jpg").write_bytes(b"")
    (photos / ".hidden.png").write_bytes(b"")
    (photos / "folder").mkdir()
    lines = []
    assert predict_files(str(finished), str(photos), str(tmp_path / "out"), log=lines.append) == 4
    assert lines[-1] == f"4 images to {tmp_path / 'out'}, 2 files skipped"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"{name}{end}" for name in SIZES for end in (".png", "_overlay.png")}
    for name, (height, width) in SIZES.items():
        with Image.open(tmp_path / "out" / f"{name}.png") as mask:
            assert mask.mode == "P" and mask.size == (width, height)
            assert mask.getpalette()[: 3 * INFO.num_classes] == INFO.palette.ravel().tolist()
            preds = np.array(mask)
        source = next(path for path in photos.iterdir() if path.stem == name)
        np.testing.assert_array_equal(preds, predictor(read_image(source)))
        overlay = cv2.imread(str(tmp_path / "out" / f"{name}_overlay.png"))
        assert overlay.shape[0] >= height and overlay.shape[1] >= width and overlay.std() > 0


def test_files_that_are_no_images_are_named_and_skipped(photos, finished, tiny, tmp_path, capsys):
    (photos / "notes.txt").write_text("no image")
    (photos / "empty.jpg").write_bytes(b"")
    predict_files(str(finished), str(photos), str(tmp_path / "out"), log=lambda line: None)
    err = capsys.readouterr().err
    assert f"{photos / 'notes.txt'} is no image that can be read: skipped" in err
    assert f"{photos / 'empty.jpg'} is no image that can be read: skipped" in err
    assert err.count("is no image") == 2


@pytest.mark.slow
def test_names_that_are_no_utf8_are_predicted_and_what_is_no_file_is_skipped(finished, tiny, tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    with open(os.fsencode(folder) + b"/caf\xe9.png", "wb") as file:
        Image.fromarray(an_image(20, 30)).save(file, "PNG")
    os.mkfifo(folder / "fifo.png")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / "broken\x1b.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    # In a process of its own: a crash there would end this one.
    status, _, err = tiny.run("jaxseg.predict", f"--workdir={finished}", f"--input={folder}", f"--output={out}")
    assert status == 0 and "Traceback" not in err and "\x1b" not in err
    assert sorted(os.listdir(os.fsencode(out))) == [b"caf\xe9.png", b"caf\xe9_overlay.png"]
    for name in ("fifo.png", "zero.jpg", "broken"):
        assert name in err


def test_images_are_turned_as_shown_or_as_the_run_had_them_and_what_is_odd_is_said(finished_copy, tiny, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tif").write_bytes(tiff(an_image(40, 64), tags={274: [6]}))
    (tmp_path / "in" / "b.png").write_bytes(png(np.full((20, 30), 4095), 16))

    def run(out, **options):
        lines = []
        predict_files(str(finished_copy), str(tmp_path / "in"), str(tmp_path / out), log=lines.append, **options)
        assert any(line.startswith("1 images with an orientation") for line in lines)
        assert any("values 4095 to 4095" in line and "b.png" in line for line in lines)
        with Image.open(tmp_path / out / "a.png") as mask:
            return mask.size

    assert run("shown") == (40, 64) and run("stored", orientation="stored") == (64, 40)
    assert jaxseg.load(finished_copy).orientation == "shown"


def test_one_image_will_do(photos, finished, tiny, tmp_path):
    source = str(photos / "colour.jpg")
    assert predict_files(str(finished), source, str(tmp_path / "out"), log=lambda line: None) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["colour.png", "colour_overlay.png"]


def test_photos_of_one_name_do_not_overwrite_each_other(photos, finished, tiny, tmp_path):
    Image.fromarray(an_image(40, 60)).save(photos / "colour.png")
    predict_files(str(finished), str(photos), str(tmp_path / "out"), log=lambda line: None)
    sizes = {}
    for path in (tmp_path / "out").glob("colour*g"):
        with Image.open(path) as image:
            sizes[path.name] = image.size
    assert (sizes["colour.png"], sizes["colour.png.png"]) == ((70, 50), (60, 40)), sizes


@pytest.mark.parametrize("one", [True, False])
def test_an_input_is_never_overwritten(one, photos, finished, tiny):
    before = {path.name: path.read_bytes() for path in photos.iterdir() if path.suffix == ".png"}
    source = str(photos / "small.png") if one else str(photos)
    with pytest.raises(UserError, match=r"\.png is an input and would be overwritten: choose another --output"):
        predict_files(str(finished), source, str(photos), log=lambda line: None)
    assert {name: (photos / name).read_bytes() for name in before} == before


def test_an_overlay_overwrites_no_photo_and_no_other_output(photos, finished, tiny, tmp_path):
    (tmp_path / "in").mkdir()
    shutil.copy(photos / "colour.jpg", tmp_path / "in" / "a.jpg")
    shutil.copy(photos / "small.png", tmp_path / "in" / "a_overlay.png")
    for output, message in (
        ("in", r"a_overlay\.png is an input and would be overwritten"),
        ("out", r"a_overlay\.png and .*a\.jpg would both be written to a_overlay\.png"),
    ):
        with pytest.raises(UserError, match=message):
            predict_files(str(finished), str(tmp_path / "in"), str(tmp_path / output), log=lambda line: None)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_images_is_refused(finished, tiny, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match=r"photos holds no image: JPEG, PNG, TIFF, WebP and BMP are read"):
        predict_files(str(finished), str(tmp_path / "photos"), str(tmp_path / "out"), log=lambda line: None)


def test_an_input_that_is_missing_is_refused(finished, tiny, tmp_path):
    with pytest.raises(UserError, match=r"nowhere is neither a file nor a folder"):
        predict_files(str(finished), str(tmp_path / "nowhere"), str(tmp_path / "out"))


def test_an_output_that_can_not_be_made_is_refused(photos, finished, tiny, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"file can't be made \(File exists\): choose another folder"):
        predict_files(str(finished), str(photos), str(tmp_path / "file"), log=lambda line: None)


def test_a_photo_is_turned_as_its_exif_says(tmp_path):
    image = an_image(16, 24)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise to be shown upright
    Image.fromarray(image).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), np.rot90(image, -1))


def test_a_mask_reads_back_as_its_indices(tmp_path):
    preds = np.random.default_rng(0).integers(0, 11, (13, 17), dtype=np.uint8)
    write_palette_png(tmp_path / "mask.png", preds, INFO.palette)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "mask.png")), preds)
    shown = cv2.cvtColor(cv2.imread(str(tmp_path / "mask.png")), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(shown, INFO.palette[preds])


def test_the_command_predicts(photos, finished, tiny, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    monkeypatch.setattr(
        "sys.argv", ["predict", f"--workdir={finished}", f"--input={photos}", f"--output={out}", "--checkpoint=latest"]
    )
    main()
    assert capsys.readouterr().out.startswith(f"step 12 of {finished}; 4 files of {photos}\n")
    assert len(list(out.iterdir())) == 8


@pytest.mark.slow
def test_the_command_ends_in_one_line_and_status_1(tiny, tmp_path):
    arguments = [f"--workdir={tmp_path}", f"--input={tmp_path}", f"--output={tmp_path / 'out'}"]
    status, out, err = tiny.run("jaxseg.predict", *arguments)
    assert one_error(status, err) == f"error: {tmp_path} is no workdir of a run: it has no config.json"
    assert out == "" and not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------------------------- scored again


def evaluation_of(workdir, step):
    (row,) = [row for row in rows(workdir) if row["step"] == step and "val/mean_iou" in row]
    return {name: value for name, value in row.items() if name != "step" and value is not None}


@pytest.mark.parametrize(("which", "step"), [("best", 8), ("latest", 12), ("12", 12)])
def test_a_run_scores_again_what_it_scored(which, step, finished_copy, tiny):
    lines = []
    scores = eval_run(finished_copy, which=which, log=lines.append)
    due = evaluation_of(finished_copy, step)
    again = {name: value for name, value in scores.items() if not np.isnan(value)}
    assert again == due
    assert lines[0] == f"step {step} of {finished_copy} on camvid val: 3 images, whole image"
    table = lines[1].splitlines()
    assert [line.split()[0] for line in table[1:12]] == list(INFO.class_names)
    (means,) = [line for line in table if "mean IoU" in line]
    assert f"mean IoU {100 * due['val/mean_iou']:.2f} over" in means


def test_another_split_is_scored_under_its_own_name(finished_copy, tiny):
    lines = []
    scores = eval_run(finished_copy, split="test", log=lines.append)
    assert lines[0].endswith("on camvid test: 2 images, whole image")
    assert scores["test/pixels"] == 2 * (48 - 6) * 64
    assert not [name for name in scores if name.startswith("val/")]


def test_the_batch_size_of_evaluation_changes_no_count(finished_copy, tiny):
    scores = eval_run(finished_copy, overrides={"data.eval_batch_size": 6}, log=lambda line: None)
    due = evaluation_of(finished_copy, 8)
    again = {name: value for name, value in scores.items() if not np.isnan(value)}
    assert again.pop("val/loss") == pytest.approx(due.pop("val/loss"), rel=1e-5)
    assert again == due


def test_data_that_has_moved_is_given_anew(finished_copy, tiny, tmp_path):
    moved = tmp_path / "moved"
    moved.symlink_to(tiny.data, target_is_directory=True)
    config = finished_copy / "config.json"
    config.write_text(config.read_text().replace(str(tiny.data), "/no/such/folder"))
    seal_again(finished_copy)
    with pytest.raises(UserError, match="the data folder /no/such/folder does not exist"):
        eval_run(finished_copy, log=lambda line: None)
    scores = eval_run(finished_copy, overrides={"data.dir": str(moved)}, log=lambda line: None)
    assert scores["val/mean_iou"] == evaluation_of(finished_copy, 8)["val/mean_iou"]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"overrides": {"model.backbone": "resnet18"}}, "with model.backbone tiny: --config.model.back"),
        ({"overrides": {"data.mean": (0, 0, 0)}}, r"--config.data.mean can't be \(0, 0, 0\)"),
        ({"split": "tset"}, "unknown split of camvid 'tset': did you mean test"),
        ({"which": "7"}, r"no checkpoint '7' in .*: there are latest \(12\), best \(8\)"),
        ({"overrides": {"data.eval_batch_size": 3}}, "data.eval_batch_size is 3, which 2 devices don't divide"),
    ],
)
def test_what_can_not_be_scored_is_refused(keywords, message, finished_copy, tiny):
    with pytest.raises(UserError, match=message):
        eval_run(finished_copy, log=lambda line: None, **keywords)


def test_scoring_changes_nothing_in_the_workdir_but_its_evaluations(finished_copy, tiny):
    def times():
        files = [path for path in finished_copy.rglob("*") if path.is_file() and path.parent.name != "evaluations"]
        return {path: path.stat().st_mtime_ns for path in files}

    before = times()
    shutil.rmtree(finished_copy / "evaluations")
    eval_run(finished_copy, split="test", log=lambda line: None)
    assert times() == before and len(before) > 10
    assert [path.name for path in (finished_copy / "evaluations").iterdir()] == ["test-best.json"]
