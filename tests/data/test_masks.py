"""Mask files to numbers and colours, in the file's own depth, and how those of a folder are meant."""

import io
import struct

import numpy as np
import pytest
from image_bytes import exif, png, tiff
from PIL import Image

from jaxseg.data import data_info, open_dataset
from jaxseg.data.folder import report
from jaxseg.data.masks import COLOURS, GREY, PALETTE, count_values, decode_mask
from jaxseg.errors import UserError

from .conftest import picture, write_jpeg, write_mask

NUMBERS = np.arange(24, dtype=np.int64).reshape(4, 6)
TABLE = np.random.default_rng(1).integers(0, 256, (256, 3))


def encoded(array: np.ndarray, kind: str, mode: str = "") -> bytes:
    file, image = io.BytesIO(), Image.fromarray(array)
    if mode == "P":
        image.putpalette(TABLE.astype(np.uint8).tobytes())
    image.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("write", [png, tiff], ids=["PNG", "TIFF"])
def test_greys_are_numbers_of_their_own_depth(write, bits):
    numbers = NUMBERS % 2**bits * (2731 if bits == 16 else 1)
    mask = decode_mask(write(numbers, bits))
    assert (mask.kind, mask.bits) == (GREY, bits)
    np.testing.assert_array_equal(mask.values, numbers)


@pytest.mark.parametrize("end", ["<", ">"])
@pytest.mark.parametrize(
    ("bits", "form", "kind"), [(16, 2, "i2"), (32, 1, "u4"), (32, 2, "i4"), (32, 3, "f4"), (64, 3, "f8"), (8, 2, "i1")]
)
def test_whole_numbers_of_every_kind_are_taken_by_value(end, bits, form, kind):
    due = NUMBERS * (1 if bits == 8 else 1000 if bits == 16 else 100_000)
    raw = np.ascontiguousarray(due.astype(end + kind)).view(np.uint8).reshape(4, -1)
    sizes = {256: [6], 258: [bits], 339: [form]}
    mask = decode_mask(tiff(raw, tags=sizes, end=end))
    assert mask.kind == GREY
    np.testing.assert_array_equal(mask.values, due)
    for wrong in [-1] * (kind[0] == "i") + [1.5, np.nan] * (kind[0] == "f") + [2**31] * (kind == "u4"):
        due = due.astype(end + kind)
        due[1, 2] = wrong
        with pytest.raises(ValueError, match=r"whole|go from"):
            decode_mask(tiff(due.view(np.uint8).reshape(4, -1), tags=sizes, end=end))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_an_indexed_mask_has_indices_and_colours(bits):
    indices = NUMBERS % 2**bits
    mask = decode_mask(png(indices, bits, TABLE[: 2**bits].tolist(), [(b"tRNS", bytes([0]))]))
    assert (mask.kind, mask.bits) == (PALETTE, bits)
    np.testing.assert_array_equal(mask.values, indices)
    assert mask.palette[1] == TABLE[1] @ [65536, 256, 1]
    for kind in ("TIFF", "BMP"):
        mask = decode_mask(encoded(NUMBERS.astype(np.uint8), kind, "P"))
        assert mask.kind == PALETTE and mask.palette[5] == TABLE[5] @ [65536, 256, 1]
        np.testing.assert_array_equal(mask.values, NUMBERS)


def test_what_says_how_colours_look_changes_no_number():
    chunks = [(b"gAMA", struct.pack(">I", 100000)), (b"sRGB", b"\0"), (b"tEXt", b"a\0b"), (b"sBIT", bytes([8]))]
    for data in (png(NUMBERS, chunks=chunks), png(NUMBERS, chunks=[(b"tRNS", struct.pack(">H", 3))])):
        np.testing.assert_array_equal(decode_mask(data).values, NUMBERS)


@pytest.mark.parametrize("write", [png, tiff], ids=["PNG", "TIFF"])
@pytest.mark.parametrize("scale", [1, 257])
def test_colours_of_16_bits_are_not_narrowed(write, scale):
    colours = TABLE[NUMBERS]
    for bits in [8] * (scale == 1) + [16]:
        mask = decode_mask(write(colours * scale, bits))
        assert mask.kind == COLOURS
        np.testing.assert_array_equal(mask.values, colours @ [65536, 256, 1])
    with pytest.raises(ValueError, match="16 bits"):
        decode_mask(write(colours * 2, 16))


@pytest.mark.parametrize("write", [png, tiff], ids=["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_alpha_counts_for_nothing_or_is_refused(write, channels):
    colours = np.broadcast_to(NUMBERS[..., None] % 3 * 100, (4, 6, channels))

    def with_alpha(alpha):
        samples = np.concatenate([colours, np.broadcast_to(alpha, (4, 6))[..., None]], 2)
        return png(samples) if write is png else tiff(samples, tags={338: [2]})

    due = NUMBERS % 3 * 100 * (1 if channels == 1 else 0x010101)
    for alpha in (255, 128, 0, np.where(NUMBERS % 3 == 0, 0, 255)):
        np.testing.assert_array_equal(decode_mask(with_alpha(alpha)).values, due)
    for alpha in (np.where(NUMBERS % 3 == 1, 0, 255), np.where(NUMBERS == 0, 0, 255), NUMBERS + 100):
        with pytest.raises(ValueError, match="transparent"):
            decode_mask(with_alpha(alpha))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (tiff(NUMBERS, pages=2), "2 pictures"),
        (png(NUMBERS, chunks=[(b"acTL", struct.pack(">II", 3, 0))]), "3 pictures"),
        (encoded(NUMBERS.astype(np.uint8), "JPEG"), "JPEG"),
        (encoded(TABLE[NUMBERS].astype(np.uint8), "WebP"), "WebP"),
        (encoded(NUMBERS.astype(np.uint8), "GIF"), "none of"),
        (tiff(NUMBERS, tags={262: [0]}), "white"),
        (tiff(TABLE[NUMBERS], tags={262: [6]}), "photometric"),
        (tiff(NUMBERS, tags={259: [7]}), "JPEG"),
        (tiff(TABLE[NUMBERS], 32), "bits but of 32"),
        (tiff(np.stack([NUMBERS] * 4, -1), tags={338: [1]}), "multiplied by alpha"),
        (tiff(NUMBERS, 32, tags={279: [20]}), "broken"),
    ],
)
def test_what_has_no_one_meaning_is_refused(data, why):
    with pytest.raises(ValueError, match=why):
        decode_mask(data)


def test_every_bit_of_a_mask_is_checked():
    data = png(NUMBERS % 3)
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 1 << place % 8
        with pytest.raises(ValueError):
            decode_mask(bytes(broken))


def test_values_are_counted():
    for kind in (np.uint8, np.uint16, np.int32):
        assert count_values(np.array([[3, 0, 3], [7, 3, 0]], kind)) == [(3, 3), (0, 2), (7, 1)]


# ------------------------------------------------------------------------------------------------ the masks of a folder

STRIPES = np.arange(3).repeat(4)[None].repeat(8, 0)
RGB = {"ground": [0, 0, 0], "red": [255, 0, 0], "white": [255, 255, 255]}
LISTED = f"colours: {RGB}\n"


def labels_of(folder, masks: dict[str, bytes], listing: str = "") -> dict[str, np.ndarray]:
    """What is prepared of masks whose names are theirs."""
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    for index, (name, data) in enumerate(masks.items()):
        kind = {b"II": "tif", b"MM": "tif", b"BM": "bmp"}.get(data[:2], "png")
        (folder / "masks" / f"{name}.{kind}").write_bytes(data)
        write_jpeg(folder / "images" / f"{name}.jpg", picture(index, 8, 12))
    if listing:
        (folder / "classes.yaml").write_text(listing)
    data = open_dataset("folder", directory=str(folder), progress=False)
    records = [record for split in data.splits for record in data.source(split)]
    return {record["id"]: record["labels"] for record in records}


def indexed(order, rgb=None, bits: int = 8) -> bytes:
    """STRIPES in the colours of RGB, their places in the palette being `order`."""
    rgb = list(RGB.values()) if rgb is None else rgb
    palette = [rgb[label] for label in order]
    return png(np.argsort(order)[STRIPES], bits, palette)


BLACK_AND_WHITE = STRIPES > 0


@pytest.mark.parametrize(
    ("bits", "write"), [(1, png), (2, png), (4, png), (16, png), (1, tiff), (2, tiff), (4, tiff), (16, tiff)]
)
def test_black_and_white_of_another_depth_is_black_and_white(tmp_path, bits, write):
    eight = png(BLACK_AND_WHITE * 255)
    found = labels_of(tmp_path, {"a": eight, "b": write(BLACK_AND_WHITE * (2**bits - 1), bits), "c": eight})
    assert len(found) == 3
    for labels in found.values():
        np.testing.assert_array_equal(labels, BLACK_AND_WHITE)
    assert "by their shades" in report(str(tmp_path))


def test_black_and_white_in_the_palette_of_an_editor_is_black_and_white(tmp_path):
    eight, white_first = png(BLACK_AND_WHITE * 255), png(1 - BLACK_AND_WHITE, 1, [[255] * 3, [0] * 3])
    for labels in labels_of(tmp_path, {"a": eight, "b": white_first}).values():
        np.testing.assert_array_equal(labels, BLACK_AND_WHITE)


@pytest.mark.parametrize(
    ("others", "listing"),
    [(STRIPES, ""), (BLACK_AND_WHITE, ""), (STRIPES, "names: [a, b, c]")],
    ids=["three classes", "two", "named"],
)
def test_numbers_of_one_bit_are_numbers_where_the_others_are(tmp_path, others, listing):
    found = labels_of(tmp_path, {"a": png(others), "b": png(BLACK_AND_WHITE, 1)}, listing)
    np.testing.assert_array_equal(found["b"], BLACK_AND_WHITE)
    np.testing.assert_array_equal(found["a"], others)


def test_masks_of_one_low_depth_hold_numbers(tmp_path):
    for bits in (2, 4):
        found = labels_of(tmp_path / str(bits), {"a": png(STRIPES, bits), "b": tiff(STRIPES, bits)})
        for labels in found.values():
            np.testing.assert_array_equal(labels, STRIPES)


def test_deep_indices_are_taken_by_value(tmp_path):
    raw = STRIPES.astype("<u4").view(np.uint8).reshape(8, -1)
    deep = {"a": png(STRIPES, 16), "b": tiff(STRIPES, 16, end=">"), "c": tiff(raw, tags={256: [12], 258: [32]})}
    for labels in labels_of(tmp_path, deep | {"d": png(STRIPES), "e": encoded(STRIPES.astype("u1"), "BMP")}).values():
        np.testing.assert_array_equal(labels, STRIPES)


def test_white_that_may_be_two_values_is_refused(tmp_path):
    masks = {"a": png(np.where(STRIPES == 2, 255, STRIPES)), "one_bit": png(BLACK_AND_WHITE, 1)}
    with pytest.raises(UserError, match="one_bit"):
        labels_of(tmp_path, masks)
    with pytest.raises(UserError, match="two_bits"):
        labels_of(tmp_path / "b", {"two_bits": png(BLACK_AND_WHITE, 2), "a": png(np.where(STRIPES == 2, 85, STRIPES))})


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_indexed_masks_are_read_by_the_colours_of_their_palettes(tmp_path, order):
    few = png(np.where(STRIPES == 1, 0, 1), 1, [RGB["red"], RGB["white"]])
    rgb = png(np.array(list(RGB.values()))[STRIPES])
    found = labels_of(tmp_path, {"a": indexed(order), "b": few, "c": rgb, "d": indexed(order, bits=2)}, LISTED)
    np.testing.assert_array_equal(found.pop("b"), np.where(STRIPES == 1, 1, 2))
    for labels in found.values():
        np.testing.assert_array_equal(labels, STRIPES)


def test_colours_that_a_program_wrote_as_greys_are_colours(tmp_path):
    black_white = png(BLACK_AND_WHITE, 1)
    masks = {"a": png(np.array(list(RGB.values()))[STRIPES]), "b": black_white, "c": png(BLACK_AND_WHITE * 255)}
    found = labels_of(tmp_path, masks, LISTED)
    for name in "bc":
        np.testing.assert_array_equal(found[name], BLACK_AND_WHITE * 2)


def test_indices_count_where_the_palette_says_nothing_of_classes(tmp_path):
    strange = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    for folder, listing in (("a", LISTED), ("b", ""), ("c", "names: [x, y, z]")):
        masks = {
            "a": indexed((0, 1, 2), strange),
            "b": png(STRIPES),
            "c": indexed((0, 1, 2), [[i] * 3 for i in range(3)]),
        }
        for labels in labels_of(tmp_path / folder, masks, listing).values():
            np.testing.assert_array_equal(labels, STRIPES)


def test_a_palette_that_contradicts_is_refused(tmp_path):
    palette = [RGB["ground"], RGB["white"], [9, 9, 9]]
    with pytest.raises(UserError, match=r"strange\.png shows index 1 as \[255, 255, 255\].*index 2, \[9, 9, 9\]"):
        labels_of(tmp_path / "a", {"a": png(STRIPES), "strange": png(STRIPES, 8, palette)}, LISTED)
    masks = {"a": indexed((0, 1, 2)), "b": indexed((0, 2, 1))}
    for folder, listing in (("b", ""), ("c", "names: [x, y, z]")):
        with pytest.raises(UserError, match=r"index 1 is \[255, 255, 255\] in the palette of .*b\.png .*a\.png"):
            labels_of(tmp_path / folder, masks, listing)
    for labels in labels_of(tmp_path / "d", masks, LISTED).values():
        np.testing.assert_array_equal(labels, STRIPES)


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_mask_is_turned_as_it_is_shown(tmp_path, orientation):
    lying = STRIPES if orientation == 3 else np.rot90(STRIPES)
    stored = lying[::-1, ::-1] if orientation == 3 else lying
    masks = {"a": png(stored, chunks=[(b"eXIf", exif(orientation))]), "b": tiff(stored, tags={274: [orientation]})}
    for labels in labels_of(tmp_path, masks).values():
        np.testing.assert_array_equal(labels, STRIPES)


def test_a_mask_of_camvid_has_one_meaning(camvid_folder):
    mask = camvid_folder / "trainannot" / "train_0.png"
    sky_and_building = np.arange(48)[None].repeat(36, 0) % 2

    def opened():
        return open_dataset("camvid", directory=str(camvid_folder), progress=False).source("train")[0]["labels"]

    palette = data_info("camvid").palette.tolist()
    for data in (png(sky_and_building, 16), tiff(sky_and_building), png(sky_and_building, 1, palette[:2])):
        mask.write_bytes(data)
        np.testing.assert_array_equal(opened(), sky_and_building)
    for data in (png(sky_and_building, 1), png(sky_and_building, 8, palette[1::-1]), png(sky_and_building * 300, 16)):
        mask.write_bytes(data)
        with pytest.raises(UserError, match=r"train_0\.png"):
            opened()


def test_a_nucleus_is_what_is_not_black(tmp_path):
    from jaxseg.data.monuseg import _nuclei

    nuclei = BLACK_AND_WHITE.astype(int)
    for data in (png(nuclei * 255), png(nuclei, 1), png(nuclei, 8, [[0, 0, 0], [128, 0, 0]]), tiff(nuclei, 16)):
        np.testing.assert_array_equal(_nuclei(decode_mask(data)), nuclei)
    for data in (png(nuclei, 1, [[255] * 3, [0] * 3]), png(np.stack([nuclei] * 3, -1))):
        with pytest.raises(ValueError):
            _nuclei(decode_mask(data))


def test_labels_of_sbd_are_whole_and_small(tmp_path):
    import scipy.io

    from jaxseg.data.recipe import _read_sbd

    def read(labels, compress=True):
        scipy.io.savemat(tmp_path / "a.mat", {"GTcls": {"Segmentation": labels}}, do_compression=compress)
        return _read_sbd(tmp_path / "a.mat")[0]

    for compress in (True, False):
        np.testing.assert_array_equal(read(STRIPES.astype(np.float64), compress), STRIPES)
    for wrong in (STRIPES + 254, STRIPES - 1, STRIPES + 0.5, np.array([["a"]])):
        with pytest.raises(UserError, match=r"a\.mat"):
            read(wrong)


def test_a_file_of_matlab_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    import scipy.io

    from jaxseg.data.recipe import _read_sbd

    scipy.io.savemat(tmp_path / "a.mat", {"GTcls": {"Segmentation": np.zeros((3000, 1000))}}, do_compression=True)
    monkeypatch.setenv("JAXSEG_MAX_PIXELS", "100")
    with pytest.raises(UserError, match=r"a\.mat: it unpacks to more than 800 bytes"):
        _read_sbd(tmp_path / "a.mat")


def test_a_folder_of_empty_masks_is_read(tmp_path):
    write_mask(tmp_path / "masks" / "x.png", np.zeros((8, 12), np.uint8), "P")
    write_jpeg(tmp_path / "images" / "x.jpg", picture(9, 8, 12))
    found = labels_of(tmp_path, {"a": png(STRIPES), "b": png(0 * STRIPES, 1)})
    assert not found["x"].any() and not found["b"].any()
