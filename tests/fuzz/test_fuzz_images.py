"""A thousand broken and odd image and mask files, against preparing and against predict's reading.

Each file is made of pixels that are known, in a kind drawn by chance, and then damaged. Whatever takes it has to give
those pixels, whatever does not has to say so in one line that names it. Kinds without checksums (JPEG, WebP, BMP, TIFF)
can't notice a changed pixel: of these, where bytes were changed, it is asked only that nothing ends in a traceback.
"""

import io
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import traceback
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from image_bytes import exif, png, png_chunk, tiff

SEED, COUNT = 24, 1000
SECONDS = 30  # of a case
ROOT = Path(__file__).parents[2]
SIZE = (9, 14)
COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]])
LISTING = "colours: {a: [0, 0, 0], b: [255, 0, 0], c: [0, 0, 255]}\n"
UNDO = {6: 8, 8: 6}
SWAPS = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}


class Wrong(Exception):
    """What was taken and is not right."""


def lying(shown: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels as a file of an orientation has them."""
    undone = UNDO.get(orientation, orientation)
    pixels = shown.swapaxes(0, 1) if undone >= 5 else shown
    rows, columns = SWAPS[undone]
    return np.ascontiguousarray(pixels[::rows, ::columns])


def pillow(array: np.ndarray, kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array.astype(np.uint8)).save(file, kind, **options)
    return file.getvalue()


def an_image(rng: random.Random) -> tuple[str, bytes, np.ndarray]:
    """Suffix, bytes and uint8 [H, W, 3] as it is shown."""
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (*SIZE, 3))
    kind = rng.choice(["png", "png", "jpg", "tif", "tif", "webp", "bmp"])
    orientation = rng.choice([1, 1, 1, *range(2, 9)])
    if kind in ("jpg", "webp", "bmp"):
        pixels = np.broadcast_to(pixels[:1, :1], pixels.shape) if kind == "jpg" else pixels
        block = Image.Exif()
        block[0x0112] = orientation
        options = {"jpg": {"quality": 98, "exif": block}, "webp": {"lossless": True, "exif": block}, "bmp": {}}[kind]
        name = {"jpg": "JPEG", "webp": "WebP", "bmp": "BMP"}[kind]
        return kind, pillow(lying(pixels, 1 if kind == "bmp" else orientation), name, **options), pixels
    bits, channels = rng.choice([8, 8, 16]), rng.choice([1, 3, 3, 4])
    shown = pixels[..., :1] if channels == 1 else pixels
    samples = lying(shown, orientation) * (257 if bits == 16 else 1)
    if channels == 4:
        samples = np.concatenate([samples, np.full((*samples.shape[:2], 1), rng.choice([0, 7, 128, 255]))], 2)
    due = np.broadcast_to(shown, (*SIZE, 3))
    if kind == "png":
        chunks = [(b"eXIf", exif(orientation, rng.choice("<>")))] if orientation > 1 else []
        chunks += [(b"gAMA", struct.pack(">I", 45455))] * (rng.random() < 0.3)
        return kind, png(samples, bits, chunks=chunks), due
    tags = {274: [orientation]} | ({338: [2]} if channels == 4 else {})
    return kind, tiff(samples, bits, tags, rng.choice("<>")), due


def a_mask(rng: random.Random) -> tuple[str, bytes, np.ndarray]:
    """Suffix, bytes and labels [H, W], of three classes, as it is shown."""
    form = rng.choice(["grey", "grey", "indexed", "colours", "deep"])
    kind = "bmp" if form in ("indexed", "colours") and rng.random() < 0.2 else rng.choice(["png", "png", "tif"])
    bits = rng.choice([1, 2, 4, 8, 16])
    labels = np.random.default_rng(rng.randrange(2**32)).integers(0, 2 if bits == 1 and form != "colours" else 3, SIZE)
    orientation = 1 if kind == "bmp" else rng.choice([1, 1, 1, *range(2, 9)])
    values, tags = lying(labels, orientation), {274: [orientation]}
    chunks = [(b"eXIf", exif(orientation))] if orientation > 1 else []
    if form == "colours":
        deep = rng.random() < 0.4
        rgb = COLOURS[values] * (257 if deep and rng.random() < 0.5 else 1)
        if kind == "bmp":
            return kind, pillow(COLOURS[values], "BMP"), labels
        bits = 16 if deep else 8
        return kind, png(rgb, bits, chunks=chunks) if kind == "png" else tiff(rgb, bits, tags), labels
    if form == "indexed":
        if kind == "bmp":
            image = Image.fromarray(values.astype(np.uint8))
            image.putpalette(COLOURS.astype(np.uint8).tobytes())
            file = io.BytesIO()
            image.save(file, "BMP")
            return kind, file.getvalue(), labels
        order = rng.sample(range(3), 3)
        bits = rng.choice([2, 4, 8])
        return "png", png(np.argsort(order)[values], bits, COLOURS[order].tolist(), chunks), labels
    if form == "deep" and kind == "tif":
        end = rng.choice("<>")
        raw = values.astype(end + rng.choice(["u4", "i4", "f4"]))
        number = {"u": 1, "i": 2, "f": 3}[raw.dtype.kind]
        flat = raw.view(np.uint8).reshape(len(raw), -1)
        return kind, tiff(flat, tags=tags | {256: [values.shape[1]], 258: [32], 339: [number]}, end=end), labels
    return (
        kind,
        png(values, bits, chunks=chunks) if kind == "png" else tiff(values, bits, tags, rng.choice("<>")),
        labels,
    )


# ------------------------------------------------------------------------------------------------------------ damage


def cut(rng, kind, data):
    return data[: rng.choice([0, 1, 8, len(data) - rng.randint(1, 12), rng.randrange(len(data))])], True


def flip(rng, kind, data):
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 5, 50])):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed), kind == "png"


def garbage(rng, kind, data):
    start = rng.choice([b"", data[:4], data[:16], data[: len(data) // 2]])
    return start + rng.randbytes(rng.choice([1, 50, 2000])), kind == "png" or not start


def huge(rng, kind, data):
    """A header of a picture that nobody has."""
    height, width = rng.choice([(50000, 50000), (60000, 40000), (1, 2**31 - 1), (2**30, 2**30), (0, 5), (20000, 20000)])
    if kind == "png":
        header = data[16:29]
        content = struct.pack(">II", width & 2**32 - 1, height) + header[8:]
        return data[:8] + png_chunk(b"IHDR", content) + data[33:], True
    if kind == "jpg":
        place = data.index(b"\xff\xc0") + 5
        return data[:place] + struct.pack(">HH", min(height, 65535), min(width, 65535)) + data[place + 4 :], False
    if kind == "bmp":
        return data[:18] + struct.pack("<ii", min(width, 2**31 - 1), height) + data[26:], True
    if kind == "tif":
        end = "<" if data[:2] == b"II" else ">"
        for tag, value in ((256, width), (257, height)):
            place = data.index(struct.pack(end + "HH", tag, 4), 8) + 8
            data = data[:place] + struct.pack(end + "I", value) + data[place + 4 :]
        return data, True
    return cut(rng, kind, data)


def chunks(rng, kind, data):
    """PNG's chunks in another order, twice, missing, with a wrong checksum, or with a right one of changed pixels."""
    if kind != "png":
        return tags(rng, kind, data) if kind == "tif" else flip(rng, kind, data)
    pieces, place = [], 8
    while place < len(data):
        end = place + 12 + struct.unpack_from(">I", data, place)[0]
        pieces.append(data[place:end])
        place = end
    way = rng.randrange(6)
    # Without what says how it lies it is another picture, and a right one.
    one = rng.choice([index for index, piece in enumerate(pieces) if piece[4:8] != b"eXIf"])
    if way == 0:
        rng.shuffle(pieces)
    elif way == 1:
        del pieces[one]
    elif way == 2:
        pieces.insert(rng.randrange(len(pieces)), pieces[one])
    elif way == 3:
        pieces[one] = pieces[one][:-4] + rng.randbytes(4)
    elif way == 4:
        pixels = next(i for i, piece in enumerate(pieces) if piece[4:8] == b"IDAT")
        content = bytearray(pieces[pixels][8:-4])
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        pieces[pixels] = png_chunk(b"IDAT", bytes(content))
    else:
        pixels = next(i for i, piece in enumerate(pieces) if piece[4:8] == b"IDAT")
        raw = zlib.decompress(pieces[pixels][8:-4])
        pieces[pixels] = png_chunk(b"IDAT", zlib.compress(raw[: rng.randrange(len(raw))]))
    return data[:8] + b"".join(pieces), True


def tags(rng, kind, data):
    """TIFF with places beyond the file, directories in a circle, counts of nothing."""
    if kind != "tif":
        return chunks(rng, kind, data) if kind == "png" else flip(rng, kind, data)
    end = "<" if data[:2] == b"II" else ">"
    (count,) = struct.unpack_from(end + "H", data, 8)
    changed, way = bytearray(data), rng.randrange(5)
    strips = next(p for p in range(10, 10 + 12 * count, 12) if struct.unpack_from(end + "H", data, p)[0] == 273)
    if way == 0:
        struct.pack_into(end + "I", changed, strips + 8, rng.choice([len(data), len(data) - 3, 2**32 - 1, 2**31]))
    elif way == 1:
        struct.pack_into(end + "I", changed, 10 + 12 * count, rng.choice([8, 10, len(data), 2**32 - 1]))
    elif way == 2:
        place = 10 + 12 * rng.randrange(count)
        struct.pack_into(end + "I", changed, place + 4, rng.choice([0, 2**31, 2**32 - 1]))
        return bytes(changed), False
    elif way == 3:
        struct.pack_into(end + "I", changed, 4, rng.choice([0, 1, len(data) - 1, 2**32 - 1]))
    else:
        struct.pack_into(end + "H", changed, 8, rng.choice([0, 1, 4000, 65535]))
        return bytes(changed), False
    return bytes(changed), True


def whole(rng, kind, data):
    return data, True


DAMAGE = [cut, flip, flip, garbage, huge, chunks, tags, whole]


def bomb() -> bytes:
    """A PNG of 400 million black pixels."""
    stream, row = zlib.compressobj(1), b"\0" * 20001
    pixels = b"".join(stream.compress(row * 100) for _ in range(200)) + stream.flush()
    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0)
    named = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in named)


def no_file(rng: random.Random, path: Path) -> None:
    """What is no image file at all, under its name."""
    way = rng.randrange(4)
    if way == 0:
        os.mkfifo(path)
    elif way == 1:
        path.symlink_to(rng.choice(["/dev/zero", "/dev/random", "/dev/null"]))
    elif way == 2:
        path.write_bytes(rng.choice([b"", b"<html>", b"GIF89a" + bytes(50), bytes(1000)]))
    else:
        path.write_bytes(bomb())


# ------------------------------------------------------------------------------------------------------------- cases


def differ(found: np.ndarray, due: np.ndarray) -> bool:
    return found.shape != due.shape or bool(np.abs(found.astype(int) - due.astype(int)).max() > 6)


def try_file(rng: random.Random, place: Path) -> Counter:
    from jaxseg.data import open_dataset
    from jaxseg.errors import UserError
    from jaxseg.predict import read_image

    of_mask = rng.random() < 0.5
    kind, data, due = (a_mask if of_mask else an_image)(rng)
    for name in "abc":
        (place / "images").mkdir(exist_ok=True)
        (place / "masks").mkdir(exist_ok=True)
        (place / "images" / f"{name}.png").write_bytes(png(np.full((*SIZE, 3), 90)))
        (place / "masks" / f"{name}.png").write_bytes(png(np.arange(SIZE[1])[None].repeat(SIZE[0], 0) % 3))
    (place / "classes.yaml").write_text(LISTING)
    kind_of_file = "masks" if of_mask else "images"
    (place / kind_of_file / "b.png").unlink()
    path = place / kind_of_file / f"b.{kind}"
    if rng.random() < 0.08:
        strict, data = True, None
        no_file(rng, path)
    else:
        damaged, strict = rng.choice(DAMAGE)(rng, kind, data)
        path.write_bytes(damaged)
        strict = strict and (kind != "jpg" or damaged == data)
    count = Counter()

    def refused(error: UserError) -> None:
        if not (str(error).isprintable() and len(str(error)) < 3000 and path.name in str(error)):
            raise Wrong(f"it is refused so: {error}")
        count["refused"] += 1

    def taken(found: np.ndarray, how: str) -> None:
        if strict and (data is None or differ(found, due)):
            raise Wrong(f"{how} takes a {kind} of {kind_of_file} as something else")
        count["taken"] += 1

    if not of_mask:
        try:
            found = read_image(path)
        except UserError as error:
            refused(error)
        else:
            # As it once said that it can't be read.
            count.update(refused=1) if found is None else taken(found, "predict")
            del found
    try:
        source = open_dataset("folder", directory=str(place), progress=False)
    except UserError as error:
        refused(error)
    else:
        records = [record for split in source.splits for record in source.source(split)]
        (record,) = [record for record in records if record["id"] == "b"]
        taken(record["labels" if of_mask else "images"], "preparing")
    return count


def batch(seed: int, first: int, count: int) -> None:
    """Prints an outcome a case: refused, taken, wrong, traceback or hang."""

    def out_of_time(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, out_of_time)
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))
    for number in range(first, first + count):
        with tempfile.TemporaryDirectory() as place:
            os.environ["TFDS_DATA_DIR"] = f"{place}/prepared"
            (Path(place) / "data").mkdir()
            print(json.dumps({"case": number, "outcome": "hang"}), flush=True)  # if nothing follows
            signal.alarm(SECONDS)
            outcome, detail = "taken", ""
            try:
                counts = try_file(random.Random(f"{seed} {number}"), Path(place) / "data")
                outcome = "+".join(sorted(counts))
            except Wrong as error:
                outcome, detail = "wrong", str(error)
            except TimeoutError:
                outcome = "hang"
            except BaseException:
                outcome, detail = "traceback", traceback.format_exc()[-700:]
            finally:
                signal.alarm(0)
        print(json.dumps({"case": number, "outcome": outcome, "detail": detail[:700]}), flush=True)


def outcomes(seed: int, count: int, size: int = 50) -> list[dict]:
    found, first = {}, 0
    while first < count:
        command = [sys.executable, __file__, str(seed), str(first), str(min(size, count - first))]
        limit = 120 + SECONDS * 5
        try:
            done = subprocess.run(command, capture_output=True, timeout=limit, cwd=ROOT)
            lines, code, said = done.stdout, done.returncode, done.stderr
        except subprocess.TimeoutExpired as error:
            lines, code, said = error.stdout or b"", None, b""
        told = {}
        for row in map(json.loads, lines.decode(errors="replace").splitlines()):
            told[row["case"]] = row
        assert told, said[-2000:]
        found |= told
        if code:
            found[max(told)] = {
                "case": max(told),
                "outcome": "traceback",
                "detail": f"the process ended with {code}: {said[-500:]}",
            }
        first = max(told) + 1
    return [found[number] for number in sorted(found)]


@pytest.mark.nightly
def test_a_broken_image_or_mask_is_refused_by_name_or_read_rightly():
    found = outcomes(SEED, COUNT)
    count = Counter(row["outcome"] for row in found)
    print(dict(count))
    assert len(found) == COUNT
    bad = [row for row in found if row["outcome"] in ("wrong", "traceback", "hang")]
    assert not bad, json.dumps(bad[:5], indent=1)
    assert min(count["taken"], count["refused"]) >= COUNT // 10, "it says nothing where all are taken or refused"


if __name__ == "__main__":
    batch(*map(int, sys.argv[1:]))
