"""Which way an image lies beside its mask, what of it is kept, and what is said of such images.

A camera writes the pixels as its sensor has them and a number, EXIF's or TIFF's orientation, of how they are to be
turned. Masks are drawn on what is shown, as by most tools, or on the pixels as they lie, by programs that know nothing
of the number. One rule holds for preparing, looking through, training, scoring and predicting:

- an image is turned as it is shown where its mask has that size, and stays as it lies where the mask has only that one;
- where both sizes are the mask's, `data.orientation` decides: shown, which is the default, or stored;
- where that is open and some masks of the data fit only as stored, the default would be a guess: it must be said.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from jaxseg.data.headers import ORIENTATIONS, SHOWN, STORED, Header
from jaxseg.data.pictures import Picture, decode_trusted, turned
from jaxseg.errors import UserError, shown

BOTH, _SAME = "both", "same"  # sizes of a mask that fit an image's, beside shown and stored
_DARK = 2**14  # a file of 16 bits with no larger value comes out nearly black
_TOLD = 3  # names of images that a remark gives


class Fit(NamedTuple):
    """Whether image and mask are turned as they are shown, and which sizes fit: shown, stored, both, or '' without any
    orientation.
    """

    image: bool
    mask: bool
    sizes: str


def fit(image: Header, mask: Header, orientation: str, path: object) -> Fit:
    """How an image and its mask are brought to one size.

    Args:
      image, mask: of the two files.
      orientation: of `ORIENTATIONS`, which decides where both sizes fit.
      path: of the image, for the message.

    Raises:
      ValueError: nothing does.
    """
    ways = [(True, True), (False, False), (False, True), (True, False)]
    if ORIENTATIONS[orientation] == STORED:
        ways[:2] = ways[1::-1]
    lying = [(i, m) for i, m in ways if _size(image, i) == _size(mask, m)]
    if not lying:
        told = "" if image.orientation == 1 else f", {_x(image.shown_size)} as it is shown"
        raise ValueError(
            f"it is {_x(mask.shown_size)} (height x width) and its image {shown(path)} {_x(image.size)}{told}"
        )
    moved = {(i and image.orientation > 1, m and mask.orientation > 1) for i, m in lying}
    if image.orientation == mask.orientation == 1:
        sizes = ""
    elif len(moved) > 1:
        sizes = _SAME if image.orientation == mask.orientation else BOTH
    else:
        sizes = SHOWN if all(lying[0]) else STORED
    return Fit(*lying[0], sizes)


def _size(header: Header, turn: bool) -> tuple[int, int]:
    return header.shown_size if turn else header.size


def _x(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def kept(data: bytes, picture: Picture, turn: bool) -> bytes:
    """The bytes of an image to be kept in records: a JPEG or PNG file's own, or its pixels as PNG.

    What `source.decode_image` makes of them lies as it should: it turns a JPEG by its orientation, which is set to 1
    where the image is to stay as it lies. A PNG that says an orientation is written again.
    """
    header = picture.header
    if header.kind == "JPEG":
        if turn or header.orientation == 1:
            return data
        place, form = header.at
        return data[:place] + struct.pack(form, 1) + data[place + struct.calcsize(form) :]
    if header.kind == "PNG" and header.orientation == 1:
        return data
    pixels = decode_trusted(data) if picture.pixels is None else picture.pixels
    return encode_png(cv2.cvtColor(turned(pixels, header.orientation if turn else 1), cv2.COLOR_RGB2BGR))


def encode_png(pixels: np.ndarray) -> bytes:
    """A BGR image, uint8 [H, W, 3], as PNG."""
    return cv2.imencode(".png", pixels)[1].tobytes()


def facts(name: str, picture: Picture, sizes: str = "") -> dict[str, Any]:
    """What is to be said of one image, for `remarks`."""
    return {
        "id": name,
        "sizes": sizes,
        "span": list(picture.span) if picture.header.bits == 16 else [],
        "transparent": picture.transparent,
        "pages": picture.header.pages,
    }


def check_orientation(rows: Sequence[Mapping[str, Any]], orientation: str) -> None:
    """Refuses to guess which way images lie whose masks fit both ways, beside others whose masks fit only as stored.

    Raises:
      UserError: names both.
    """
    stored, both = _named(rows, "sizes", STORED), _named(rows, "sizes", BOTH)
    if not orientation and stored and both:
        raise UserError(
            f"the masks of {_brief(stored)} fit their images only as these are stored, not as they are shown, and "
            f"those of {_brief(both)} fit both ways: say which is meant, --config.data.orientation=stored or shown"
        )


def remarks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines on what is turned, dark, transparent or has several pages among the images of `facts`."""
    lines = []
    ways = {sizes: _named(rows, "sizes", sizes) for sizes in (SHOWN, STORED, BOTH, _SAME)}
    if any(ways.values()):
        told = (
            (SHOWN, "turned as shown, for only so the mask fits"),
            (
                STORED,
                "left as stored, for only so the mask fits; `predict` turns such images unless data.orientation=stored",
            ),
            (_SAME, "turned with their masks, which have the same orientation, unless data.orientation=stored"),
            (BOTH, "fit both ways and are turned as shown, unless data.orientation=stored"),
        )
        count = sum(map(len, ways.values()))
        parts = [f"{len(ways[way])} {what} ({_brief(ways[way])})" for way, what in told if ways[way]]
        lines.append(f"{count} images with an orientation (EXIF or TIFF): " + "; ".join(parts))
    deep = [row for row in rows if row["span"]]
    if deep:
        lines.append(f"{len(deep)} images of 16 bits, {_levels(deep)}")
        dark = [row for row in deep if row["span"][1] < _DARK]
        if dark:
            lines.append(
                f"{len(dark)} of them come out nearly black, {_levels(dark)}: scale them up "
                f"({_brief([row['id'] for row in dark])})"
            )
    transparent = _named(rows, "transparent", True)
    if transparent:
        lines.append(f"{len(transparent)} images are transparent in part, alpha is left out ({_brief(transparent)})")
    several = [row["id"] for row in rows if row["pages"] > 1]
    if several:
        lines.append(f"{len(several)} image files hold several pictures, the first is taken ({_brief(several)})")
    return lines


def _levels(rows: Sequence[Mapping[str, Any]]) -> str:
    low, high = min(row["span"][0] for row in rows), max(row["span"][1] for row in rows)
    return f"values {low} to {high}, which become {low // 256} to {high // 256}"


def _named(rows: Sequence[Mapping[str, Any]], field: str, value: Any) -> list[str]:
    return [row["id"] for row in rows if row[field] == value]


def _brief(names: Sequence[str]) -> str:
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return ", ".join(shown(name)[:100] for name in names[:_TOLD]) + more
