"""LoveDA: the official layout in small."""

import shutil

import numpy as np
import pytest

from jaxseg.data import Scoring, data_info, open_dataset
from jaxseg.errors import UserError

from .conftest import picture, write_jpeg, write_mask

# Every label of the files once.
RAW = np.arange(8, dtype=np.uint8).repeat(6).reshape(6, 8)


@pytest.fixture
def folder(tmp_path):
    """Five urban and three rural images to train on, two and one to score, and one without a mask."""
    home, number = tmp_path / "files", 0
    for split, places in (("Train", (5, 3)), ("Val", (2, 1))):
        for place, count in zip(("Urban", "Rural"), places, strict=True):
            for _ in range(count):
                write_jpeg(home / split / place / "images_png" / f"{number + 8}.png", picture(number, 6, 8))
                write_mask(home / split / place / "masks_png" / f"{number + 8}.png", RAW)
                number += 1
    write_jpeg(home / "Test" / "Urban" / "images_png" / "99.png", picture(99, 6, 8))
    return home


def test_what_is_not_used_is_said(folder, capfd):
    open_dataset("loveda", directory=str(folder), version="urban")
    told = capfd.readouterr().err
    assert "Test/Urban/images_png (1 image)" in told and "Train/Rural/images_png (3 images)" in told


def test_scoring_needs_its_split_only(folder):
    shutil.rmtree(folder / "Train")
    scoring = Scoring("val", data_info("loveda"))
    assert open_dataset("loveda", directory=str(folder), progress=False, scoring=scoring).lengths == {"val": 3}
    with pytest.raises(UserError, match="unknown split of loveda 'test'"):
        scoring = Scoring("test", data_info("loveda"))
        open_dataset("loveda", directory=str(folder), progress=False, scoring=scoring)


def opened(folder, version=""):
    return open_dataset("loveda", directory=str(folder), version=version, progress=False)


def ids(data, split):
    return [record["id"] for record in data.source(split)]


def test_both_places_and_no_data_counts_nowhere(folder):
    data = opened(folder)
    assert data.lengths == {"train": 8, "val": 3}
    assert ids(data, "train") == [f"urban_{i}" for i in range(8, 13)] + [f"rural_{i}" for i in range(13, 16)]
    assert ids(data, "val") == ["urban_16", "urban_17", "rural_18"]
    np.testing.assert_array_equal(data.source("val")[2]["labels"], np.where(RAW == 0, 255, RAW - 1))
    assert data.info.class_names[0] == "background" and data.info.class_names[6] == "agriculture"


def test_one_place(folder):
    assert opened(folder, "urban").lengths == {"train": 5, "val": 2}
    assert ids(opened(folder, "rural"), "train") == ["rural_13", "rural_14", "rural_15"]


def test_project_b_divides_the_urban_training_images_and_takes_7_for_0(folder):
    data = opened(folder, "project_b")
    assert data.lengths == {"train": 4, "val": 1}
    held_out = np.random.RandomState(42).permutation(5)[4]
    assert ids(data, "val") == [f"urban_{8 + held_out}"]
    np.testing.assert_array_equal(data.source("val")[0]["labels"], np.where(RAW == 7, 0, RAW))
    names = data.info.class_names
    assert names[0] == "agriculture_and_no_data" and names[1] == "background" and names[6] == "forest"
    assert data.info.palette[1].tolist() == [255, 255, 255] and data.info.palette[0].tolist() == [255, 195, 128]


def test_what_is_wrong_is_named(folder):
    def fails(message, version=""):
        with pytest.raises(UserError, match=message):
            opened(folder, version)

    mask = folder / "Val" / "Rural" / "masks_png" / "18.png"
    write_mask(mask, RAW + 1)
    fails(r"Rural/masks_png/18\.png has label 8: LoveDA's masks have 1 to 7, and 0 for no data")
    mask.unlink()
    fails(r"1 of the 1 entries of .*Val/Rural have no mask: 18\. Images are due in .*images_png, masks in .*masks_png")
    assert opened(folder, "urban").lengths["val"] == 2
    shutil.rmtree(folder / "Val")
    fails(r"Val/Urban has no images\. .*pass the folder above Val with --config\.data\.dir=FOLDER")
    fails(r"unknown version of loveda 'projectb': did you mean project_b\?", "projectb")
    with pytest.raises(UserError, match=r"loveda is not fetched by itself: .*--config\.data\.dir=FOLDER"):
        open_dataset("loveda")
