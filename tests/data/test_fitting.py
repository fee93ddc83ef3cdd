"""Which way images lie: one rule for preparing, looking through, scoring and predicting; and what is said of images."""

import io
import struct

import numpy as np
import pytest
from image_bytes import exif, png, tiff
from PIL import Image

from jaxseg.data import open_dataset
from jaxseg.data.folder import report
from jaxseg.data.pictures import turned
from jaxseg.errors import UserError
from jaxseg.predict import read_image

from .conftest import picture, write_mask

UPRIGHT = picture(3, 8, 12)
LABELS = np.arange(96).reshape(8, 12) % 3
UNDO = {6: 8, 8: 6}


def stored(shown: np.ndarray, orientation: int) -> np.ndarray:
    return turned(shown, UNDO.get(orientation, orientation))


def photo(orientation: int, kind: str, shown: np.ndarray = UPRIGHT) -> bytes:
    """A file that is shown as `shown`."""
    lying = stored(shown, orientation)
    if kind == "png":
        return png(lying, chunks=[(b"eXIf", exif(orientation, "<"))])
    if kind == "tif":
        return tiff(lying, tags={274: [orientation]})
    file, block = io.BytesIO(), Image.Exif()
    block[0x0112] = orientation
    how = {"quality": 98, "subsampling": 0} if kind == "jpg" else {"lossless": True}
    Image.fromarray(lying).save(file, {"jpg": "JPEG", "webp": "WebP"}[kind], exif=block, **how)
    return file.getvalue()


def fill(folder, orientations, drawn: str, kind: str = "jpg") -> None:
    """A pair for each orientation; masks drawn on what is shown or on the pixels as they lie."""
    (folder / "images").mkdir(parents=True)
    for orientation in orientations:
        mask = LABELS if drawn == "shown" else stored(LABELS, orientation)
        (folder / "images" / f"p{orientation}.{kind}").write_bytes(photo(orientation, kind))
        write_mask(folder / "masks" / f"p{orientation}.png", mask.astype(np.uint8))


def prepared(folder, orientation: str = "") -> dict:
    data = open_dataset("folder", directory=str(folder), orientation=orientation, progress=False)
    return {record["id"]: record for split in data.splits for record in data.source(split)}


def check(record, drawn: str, orientation: int, kind: str) -> None:
    image, labels = (a if drawn == "shown" else stored(a, orientation) for a in (UPRIGHT, LABELS))
    np.testing.assert_array_equal(record["labels"], labels)
    assert np.abs(record["images"].astype(int) - image).max() <= (8 if kind == "jpg" else 0)


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("drawn", ["shown", "stored"])
def test_image_and_mask_lie_alike_whichever_way_the_mask_was_drawn(tmp_path, drawn, kind):
    fill(tmp_path, range(1, 9), drawn, kind)
    found = prepared(tmp_path, drawn)
    assert len(found) == 8
    for orientation in range(1, 9):
        record = found[f"p{orientation}"]
        check(record, drawn, orientation, kind)
        # `predict` sees the very same pixels.
        again = read_image(tmp_path / "images" / f"p{orientation}.{kind}", drawn)
        np.testing.assert_array_equal(record["images"], again)


def test_as_shown_is_the_default_and_the_number_is_said(tmp_path):
    fill(tmp_path, (1, 2, 3, 4, 6), "shown")
    for orientation, record in prepared(tmp_path).items():
        check(record, "shown", int(orientation[1]), "jpg")
    (line,) = [line for line in report(str(tmp_path)).splitlines() if "orientation" in line]
    assert line.startswith("4 images") and "1 turned as shown" in line and "3 fit both ways" in line and "p6" in line
    np.testing.assert_array_equal(
        read_image(tmp_path / "images" / "p6.jpg"), prepared(tmp_path)["p6"]["images"]
    )  # as predict takes it


def test_where_one_size_fits_that_is_taken_whatever_is_said(tmp_path):
    for drawn, said in (("shown", "stored"), ("stored", "shown"), ("stored", "")):
        fill(tmp_path / f"{drawn}_{said}", (5, 6, 7, 8), drawn)
        for name, record in prepared(tmp_path / f"{drawn}_{said}", said).items():
            check(record, drawn, int(name[1]), "jpg")


def test_a_guess_is_refused(tmp_path):
    fill(tmp_path, (1, 3, 6), "stored")
    for _ in range(2):
        with pytest.raises(UserError, match=r"p6 .*p3 .*data\.orientation=stored or shown"):
            prepared(tmp_path)
    check(prepared(tmp_path, "stored")["p3"], "stored", 3, "jpg")
    check(prepared(tmp_path, "stored")["p6"], "stored", 6, "jpg")
    with pytest.raises(UserError, match="unknown orientation of images 'turned'"):
        prepared(tmp_path, "turned")


def test_a_mask_with_the_orientation_of_its_image_is_turned_with_it(tmp_path):
    for orientation in (3, 6):
        folder = tmp_path / str(orientation)
        (folder / "images").mkdir(parents=True)
        (folder / "masks").mkdir()
        for name in "ab":
            (folder / "images" / f"{name}.jpg").write_bytes(photo(orientation, "jpg"))
            data = png(stored(LABELS, orientation), chunks=[(b"eXIf", exif(orientation))])
            (folder / "masks" / f"{name}.png").write_bytes(data)
        for drawn in ("shown", "stored"):
            check(prepared(folder, drawn)["a"], drawn, orientation, "jpg")


def test_a_data_set_of_its_own_layout_is_turned_and_says_so(camvid_folder, capfd):
    shown = picture(9, 36, 48)
    (camvid_folder / "train" / "train_0.jpg").write_bytes(photo(6, "jpg", shown))
    (camvid_folder / "train" / "train_1.jpg").write_bytes(photo(3, "jpg", shown))
    deep = (np.arange(36 * 48).reshape(36, 48) % 4000 + 95).astype(np.uint16)
    (camvid_folder / "val" / "val_0.jpg").unlink()
    (camvid_folder / "val" / "val_0.png").write_bytes(png(deep, 16))
    (camvid_folder / "val" / "val_1.jpg").write_bytes(png(np.dstack([shown, np.arange(48)[None].repeat(36, 0)])))
    for _ in range(2):  # prepared, and as it is there
        data = open_dataset("camvid", directory=str(camvid_folder))
        told = capfd.readouterr().err
        assert "2 images with an orientation" in told and "train_0" in told and "train_1" in told
        assert f"values 95 to {deep.max()}" in told and "val_0" in told
        assert "1 images are transparent in part" in told and "val_1" in told
    records = {record["id"]: record["images"] for split in data.splits for record in data.source(split)}
    for name in ("train_0", "train_1"):
        assert np.abs(records[name].astype(int) - shown).max() <= 12
    np.testing.assert_array_equal(records["val_0"][..., 0], deep // 256)
    np.testing.assert_array_equal(records["val_1"], shown)
    assert data.sizes("train").tolist() == [[36, 48]] * 4


def test_exif_that_is_broken_turns_nothing(tmp_path):
    data = photo(6, "jpg")
    block = Image.Exif()
    block[0x0112] = 6
    place = data.index(b"Exif\0\0") + 6
    for broken in (b"II*\0" + struct.pack("<I", 2**31), b"XX", data[place : place + 8] + struct.pack(">H", 60000)):
        (tmp_path / "a.jpg").write_bytes(data[:place] + broken + data[place + len(broken) :])
        assert read_image(tmp_path / "a.jpg").shape in ((12, 8, 3), (8, 12, 3))
