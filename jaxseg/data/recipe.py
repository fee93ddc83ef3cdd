"""What a data set has to say of itself so that `jaxseg.data.open_dataset` can prepare it."""

import functools
import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jaxseg.data import fitting
from jaxseg.data.headers import Header, most_pixels
from jaxseg.data.info import DataInfo
from jaxseg.data.layout import Pair, Scoring
from jaxseg.data.masks import COLOURS, GREY, PALETTE, Mask, count_values, decode_mask, packed
from jaxseg.data.pictures import Picture, examine, named, read_file, turned
from jaxseg.data.readings import colour_of, shade_of
from jaxseg.errors import UserError, shown


class Recipe:
    """A data set before it is prepared; one subclass per data set.

    Attributes:
      info: names and colours; where the version or the folder decide on them, an instance's own.
      train_split, eval_split: the splits that are trained and scored on.
      key: names the prepared folder: the data set and its version.
      origin: where the data comes from, for messages.
      fingerprint: changes when what is to be prepared changes.
      left_out: what holds images and is not used, in words; '' where nothing is.
      orientation: how images lie whose masks fit both ways, see `fitting`; set after it is made.
      remarked: whether what is to be said of images was said when it was made.
    """

    info: DataInfo
    train_split = "train"
    eval_split = "val"
    key: str
    origin: str
    fingerprint: str
    left_out: str = ""
    orientation: str = ""
    remarked = False

    @functools.cached_property
    def facts(self) -> list[dict[str, Any]]:
        """Of every image that was read, see `fitting.facts`."""
        return []

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
    """A recipe whose items are pairs of files.

    Attributes:
      indices_are_classes: whether a mask's numbers are those of `info`'s classes, so that an indexed mask whose palette
        shows a class's colour under another's number is refused.
    """

    indices_are_classes = True

    def read(self, item: Pair) -> tuple[str, bytes, np.ndarray]:
        """See `Recipe.read`."""
        data, picture = read_image(item.image)
        if item.labels.suffix == ".mat":
            labels, header = _read_sbd(item.labels)
        else:
            mask = read_mask(item.labels)
            palette = self.info.palette if self.indices_are_classes else None
            with named(item.labels, "cannot use"):
                labels, header = indices_of(mask, palette), mask.header
        return item.id, *self.fitted(item, data, picture, labels, header)

    def fitted(
        self, item: Pair, data: bytes, picture: Picture, labels: np.ndarray, header: Header
    ) -> tuple[bytes, np.ndarray]:
        """An image's bytes and its labels, both turned as `fitting` says; what is to be said of it comes to `facts`.

        Raises:
          UserError: they are of two sizes.
        """
        with named(item.labels, "cannot use"):
            way = fitting.fit(picture.header, header, self.orientation, item.image)
        self.facts.append(fitting.facts(item.id, picture, way.sizes))
        kept = fitting.kept(data, picture, way.image)
        return kept, turned(labels, header.orientation) if way.mask else np.ascontiguousarray(labels)


def read_image(path: Path) -> tuple[bytes, Picture]:
    """The bytes of an image file and what they are, the whole file having been checked.

    Raises:
      UserError: the file cannot be read, is broken or cut short, is none of JPEG, PNG, TIFF, WebP and BMP, or has more
        pixels than `headers.most_pixels()`.
    """
    data = read_file(path)
    with named(path):
        return data, examine(data)


def read_mask(path: Path) -> Mask:
    """A mask file's numbers or colours.

    Raises:
      UserError: the file cannot be read, is broken or cut short, or is no mask that has one meaning.
    """
    data = read_file(path)
    with named(path):
        return decode_mask(data)


def indices_of(mask: Mask, palette: np.ndarray | None = None) -> np.ndarray:
    """uint8 [H, W]: the class indices of a mask of a data set whose labels are given.

    Args:
      mask: grey or indexed.
      palette: uint8 [classes, 3], the colours of the classes by index, to compare an indexed mask's with; None: not.

    Raises:
      ValueError: it holds colours, numbers beyond 255, greys of fewer than 8 bits, which may be shades, or a palette
        that shows a class's colour under another's index.
    """
    if mask.kind == COLOURS:
        raise ValueError(
            "it holds colours; a mask holds one class index per pixel: an 8-bit grey or indexed PNG. Turn the colours "
            "into class indices first"
        )
    most = int(mask.values.max())
    if most > 255:
        raise ValueError(f"it has label {most}, and labels are 0 to 255")
    if mask.kind == GREY and mask.bits < 8 and most:
        raise ValueError(
            f"it is grey of {mask.bits} bits, whose {most} may be meant as {most} or as the shade that is "
            f"{shade_of(most, mask.bits, 8)} of 8 bits: save it with 8 bits"
        )
    if mask.kind == PALETTE and palette is not None:
        classes = {colour: index for index, colour in enumerate(packed(palette).tolist())}
        for index, _ in count_values(mask.values):
            shown_as = classes.get(colour_of(mask, index), index)
            if shown_as != index:
                raise ValueError(
                    f"its palette shows index {index} in the colour of class {shown_as}, so one of the two is wrong: "
                    "save it as grey PNG of labels"
                )
    return mask.values.astype(np.uint8)


def _read_sbd(path: Path) -> tuple[np.ndarray, Header]:
    import scipy.io

    data = read_file(path)
    with named(path, "cannot read the labels of"):
        _check_mat(data)
        try:
            labels = np.asarray(scipy.io.loadmat(io.BytesIO(data), variable_names=["GTcls"])["GTcls"])
            labels = np.asarray(labels["Segmentation"][0, 0])
        except MemoryError:
            raise
        except Exception as error:
            raise ValueError(f"{shown(error)}; the file is broken: get it again") from error
        if labels.ndim != 2 or not labels.size or labels.dtype.kind not in "uif":
            raise ValueError(f"GTcls.Segmentation is {labels.dtype} {list(labels.shape)}, not numbers [H, W]")
        if not (np.isfinite(labels).all() and (labels == np.rint(labels)).all()):
            raise ValueError("its labels are no whole numbers")
        if labels.min() < 0 or labels.max() > 255:
            raise ValueError(f"its labels go from {labels.min()} to {labels.max()}: they must be 0 to 255")
        height, width = labels.shape
        return np.ascontiguousarray(labels, np.uint8), Header("MAT", width, height)


def _check_mat(data: bytes) -> None:
    """Refuses a MATLAB file whose compressed parts unpack to more than the largest mask.

    Raises:
      ValueError: they do.
    """
    most, place = 8 * most_pixels(), 128
    while place + 8 <= len(data):
        kind, length = struct.unpack_from("<II", data, place)
        if kind == 15:
            stream, content, found = zlib.decompressobj(), data[place + 8 : place + 8 + length], 0
            while content and not stream.eof:
                try:
                    found += len(stream.decompress(content, 2**20))
                except zlib.error as error:
                    raise ValueError(f"{error}; the file is broken: get it again") from None
                content = stream.unconsumed_tail
                if found > most:
                    raise ValueError(f"it unpacks to more than {most:,} bytes: a mask has none so large")
        place += 8 + length


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


def encode_labels(labels: np.ndarray) -> bytes:
    """Labels, uint8 [H, W], as PNG; of indices in areas, without PNG's filters, which would make them no smaller.

    CamVid's take half the bytes and a quarter of the time to decode, 0.22 ms for 0.95, which was a third of an image's.
    """
    flags = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE, cv2.IMWRITE_PNG_STRATEGY, 0)
    return cv2.imencode(".png", labels, [*flags, cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()
