"""What an image file says of itself, read from its bytes without decoding a pixel: JPEG, PNG, TIFF, WebP and BMP.

Decoders differ in what they let pass: one fills up what is cut short, another checks no checksum, a third takes a
header's word for terabytes. So the file is looked at here, before any of them is given it.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from jaxseg.errors import UserError, shown

KINDS = "JPEG, PNG, TIFF, WebP and BMP"
MOST_PIXELS = 2**28  # of an image or a mask, 16,384 x 16,384; a picture of as many takes 0.8 GB
SWITCH = "JAXSEG_MAX_PIXELS"  # the environment variable that sets another number
SHOWN, STORED = "shown", "stored"
ORIENTATIONS = {"": SHOWN, SHOWN: SHOWN, STORED: STORED}  # what data.orientation may be, see `fitting`
_CEILING = 2**30  # OpenCV decodes no larger ones
_ORIENTATION = 274
# Of TIFF what decides how samples become pixels.
_TAGS = {254, 256, 257, 258, 259, 262, _ORIENTATION, 277, 278, 279, 284, 322, 323, 325, 338, 339}
_FORMS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_MOST_PAGES = 10_000


@dataclass(frozen=True)
class Header:
    """What a file's header says.

    Attributes:
      kind: 'JPEG', 'PNG', 'TIFF', 'WebP' or 'BMP'.
      width, height: as the pixels lie in the file.
      bits: of a sample; 8 where the kind has no others.
      orientation: 1 to 8, EXIF's number of how the picture is turned to be shown; 1: not at all.
      pages: pictures in the file; of TIFF without reduced copies of another.
      colour: PNG's colour type, else -1.
      palette: (red, green, blue) of each index of a PNG, else ().
      alpha: whether a PNG has an alpha channel or transparent colours.
      tags: of TIFF's first page, {number: values}.
      at: of TIFF's or EXIF's orientation, (place in the file, struct's format); () where there is none.
    """

    kind: str
    width: int
    height: int
    bits: int = 8
    orientation: int = 1
    pages: int = 1
    colour: int = -1
    palette: tuple[tuple[int, int, int], ...] = ()
    alpha: bool = False
    tags: dict[int, tuple[int, ...]] = field(default_factory=dict)
    at: tuple = ()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as the pixels lie in the file."""
        return self.height, self.width

    @property
    def shown_size(self) -> tuple[int, int]:
        """(height, width) as the picture is shown."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def most_pixels() -> int:
    """The most pixels that an image or a mask may have: `MOST_PIXELS`, or what the environment variable says.

    Raises:
      UserError: the variable is no number from 1 to 2^30.
    """
    text = os.environ.get(SWITCH, "")
    if not text:
        return MOST_PIXELS
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:12]) <= _CEILING):
        raise UserError(f"the environment variable {SWITCH} is {shown(text)}: it must be a number from 1 to {_CEILING}")
    return int(text)


def kind_of(start: bytes) -> str:
    """The kind of an image file by its first 12 bytes, '' for all others."""
    if start[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if start[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WebP"
    return "BMP" if start[:2] == b"BM" else ""


def read_header(data: bytes) -> Header:
    """The header of an image file; of PNG every chunk is walked and its checksum compared.

    Raises:
      ValueError: it is of another kind, cut short, broken, or has more pixels than `most_pixels()`.
    """
    kind = kind_of(data[:12])
    if not kind:
        raise ValueError(f"it is none of {KINDS}")
    try:
        header = {"JPEG": _jpeg, "PNG": _png, "TIFF": _tiff, "WebP": _webp, "BMP": _bmp}[kind](data)
    except (struct.error, IndexError, OverflowError):
        raise ValueError(f"the {kind} file is broken or cut short: get it again") from None
    if header.width < 1 or header.height < 1:
        raise ValueError(f"it says that it is {header.height}x{header.width}: the {kind} file is broken, get it again")
    most = most_pixels()
    if header.width * header.height > most:
        raise ValueError(
            f"it has {header.height}x{header.width} = {header.width * header.height:,} pixels, and at most {most:,} "
            f"are decoded: cut it into parts, or set the environment variable {SWITCH} to a number up to {_CEILING}"
        )
    return header


def jpeg_orientation(data: bytes) -> int:
    """The orientation of a JPEG that was checked before; 1 of all else."""
    return _jpeg(data).orientation if data[:3] == b"\xff\xd8\xff" else 1


def _exif(block: bytes, offset: int) -> dict:
    """`orientation` and `at` of an EXIF block that lies at `offset` of its file; {} where it says nothing valid."""
    try:
        for tags, places in _directories(block):
            value = tags.get(_ORIENTATION, (1,))[0]
            if 2 <= value <= 8:
                place, form = places[_ORIENTATION]
                return {"orientation": value, "at": (offset + place, form)}
            return {}
    except (struct.error, IndexError, ValueError):
        pass
    return {}


def _jpeg(data: bytes) -> Header:
    place, turned, found = 2, {}, None
    # Up to the first scan: whatever lies behind is the pixels' or another picture's.
    while True:
        if data[place] != 0xFF:
            # Bytes that belong to nothing are passed over, as every decoder does.
            place = data.find(b"\xff", place)
            if place < 0:
                raise IndexError
        marker = data[place + 1]
        if marker == 0xFF:
            place += 1
            continue
        if marker == 0xDA or marker == 0xD9:
            break
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            place += 2
            continue
        (length,) = struct.unpack_from(">H", data, place + 2)
        if marker == 0xE1 and not turned and data[place + 4 : place + 10] == b"Exif\0\0":
            turned = _exif(data[place + 10 : place + 2 + length], place + 10)
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            found = struct.unpack_from(">BHH", data, place + 4)
        place += 2 + length
    if found is None:
        raise IndexError
    bits, height, width = found
    return Header("JPEG", width, height, bits, **turned)


def _png(data: bytes) -> Header:
    named = [(name, content) for name, content, _ in _png_chunks(data)]
    names = [name for name, _ in named]
    chunks = dict(reversed(named))  # the first of each name
    width, height, bits, colour, compression, filtering, interlace = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    depths = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}.get(colour, ())
    if bits not in depths or compression or filtering or interlace > 1:
        raise ValueError(f"its header says {bits} bits of colour type {colour}: the PNG file is broken, get it again")
    first = names.index(b"IDAT") if b"IDAT" in names else 0
    count = names.count(b"IDAT")
    in_order = names[first : first + count] == [b"IDAT"] * count and names.count(b"IHDR") == 1
    if not count or not in_order or names.count(b"PLTE") > 1 or b"PLTE" in names[first:]:
        raise ValueError("its chunks are not in PNG's order: the file is broken, get it again")
    palette = chunks.get(b"PLTE", b"")
    if len(palette) % 3 or len(palette) > 768 or (colour == 3 and not palette):
        raise ValueError("its palette is broken: get it again")
    turned = {}
    if b"eXIf" in chunks:
        place = next(place for name, _, place in _png_chunks(data) if name == b"eXIf")
        turned = _exif(chunks[b"eXIf"], place)
    pages = struct.unpack_from(">I", chunks[b"acTL"])[0] if b"acTL" in chunks else 1
    rgb = tuple(zip(*[iter(palette)] * 3, strict=True)) if colour == 3 else ()
    alpha = colour in (4, 6) or b"tRNS" in names[:first]
    return Header("PNG", width, height, bits, pages=pages, colour=colour, palette=rgb, alpha=alpha, **turned)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """Name, content and the content's place of each chunk, the last being IEND.

    Raises:
      ValueError: one is cut short, has a wrong checksum or must be known to be read and is not.
    """
    place, name = 8, b""
    while name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        if zlib.crc32(memoryview(data)[place + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise ValueError(f"the checksum of its chunk {shown(name.decode('latin-1'))} is wrong: get the file again")
        if name[:1].isupper() and name not in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            raise ValueError(f"its chunk {name.decode('latin-1')} is none of PNG's: save it again")
        if place == 8 and name != b"IHDR":
            raise ValueError("it does not begin with its header: get the file again")
        yield name, data[place + 8 : end], place + 8
        place = end + 4


def check_png_pixels(data: bytes, header: Header) -> None:
    """Inflates a PNG's pixels, a megabyte at a time, and counts them: decoders leave what is missing black.

    Raises:
      ValueError: there are too few, or they are damaged.
    """
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[header.colour]
    # Adam7's seven passes: first column and row, and the distances to the next.
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    due = 0
    for left, top, across, down in passes if data[28] else [(0, 0, 1, 1)]:
        columns, rows = -(-(header.width - left) // across), -(-(header.height - top) // down)
        if columns > 0 and rows > 0:
            due += rows * (1 + -(-columns * samples * header.bits // 8))
    stream, found = zlib.decompressobj(), 0
    try:
        for name, content, _ in _png_chunks(data):
            while name == b"IDAT" and content and found <= due and not stream.eof:
                found += len(stream.decompress(content, 2**20))
                content = stream.unconsumed_tail
    except zlib.error as error:
        raise ValueError(f"its pixels are damaged ({error}): get the file again") from None
    if found < due or (found == due and not stream.eof):
        raise ValueError(f"{found:,} of the {due:,} bytes of its pixels are there: get the file again")


def _directories(data: bytes) -> Iterator[tuple[dict[int, tuple[int, ...]], dict[int, tuple[int, str]]]]:
    """Of each directory of a TIFF file or an EXIF block its tags that are in `_TAGS`, and where and how they lie."""
    end = {b"II": "<", b"MM": ">"}.get(data[:2])
    if end is None:
        raise ValueError("it has no byte order")
    (version,) = struct.unpack_from(end + "H", data, 2)
    big = version == 43
    count_form, entry, width, offset_form, start = ("Q", 20, 8, "Q", 8) if big else ("H", 12, 4, "I", 4)
    (place,) = struct.unpack_from(end + offset_form, data, start)
    seen: set[int] = set()
    while place and place not in seen and len(seen) < _MOST_PAGES:
        seen.add(place)
        (count,) = struct.unpack_from(end + count_form, data, place)
        place += struct.calcsize(count_form)
        tags, places = {}, {}
        for index in range(min(count, 4096)):
            at = place + index * entry
            tag, kind = struct.unpack_from(end + "HH", data, at)
            (number,) = struct.unpack_from(end + offset_form, data, at + 4)
            if tag not in _TAGS or kind not in _FORMS or not number:
                continue
            size = struct.calcsize(_FORMS[kind])
            lies = at + entry - width
            if size * number > width:
                (lies,) = struct.unpack_from(end + offset_form, data, lies)
            if lies + size * number > len(data):
                raise IndexError
            tags[tag] = struct.unpack_from(f"{end}{number}{_FORMS[kind]}", data, lies)
            places[tag] = (lies, end + _FORMS[kind])
        yield tags, places
        (place,) = struct.unpack_from(end + offset_form, data, place + count * entry)


def _tiff(data: bytes) -> Header:
    pages, first, at = 0, None, ()
    try:
        for tags, places in _directories(data):
            if first is None:
                first, at = tags, places.get(_ORIENTATION, ())
            pages += not tags.get(254, (0,))[0] & 1
    except (struct.error, IndexError):
        # What lies behind the first page is another picture; that page must be whole.
        if first is None:
            raise
    if first is None or 256 not in first or 257 not in first:
        raise IndexError
    bits = first.get(258, (1,))
    if len(set(bits)) > 1:
        raise ValueError(f"its samples have {', '.join(map(str, bits[:8]))} bits: save it with one depth for all")
    turned = first.get(_ORIENTATION, (1,))[0]
    return Header(
        "TIFF",
        first[256][0],
        first[257][0],
        bits[0],
        turned if 1 <= turned <= 8 else 1,
        max(pages, 1),
        tags=first,
        at=at,
    )


def _webp(data: bytes) -> Header:
    end = min(len(data), 8 + struct.unpack_from("<I", data, 4)[0])
    place, size, pages, turned, alpha = 12, None, 1, {}, False
    while place + 8 <= end:
        name, length = struct.unpack_from("<4sI", data, place)
        body = place + 8
        if body + length > len(data):
            raise IndexError
        if name == b"VP8X":
            pages += bool(data[body] & 2)
            size = tuple(1 + int.from_bytes(data[body + i : body + i + 3], "little") for i in (4, 7))
            alpha = bool(data[body] & 16)
        elif name == b"VP8 " and size is None:
            size = tuple(value & 0x3FFF for value in struct.unpack_from("<HH", data, body + 6))
        elif name == b"VP8L" and size is None:
            (packed,) = struct.unpack_from("<I", data, body + 1)
            size, alpha = (1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)), bool(packed >> 28 & 1)
        elif name == b"EXIF" and not turned:
            skipped = 6 if data[body : body + 6] == b"Exif\0\0" else 0
            turned = _exif(data[body + skipped : body + length], body + skipped)
        place = body + length + (length & 1)
    if size is None:
        raise IndexError
    return Header("WebP", *size, pages=pages, alpha=alpha, **turned)


def _bmp(data: bytes) -> Header:
    (length,) = struct.unpack_from("<I", data, 14)
    if length == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    else:
        width, height, _, bits = struct.unpack_from("<iiHH", data, 18)
    return Header("BMP", width, abs(height), bits)
