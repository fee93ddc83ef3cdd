"""Image files to uint8 RGB: one decoder for preparing, looking through, scoring and predicting.

Its rules, whatever the kind of file:

- Pixels come as they lie in the file; `turned` brings them to how EXIF or TIFF say that the picture is shown.
- Of 16 bits the upper eight are taken, value // 256. `span` has the values that were there.
- Alpha is left out and the colours are those beside it, not darkened by it.
- Colour profiles and gamma are left alone. Of several pages or frames the first is taken.
"""

import contextlib
import io
import struct
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from jaxseg.data.headers import Header, check_png_pixels, most_pixels, read_header
from jaxseg.errors import UserError, shown
from jaxseg.files import read_bytes

# The classes themselves: `Image.open` warns at 89 and refuses at 179 million pixels, where `most_pixels` is the limit.
OPENERS = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}
# Of broken EXIF and TIFF tags, on standard error; what matters of them is read in `headers`.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")
_LARGE = 2**25  # pixels; of larger pictures one is decoded at a time, however many threads there are
_one_at_a_time = threading.Lock()


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded image.

    Attributes:
      pixels: uint8 [H, W, 3] RGB, as they lie in the file; None where they were not asked for.
      header: of the file.
      span: the least and the largest value of a file of 16 bits, else ().
      transparent: whether an alpha channel was left out that was not opaque everywhere.
    """

    pixels: np.ndarray | None
    header: Header
    span: tuple[int, int] | tuple[()] = ()
    transparent: bool = False


def read_file(path) -> bytes:
    """The bytes of an image file.

    Raises:
      UserError: it can't be read, is no regular file, or is larger than any image of `most_pixels()`.
    """
    # Eight bytes a pixel, four channels of 16 bits, without compression.
    return read_bytes(path, most=8 * most_pixels() + 2**24)


@contextlib.contextmanager
def named(path, what: str = "cannot decode") -> Iterator[None]:
    """Within it a `ValueError` that says what is wrong with a file becomes a `UserError` that names it."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{what} {shown(path)}: {error}") from error
    except MemoryError as error:
        raise UserError(f"{what} {shown(path)}: there is not enough memory for its pixels") from error


def decode(data: bytes) -> Picture:
    """An image file's bytes as a picture, whole.

    Raises:
      ValueError: see `examine`.
    """
    picture = examine(data)
    if picture.pixels is not None:
        return picture
    with one_of_the_large(picture.header):
        return replace(picture, pixels=decode_trusted(data))


def examine(data: bytes) -> Picture:
    """An image file's bytes as a picture, `pixels` left out where `decode_trusted(data)` gives them.

    The whole file is checked: OpenCV fills up a truncated JPEG, and compares no checksum of a PNG, without a word.

    Raises:
      ValueError: it is broken, cut short, of a kind that is not read, or has more pixels than `most_pixels()`.
    """
    header = read_header(data)
    with one_of_the_large(header):
        if header.kind == "TIFF":
            return _tiff(data, header)
        if header.kind == "PNG":
            check_png_pixels(data, header)
        else:
            load(data, header)
        if header.kind in ("PNG", "WebP") and (header.alpha or header.bits == 16):
            return _picture(opencv(data, cv2.IMREAD_UNCHANGED), header)
        return Picture(None, header)


def one_of_the_large(header: Header) -> contextlib.AbstractContextManager:
    """A context in which one large picture or mask is decoded at a time, and small ones at will."""
    return _one_at_a_time if header.width * header.height > _LARGE else contextlib.nullcontext()


def decode_trusted(data: bytes) -> np.ndarray:
    """JPEG, PNG, WebP or BMP bytes that were checked before as uint8 [H, W, 3] RGB, as they lie in the file.

    Raises:
      ValueError: OpenCV can't decode them.
    """
    pixels = opencv(data, cv2.IMREAD_COLOR)
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)


def opencv(data: bytes, flags: int) -> np.ndarray:
    """What OpenCV makes of an image file, its channels in BGR order, not turned.

    Raises:
      ValueError: nothing.
    """
    # What it would write to standard error about a broken file our own error says.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise ValueError("it is broken or of an unusual kind: get it again or save it as 8-bit PNG")
    return pixels


def load(data: bytes, header: Header):
    """A file decoded by Pillow, which notices what is cut short; its mode says what the pixels are.

    Raises:
      ValueError: it is broken, cut short or of a kind that Pillow does not know.
    """
    try:
        image = OPENERS[header.kind](io.BytesIO(data))
        if (image.size[1], image.size[0]) != header.size:
            raise ValueError(f"it says two sizes, {header.height}x{header.width} and {image.size[1]}x{image.size[0]}")
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        what = shown(error) or type(error).__name__
        raise ValueError(f"{what}; the {header.kind} file is broken, cut short or unusual: get it again") from error
    return image


def upright(data: bytes, header: Header) -> bytes:
    """The same file without its orientation: decoders of TIFF turn some of them, and each another part."""
    if header.orientation == 1 or not header.at:
        return data
    place, form = header.at
    raw = struct.pack(form, 1)
    return data[:place] + raw + data[place + len(raw) :]


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """[H, W, ...] as it is shown, given EXIF's number, 1 to 8, of how it lies."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows, columns = _MIRRORED[orientation]
    return np.ascontiguousarray(pixels[::rows, ::columns])


# By orientation, after the axes were swapped from 5 on: the direction of rows and of columns.
_MIRRORED = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}


def _picture(pixels: np.ndarray, header: Header) -> Picture:
    """Of one to four channels in OpenCV's order, of 8 or 16 bits."""
    transparent = pixels.ndim == 3 and pixels.shape[2] == 4 and pixels[..., 3].min() < np.iinfo(pixels.dtype).max
    colours = pixels[..., :3] if pixels.ndim == 3 else pixels
    span = ()
    if pixels.dtype == np.uint16:
        span = int(colours.min()), int(colours.max())
        colours = (colours >> max(0, min(header.bits, 16) - 8)).astype(np.uint8)
    code = cv2.COLOR_BGR2RGB if colours.ndim == 3 else cv2.COLOR_GRAY2RGB
    return Picture(cv2.cvtColor(np.ascontiguousarray(colours), code), header, span, bool(transparent))


def _tiff(data: bytes, header: Header) -> Picture:
    samples, form = header.tags.get(277, (1,))[0], header.tags.get(339, (1,))[0]
    if header.bits > 16 or form not in (1, 4):
        kind = {2: "signed ", 3: "floating "}.get(form, "")
        raise ValueError(f"it has {kind}samples of {header.bits} bits: save it with 8 or 16")
    if header.bits == 16 and samples > 1:
        pixels = tiff_of_16_bits(data, header)
        if header.tags.get(338, (0,))[0] == 1 and pixels.shape[2] == 4:
            straight = pixels[..., :3].astype(np.uint32) * 65535 // np.maximum(pixels[..., 3:], 1)
            pixels[..., :3] = np.minimum(straight, 65535)
        return _picture(pixels, header)
    image = load(upright(data, header), header)
    if image.mode.startswith("I;16"):
        pixels = np.asarray(image).astype(np.uint16)
        if header.tags.get(262, (1,))[0] == 0:
            pixels = np.uint16(2**header.bits - 1) - pixels
        return _picture(pixels, header)
    alpha = image.getchannel("A").getextrema()[0] if image.mode in ("LA", "RGBA") else 255
    try:
        rgb = image.convert("RGB")
    except ValueError as error:
        raise ValueError(f"{error}: save it as RGB") from error
    return Picture(np.array(rgb), header, (), alpha < 255)


def tiff_of_16_bits(data: bytes, header: Header) -> np.ndarray:
    """uint16 [H, W, 3 or 4], BGR(A), of a TIFF file of three or four channels of 16 bits, which Pillow narrows to 8.

    Raises:
      ValueError: it has other channels, or lacks some of its pixels, which OpenCV would leave as memory had them.
    """
    tags, samples = header.tags, header.tags.get(277, (1,))[0]
    counts, rows = tags.get(279) or tags.get(325, ()), tags.get(278, (header.height,))[0]
    due = header.width * header.height * samples * 2 if tags.get(259, (1,))[0] == 1 else 1
    parts = -(-header.height // max(1, min(rows, header.height)))
    if tags.get(262, (2,))[0] != 2 or samples not in (3, 4) or tags.get(284, (1,))[0] != 1:
        raise ValueError(f"it has {samples} channels of 16 bits in another way than RGB or RGBA: save it so, or as PNG")
    if sum(counts) < due or (279 in tags and len(counts) < parts) or not all(counts):
        raise ValueError("some of its pixels are not there: the TIFF file is broken, get it again")
    pixels = opencv(upright(data, header), cv2.IMREAD_UNCHANGED)
    if pixels.dtype != np.uint16 or pixels.shape != (*header.size, samples):
        raise ValueError("OpenCV reads it as something else: save it as PNG")
    return pixels
