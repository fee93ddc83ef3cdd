"""Preparing and reading back: what is kept, when it is done again, and what is said of broken files."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from jaxseg.data import builder, open_dataset
from jaxseg.errors import UserError

from .conftest import picture, write_jpeg, write_mask

ROOT = Path(__file__).parents[2]


def test_records_are_the_files(camvid_folder):
    data = open_dataset("camvid", directory=str(camvid_folder), progress=False)
    assert data.lengths == {"train": 4, "val": 3, "test": 2} and data.splits == ("train", "val", "test")
    assert (data.train_split, data.eval_split) == ("train", "val")
    source = pickle.loads(pickle.dumps(data.source("train")))
    assert [record["id"] for record in source] == [f"train_{i}" for i in range(4)]
    for record in source:
        file = camvid_folder / "train" / f"{record['id']}.jpg"
        due = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
        np.testing.assert_array_equal(record["images"], due)
        mask = np.array(Image.open(camvid_folder / "trainannot" / f"{record['id']}.png"))
        np.testing.assert_array_equal(record["labels"], np.where(mask == 11, 255, mask))
        assert record["images"].dtype == record["labels"].dtype == np.uint8
    assert data.sizes("val").tolist() == [[36, 48]] * 3 and data.sizes("val").dtype == np.int32


def test_copies_have_one_content_and_a_changed_label_another(camvid_folder, tmp_path):
    def opened(folder):
        return open_dataset("camvid", directory=str(folder), progress=False)

    here, copy = opened(camvid_folder), tmp_path / "copy"
    shutil.copytree(camvid_folder, copy, copy_function=shutil.copyfile)
    there = opened(copy)
    assert there.contents == here.contents and there.path != here.path
    assert here.contents.keys() == here.lengths.keys() and len(set(here.contents.values())) == 3
    mask = copy / "valannot" / "val_0.png"
    labels = np.array(Image.open(mask))
    labels[0, 0] = (labels[0, 0] + 1) % 11
    Image.fromarray(labels).save(mask)
    changed = opened(copy)
    assert [split for split in here.splits if changed.contents[split] != here.contents[split]] == ["val"]


def test_weights_by_median_frequency(camvid_folder):
    masks = np.full((4, 36, 48), 11, np.uint8)  # 11 is void
    masks[0, :, :24], masks[0, :, 24:36] = 0, 1  # 864 and 432 of 1,296 labelled
    masks[1, :, :24] = 0  # all that is labelled
    masks[2, 0, :40], masks[2, 0, 40:] = 2, 0  # 40 and 8 of 48
    for index, labels in enumerate(masks):
        Image.fromarray(labels).save(camvid_folder / "trainannot" / f"train_{index}.png")
    data = open_dataset("camvid", directory=str(camvid_folder), progress=False)
    frequencies = [(864 + 864 + 8) / (1296 + 864 + 48), 432 / 1296, 40 / 48]
    due = np.ones(11)
    due[:3] = np.median(frequencies) / frequencies
    np.testing.assert_allclose(data.median_frequency_weights("train"), due)
    with pytest.raises(UserError, match="unknown split of camvid 'trian': did you mean train"):
        data.median_frequency_weights("trian")


def test_a_split_that_is_sorted_on_disk_keeps_its_order_and_is_spread(camvid_folder, monkeypatch):
    from tensorflow_datasets.core import shuffle

    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1)
    held, add = [], shuffle._Bucket.add
    monkeypatch.setattr(shuffle._Bucket, "add", lambda bucket, *args: held.append(bucket) or add(bucket, *args))
    source = open_dataset("camvid", directory=str(camvid_folder), progress=False).source("train")
    assert [record["id"] for record in source] == [f"train_{i}" for i in range(4)]
    assert len({id(bucket) for bucket in held}) == len(held) == 9


def test_a_full_disk_is_named_whoever_meets_it(camvid_folder, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("UNKNOWN: No space left on device")

    monkeypatch.setattr(builder.SegmentationRecords, "download_and_prepare", fail)
    with pytest.raises(RuntimeError, match="No space"):
        open_dataset("camvid", directory=str(camvid_folder), progress=False)
    usage = shutil.disk_usage("/")._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"the disk is full\. Set the environment variable TFDS_DATA_DIR"):
        open_dataset("camvid", directory=str(camvid_folder), progress=False)


def test_the_image_is_rgb(camvid_folder):
    red = np.zeros((36, 48, 3), np.uint8)
    red[..., 0] = 255
    write_jpeg(camvid_folder / "train" / "train_0.jpg", red)
    record = open_dataset("camvid", directory=str(camvid_folder), progress=False).source("train")[0]
    assert np.abs(record["images"].astype(int) - red).max() < 5


def test_grey_images_have_three_channels_and_exif_is_left_alone(camvid_folder):
    grey = picture(0, 36, 48)[..., 0]
    write_jpeg(camvid_folder / "train" / "train_0.jpg", grey)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(1, 36, 48)).save(camvid_folder / "train" / "train_1.jpg", exif=exif)
    source = open_dataset("camvid", directory=str(camvid_folder), progress=False).source("train")
    image = source[0]["images"]
    assert image.shape == (36, 48, 3) and (image == image[..., :1]).all()
    assert np.abs(image[..., 0].astype(int) - grey).max() < 10
    assert source[1]["images"].shape == (36, 48, 3)


def test_an_unknown_split_names_those_there_are(camvid_folder):
    data = open_dataset("camvid", directory=str(camvid_folder), progress=False)
    for read in (data.source, data.sizes):
        with pytest.raises(UserError, match=r"split of camvid 'vall': did you mean val\?"):
            read("vall")


def test_a_second_start_reuses_and_a_changed_file_prepares_anew(camvid_folder, capfd):
    first = open_dataset("camvid", directory=str(camvid_folder))
    out, err = capfd.readouterr()
    assert out == "" and [line.split(" ")[0] for line in err.splitlines()] == ["preparing", "prepared"]
    written = {path: path.stat().st_mtime_ns for path in Path(first.path).iterdir()}
    again = open_dataset("camvid", directory=str(camvid_folder))
    assert again.path == first.path and capfd.readouterr() == ("", "")
    assert written == {path: path.stat().st_mtime_ns for path in Path(first.path).iterdir()}

    mask = camvid_folder / "valannot" / "val_0.png"
    write_mask(mask, np.full((36, 48), 3, np.uint8))
    os.utime(mask, ns=(1, 1))
    changed = open_dataset("camvid", directory=str(camvid_folder))
    assert changed.path != first.path
    assert "has changed since it was prepared" in capfd.readouterr().err
    assert (changed.source("val")[0]["labels"] == 3).all()


def test_a_file_that_was_only_touched_prepares_anew(camvid_folder):
    first = open_dataset("camvid", directory=str(camvid_folder), progress=False)
    os.utime(camvid_folder / "train" / "train_3.jpg", ns=(1, 1))
    assert open_dataset("camvid", directory=str(camvid_folder), progress=False).path != first.path


def test_files_that_are_no_part_of_it_change_nothing(camvid_folder):
    first = open_dataset("camvid", directory=str(camvid_folder), progress=False)
    (camvid_folder / "notes.md").write_text("mine")
    assert open_dataset("camvid", directory=str(camvid_folder), progress=False).path == first.path


def test_a_link_to_nowhere_is_named(camvid_folder):
    image = camvid_folder / "train" / "train_1.jpg"
    image.unlink()
    image.symlink_to("gone.jpg")
    with pytest.raises(UserError, match=r"cannot read .*train_1\.jpg: No such file or directory"):
        open_dataset("camvid", directory=str(camvid_folder), progress=False)


def _break(folder: Path, what: str) -> None:
    image, mask = folder / "train" / "train_1.jpg", folder / "trainannot" / "train_1.png"
    if what == "truncated image":
        image.write_bytes(image.read_bytes()[:-200])
    elif what == "no image at all":
        image.write_text("<html>404</html>")
    elif what == "truncated mask":
        mask.write_bytes(mask.read_bytes()[:-100])
    elif what == "other size":
        write_mask(mask, np.zeros((36, 47), np.uint8))
    elif what == "label 37":
        write_mask(mask, np.pad(np.zeros((34, 46), np.uint8), 1, constant_values=37))
    elif what == "colours":
        write_mask(mask, np.zeros((36, 48, 3), np.uint8))
    elif what == "animation":
        Image.fromarray(picture(0, 36, 48)).save(image, "GIF")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("truncated image", r"cannot decode .*train_1\.jpg: .*truncated.*get it again"),
        ("no image at all", r"cannot decode .*train_1\.jpg"),
        ("truncated mask", r"cannot decode .*train_1\.png"),
        ("other size", r"train_1\.png: it is 36x47 .* its image .*train_1\.jpg 36x48"),
        (
            "label 37",
            r"train_1\.png has label 37 in 164 pixels, but camvid has 11 classes: labels must be 0\.\.10, or 255",
        ),
        ("colours", r"train_1\.png: it holds colours; a mask holds one class index per pixel"),
        ("animation", r"train_1\.jpg: it is none of JPEG, PNG, TIFF, WebP and BMP"),
    ],
)
def test_a_broken_file_is_named_and_leaves_nothing_behind(camvid_folder, what, message):
    _break(camvid_folder, what)
    for _ in range(2):
        with pytest.raises(UserError, match=message):
            open_dataset("camvid", directory=str(camvid_folder), progress=False)
    root = Path(os.environ["TFDS_DATA_DIR"])
    assert not list(root.rglob("*.array_record*")) and not list(root.rglob("metadata.json"))


def test_a_folder_that_cannot_be_written_is_named(camvid_folder, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match=r"cannot write the prepared data of camvid to .*file/below.*TFDS_DATA_DIR"):
        open_dataset("camvid", directory=str(camvid_folder), progress=False)


_KILLED = """
import os, sys
from jaxseg.data import camvid, open_dataset
class Dies(camvid.CamVid):
    def read(self, item):
        if item.id == "val_1":
            os.kill(os.getpid(), 9)
        return super().read(item)
camvid.CamVid = Dies
open_dataset("camvid", directory=sys.argv[1], progress=False)
"""


def test_an_interrupted_preparation_is_done_again(camvid_folder):
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(camvid_folder)], cwd=ROOT)
    assert killed.returncode == -9
    root = Path(os.environ["TFDS_DATA_DIR"])
    assert list(root.rglob("incomplete.*"))
    data = open_dataset("camvid", directory=str(camvid_folder), progress=False)
    assert [len(list(data.source(split))) for split in data.splits] == [4, 3, 2]
    assert not list(root.rglob("incomplete.*"))


_PREPARES = """
import sys
from jaxseg.data import open_dataset
data = open_dataset("camvid", directory=sys.argv[1], progress=False)
print(len(list(data.source("train"))), "tensorflow" in sys.modules)
"""


def test_processes_that_start_together_prepare_once_and_need_no_tensorflow(camvid_folder):
    command = [sys.executable, "-c", _PREPARES, str(camvid_folder)]
    runs = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [run.communicate()[0] for run in runs] == ["4 False\n"] * 2
    assert [run.returncode for run in runs] == [0, 0]
    assert len(list(Path(os.environ["TFDS_DATA_DIR"]).rglob("metadata.json"))) == 1
