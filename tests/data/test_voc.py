"""VOC: folders, official archives (small ones made here) and the real subset."""

import hashlib
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from jaxseg.data import Scoring, data_info, open_dataset, voc
from jaxseg.data.fetch import Archive
from jaxseg.errors import UserError

from .conftest import picture, write_jpeg, write_mask

# Pixels per label over the subset's 100 masks, as counted by those who put it together; the last is the border.
PIXELS = [
    *(12574378, 196988, 92590, 116892, 68691, 101319, 357170, 107954, 224295, 130237, 199896),
    *(406511, 110133, 184372, 110392, 1142038, 27276, 216460, 217263, 286127, 221343, 883865),
]


def ids(data, split):
    return [record["id"] for record in data.source(split)]


def write_lists(home: Path, **lists: list[str]) -> None:
    folder = home / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True, exist_ok=True)
    for name, entries in lists.items():
        (folder / f"{name}.txt").write_text("".join(f"{entry}\n" for entry in entries))


def write_voc(home: Path, names: str, label: int, **lists: list[str]) -> None:
    """Images `names`, each letter one, whose palette masks are all `label` under a border of 255."""
    for index, name in enumerate(names):
        write_jpeg(home / "JPEGImages" / f"{name}.jpg", picture(index, 20, 30))
        mask = np.pad(np.full((18, 28), label, np.uint8), 1, constant_values=255)
        write_mask(home / "SegmentationClass" / f"{name}.png", mask, "P")
    write_lists(home, **lists)


def test_the_palette_is_the_usual_one():
    palette = data_info("voc").palette.tolist()
    assert palette[:4] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert palette[15] == [192, 128, 128] and palette[20] == [0, 64, 128]
    assert voc.voc_palette(256)[255].tolist() == [224, 224, 192]


@pytest.mark.parametrize("given", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_a_folder_at_any_level(tmp_path, given):
    write_voc(tmp_path / "VOCdevkit" / "VOC2012", "abc", 7, train=["b", "a"], val=["c"])
    data = open_dataset("voc", directory=str(tmp_path / given), progress=False)
    assert data.lengths == {"train": 2, "val": 1}
    assert ids(data, "train") == ["b", "a"]
    labels = data.source("val")[0]["labels"]
    assert np.unique(labels).tolist() == [7, 255] and (labels[1:-1, 1:-1] == 7).all()


def test_aug_takes_its_own_masks_and_list(tmp_path):
    home = tmp_path / "VOC2012"
    write_voc(home, "abc", 7, train=["b"], val=["c"])
    (home / "SegmentationClass").rename(home / "SegmentationClassAug")
    with pytest.raises(UserError, match=r"no trainaug\.txt or train_aug\.txt, the list of the split 'trainaug'"):
        open_dataset("voc", directory=str(home), version="2012_aug", progress=False)
    write_lists(home, train_aug=["b", "a"])
    data = open_dataset("voc", directory=str(home), version="2012_aug", progress=False)
    assert data.train_split == "trainaug" and ids(data, "trainaug") == ["b", "a"]


def test_what_is_wrong_is_named(tmp_path):
    def fails(message, **more):
        with pytest.raises(UserError, match=message):
            open_dataset("voc", directory=str(tmp_path), progress=False, **more)

    fails(r"neither is nor contains VOCdevkit/VOC2012")
    home = tmp_path / "VOC2012"
    write_voc(home, "abc", 7, train=["b", "x", "y"], val=["c"])
    fails(r"2 of the 3 entries of .*train\.txt have no image: x, y\. Images are due in")
    fails(r"unknown version of voc '2021': did you mean 2012", version="2021")
    write_lists(home, train=["b"])
    (home / "ImageSets" / "Segmentation" / "val.txt").unlink()
    fails(r"has no val\.txt, the list of the split 'val' of VOC 2012")
    write_lists(home, val=["c"])
    write_mask(home / "SegmentationClass" / "c.png", np.full((20, 30), 37, np.uint8), "P")
    fails(r"c\.png has label 37 in 600 pixels, but voc has 21 classes")


def test_what_is_not_used_is_said_and_a_test_split_without_masks_is_none(tmp_path, capfd):
    home = tmp_path / "VOC2007"
    write_voc(home, "abcd", 7, train=["a"], val=["b"], test=["c", "d"])
    for name in "cd":
        (home / "SegmentationClass" / f"{name}.png").unlink()
    write_jpeg(home / "SegmentationObject" / "x.jpg", picture(0, 20, 30))
    assert open_dataset("voc", directory=str(home), version="2007").lengths == {"train": 1, "val": 1}
    told = capfd.readouterr().err
    for what in ("test of VOC2007 without masks", "JPEGImages (2 of 4 images)", "SegmentationObject (1 image)"):
        assert what in told


@pytest.mark.parametrize(
    ("version", "split", "length", "needs"),
    [("2007", "test", 1, ["test"]), ("2012", "val", 2, ["val"]), ("2012_resplit", "val", 3, ["trainval"])],
)
def test_scoring_needs_its_split_only(tmp_path, version, split, length, needs):
    home, names = tmp_path / f"VOC{version[:4]}", [chr(97 + i) for i in range(20)]
    lists = {"test": ["a"], "val": ["b", "c"], "trainval": names}
    write_voc(home, "".join(names), 7, **{name: lists[name] for name in needs})
    scoring = Scoring(split, data_info("voc"))
    data = open_dataset("voc", directory=str(home), version=version, progress=False, scoring=scoring)
    assert data.lengths == {split: length} and data.eval_split == split
    with pytest.raises(UserError, match=f"unknown split of voc {version} 'vall'"):
        open_dataset(
            "voc", directory=str(home), version=version, progress=False, scoring=Scoring("vall", data_info("voc"))
        )


@pytest.fixture
def official(tmp_path, monkeypatch):
    """The three official archives in small, at file:// addresses, and the table that names them."""
    pytest.importorskip("scipy")
    import scipy.io

    made = tmp_path / "made"
    twelve = made / "one" / "VOCdevkit" / "VOC2012"
    write_voc(twelve, "abcdef", 1, train=["a", "b"], val=["c"], trainval=["a", "b", "c"])
    for name in "def":
        (twelve / "SegmentationClass" / f"{name}.png").unlink()
    sbd = made / "two" / "benchmark_RELEASE" / "dataset"
    for index, name in enumerate("bcde"):
        write_jpeg(sbd / "img" / f"{name}.jpg", picture(index, 20, 30))
        (sbd / "cls").mkdir(exist_ok=True)
        classes = {"Segmentation": np.full((20, 30), 2, np.uint8), "Boundaries": np.zeros(3)}
        scipy.io.savemat(sbd / "cls" / f"{name}.mat", {"GTcls": classes})
    (sbd / "train.txt").write_text("b\nc\nd\n")
    (sbd / "val.txt").write_text("e\n")
    write_voc(made / "three" / "VOCdevkit" / "VOC2007", "gh", 3, train=["g"], val=["h"], test=["g"])
    write_voc(made / "four" / "VOCdevkit" / "VOC2007", "ij", 4, test=["j", "i"])

    def pack(place, name, algorithm):
        file = tmp_path / "server" / name
        file.parent.mkdir(exist_ok=True)
        with tarfile.open(file, "w:gz" if name.endswith("gz") else "w") as archive:
            for entry in (made / place).iterdir():
                archive.add(entry, entry.name)
        return Archive(file.as_uri(), algorithm, hashlib.new(algorithm, file.read_bytes()).hexdigest())

    one, two = pack("one", "VOCtrainval_2012.tar", "sha256"), pack("two", "benchmark.tgz", "md5")
    three, four = pack("three", "VOCtrainval_2007.tar", "sha256"), pack("four", "VOCtest_2007.tar", "sha256")
    monkeypatch.setattr(voc, "ARCHIVES", {"2007": (three, four), "2012": (one,), "2012_aug": (one, two)})
    counts = {
        "2007": {"train": 1, "val": 1, "test": 2},
        "2012": {"train": 2, "val": 1, "trainval": 3},
        "2012_aug": {"trainaug": 4, "val": 1},
    }
    monkeypatch.setattr(voc, "SPLITS", counts)
    return tmp_path / "server"


def downloads() -> Path:
    return Path(os.environ["TFDS_DATA_DIR"]) / "downloads" / "voc"


def test_official_2007_has_its_test_images_in_another_archive(official):
    data = open_dataset("voc", version="2007", progress=False)
    assert [ids(data, split) for split in ("train", "val", "test")] == [["g"], ["h"], ["j", "i"]]
    assert np.unique(data.source("test")[0]["labels"]).tolist() == [4, 255]


def test_official_aug_prefers_the_masks_of_voc(official, capfd):
    data = open_dataset("voc", version="2012_aug")
    assert data.train_split == "trainaug" and ids(data, "trainaug") == ["a", "b", "d", "e"]
    assert [int(record["labels"][5, 5]) for record in data.source("trainaug")] == [1, 1, 2, 2]
    assert "fetching file://" in capfd.readouterr().err
    assert open_dataset("voc", progress=False).lengths == {"train": 2, "val": 1, "trainval": 3}


def test_prepared_data_needs_neither_archives_nor_network(official):
    first = open_dataset("voc", progress=False)
    for file in [*official.iterdir(), *downloads().glob("*.tar")]:
        file.unlink()
    assert open_dataset("voc", progress=False).path == first.path


def test_without_network_the_archives_are_named_and_one_put_there_is_used(official):
    away = {file.name: file.read_bytes() for file in official.iterdir()}
    for file in official.iterdir():
        file.unlink()
    with pytest.raises(UserError) as caught:
        open_dataset("voc", version="2012_aug", progress=False)
    message = str(caught.value)
    assert (official / "VOCtrainval_2012.tar").as_uri() in message and (official / "benchmark.tgz").as_uri() in message
    assert f"put it into {downloads()}" in message and "--config.data.dir=FOLDER" in message
    (downloads() / "VOCtrainval_2012.tar").write_bytes(away["VOCtrainval_2012.tar"])
    with pytest.raises(UserError) as caught:
        open_dataset("voc", version="2012_aug", progress=False)
    assert "VOCtrainval" not in str(caught.value)
    assert open_dataset("voc", progress=False).lengths["train"] == 2


@pytest.mark.parametrize("lies_there", [False, True])
def test_a_wrong_checksum_removes_the_file(official, lies_there):
    file = official / "VOCtrainval_2012.tar"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + b"x")
    if lies_there:
        downloads().mkdir(parents=True)
        (downloads() / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=r"sha256 .* instead of .* was removed"):
        open_dataset("voc", progress=False)
    assert not list(downloads().iterdir())
    file.write_bytes(data)
    assert open_dataset("voc", progress=False).lengths["train"] == 2


def test_official_lists_of_another_length_are_an_error(official, monkeypatch):
    monkeypatch.setitem(voc.SPLITS, "2012", {"train": 1464, "val": 1})
    with pytest.raises(UserError, match=r"the split 'train' of the official VOC 2012 has 1464 images, .* has 2"):
        open_dataset("voc", progress=False)


@pytest.mark.parametrize(("link", "name"), [("", "../../../out"), ("", "{here}/out"), ("../../../out", "inside")])
def test_an_archive_cannot_write_outside(link, name, official, monkeypatch, tmp_path):
    monkeypatch.delattr(tarfile, "data_filter", raising=False)  # which Python 3.11 has not always had
    evil = tarfile.TarInfo(name.format(here=tmp_path))
    evil.type, evil.linkname = (tarfile.SYMTYPE, link) if link else (tarfile.REGTYPE, "")
    file = official / "evil.tar"
    with tarfile.open(file, "w") as archive:
        archive.addfile(evil)
    bad = Archive(file.as_uri(), "md5", hashlib.md5(file.read_bytes()).hexdigest())
    monkeypatch.setitem(voc.ARCHIVES, "2012", (bad,))
    with pytest.raises(UserError, match=r"cannot unpack .*evil\.tar"):
        open_dataset("voc", progress=False)
    assert not list(tmp_path.rglob("out"))


def test_resplit_deals_trainval_out_by_seed(tmp_path, capfd):
    home, names = tmp_path / "VOC2012", [chr(97 + i) for i in range(20)]
    write_voc(home, "".join(names), 7, trainval=names)
    data = open_dataset("voc", directory=str(home), version="2012_resplit")
    assert data.lengths == {"train": 15, "val": 3, "test": 2}  # 14.9, 3.1 and 2.1 of 20
    order = np.random.RandomState(42).permutation(20)
    assert ids(data, "train") == [names[i] for i in sorted(order[:15])]
    assert ids(data, "val") == [names[i] for i in sorted(order[15:18])]
    assert sorted(name for split in data.splits for name in ids(data, split)) == names
    assert "(20 images of trainval instead of 2913, in its proportions)" in capfd.readouterr().err
    write_lists(home, trainval=names[:2])
    with pytest.raises(UserError, match=r"trainval\.txt has 2 images: too few to divide into train, val, test"):
        open_dataset("voc", directory=str(home), version="2012_resplit", progress=False)
    (home / "ImageSets" / "Segmentation" / "trainval.txt").unlink()
    with pytest.raises(UserError, match=r"no trainval\.txt, the list of the split 'trainval'"):
        open_dataset("voc", directory=str(home), version="2012_resplit", progress=False)


def test_the_official_trainval_has_the_published_lengths():
    parts = voc._resplit(range(2913), Path("trainval.txt"))
    assert {split: len(pairs) for split, pairs in parts.items()} == voc.SPLITS["2012_resplit"]


@pytest.mark.parametrize(
    ("version", "lengths"),
    [
        ("2012", {"train": 46, "val": 54, "trainval": 100}),
        ("2012_aug", {"trainaug": 46, "val": 54}),
        ("2012_resplit", {"train": 74, "val": 15, "test": 11}),
    ],
)
def test_the_real_subset(real, version, lengths):
    data = open_dataset("voc", directory=str(real("voc_subset")), version=version, progress=False)
    assert data.lengths == lengths
    counts = np.zeros(256, np.int64)
    for split in {*data.splits} - {"trainval"}:
        for record, size in zip(data.source(split), data.sizes(split), strict=True):
            assert record["images"].shape == (*size, 3) and record["labels"].shape == tuple(size)
            counts += np.bincount(record["labels"].ravel(), minlength=256)
    assert [*counts[:21], counts[255]] == PIXELS and counts.sum() == sum(PIXELS)


def test_the_masks_of_project_d_are_greys(real):
    data = open_dataset("voc", directory=str(real("voc_subset")), version="2012_project_d", progress=False)
    right = open_dataset("voc", directory=str(real("voc_subset")), version="2012", progress=False)
    assert data.lengths == {"train": 46, "val": 20}  # the list of the subset is shorter than 50
    due = np.full(256, 20)
    due[[0, 4, 8]] = 0, 15, 19
    for split in data.splits:
        for i, record in enumerate(data.source(split)):
            assert record["id"] == right.source(split)[i]["id"]
            np.testing.assert_array_equal(record["labels"], due[right.source(split)[i]["labels"]])
