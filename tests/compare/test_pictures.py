"""The same images through every network."""

import base64
import io
import json
import shutil

import numpy as np
import pytest
from helpers import seal_again
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxseg.compare import pictures, runs
from jaxseg.data import DataInfo

pytest_plugins = ["tiny_runs"]

INFO = DataInfo("some", ("a", "b", "c"), np.array([(0, 0, 0), (200, 0, 0), (0, 0, 200)], np.uint8))


def image_of(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


@given(st.permutations(range(20)), st.integers(0, 24))
def test_best_and_worst_come_from_both_ends_best_first(order, count):
    chosen = pictures.best_and_worst(order, count)
    assert len(chosen) == len(set(chosen)) == min(count, 20)
    assert [order.index(place) for place in chosen] == sorted(order.index(place) for place in chosen)
    if count >= 2:
        assert chosen[0] == order[0] and chosen[-1] == order[-1]


def test_neighbours_stand_back_while_there_are_others():
    assert pictures.best_and_worst(list(range(40)), 4) == [0, 4, 35, 39]
    assert pictures.best_and_worst([0, 1, 2, 3], 4) == [0, 1, 2, 3]


def test_the_mean_iou_of_an_image_counts_valid_pixels_and_its_own_classes():
    labels = np.array([[0, 0, 1, 1], [255, 255, 255, 255]], np.uint8)
    preds = np.array([[0, 1, 1, 1], [2, 2, 2, 2]], np.uint8)
    assert pictures.mean_iou(preds, labels, INFO) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert np.isnan(pictures.mean_iou(preds, np.full_like(labels, 255), INFO))


@pytest.mark.parametrize(("size", "due"), [((30, 40), (40, 30)), ((960, 480), (240, 480))])
def test_labels_become_pictures_in_the_colours_of_the_data_set(size, due):
    labels = np.zeros(size, np.uint8)
    labels[size[0] // 2 :] = 2
    labels[:, size[1] // 2 :] = 255
    picture = image_of(pictures._palette_png(labels, INFO.palette))
    assert picture.size == due
    array = np.asarray(picture.convert("RGB"))
    assert array[0, 0].tolist() == [0, 0, 0] and array[-1, 0].tolist() == [0, 0, 200]
    assert array[0, -1].tolist() == [224, 224, 192]


def copies(finished, tmp_path, *learning_rates):
    """Copies of a run that say that they are of other configs."""
    for rate in learning_rates:
        folder = shutil.copytree(finished, tmp_path / f"rate {rate}")
        config = json.loads((folder / "config.json").read_text())
        config["optim"]["learning_rate"] = rate
        (folder / "config.json").write_text(json.dumps(config))
        seal_again(folder)
        yield folder


def test_every_network_sees_the_same_images(finished, tiny, tmp_path):
    first, second, gone = copies(finished, tmp_path, 0.1, 0.2, 0.3)
    shutil.rmtree(gone / "checkpoints")
    lines = []
    groups = runs.group(runs.read_runs([first, second, gone])[0])
    [sheet], [note] = pictures.sheets(groups, 2, lines.append)
    assert sheet.networks == ["rate 0.1", "rate 0.2"]
    assert note.startswith("rate 0.3 has no predictions") and "checkpoints" in note
    assert len(lines) == 3
    assert (sheet.split, sheet.among, sheet.total) == ("val", 3, 3)
    best, worst = sheet.pictures
    assert best.score >= worst.score and best.id != worst.id
    for picture in (best, worst):
        assert picture.scores[0] == picture.scores[1] == pytest.approx(picture.score), "one network twice"
        assert picture.preds[0] == picture.preds[1]
        assert image_of(picture.image).size == image_of(picture.truth).size == image_of(picture.preds[0]).size


def test_data_that_is_gone_leaves_the_pictures_out(finished, tiny, tmp_path):
    [folder] = copies(finished, tmp_path, 0.1)
    config = json.loads((folder / "config.json").read_text())
    config["data"]["dir"] = str(tmp_path / "nowhere")
    (folder / "config.json").write_text(json.dumps(config))
    seal_again(folder)
    found, [note] = pictures.sheets(runs.group(runs.read_runs([folder])[0]), 2, lambda line: None)
    assert found == []
    assert note.startswith("no pictures of camvid (rate 0.1)") and "nowhere" in note
