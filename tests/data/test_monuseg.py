"""MoNuSeg: layouts, divisions, patches, conventions of masks, and the real thing."""

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import Scoring, data_info, open_dataset
from jaxseg.errors import UserError

from .conftest import picture, write_jpeg, write_mask
from .test_polygons import write_xml

SQUARE = [(300, 10), (320, 10), (320, 40), (300, 40)]  # 20x30 pixels, with its rim 21x31


@pytest.fixture
def folder(tmp_path):
    """Eleven training images of 256x384, the first with an annotation, and one for the test; 2 patches each."""
    home = tmp_path / "files"
    for index in range(11):
        write_jpeg(home / "train" / "images" / f"t{index:02}.jpg", picture(index, 256, 384))
        write_mask(home / "train" / "masks" / f"t{index:02}.png", np.eye(256, 384, dtype=bool))
    write_xml(home / "train" / "annotations" / "t00.xml", SQUARE)
    write_jpeg(home / "test" / "images" / "x.jpg", picture(11, 256, 384))
    write_xml(home / "test" / "annotations" / "x.xml", SQUARE)
    return home


def opened(folder, version=""):
    return open_dataset("monuseg", directory=str(folder), version=version, progress=False)


def ids(data, split):
    return [record["id"] for record in data.source(split)]


def test_images_are_divided_not_patches(folder):
    data = opened(folder)
    assert data.lengths == {
        **{"train": 18, "val": 4, "train_images": 9, "val_images": 2},
        **{"test": 2, "test_images": 1},
    }
    assert ids(data, "val_images") == [f"t{i:02}" for i in sorted(np.random.RandomState(42).permutation(11)[:2])]
    assert sorted(ids(data, "train_images") + ids(data, "val_images")) == [f"t{i:02}" for i in range(11)]
    for split in ("train", "val"):
        assert ids(data, split) == [f"{name}_y0_x{x}" for name in ids(data, f"{split}_images") for x in (0, 128)]
    assert (data.sizes("val") == 256).all() and data.sizes("val_images").tolist() == [[256, 384]] * 2


def test_by_patch_as_published(folder):
    from sklearn.model_selection import train_test_split

    data = opened(folder, "by_patch")
    patches = [f"t{i:02}_y0_x{x}" for i in range(11) for x in (0, 128)]
    train, val = train_test_split(patches, test_size=0.1, random_state=42)
    assert (ids(data, "train"), ids(data, "val")) == (sorted(train), sorted(val))
    assert data.lengths["train_images"] == 11 and "val_images" not in data.splits


def test_patches_are_cut_from_the_image(folder):
    data = opened(folder)
    (whole,) = data.source("test_images")
    for record, left in zip(data.source("test"), (0, 128), strict=True):
        for key in ("images", "labels"):
            np.testing.assert_array_equal(record[key], whole[key][:, left : left + 256])


def test_polygons_before_masks_and_either_convention(folder):
    def labels(version):
        data = opened(folder, version)
        found = {r["id"]: r["labels"] for split in data.splits if "images" in split for r in data.source(split)}
        assert set(np.unique(list(found.values()))) == {0, 1}
        return found

    within, full = labels(""), labels("full_polygons")
    assert within["t00"].sum() == within["x"].sum() == 20 * 30
    assert full["t00"].sum() == full["x"].sum() == 21 * 31
    np.testing.assert_array_equal(within["t01"], np.eye(256, 384))
    np.testing.assert_array_equal(full["t01"], np.eye(256, 384))


def test_versions_combine_and_their_order_does_not_matter(folder, capfd):
    both = open_dataset("monuseg", directory=str(folder), version="by_patch,full_polygons")
    assert capfd.readouterr().err.count("10 of 12 masks are ready ones, without the polygons' rim") == 1
    assert opened(folder, "full_polygons, by_patch").path == both.path
    assert len({opened(folder, version).path for version in ("", "by_patch", "full_polygons")} | {both.path}) == 4
    with pytest.raises(UserError, match=r"unknown version of monuseg 'by_patches': did you mean by_patch\?"):
        opened(folder, "full_polygons,by_patches")


def test_the_folders_of_the_challenge(folder):
    due = opened(folder)
    home = folder / "MoNuSeg 2018 Training Data" / "MoNuSeg 2018 Training Data"
    home.parent.mkdir()
    (folder / "train").rename(home)
    (home / "images").rename(home / "Tissue Images")
    (home / "annotations").rename(home / "Annotations")
    (folder / "test").rename(folder / "MoNuSegTestData")
    tests = folder / "MoNuSegTestData"
    Image.open(tests / "images" / "x.jpg").save(tests / "x.tif")
    (tests / "annotations" / "x.xml").rename(tests / "x.xml")
    shutil.rmtree(tests / "images")
    data = opened(folder)
    assert data.lengths == due.lengths
    for split in ("train", "test", "test_images"):
        for left, right in zip(due.source(split), data.source(split), strict=True):
            assert left["id"] == right["id"]
            np.testing.assert_array_equal(left["labels"], right["labels"])
            assert np.abs(left["images"].astype(int) - right["images"]).max() <= 1  # two decoders of one JPEG


def test_what_is_said_of_regions_names_the_file(folder, capfd):
    write_xml(folder / "test" / "annotations" / "x.xml", SQUARE, [(1, 1)], [(900, 1), (901, 1), (901, 9)])
    data = open_dataset("monuseg", directory=str(folder))
    err = capfd.readouterr().err
    assert err.count("x.xml: 1 of 3 regions have fewer than three points: left out") == 1
    assert err.count("x.xml: 1 of 3 regions lie wholly outside the image of 256x384: left out") == 1
    assert data.source("test_images")[0]["labels"].sum() == 20 * 30


def test_what_is_wrong_is_named(folder):
    def fails(message):
        with pytest.raises(UserError, match=message):
            opened(folder)

    write_xml(folder / "test" / "annotations" / "x.xml")
    fails(r"test/annotations/x\.xml has no regions")
    (folder / "test" / "annotations" / "x.xml").unlink()
    (folder / "train" / "masks" / "t01.png").rename(folder / "t01.png")
    fails(r"1 of 11 images of .*train have neither an annotation nor a mask, .*t01\.jpg among them: t01\.xml is due in")
    (folder / "t01.png").rename(folder / "train" / "masks" / "t01.png")
    write_mask(folder / "test" / "masks" / "x.png", np.zeros((256, 383), bool))
    fails(r"x\.png: it is 256x383 \(height x width\) and its image .*x\.jpg 256x384")
    write_jpeg(folder / "test" / "images" / "x.jpg", picture(0, 255, 384))
    write_mask(folder / "test" / "masks" / "x.png", np.zeros((255, 384), bool))
    fails(r"x\.jpg is 255x384: at least 256x256 are due, the size of a patch")
    shutil.rmtree(folder / "train" / "images")
    fails(r"no images of the split 'train': they are due in train or MoNuSeg 2018 .*--config\.data\.dir=FOLDER")
    with pytest.raises(UserError, match=r"monuseg is not fetched by itself: .*--config\.data\.dir=FOLDER"):
        open_dataset("monuseg")


def test_a_test_split_that_is_not_there_or_has_no_labels_is_left_out_and_said(folder, capfd):
    (folder / "test" / "annotations" / "x.xml").unlink()
    write_jpeg(folder / "validation" / "v.jpg", picture(0, 256, 384))
    lengths = {"train": 18, "val": 4, "train_images": 9, "val_images": 2}
    assert open_dataset("monuseg", directory=str(folder)).lengths == lengths
    told = capfd.readouterr().err
    assert "test (1 images without" in told and "validation (1 image)" in told
    shutil.rmtree(folder / "test")
    assert open_dataset("monuseg", directory=str(folder)).lengths == lengths
    assert "test, of which there are no images" in capfd.readouterr().err


@pytest.mark.parametrize(("split", "away", "length"), [("test_images", "train", 1), ("val", "test", 4)])
def test_scoring_needs_its_split_only(folder, split, away, length):
    shutil.rmtree(folder / away)
    scoring = Scoring(split, data_info("monuseg"))
    data = open_dataset("monuseg", directory=str(folder), progress=False, scoring=scoring)
    assert data.lengths == {split: length} and data.eval_split == split
    with pytest.raises(UserError, match=f"split '{away}'"):
        open_dataset("monuseg", directory=str(folder), progress=False, scoring=dataclasses.replace(scoring, split=away))


def test_the_real_one(real):
    data = opened(real("monuseg"))
    patches = {"train": 972, "val": 108, "test": 504}
    assert data.lengths == {**patches, "train_images": 27, "val_images": 3, "test_images": 14}
    assert not {*ids(data, "train_images")} & {*ids(data, "val_images")}
    assert len({*ids(data, "train"), *ids(data, "val"), *ids(data, "test")}) == 1584
    shares = [record["labels"].mean() for record in data.source("test_images")]
    assert 0.19 < np.mean(shares) < 0.2  # with the polygons' rim it is 0.214
