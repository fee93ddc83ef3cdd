"""Image files written byte by byte, of kinds that no library here writes."""

import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

_PNG_CHANNELS = {1: 0, 2: 4, 3: 2, 4: 6}


def png_chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of PNG with its checksum."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def packed(samples: np.ndarray, bits: int, end: str = ">") -> list[bytes]:
    """Each row of integers [H, W, channels], `bits` a sample, as bytes."""
    rows = samples.reshape(len(samples), -1)
    if bits >= 8:
        kind = f"{end}{'i' if samples.dtype.kind == 'i' else 'u'}{bits // 8}"
        return [row.astype(kind).tobytes() for row in rows]
    spread = (rows[..., None] >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8).reshape(len(rows), -1)
    return [np.packbits(row).tobytes() for row in spread]


def png(
    samples: np.ndarray,
    bits: int = 8,
    palette: Sequence[Sequence[int]] = (),
    chunks: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """A PNG of integers [H, W] or [H, W, 2 to 4], with more chunks before its pixels where some are given."""
    samples = np.atleast_3d(samples)
    colour = 3 if palette else _PNG_CHANNELS[samples.shape[2]]
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in packed(samples, bits)))
    colours = [(b"PLTE", bytes(np.array(palette, np.uint8)))] if palette else []
    named = [(b"IHDR", header), *colours, *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(name, content) for name, content in named)


def tiff(
    samples: np.ndarray, bits: int = 8, tags: Mapping[int, Sequence[int]] | None = None, end: str = "<", pages: int = 1
) -> bytes:
    """An uncompressed TIFF of integers [H, W] or [H, W, channels]; `tags` adds some or puts others in place."""
    samples = np.atleast_3d(samples)
    height, width, channels = samples.shape
    pixels = b"".join(packed(samples, bits, end))
    own = {256: [width], 257: [height], 258: [bits] * channels, 259: [1], 262: [1 if channels < 3 else 2]}
    own |= {277: [channels], 278: [height], 279: [len(pixels)], **dict(tags or {}), 273: [0]}
    size = 2 + 12 * len(own) + 4
    extra, start = b"", 8 + pages * size
    directories = [[] for _ in range(pages)]
    for tag in sorted(own):
        # LONG for places and sizes, SHORT for the rest.
        form, number = ("I", 4) if tag in (256, 257, 273, 278, 279) else ("H", 3)
        raw = struct.pack(f"{end}{len(own[tag])}{form}", *own[tag])
        if len(raw) > 4:
            value, extra = struct.pack(end + "I", start + len(extra)), extra + raw
        else:
            value = raw.ljust(4, b"\0")
        for directory in directories:
            directory.append((tag, number, len(own[tag]), value))
    body = b""
    for page, directory in enumerate(directories, 1):
        body += struct.pack(end + "H", len(directory))
        for tag, number, count, value in directory:
            value = struct.pack(end + "I", start + len(extra)) if tag == 273 else value
            body += struct.pack(end + "HHI", tag, number, count) + value
        body += struct.pack(end + "I", 8 + page * size if page < pages else 0)
    return struct.pack(end + "2sHI", b"II" if end == "<" else b"MM", 42, 8) + body + extra + pixels


def exif(orientation: int, end: str = ">") -> bytes:
    """An EXIF block that says nothing but how the picture lies."""
    mark = b"II" if end == "<" else b"MM"
    return struct.pack(end + "2sHIHHHIHHI", mark, 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)
