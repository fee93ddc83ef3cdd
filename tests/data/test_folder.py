"""Any folder of images and masks: its layouts, its kinds of masks, the report, and what is refused."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from jaxseg.data import data_info, open_dataset
from jaxseg.data.folder import report
from jaxseg.data.look import look
from jaxseg.errors import UserError
from jaxseg.predict import read_image

from .conftest import picture, write_jpeg, write_mask

ROOT = Path(__file__).parents[2]
CATS = """
names: [ground, cat, dog]
colours: {ground: [0, 0, 0], cat: [255, 0, 0], dog: [0, 0, 255]}
ignore: [224, 224, 192]
"""
COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255], [224, 224, 192]], np.uint8)
# Four stripes: of three classes and of what is ignored.
STRIPES = np.arange(4, dtype=np.uint8).repeat(4)[None].repeat(12, 0)
LABELS = np.where(STRIPES == 3, 255, STRIPES).astype(np.uint8)


def write_pairs(images: Path, masks: Path, names: str, mask=LABELS, mode="L") -> None:
    for index, name in enumerate(names):
        write_jpeg(images / f"{name}.jpg", picture(index, 12, 16))
        write_mask(masks / f"{name}.png", mask, mode)


def opened(folder, version=""):
    return open_dataset("folder", directory=str(folder), version=version, progress=False)


def ids(data, split):
    return [record["id"] for record in data.source(split)]


def labels_of(folder):
    (record,) = opened(folder).source("val")
    return record["labels"]


def test_what_lies_together_is_divided_by_seed(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", "abcdefghij")
    data = opened(tmp_path)
    assert data.lengths == {"train": 8, "val": 2}
    assert ids(data, "val") == ["abcdefghij"[i] for i in sorted(np.random.RandomState(42).permutation(10)[:2])]
    assert sorted(ids(data, "train") + ids(data, "val")) == list("abcdefghij")
    assert "10 pairs of image and mask: train 8, val 2 (divided 80/20 by seed 42)" in report(str(tmp_path))


@pytest.mark.parametrize("kind_first", [False, True])
def test_folders_of_splits(tmp_path, kind_first):
    def place(split, kind):
        return tmp_path / kind / split if kind_first else tmp_path / split / kind

    for split, names in (("train", "abc"), ("val", "de"), ("test", "f")):
        write_pairs(place(split, "images"), place(split, "masks"), names)
    data = opened(tmp_path)
    assert {split: ids(data, split) for split in data.splits} == {
        **{"train": ["a", "b", "c"], "val": ["d", "e"], "test": ["f"]}
    }
    assert "divided" not in report(str(tmp_path))


def test_train_without_val_is_divided_and_test_is_left_alone(tmp_path):
    for split, names in (("train", "abcde"), ("test", "f")):
        write_pairs(tmp_path / split / "images", tmp_path / split / "masks", names)
    assert opened(tmp_path).lengths == {"train": 4, "val": 1, "test": 1}


@pytest.mark.parametrize("mode", ["L", "P"])
def test_indices(tmp_path, mode):
    write_pairs(tmp_path / "images", tmp_path / "masks", "ab", mode=mode)
    np.testing.assert_array_equal(labels_of(tmp_path), LABELS)
    info = data_info("folder", directory=str(tmp_path))
    assert info.class_names == ("class_0", "class_1", "class_2") and info.palette.shape == (3, 3)


@pytest.mark.parametrize("mask", [STRIPES % 2 * np.uint8(255), STRIPES % 2 == 1], ids=["0 and 255", "one bit"])
def test_two_values(tmp_path, mask):
    write_pairs(tmp_path / "images", tmp_path / "masks", "ab", mask)
    np.testing.assert_array_equal(labels_of(tmp_path), STRIPES % 2)
    (tmp_path / "classes.yaml").write_text("names: [ground, cat]")
    assert opened(tmp_path).info.class_names == ("ground", "cat")
    np.testing.assert_array_equal(labels_of(tmp_path), STRIPES % 2)


@pytest.mark.parametrize("greys", [[0, 128, 255], [0, 255, *range(3, 253, 3)]], ids=["few", "many"])
def test_smoothed_outlines_are_no_classes(tmp_path, greys):
    greys = np.resize(greys, (12, 16)).astype(np.uint8)
    write_pairs(tmp_path / "images", tmp_path / "masks", "ab", greys)
    with pytest.raises(UserError, match=r"hold .*classes\.yaml"):
        opened(tmp_path)
    (tmp_path / "classes.yaml").write_text("names: {0: ground, 128: rim, 255: cat}")
    if len(np.unique(greys)) == 3:
        assert opened(tmp_path).info.class_names == ("ground", "rim", "cat")


def test_255_is_a_class_only_where_all_masks_say_so(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", "ab", STRIPES % 2 * np.uint8(255))
    np.testing.assert_array_equal(labels_of(tmp_path), STRIPES % 2)
    (tmp_path / "classes.yaml").write_text("names: [a, b]\nignore: 255")
    np.testing.assert_array_equal(labels_of(tmp_path), STRIPES % 2 * 255)
    (tmp_path / "classes.yaml").unlink()
    write_mask(tmp_path / "masks" / "c.png", LABELS)
    write_jpeg(tmp_path / "images" / "c.jpg", picture(0, 12, 16))
    info, splits = opened(tmp_path).info, opened(tmp_path)
    assert info.num_classes == 3
    assert {label for s in splits.splits for r in splits.source(s) for label in np.unique(r["labels"])} == {
        0,
        1,
        2,
        255,
    }


def test_colours(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", "ab", COLOURS[STRIPES])
    (tmp_path / "classes.yaml").write_text(CATS)
    np.testing.assert_array_equal(labels_of(tmp_path), LABELS)
    info = data_info("folder", directory=str(tmp_path))
    assert info.class_names == ("ground", "cat", "dog") and info.palette.tolist() == COLOURS[:3].tolist()


def test_masks_of_colours_beside_masks_of_indices(tmp_path):
    write_pairs(tmp_path / "train" / "images", tmp_path / "train" / "masks", "ab", COLOURS[STRIPES % 2])
    write_pairs(tmp_path / "val" / "images", tmp_path / "val" / "masks", "c", STRIPES // 2 * np.uint8(255))
    (tmp_path / "classes.yaml").write_text("colours: {ground: [0, 0, 0], cat: [255, 0, 0]}")
    for record in opened(tmp_path).source("train"):
        np.testing.assert_array_equal(record["labels"], STRIPES % 2)
    np.testing.assert_array_equal(labels_of(tmp_path), STRIPES // 2 * 255)
    assert "masks: class indices and RGB colours" in report(str(tmp_path))


def test_names_by_label_leave_labels_out(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", "ab", STRIPES)
    (tmp_path / "classes.yaml").write_text("names: {3: dog, 1: ground, 2: cat}\nignore: 0")
    assert opened(tmp_path).info.class_names == ("ground", "cat", "dog")
    np.testing.assert_array_equal(labels_of(tmp_path), np.where(STRIPES == 0, 255, STRIPES - 1))
    (tmp_path / "classes.yaml").write_text("ignore: 0")
    assert opened(tmp_path).info.class_names == ("class_1", "class_2", "class_3")
    np.testing.assert_array_equal(labels_of(tmp_path), np.where(STRIPES == 0, 255, STRIPES - 1))


RAMP = np.linspace(0, 65535, 12 * 16 * 3).astype(np.uint16).reshape(12, 16, 3)  # of 16 bits


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("a.png", picture(3, 12, 16)),
        ("a.png", picture(3, 12, 16)[..., 0]),
        ("a.png", RAMP),
        ("a.png", RAMP[..., 0]),
        ("a.tif", picture(3, 12, 16)),
        ("a.tif", RAMP),
        ("a.tiff", RAMP[..., 0]),
    ],
    ids=["colour", "grey", "colour, 16 bit", "grey, 16 bit", "TIFF", "TIFF, colour, 16 bit", "TIFF, grey, 16 bit"],
)
def test_kinds_of_images(tmp_path, name, pixels):
    write_pairs(tmp_path / "images", tmp_path / "masks", "ab")
    (tmp_path / "images" / "a.jpg").unlink()
    cv2.imwrite(str(tmp_path / "images" / name), pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    data = opened(tmp_path)
    (found,) = [r["images"] for split in data.splits for r in data.source(split) if r["id"] == "a"]
    np.testing.assert_array_equal(found, read_image(tmp_path / "images" / name))
    due = pixels if pixels.dtype == np.uint8 else pixels // 256
    np.testing.assert_array_equal(found, np.broadcast_to(due.reshape(12, 16, -1), (12, 16, 3)))


def test_the_report(tmp_path, capfd):
    write_pairs(tmp_path / "images", tmp_path / "masks", "abcd", COLOURS[STRIPES])
    (tmp_path / "classes.yaml").write_text(CATS)
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.full((12, 16), 4095, np.uint16))
    (tmp_path / "images" / "a.jpg").unlink()
    write_jpeg(tmp_path / "images" / "e.jpg", picture(0, 12, 16))
    (tmp_path / "masks" / "e.jpg").write_text("")
    write_mask(tmp_path / "masks" / "f.png", LABELS)
    (tmp_path / "masks" / "d.png").write_bytes((tmp_path / "masks" / "d.png").read_bytes()[:-30])
    (tmp_path / "masks" / "notes.txt").write_text("mine")
    text = report(str(tmp_path))
    lines = text.splitlines()
    assert lines[:5] == [
        f"{tmp_path}: 3 pairs of image and mask: train 2, val 1 (divided 80/20 by seed 42)",
        "sizes (height x width): 12x16 (3)",
        "1 images of 16 bits, values 4095 to 4095, which become 15 to 15",
        "1 of them come out nearly black, values 4095 to 4095, which become 15 to 15: scale them up (a)",
        "masks: RGB colours",
    ]
    assert [line.split()[:2] for line in lines[5:9]] == [
        [name, "25.000"] for name in ("ground", "cat", "dog", "ignored")
    ]
    assert lines[9] == "3 files that can't be used:"
    assert lines[10] == f"  {tmp_path}/images/e.jpg has no mask ({tmp_path}/masks/e.jpg is of a kind that is not read)"
    assert lines[11] == f"  {tmp_path}/masks/f.png has no image"
    assert lines[12].startswith(f"  cannot decode {tmp_path}/masks/d.png")
    capfd.readouterr()
    with pytest.raises(UserError, match=r"3 files of .* can't be used: .*leave them out with --config\.data\.version="):
        open_dataset("folder", directory=str(tmp_path))
    assert text in capfd.readouterr().err
    assert opened(tmp_path, "leave_out").lengths == {"train": 2, "val": 1}


def test_the_command(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", "ab")

    def run(folder):
        arguments = [sys.executable, "-m", "jaxseg.data.folder", str(folder)]
        return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)

    done = run(tmp_path)
    assert done.returncode == 0 and done.stdout == report(str(tmp_path)) + "\n"
    done = run(tmp_path / "nowhere")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: the data folder") and len(done.stderr.splitlines()) == 1


def test_a_second_look_reads_no_mask(tmp_path, monkeypatch):
    write_pairs(tmp_path / "images", tmp_path / "masks", "ab")
    first = report(str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("jaxseg.data.look._see", None)
        assert report(str(tmp_path)) == first
        (tmp_path / "classes.yaml").write_text("names: [x, y, z]")
        assert "  z  " in report(str(tmp_path))
    (tmp_path / "classes.yaml").unlink()
    write_mask(tmp_path / "masks" / "a.png", np.full_like(LABELS, 2))
    assert report(str(tmp_path)) != first


def break_pair(folder, what):
    image, mask = folder / "images" / "b.jpg", folder / "masks" / "b.png"
    if what == "colour":
        write_mask(mask, np.concatenate([COLOURS[STRIPES], np.full((12, 1, 3), 7, np.uint8)], axis=1)[:, 1:])
    elif what == "label":
        write_mask(mask, STRIPES)
    elif what == "size":
        write_mask(mask, LABELS[:, 1:])
    elif what == "16 bit":
        write_mask(mask, np.full_like(LABELS, 300, np.uint16))
    elif what == "image":
        image.write_bytes(image.read_bytes()[:-100])
    elif what in ("cut TIFF", "deep TIFF"):
        image.unlink()
        pixels = np.zeros((12, 16, 3), np.uint8 if what == "cut TIFF" else np.float32)
        data = cv2.imencode(".tif", pixels)[1].tobytes()
        image.with_suffix(".tif").write_bytes(data[:-20] if what == "cut TIFF" else data)
    elif what == "twice":
        Image.open(image).save(image.with_suffix(".png"))
    elif what == "no mask":
        mask.unlink()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "colour",
            r"masks/b\.png has the colour \[7, 7, 7\] in 12 pixels, which is none of ground, cat, dog: .*classes\.yaml",
        ),
        (
            "label",
            r"masks/b\.png has label 3 in 48 pixels, which is none of ground, cat, dog: .*classes\.yaml",
        ),
        (
            "size",
            r"1 files of .*: .*b\.png: it is 12x15 \(height x width\) and its image .*b\.jpg 12x16\. Mend that, or",
        ),
        ("16 bit", r"masks/b\.png has label 300 in 192 pixels"),
        ("image", r"cannot decode .*images/b\.jpg"),
        ("cut TIFF", r"cannot decode .*images/b\.tif: .*broken"),
        ("deep TIFF", r"cannot decode .*images/b\.tif: it has floating samples of 32 bits"),
        ("twice", r"images/b\.png has the name of b\.jpg"),
        ("no mask", r"images/b\.jpg has no mask\. Mend that, or leave them out"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, what, message, capfd):
    write_pairs(tmp_path / "images", tmp_path / "masks", "abc")
    (tmp_path / "classes.yaml").write_text(CATS)
    break_pair(tmp_path, what)
    with pytest.raises(UserError, match=message):
        opened(tmp_path)
    if what in ("colour", "label", "16 bit"):
        # A mistake in the table is not to cost data silently.
        with pytest.raises(UserError, match=message):
            opened(tmp_path, "leave_out")
        assert "of no class" in report(str(tmp_path)) and re.search(message, report(str(tmp_path)).splitlines()[-1])
    else:
        assert capfd.readouterr().err == ""
        assert sum(opened(tmp_path, "leave_out").lengths.values()) == (3 if what == "twice" else 2)


def test_colours_without_a_table_are_listed(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", "ab", COLOURS[STRIPES % 2])
    with pytest.raises(
        UserError,
        match=r"[ab]\.png holds colours: say in .*classes\.yaml .*class_0: \[0, 0, 0\], class_1: \[255, 0, 0\]",
    ):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("names: [a, b", "line 1"),
        ("a, b", "a, b"),
        ("- names", "all of it"),
        ("name: [a, b]", "name is"),
        ("names: a", "names"),
        ("names: []", "names"),
        ("names: {}", "names"),
        ("names:", "names"),
        ("names: {3000000000: a, 1: b}", "3000000000"),
        ("names: {x: a, 1: b}", "'x'"),
        ("names: {-1: a, 1: b}", "'-1'"),
        ("names: [yes, no]", "yes"),
        ("names: [1, 2]", r"names\[0\]"),
        ("names: [a, b, a]", "'a'"),
        ("names: [caf\u00e9, cafe\u0301]", "caf\u00e9"),
        ("names: {1: a, 1: b}", "line 1: 1 comes twice"),
        ("names: [a, b]\nnames: [c, d]", "line 2: names comes twice"),
        ('names: [a, "b\\0"]', r"b.x00"),
        ('names: [a, "b\\e[2J"]', r"b.*x1b"),
        ('names: [a, "b\\nc"]', r"b.*nc"),
        ('names: [a, "b\\u202e"]', r"b.*u202e"),
        ('names: [a, " "]', "names"),
        (f"names: [a, {'b' * 100_000}]", r"names\[1\] is .*100002 characters"),
        (f"names: [{', '.join(f'c{i}' for i in range(256))}]", "names is a list of 256"),
        ("colours: {a: 3}", "colours"),
        ("colours: {a: [1, 2, 300]}", r"colours.a\[2\] is 300"),
        ("colours: {a: [1, 2, 3], b: [1, 2, 3]}", "colours"),
        ("colours: {a: [1, 2, 3], a: [3, 2, 1]}", "a comes twice"),
        ("names: [a, c]\ncolours: {b: [1, 2, 3], c: [3, 2, 1]}", "'a'"),
        ("names: [a]", "one class, a"),
        ("colours: {a: [1, 2, 3], b: [3, 2, 1]}\nignore: 1", "ignore is 1, which is the label of b"),
        ("ignore: void", "ignore is 'void'"),
        ("ignore: [[1, 2]]", r"ignore\[0\] is a list of 2"),
        ("ignore: []", "ignore"),
        ("ignore: [4, 4]", "ignore is 4"),
        ("names: [a, b]\nignore: 1", "ignore is 1"),
        ("names: [a, b]\nignore: [7, 1]", "ignore is 1"),
        ("colours: {a: [1, 2, 3], b: [3, 2, 1]}\nignore: [1, 2, 3]", "ignore"),
        # What PyYAML's own loader hangs or breaks on, or reads as another value.
        ("names: &a [x, y]\nignore: *a", "alias"),
        (f"ignore: {'[' * 2000}1{']' * 2000}", "nested"),
        (f"ignore: {'1' * 10_000}", "10000 characters"),
        ("ignore: 1:60:60", "ignore is '1:60:60'"),
        ("ignore: 1:30", "1:30"),
        ("ignore: 010", "010"),
        ("ignore: !!python/object/apply:os.getpid []", "tag"),
        ("names: [a, b]\n---\nnames: [b, a]", "line 2: a second document"),
        (f"%YAML {'9' * 10_000}.1\n--- {{}}", "can't be read"),
        (f"names: [a, b] # {'x' * 2**17}", "at most"),
    ],
)
def test_a_classes_yaml_that_is_not_as_it_should_be(tmp_path, text, named):
    write_pairs(tmp_path / "images", tmp_path / "masks", "ab")
    (tmp_path / "classes.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=named) as caught:
        opened(tmp_path)
    assert "classes.yaml" in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("kind", ["folder", "fifo", "link to nothing", "endless", "UTF-16"])
def test_a_classes_yaml_that_is_no_text_file_is_refused_at_once(tmp_path, kind):
    write_pairs(tmp_path / "images", tmp_path / "masks", "ab")
    path = tmp_path / "classes.yaml"
    if kind == "UTF-16":
        path.write_text("names: [a, b, c]", encoding="utf-16")
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "endless" else "gone")
    with pytest.raises(UserError, match=r"classes\.yaml"):
        opened(tmp_path)


@pytest.mark.parametrize("greys", [[0, 60, 120, 180], [0, 127], [0, 128, 255]])
def test_greys_are_refused_with_the_classes_yaml_to_copy(tmp_path, greys):
    mask = np.resize(greys, (12, 16)).astype(np.uint8)
    write_pairs(tmp_path / "images", tmp_path / "masks", "ab", mask)
    with pytest.raises(UserError, match=r"classes\.yaml") as caught:
        opened(tmp_path)
    (tmp_path / "classes.yaml").write_text(re.search(r"names: \{.*\}", str(caught.value))[0])
    assert opened(tmp_path).info.num_classes == len(greys)
    np.testing.assert_array_equal(labels_of(tmp_path), np.searchsorted(greys, mask))


@pytest.mark.parametrize("labels", [[1, 2, 3], [0, 2], [0, 1, 3, 255]])
def test_labels_may_leave_some_out(tmp_path, labels):
    write_pairs(tmp_path / "images", tmp_path / "masks", "ab", np.resize(labels, (12, 16)).astype(np.uint8))
    assert opened(tmp_path).info.num_classes == max(set(labels) - {255}) + 1


def test_one_class_is_none(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", "ab", np.zeros((12, 16), np.uint8))
    with pytest.raises(UserError, match="one class, class_0"):
        opened(tmp_path)


CITY = np.array([7, 8, 11, 4, 5, 0], np.uint8)[np.arange(192).reshape(12, 16) % 6]  # Cityscapes' labelIds
CITY_DUE = np.select([CITY == 7, CITY == 8, CITY == 11], [0, 1, 2], 255)


def test_several_labels_are_ignored(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", "ab", CITY)
    names = "names: {7: road, 8: sidewalk, 11: building}\n"
    # What is proposed for those that are in no class works.
    for ignore in ("", "ignore: 4", "ignore: [0, 4]"):
        (tmp_path / "classes.yaml").write_text(names + ignore)
        with pytest.raises(UserError, match=r"ignore: \[0, 4, 5\]|ignore: \[4, 0, 5\]") as caught:
            opened(tmp_path)
        (tmp_path / "classes.yaml").write_text(names + re.search(r"ignore: \[.*\]", str(caught.value))[0])
        np.testing.assert_array_equal(labels_of(tmp_path), CITY_DUE)
    for ignore in ("[0, 4, 5, 6]", "[4, 5, 0]"):
        (tmp_path / "classes.yaml").write_text(f"{names}ignore: {ignore}")
        np.testing.assert_array_equal(labels_of(tmp_path), CITY_DUE)
        assert opened(tmp_path).info.class_names == ("road", "sidewalk", "building")


@pytest.mark.parametrize("ignore", ["[[224, 224, 192], [1, 2, 3]]", "[[224, 224, 192], [1, 2, 3], 5]"])
def test_several_colours_are_ignored(tmp_path, ignore):
    colours = np.concatenate([COLOURS, [[1, 2, 3]]]).astype(np.uint8)
    stripes = np.arange(192).reshape(12, 16) % 5
    write_pairs(tmp_path / "images", tmp_path / "masks", "ab", colours[stripes])
    (tmp_path / "classes.yaml").write_text(CATS.replace("[224, 224, 192]", ignore))
    np.testing.assert_array_equal(labels_of(tmp_path), np.where(stripes > 2, 255, stripes))


def test_three_numbers_beside_colours_are_a_colour_and_a_fourth_makes_them_labels(tmp_path):
    mask = np.resize([0, 1, 2, 10, 20, 30], (12, 16)).astype(np.uint8)
    write_pairs(tmp_path / "images", tmp_path / "masks", "ab", mask)
    (tmp_path / "classes.yaml").write_text(CATS.replace("[224, 224, 192]", "[10, 20, 30]"))
    with pytest.raises(UserError, match=r"ignore: \[.*10, 20, 30.*\]") as caught:
        opened(tmp_path)
    ignore = re.search(r"ignore: \[.*\]", str(caught.value))[0]
    for line in (ignore, "ignore: [10, 20, 30, 255]"):
        (tmp_path / "classes.yaml").write_text(CATS.replace("ignore: [224, 224, 192]", line))
        np.testing.assert_array_equal(labels_of(tmp_path), np.where(mask > 2, 255, mask))


def test_0_and_255_beside_names_of_three_are_asked_for(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", "ab", STRIPES % 2 * np.uint8(255))
    (tmp_path / "classes.yaml").write_text("names: [a, b, c]")
    with pytest.raises(UserError, match=r"say in .*classes\.yaml what 255 is"):
        opened(tmp_path)
    (tmp_path / "classes.yaml").write_text("names: [a, b]\nignore: 4")
    with pytest.raises(UserError, match=r"say in .*classes\.yaml what 255 is"):
        opened(tmp_path)
    (tmp_path / "classes.yaml").write_text("names: [a, b, c]\nignore: 255")
    np.testing.assert_array_equal(labels_of(tmp_path), STRIPES % 2 * 255)


def test_a_value_that_came_into_a_mask_after_the_look_is_refused(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", "ab", STRIPES)
    classes = look(str(tmp_path)).classes
    for value in (4, 200, 254, -5):
        with pytest.raises(UserError, match=r"b\.png"):
            classes.labels_of(np.where(STRIPES == 3, value, STRIPES), "b.png")


def test_folders_that_are_none(tmp_path):
    def fails(message, directory=tmp_path, version=""):
        with pytest.raises(UserError, match=message):
            opened(directory, version)

    fails(r"folder has to be told which: pass --config\.data\.dir=FOLDER", "")
    with pytest.raises(UserError, match=r"--config\.data\.dir=FOLDER"):
        data_info("folder")
    fails(r"has no images to train on: .*images and masks, .*it has no folders.*--config\.data\.dir=FOLDER")
    (tmp_path / "images").mkdir()
    (tmp_path / "photos").mkdir()
    fails(r"has no images to train on: .*it has images, photos\.")
    write_pairs(tmp_path / "images", tmp_path / "masks", "a")
    fails(r"has no pair of image and mask for the split 'train'")
    (tmp_path / "masks" / "a.png").unlink()
    fails(r"has no pair of image and mask for the split 'train': .*a\.jpg has no mask")
    fails(r"folder has no version 'leave': leave config\.data\.version empty, or say leave_out", version="leave")
