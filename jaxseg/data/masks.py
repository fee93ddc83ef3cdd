"""Mask files to numbers or colours, in the file's own depth: PNG, TIFF and BMP.

- Grey: the number of each pixel as it lies in the file, of 1, 2, 4, 8, 12, 16 or 32 bits; a float that is whole counts.
- Indexed: the index, and the colours of the palette beside it.
- Colours of 8 bits, or of 16 that hold 0 to 255 or multiples of 257.
- Alpha counts for nothing where it is the same everywhere, or where what is transparent is black and nothing else is.
  Any other leaves open what is meant and is refused. Transparent colours of a palette change no index.
- Colour profiles and gamma change no number. Several pages or frames are refused, and so are JPEG and WebP, which
  change values at the edges.
- A mask's own orientation turns it as an image's does.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from jaxseg.data.headers import Header, check_png_pixels, read_header
from jaxseg.data.pictures import load, one_of_the_large, opencv, tiff_of_16_bits, upright

GREY, PALETTE, COLOURS = "grey", "palette", "colours"
_MOST = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Mask:
    """A decoded mask.

    Attributes:
      kind: GREY, PALETTE or COLOURS.
      bits: of a number; 8 of colours.
      values: unsigned integers or int32 [H, W], as they lie in the file: numbers, indices, or red * 65536 + green * 256
        + blue.
      header: of the file.
      palette: the colour of each index, of PALETTE, so packed.
    """

    kind: str
    bits: int
    values: np.ndarray
    header: Header
    palette: tuple[int, ...] = ()


def decode_mask(data: bytes) -> Mask:
    """A mask file's bytes as numbers.

    Raises:
      ValueError: it is broken, cut short, of a kind that no mask is, has more pixels than `headers.most_pixels()`, or
        holds what has no one meaning.
    """
    header = read_header(data)
    if header.kind not in ("PNG", "TIFF", "BMP"):
        raise ValueError(f"it is a {header.kind} file, which changes values at edges: a mask must be PNG, TIFF or BMP")
    if header.pages > 1:
        raise ValueError(f"it holds {header.pages} pictures: a mask must be one")
    with one_of_the_large(header):
        if header.kind == "TIFF":
            return _tiff(data, header)
        if header.kind == "PNG":
            check_png_pixels(data, header)
            if header.bits == 16 and header.colour != 0:
                return _of_opencv(opencv(data, cv2.IMREAD_UNCHANGED), header)
        return _of_pillow(data, header)


def packed(rgb: np.ndarray) -> np.ndarray:
    """int32 [...] of colours, integers 0 to 255 [..., 3]: red * 65536 + green * 256 + blue."""
    red, green, blue = (rgb[..., channel].astype(np.int32) for channel in range(3))
    return red << 16 | green << 8 | blue


def count_values(values: np.ndarray) -> list[tuple[int, int]]:
    """[(value, pixels), ...] of the values in a mask, from the most frequent on."""
    if values.dtype.itemsize <= 2:
        counts = np.bincount(values.ravel())
        found = np.flatnonzero(counts)
        counts = counts[found]
    else:
        found, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return list(zip(found[order].tolist(), counts[order].tolist(), strict=True))


def _of_pillow(data: bytes, header: Header) -> Mask:
    image = load(data, header)
    mode, pixels = image.mode, np.array(image)
    if mode == "1" or (mode == "L" and header.bits < 8 and header.kind != "BMP"):
        # Of 2 and 4 bits Pillow makes 0 to 255.
        most = 1 if mode == "1" else 255 // (2**header.bits - 1)
        return Mask(GREY, header.bits, pixels.astype(np.uint8) // np.uint8(most), header)
    if mode == "L":
        return Mask(GREY, 8, pixels, header)
    if mode in ("I;16", "I;16B"):
        return Mask(GREY, header.bits, pixels.astype(np.uint16), header)
    if mode == "P":
        rgb = np.array(header.palette or image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        return Mask(PALETTE, header.bits, pixels, header, tuple(packed(rgb).tolist()))
    if mode in ("RGB", "RGBA") and (header.kind != "BMP" or header.bits in (24, 32)):
        _check_alpha(pixels)
        return Mask(COLOURS, 8, packed(pixels), header)
    if mode == "LA":
        _check_alpha(pixels)
        return Mask(GREY, 8, np.ascontiguousarray(pixels[..., 0]), header)
    raise ValueError(f"its pixels are {mode} of {header.bits} bits: a mask must be grey, indexed or RGB")


def _of_opencv(pixels: np.ndarray, header: Header) -> Mask:
    """Of three or four channels of 16 bits in OpenCV's order."""
    rgb = pixels[..., 2::-1]
    if header.kind == "PNG" and header.colour == 4:
        _check_alpha(pixels[..., 2:])
        return Mask(GREY, 16, np.ascontiguousarray(rgb[..., 0]), header)
    _check_alpha(np.concatenate([rgb, pixels[..., 3:]], -1))
    if rgb.max() > 255:
        if (rgb % 257).any():
            raise ValueError(
                f"its colours have 16 bits and go up to {rgb.max()}: a mask's are 0 to 255, or multiples of 257"
            )
        rgb = rgb // 257
    return Mask(COLOURS, 8, packed(rgb), header)


def _check_alpha(pixels: np.ndarray) -> None:
    """Refuses what is transparent in part, given [H, W, channels], the last of two or four being alpha."""
    if pixels.shape[2] not in (2, 4):
        return
    alpha, black = pixels[..., -1], ~pixels[..., :-1].any(-1)
    least, most = alpha.min(), alpha.max()
    if least == most or (least == 0 and np.array_equal(alpha == 0, black) and (alpha[~black] == most).all()):
        return
    raise ValueError(
        f"it is transparent in part (alpha {least} to {most}), which leaves open what those pixels are: save it "
        "without alpha"
    )


def _tiff(data: bytes, header: Header) -> Mask:
    tags, bits = header.tags, header.bits
    samples, form, shows = (tags.get(tag, (1,))[0] for tag in (277, 339, 262))
    if tags.get(259, (1,))[0] in (6, 7, 34892, 50001):
        raise ValueError("it is compressed as JPEG or WebP, which changes values: save it with LZW or deflate")
    if shows not in (0, 1, 2, 3):
        raise ValueError(f"its photometric interpretation is {shows}: a mask must be grey, indexed or RGB")
    if shows == 0 and bits > 1:
        raise ValueError("0 is its white (min-is-white), so its numbers are not those that are shown: save it as PNG")
    if samples > 1 and (form not in (1, 4) or bits not in (8, 16)):
        raise ValueError(
            f"its {samples} samples a pixel are not integers of 8 or 16 bits but of {bits}: save it as PNG"
        )
    if samples > 1 and tags.get(338, (0,))[0] == 1:
        raise ValueError("its colours were multiplied by alpha: save it without alpha")
    if samples > 1 and bits == 16:
        return _of_opencv(tiff_of_16_bits(data, header), header)
    if samples == 1 and (bits >= 32 or form in (2, 3)):
        return Mask(GREY, bits, _whole(_single(data, header)), header)
    return _of_pillow(upright(data, header), header)


def _single(data: bytes, header: Header) -> np.ndarray:
    """One sample a pixel, signed, floating or of 32 bits and more."""
    # Pillow makes negative numbers of large ones, and large ones of negative bytes.
    counts = header.tags.get(279) or header.tags.get(325, ())
    if header.tags.get(259, (1,))[0] == 1 and sum(counts) < header.width * header.height * header.bits // 8:
        raise ValueError("some of its pixels are not there: the TIFF file is broken, get it again")
    pixels = opencv(upright(data, header), cv2.IMREAD_UNCHANGED)
    kinds = {1: "u", 2: "i", 3: "f", 4: "u"}
    due = f"{kinds.get(header.tags.get(339, (1,))[0], 'u')}{header.bits // 8}"
    if pixels.shape != header.size or pixels.dtype.str[1:] != due:
        raise ValueError(f"its samples of {header.bits} bits are not read: save it as PNG")
    return pixels


def _whole(pixels: np.ndarray) -> np.ndarray:
    """int32 of whole numbers from 0 on."""
    if pixels.dtype.kind == "f" and not (np.isfinite(pixels).all() and (pixels == np.rint(pixels)).all()):
        raise ValueError("its numbers are no whole ones: a mask holds classes")
    low, high = pixels.min(), pixels.max()
    if low < 0 or high > _MOST:
        raise ValueError(f"its numbers go from {low} to {high}: those of a mask are 0 to {_MOST:,}")
    return pixels.astype(np.int32)
