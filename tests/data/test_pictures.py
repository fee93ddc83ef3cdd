"""Image files to RGB: how they lie, alpha, depth, size, and what is broken."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from image_bytes import exif, packed, png, png_chunk, tiff
from PIL import Image

from jaxseg.data.headers import SWITCH, kind_of, read_header
from jaxseg.data.pictures import decode, named, read_file, turned
from jaxseg.errors import UserError

from .conftest import picture

IMAGE = picture(5, 6, 10)
ALPHA = np.full((6, 10, 1), 128, np.uint8)
ALPHA[0, 0] = 0


def encoded(image: np.ndarray, kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def of_orientation(kind: str, orientation: int) -> bytes:
    """A file whose picture is shown as `IMAGE`."""
    undone = {6: 8, 8: 6}.get(orientation, orientation)
    stored = turned(IMAGE, undone)
    if kind == "PNG":
        return png(stored, chunks=[(b"eXIf", exif(orientation))])
    if kind == "TIFF":
        return tiff(stored, tags={274: [orientation]})
    block = Image.Exif()
    block[0x0112] = orientation
    options = {"quality": 98, "subsampling": 0} if kind == "JPEG" else {"lossless": True}
    return encoded(stored, kind, exif=block, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WebP"])
def test_a_picture_lies_as_stored_and_is_turned_by_its_number(kind, orientation):
    found = decode(of_orientation(kind, orientation))
    assert found.header.orientation == orientation and found.header.shown_size == (6, 10)
    assert found.pixels.shape[:2] == found.header.size == ((10, 6) if orientation >= 5 else (6, 10))
    shown = turned(found.pixels, found.header.orientation)
    assert np.abs(shown.astype(int) - IMAGE).max() <= (8 if kind == "JPEG" else 0)


@pytest.mark.parametrize(
    "data",
    [
        png(np.concatenate([IMAGE, ALPHA], 2)),
        tiff(np.concatenate([IMAGE, ALPHA], 2), tags={338: [2]}),
        encoded(np.concatenate([IMAGE, ALPHA], 2), "WebP", lossless=True, exact=True),
    ],
    ids=["PNG", "TIFF", "WebP"],
)
def test_alpha_is_left_out_and_darkens_nothing(data):
    found = decode(data)
    np.testing.assert_array_equal(found.pixels, IMAGE)
    assert found.transparent


def test_colours_that_were_multiplied_by_alpha_are_divided_by_it():
    grey = np.full((6, 10, 3), 200, np.uint8)
    opaque = tiff(np.concatenate([grey, ALPHA | 255], 2), tags={338: [1]})
    assert (decode(opaque).pixels == 200).all() and not decode(opaque).transparent
    halved = tiff(np.concatenate([grey // 2, ALPHA // 128 * 127 + 1], 2), tags={338: [1]})
    assert np.abs(decode(halved).pixels[1:].astype(int) - 200).max() <= 1
    deep = np.concatenate([grey.astype(np.uint16) * 100, np.full((6, 10, 1), 32768)], 2)
    assert np.abs(decode(tiff(deep, 16, tags={338: [1]})).pixels.astype(int) - 40000 // 256).max() <= 1


@pytest.mark.parametrize("write", [png, tiff], ids=["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_of_16_bits_the_upper_eight_are_taken_and_the_range_is_measured(write, channels):
    deep = np.linspace(17, 4095, 60 * channels).round().astype(np.uint16).reshape(6, 10, channels)
    found = decode(write(deep, 16))
    assert found.span == (int(deep[..., :3].min()), int(deep[..., :3].max()))
    np.testing.assert_array_equal(found.pixels, np.broadcast_to(deep[..., :3] // 256, (6, 10, 3)))


def test_samples_of_12_bits_use_all_of_them():
    samples = np.linspace(0, 4095, 60).round().astype(np.int64).reshape(6, 10)
    rows = b"".join(sum(int(v) << 12 * (9 - i) for i, v in enumerate(row)).to_bytes(15, "big") for row in samples)
    data = tiff(np.zeros((6, 15), np.uint8), tags={256: [10], 258: [12]})
    np.testing.assert_array_equal(decode(data[: -len(rows)] + rows).pixels[..., 0], samples // 16)


def test_white_may_be_the_least_value():
    ramp = np.arange(60).reshape(6, 10)
    for bits, most in ((8, 255), (16, 65535)):
        found = decode(tiff(ramp, bits, tags={262: [0]})).pixels[..., 0]
        np.testing.assert_array_equal(found, (most - ramp) >> bits - 8)


def claims(kind: str, height: int, width: int) -> bytes:
    """A file whose header says a size that its few pixels have not."""
    if kind == "PNG":
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        return png(IMAGE)[:8] + png_chunk(b"IHDR", header) + png(IMAGE)[33:]
    if kind == "JPEG":
        data = encoded(IMAGE, "JPEG")
        place = data.index(b"\xff\xc0") + 5
        return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]
    if kind == "BMP":
        data = encoded(IMAGE, "BMP")
        return data[:18] + struct.pack("<ii", width, height) + data[26:]
    return tiff(IMAGE, tags={256: [width], 257: [height]})


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_what_is_too_large_is_refused_before_it_is_decoded(kind, monkeypatch):
    with pytest.raises(ValueError, match=rf"50000x50000 = 2,500,000,000 pixels.* 268,435,456 .*{SWITCH}"):
        decode(claims(kind, 50000, 50000))
    if kind != "JPEG":  # its pixels end where they end
        with pytest.raises(ValueError, match="again"):
            decode(claims(kind, 60, 100))
    monkeypatch.setenv(SWITCH, "59")
    with pytest.raises(ValueError, match="6x10 = 60 pixels, and at most 59"):
        decode(encoded(IMAGE, kind))
    monkeypatch.setenv(SWITCH, "60")
    assert decode(encoded(IMAGE, kind)).pixels.shape == (6, 10, 3)


@pytest.mark.parametrize("text", ["0", "-1", "many", "1e9", "٣", "9" * 20, str(2**30 + 1)])
def test_the_limit_is_a_number(text, monkeypatch):
    monkeypatch.setenv(SWITCH, text)
    with pytest.raises(UserError, match=SWITCH):
        decode(encoded(IMAGE, "PNG"))


def test_every_bit_of_a_png_is_checked():
    data = png(IMAGE, chunks=[(b"tEXt", b"Title\0mine")])
    assert (decode(data).pixels == IMAGE).all()
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 1 << place % 8
        with pytest.raises(ValueError):
            decode(bytes(broken))
        with pytest.raises(ValueError):
            decode(data[:place])


def in_pieces(data: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    pieces, place = [], 8
    while place < len(data):
        end = place + 12 + struct.unpack_from(">I", data, place)[0]
        pieces.append(data[place:end])
        place = end
    return data[:8], pieces[0], b"".join(pieces[1:-1]), pieces[-1]


def test_chunks_of_a_png_are_in_order_and_whole():
    start, header, pixels, end = in_pieces(png(IMAGE))
    short = in_pieces(png(IMAGE[:5]))[2]
    for pieces in (
        (pixels, header, end),
        (header, header, pixels, end),
        (header, end),
        (header, pixels, png_chunk(b"tIME", b"1234567"), pixels, end),
        (header, png_chunk(b"CgBI", b"1234"), pixels, end),
        (header, short, end),
        (header, png_chunk(b"IDAT", b"no zlib"), end),
    ):
        with pytest.raises(ValueError):
            decode(start + b"".join(pieces))
    assert (decode(start + header + pixels + end + b"behind it").pixels == IMAGE).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5, 9), (16, 16)])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_pixels_of_an_interlaced_png_are_counted_by_pass(size, bits):
    samples = np.random.default_rng(0).integers(0, 2**bits, size)
    rows = b""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    for left, top, across, down in passes:  # each packed by itself
        part = samples[top::down, left::across]
        if part.size:
            rows += b"".join(b"\0" + row for row in packed(part[..., None], bits))
    start, _, _, end = in_pieces(png(samples, bits))
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", size[1], size[0], bits, 0, 0, 0, 1))
    data = start + header + png_chunk(b"IDAT", zlib.compress(rows)) + end
    np.testing.assert_array_equal(decode(data).pixels[..., 0], samples * (255 // (2**bits - 1)))
    with pytest.raises(ValueError, match="are there"):
        decode(start + header + png_chunk(b"IDAT", zlib.compress(rows[:-1])) + end)


def test_a_cut_file_is_noticed():
    for kind in ("JPEG", "TIFF", "WebP", "BMP"):
        data = encoded(IMAGE, kind)
        for length in (0, 1, 11, 30, len(data) // 2, len(data) - 9):
            with pytest.raises(ValueError):
                decode(data[:length])
    deep = tiff(IMAGE.astype(np.uint16) * 257, 16)
    with pytest.raises(ValueError):
        decode(deep[:-9])


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (tiff(IMAGE, 32), "32 bits"),
        (tiff(IMAGE.astype(np.int16), 16, tags={339: [2] * 3}), "signed"),
        (tiff(IMAGE, 32, tags={339: [3] * 3}), "floating"),
        (tiff(np.concatenate([IMAGE[..., :1], ALPHA], 2), 16), "2 channels"),
        (tiff(IMAGE, 8, tags={258: [8, 8, 4]}), "bits"),
        (encoded(IMAGE, "GIF"), "none of JPEG, PNG, TIFF, WebP and BMP"),
        (b"<html>404</html>", "none of"),
        (b"", "none of"),
    ],
)
def test_what_is_not_read_says_why(data, why):
    with pytest.raises(ValueError, match=why):
        decode(data)


def test_pages_and_frames_are_counted_and_the_first_is_taken():
    found = decode(tiff(IMAGE, pages=3))
    assert found.header.pages == 3 and (found.pixels == IMAGE).all()
    assert read_header(tiff(IMAGE, pages=3, tags={254: [1]})).pages == 1  # reduced copies
    assert read_header(png(IMAGE, chunks=[(b"acTL", struct.pack(">II", 2, 0))])).pages == 2


def test_a_file_that_is_none_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    for name in ("fifo", "zero", "folder", "nowhere"):
        with pytest.raises(UserError, match=f"{name}.png"), named(tmp_path / f"{name}.png"):
            read_file(tmp_path / f"{name}.png")


def test_kinds_are_told_by_their_first_bytes():
    kinds = ("JPEG", "PNG", "TIFF", "WebP", "BMP")
    assert [kind_of(encoded(IMAGE, kind)[:12]) for kind in kinds] == list(kinds)
    assert kind_of(encoded(IMAGE, "GIF")[:12]) == kind_of(b"") == ""
