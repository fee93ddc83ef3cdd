"""Which files are found: names of splits and of files, what lies beside, links to nothing, lists; in every data set."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxseg.data import open_dataset
from jaxseg.data.folder import report
from jaxseg.data.layout import brief, name_of, read_list, unused
from jaxseg.errors import UserError

from .conftest import picture, write_jpeg, write_mask

LABELS = np.arange(192, dtype=np.uint8).reshape(12, 16) % 3


def write_pairs(images: Path, masks: Path | None, names: str) -> None:
    for index, name in enumerate(names):
        write_jpeg(images / f"{name}.jpg", picture(index, 12, 16))
        if masks:
            write_mask(masks / f"{name}.png", LABELS)


def opened(folder, version=""):
    return open_dataset("folder", directory=str(folder), version=version, progress=False)


def ids(data, split):
    return [record["id"] for record in data.source(split)]


def of_splits(data):
    return {split: ids(data, split) for split in data.splits}


@pytest.mark.parametrize("kind_first", [False, True])
@pytest.mark.parametrize(
    "names", [("train", "valid", "test"), ("training", "validation", "testing"), ("Train", "VAL", "Testing")]
)
def test_the_names_of_splits(tmp_path, kind_first, names):
    for split, images in zip(names, ("abc", "de", "f"), strict=True):
        places = [(kind, split) if kind_first else (split, kind) for kind in ("images", "masks")]
        write_pairs(*(tmp_path / a / b for a, b in places), images)
    assert of_splits(opened(tmp_path)) == {"train": ["a", "b", "c"], "val": ["d", "e"], "test": ["f"]}
    assert "left out" not in report(str(tmp_path))


def test_images_and_masks_of_a_split_may_have_two_of_its_names(tmp_path):
    write_pairs(tmp_path / "images" / "train", tmp_path / "masks" / "training", "ab")
    write_pairs(tmp_path / "images" / "validation", tmp_path / "masks" / "val", "c")
    assert of_splits(opened(tmp_path)) == {"train": ["a", "b"], "val": ["c"]}


@pytest.mark.parametrize("other", ["valid", "Val", "images/validation"])
def test_a_split_that_is_there_twice_is_refused(tmp_path, other):
    write_pairs(tmp_path / "train" / "images", tmp_path / "train" / "masks", "ab")
    write_pairs(tmp_path / "val" / "images", tmp_path / "val" / "masks", "c")
    images = tmp_path / other if "/" in other else tmp_path / other / "images"
    write_pairs(images, None, "d")
    with pytest.raises(UserError, match=r"val 2 times, in .*val/images") as caught:
        opened(tmp_path)
    assert os.path.relpath(images, tmp_path) in str(caught.value)
    (images / "d.jpg").unlink()  # an empty folder is none
    assert of_splits(opened(tmp_path)) == {"train": ["a", "b"], "val": ["c"]}


def test_what_lies_together_beside_a_test_split_is_trained_on(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", "abcde")
    write_pairs(tmp_path / "test" / "images", tmp_path / "test" / "masks", "f")
    assert opened(tmp_path).lengths == {"train": 4, "val": 1, "test": 1}
    write_pairs(tmp_path / "valid" / "images", tmp_path / "valid" / "masks", "gh")
    assert opened(tmp_path).lengths == {"train": 5, "val": 2, "test": 1}


@pytest.mark.parametrize(
    "beside",
    ["holdout/images/x.jpg", "images/x.jpg", "x.png", "train/images/deeper/x.tif", "eval/x.gif", "a/b/c/x.webp"],
)
def test_whatever_else_holds_images_is_said(tmp_path, beside, capfd):
    write_pairs(tmp_path / "train" / "images", tmp_path / "train" / "masks", "abc")
    first = opened(tmp_path)
    assert "left out" not in report(str(tmp_path))
    (tmp_path / beside).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(0, 12, 16)).save(tmp_path / beside)
    capfd.readouterr()
    assert open_dataset("folder", directory=str(tmp_path)).lengths == first.lengths
    told = capfd.readouterr().err
    assert "left out:" in told and f"{os.path.dirname(beside) or '.'} (1 image)" in told


def test_a_folder_of_links_is_looked_through_once_and_no_hidden_one(tmp_path):
    write_pairs(tmp_path / "store", None, "xy")
    write_pairs(tmp_path / "data" / "images", tmp_path / "data" / "masks", "ab")
    (tmp_path / "data" / "valid").symlink_to(tmp_path / "store")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    write_pairs(tmp_path / "data" / ".cache", None, "q")
    write_pairs(tmp_path / "data" / "__MACOSX", None, "q")
    (tmp_path / "data" / "images" / "._a.jpg").write_bytes(b"of macOS")
    used = [tmp_path / "data" / kind / f"{n}.{s}" for kind, s in (("images", "jpg"), ("masks", "png")) for n in "ab"]
    assert unused(tmp_path / "data", used) == "valid (2 images)"
    assert unused(tmp_path / "data", used[1:]) == "images (1 of 2 images), valid (2 images)"


def test_a_test_split_without_masks_is_left_out_and_said(tmp_path):
    for split, names in (("train", "abc"), ("val", "d")):
        write_pairs(tmp_path / split / "images", tmp_path / split / "masks", names)
    write_pairs(tmp_path / "test" / "images", None, "efg")
    for version in ("", "leave_out"):
        assert opened(tmp_path, version).lengths == {"train": 3, "val": 1}
    assert "test/images: 3 images without masks" in report(str(tmp_path))
    # One mask of three is a mistake.
    write_mask(tmp_path / "test" / "masks" / "e.png", LABELS)
    with pytest.raises(UserError, match=r"2 files of .*: .*f\.jpg has no mask"):
        opened(tmp_path)
    assert opened(tmp_path, "leave_out").lengths == {"train": 3, "val": 1, "test": 1}
    (tmp_path / "val" / "masks" / "d.png").unlink()
    with pytest.raises(UserError, match=r"split 'val'.*d\.jpg has no mask"):
        opened(tmp_path, "leave_out")


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_link_to_nothing_is_left_out_with_its_partner_and_said(tmp_path, kind):
    write_pairs(tmp_path / "images", tmp_path / "masks", "abcdef")
    (path,) = (tmp_path / kind).glob("c.*")
    path.unlink()
    path.symlink_to(tmp_path / "gone")
    for version in ("", "leave_out"):
        data = opened(tmp_path, version)
        assert sorted(ids(data, "train") + ids(data, "val")) == list("abdef")
    told = report(str(tmp_path))
    assert f"{path} is a link to nothing, left out with c." in told and "can't be used" not in told


@pytest.mark.parametrize("kind", ["fifo", "folder", "/dev/zero"])
def test_what_is_no_regular_file_is_a_fault_at_once(tmp_path, kind):
    write_pairs(tmp_path / "images", tmp_path / "masks", "abc")
    path = tmp_path / "masks" / "b.png"
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(kind)
    with pytest.raises(UserError, match=r"1 files of .*masks/b\.png is no regular file, left out with b\.jpg"):
        opened(tmp_path)
    assert sum(opened(tmp_path, "leave_out").lengths.values()) == 2


def test_a_file_of_a_kind_that_is_not_read_is_a_fault(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", "abc")
    for kind in ("images", "masks"):
        Image.fromarray(picture(0, 12, 16)).save(tmp_path / kind / "d.gif")
    with pytest.raises(UserError, match=r"2 files of .*images/d\.gif is of a kind that is not read"):
        opened(tmp_path)
    assert sum(opened(tmp_path, "leave_out").lengths.values()) == 3


@pytest.mark.parametrize("name", ["classes.yml", "Classes.yaml"])
def test_another_name_of_classes_yaml_is_said(tmp_path, name):
    write_pairs(tmp_path / "images", tmp_path / "masks", "ab")
    (tmp_path / name).write_text("names: [a, b, c]")
    assert f"{tmp_path / name} is not read: its name must be classes.yaml" in report(str(tmp_path))


# ---------------------------------------------------------------------------------------------------- names of files


def test_names_that_are_no_utf8_are_paired_and_kept_as_escapes(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", "ab")
    for kind, suffix in (("images", b".jpg"), ("masks", b".png")):
        folder = os.fsencode(tmp_path / kind)
        os.rename(folder + b"/a" + suffix, folder + b"/caf\xe9\r\x1b[2J" + suffix)
    data = opened(tmp_path)
    due = {r"caf\udce9\r\x1b[2J", "b"}
    assert {record["id"] for split in data.splits for record in data.source(split)} == due
    os.rename(os.fsencode(tmp_path / "masks") + b"/b.png", os.fsencode(tmp_path / "masks") + b"/\xff.png")
    with pytest.raises(UserError, match=r"udcff\.png has no image") as caught:
        opened(tmp_path)
    str(caught.value).encode()


@pytest.mark.parametrize("forms", [("NFD", "NFC"), ("NFC", "NFD"), ("NFD", "NFD")])
def test_names_are_one_in_every_form_of_unicode(tmp_path, forms):
    # Two letters and an accent; Hangul; an Angstrom, which is always composed to a letter.
    for name in ("cafe\u0301", "\ud55c", "\u212b"):
        write_pairs(tmp_path / "images", None, [unicodedata.normalize(forms[0], name)])
        write_mask(tmp_path / "masks" / f"{unicodedata.normalize(forms[1], name)}.png", LABELS)
    data = opened(tmp_path)
    assert {record["id"] for split in data.splits for record in data.source(split)} == {"caf\xe9", "\ud55c", "\xc5"}


def test_two_files_of_one_name_but_for_its_form_are_refused_by_name(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", ["x", "caf\xe9"])
    write_jpeg(tmp_path / "images" / "cafe\u0301.jpg", picture(0, 12, 16))
    with pytest.raises(UserError, match="in another form of Unicode"):
        opened(tmp_path)


def test_a_name_is_the_same_under_every_locale():
    assert name_of(b"caf\xc3\xa9".decode("ascii", "surrogateescape")) == name_of("caf\xe9") == "caf\xe9"
    assert name_of("\ud800") == r"\ud800"


@given(st.text(max_size=20))
def test_a_name_is_the_same_named_again_and_can_be_printed(name):
    assert name_of(name_of(name)) == name_of(name) == name_of(unicodedata.normalize("NFD", name))
    name_of(name).encode()
    assert "\n" not in name_of(name) and "\x1b" not in name_of(name)


def test_many_long_names_are_told_in_few_words():
    assert brief(["a", "b", "c", "d"]) == "a, b, c and 1 more"
    assert len(brief(["x" * 10**6] * 5)) < 400


# ---------------------------------------------------------------------------------------- lists, and other data sets


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_two_images_of_one_name_are_refused_in_every_data_set(camvid_folder, suffix):
    image = camvid_folder / "train" / "train_0.jpg"
    Image.fromarray(picture(5, 36, 48)).save(camvid_folder / "train" / f"train_0{suffix.upper()}")
    with pytest.raises(UserError, match=r"train_0\.(jpg|JPG|PNG) has the name of train_0"):
        open_dataset("camvid", directory=str(camvid_folder), progress=False)
    image.unlink()
    assert open_dataset("camvid", directory=str(camvid_folder), progress=False).lengths["train"] == 4


def test_camvid_says_what_it_does_not_use(camvid_folder, capfd):
    open_dataset("camvid", directory=str(camvid_folder))
    assert "not used" not in capfd.readouterr().err
    (camvid_folder / "train.txt").write_text("train_0\ntrain_1\n")
    (camvid_folder / "val").rename(camvid_folder / "valid")
    with pytest.raises(UserError, match=r"files/val have no image"):
        open_dataset("camvid", directory=str(camvid_folder), progress=False)
    write_jpeg(camvid_folder / "val" / "val_0.jpg", picture(0, 36, 48))
    for index in (1, 2):
        (camvid_folder / "valannot" / f"val_{index}.png").unlink()
    for path in (camvid_folder / "testannot").iterdir():
        path.unlink()
    assert open_dataset("camvid", directory=str(camvid_folder)).lengths == {"train": 2, "val": 1}
    told = capfd.readouterr().err
    for what in ("test (2 images without masks)", "train (2 of 4 images)", "valid (3 images)"):
        assert what in told


HOSTILE = {
    "nothing": b"\n\n",
    "UTF-16": "train_0\n".encode("utf-16"),
    "NUL": b"train_0\0\n",
    "twice": b"train_0\ntrain_0\n",
    "twice in two forms": "cafe\u0301\ncaf\xe9\n".encode(),
    "a path out": b"../../../../etc/passwd\n",
    "a long line": b"x" * 10**6 + b"\n",
    "many": b"".join(b"%d\n" % i for i in range(10**5)),
    "control characters": b"\x1b[2J\n",
    "another's mask": b"/train/train_0.jpg /trainannot/train_1.png\n",
    "too large": b"x" * (2**24 + 1),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_list_is_refused_in_one_line(camvid_folder, what):
    (camvid_folder / "train.txt").write_bytes(HOSTILE[what])
    with pytest.raises(UserError, match=r"train\.txt") as caught:
        open_dataset("camvid", directory=str(camvid_folder), progress=False)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1500


@pytest.mark.parametrize("kind", ["fifo", "folder", "/dev/zero", "gone"])
def test_a_list_that_is_no_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "train.txt"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(kind)
    with pytest.raises(UserError, match=r"train\.txt"):
        read_list(path)


def test_a_list_names_files_with_blanks_in_any_form_of_unicode_and_in_latin_1(camvid_folder):
    names = [b"a b", "cafe\u0301".encode(), b"caf\xe9"]
    for old, new in zip(sorted((camvid_folder / "train").iterdir()), names, strict=False):
        os.rename(old, os.fsencode(camvid_folder / "train") + b"/" + new + b".jpg")
        os.rename(
            camvid_folder / "trainannot" / f"{old.stem}.png",
            os.fsencode(camvid_folder / "trainannot") + b"/" + new + b".png",
        )
    lines = [b"a b.jpg", "caf\xe9".encode(), b"caf\xe9"]
    (camvid_folder / "train.txt").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    data = open_dataset("camvid", directory=str(camvid_folder), progress=False)
    assert ids(data, "train") == ["a b", "caf\xe9", r"caf\udce9"]
