"""What a data set has to say of itself so that `jaxseg.data.open_dataset` can prepare it."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from jaxseg.data.info import DataInfo
from jaxseg.data.layout import Pair, Scoring
from jaxseg.errors import UserError

LABEL_MODES = ("P", "L", "1")  # Pillow's modes of images that hold a label per pixel


class Recipe:
    """A data set before it is prepared; one subclass per data set.

    Attributes:
      info: names and colours; where the version or the folder decide on them, an instance's own.
      train_split, eval_split: the splits that are trained and scored on.
      key: names the prepared folder: the data set and its version.
      origin: where the data comes from, for messages.
      fingerprint: changes when what is to be prepared changes.
      left_out: what holds images and is not used, in words; '' where nothing is.
    """

    info: DataInfo
    train_split = "train"
    eval_split = "val"
    key: str
    origin: str
    fingerprint: str
    left_out: str = ""

    def __init__(self, directory: str = "", version: str = "", progress: bool = True, scoring: Scoring | None = None):
        raise NotImplementedError

    @classmethod
    def info_of(cls, version: str, directory: str) -> DataInfo:
        """Names and colours of a version; no file is read for it unless a data set has its classes from files.

        Raises:
          UserError: they depend on a version that there is not, or on files that are not as they should be.
        """
        return cls.info

    def splits(self) -> Mapping[str, Sequence[Any]]:
        """The items of every split; called only where the data has to be prepared."""
        raise NotImplementedError

    def read(self, item: Any) -> tuple[str, bytes, np.ndarray]:
        """Id, encoded image (JPEG or PNG) and labels uint8 [H, W] of one item of `splits`.

        It is called from several threads.
        """
        raise NotImplementedError


class FolderRecipe(Recipe):
    """A recipe whose items are pairs of files."""

    def read(self, item: Pair) -> tuple[str, bytes, np.ndarray]:
        """See `Recipe.read`."""
        data, (height, width) = read_image(item.image)
        labels = read_labels(item.labels)
        if labels.shape != (height, width):
            raise UserError(
                f"{item.labels} is {labels.shape[0]}x{labels.shape[1]} (height x width) but its image {item.image} is "
                f"{height}x{width}: a mask must have its image's size; make the mask anew or leave the pair out."
            )
        return item.id, data, labels


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error


def read_image(path: Path) -> tuple[bytes, tuple[int, int]]:
    """The bytes of a JPEG or PNG file, or a TIFF file's pixels as PNG, and its (height, width).

    The whole image is decoded to be sure of it: OpenCV fills up a truncated JPEG without a word.

    Raises:
      UserError: the file cannot be read, is broken, or is neither JPEG, PNG nor TIFF.
    """
    data = _read_bytes(path)
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        # Pillow knows fewer kinds of it, none of 16-bit colours among them. What OpenCV would write to standard error
        # about a broken file our own error says.
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if pixels is None:
            raise UserError(
                f"cannot decode {path}; the TIFF file is broken, cut short or of more than 16 bits a channel: get it "
                "anew or save it as PNG."
            )
        return encode_png(pixels), pixels.shape[:2]
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            kind, (width, height) = image.format, image.size
    except Exception as error:
        raise UserError(f"cannot decode {path}: {error}; the file is broken or cut short: get it anew.") from error
    # MPO: several pictures in one JPEG file, as some cameras write it; every reader takes the first.
    if kind not in ("JPEG", "MPO", "PNG"):
        raise UserError(f"{path} is a {kind} file; images must be JPEG, PNG or TIFF.")
    return data, (height, width)


def read_labels(path: Path) -> np.ndarray:
    """The label of every pixel, uint8 [H, W], from a grey or palette image of up to 8 bits or SBD's `.mat` file.

    Raises:
      UserError: the file cannot be read, is broken, or holds colours instead of labels.
    """
    if path.suffix == ".mat":
        return _read_sbd(path, _read_bytes(path))
    mode, labels = read_pixels(path)
    if mode not in LABEL_MODES:
        raise UserError(
            f"{path} is an image of mode {mode}; a mask holds one class index per pixel: an 8-bit grey or palette PNG "
            "(mode L or P). Turn the colours into class indices first."
        )
    return labels.astype(np.uint8, copy=False)


def read_pixels(path: Path) -> tuple[str, np.ndarray]:
    """Pillow's mode of an image file and its pixels as they lie in it: of mode P the indices, of mode 1 booleans.

    Raises:
      UserError: the file cannot be read or is broken.
    """
    data = _read_bytes(path)
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            # OpenCV would turn the indices of mode P into colours.
            return image.mode, np.array(image)
    except Exception as error:
        raise UserError(f"cannot decode {path}: {error}; the file is broken or cut short: get it anew.") from error


def _read_sbd(path: Path, data: bytes) -> np.ndarray:
    import scipy.io

    try:
        labels = scipy.io.loadmat(io.BytesIO(data))["GTcls"]["Segmentation"][0, 0]
    except Exception as error:
        raise UserError(f"cannot read the labels of {path}: {error}; the file is broken: get it anew.") from error
    return np.ascontiguousarray(labels, np.uint8)


def check_labels(labels: np.ndarray, info: DataInfo, what: str) -> None:
    """Raises `UserError` where `labels` has another label than a class or the void label of `info`."""
    counts = np.bincount(labels.ravel(), minlength=256)
    counts[: info.num_classes] = 0
    counts[info.ignore_label] = 0
    if counts.any():
        label = int(np.flatnonzero(counts)[0])
        raise UserError(
            f"{what} has label {label} in {counts[label]} pixels, but {info.name} has {info.num_classes} classes: "
            f"labels must be 0..{info.num_classes - 1}, or {info.ignore_label} for pixels that do not count."
        )


def encode_png(pixels: np.ndarray) -> bytes:
    """A BGR image, uint8 [H, W, 3], as PNG."""
    return cv2.imencode(".png", pixels)[1].tobytes()


def encode_labels(labels: np.ndarray) -> bytes:
    """Labels, uint8 [H, W], as PNG; of indices in areas, without PNG's filters, which would make them no smaller.

    CamVid's take half the bytes and a quarter of the time to decode, 0.22 ms for 0.95, which was a third of an image's.
    """
    flags = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE, cv2.IMWRITE_PNG_STRATEGY, 0)
    return cv2.imencode(".png", labels, [*flags, cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()
