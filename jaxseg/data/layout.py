"""Which files a data set has: folders listed, images and masks put together by name, and what is left out said."""

import contextlib
import hashlib
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from jaxseg import files
from jaxseg.data.info import DataInfo
from jaxseg.errors import UserError, shown

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
TIFF_SUFFIXES = (".tif", ".tiff")
# What somebody may take for an image, whether it can be read here or not.
ANY_IMAGE = {
    *IMAGE_SUFFIXES,
    *TIFF_SUFFIXES,
    *(
        ".bmp",
        ".gif",
        ".webp",
        ".jp2",
        ".jfif",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".avif",
        ".heic",
        ".exr",
        ".dcm",
        ".npy",
    ),
}
# The names of folders of a split, in any case.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_MOST_LIST = 2**24  # bytes of a list of images
_MOST_ENTRIES, _DEEPEST = 200_000, 6  # that are looked at for what is left out
_FOLDERS_TOLD = 6

T = TypeVar("T")


@dataclass(frozen=True)
class Pair:
    """An image file and the file with its labels."""

    id: str
    image: Path
    labels: Path


@dataclass(frozen=True)
class Scoring:
    """What a finished run wants of a data set that it is scored on.

    Attributes:
      split: the one that is needed; nothing else has to be there.
      info: the run's classes, which a folder of masks is read by.
      divided: whether an undivided folder is divided as for training; else it is that split, whole.
    """

    split: str
    info: DataInfo
    divided: bool = False


def name_of(name: str) -> str:
    """A file's name as it is compared, kept and shown: Unicode composed (NFC), what can't be printed escaped.

    So names that look alike are alike, wherever they were written: macOS writes an e and an accent, Linux one letter.
    Bytes that are no UTF-8, which another system's archive leaves, become their escapes.
    """
    # Under a locale of ASCII Python holds every byte of a name beyond it as a surrogate, of UTF-8 as well.
    with contextlib.suppress(UnicodeEncodeError):
        name = name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return shown(unicodedata.normalize("NFC", name))


def brief(names: Sequence[object], count: int = 3, length: int = 100) -> str:
    """The first of many names, each cut to so many characters, and how many more there are."""
    words = [shown(name) for name in names[:count]]
    words = [word if len(word) <= length else f"{word[: length - 10]}... ({len(word)} characters)" for word in words]
    return ", ".join(words) + (f" and {len(names) - count} more" if len(names) > count else "")


def by_stem(folder: Path, suffixes: Iterable[str], faults: list[str] | None = None) -> dict[str, Path]:
    """The files of `folder` with one of `suffixes` (any case), by name without suffix; {} where there is no folder.

    Args:
      faults: gets a line for each file that has the name of another; without it this is an error. Names are those of
        `name_of`.

    Raises:
      UserError: the folder can't be listed, or two files have one name.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UserError(f"cannot list {shown(folder)}: {error.strerror}") from error
    found: dict[str, Path] = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in suffixes or name.startswith("."):
            continue
        other = found.setdefault(name_of(stem), folder / name)
        if other.name != name:
            forms = " in another form of Unicode" if os.path.splitext(other.name)[0] != stem else ""
            fault = f"{shown(folder / name)} has the name of {shown(other.name)}{forms}"
            if faults is None:
                raise UserError(f"{fault}: which of the two is meant? Take one of them away")
            faults.append(fault)
    return found


def pair_up(
    ids: Sequence[str], images: Mapping[str, Path], labels: Mapping[str, Path], due: str, listed_in: Path
) -> list[Pair]:
    """The pairs of `ids`, in their order.

    Raises:
      UserError: an id comes twice, or has no image or no mask; `due` says where they were looked for.
    """
    ids = [name_of(name) for name in ids]
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise UserError(f"{shown(listed_in)} has {brief([name])} twice: take one out")
        seen.add(name)
    for kind, found in (("image", images), ("mask", labels)):
        missing = [name for name in ids if name not in found]
        if missing:
            raise UserError(
                f"{len(missing)} of the {len(ids)} entries of {shown(listed_in)} have no {kind}: {brief(missing)}. "
                + due
            )
    return [Pair(name, images[name], labels[name]) for name in ids]


def read_list(path: Path) -> list[str]:
    """The lines of a split's list, empty ones left out.

    Raises:
      UserError: it is no regular file, is larger than 16 MiB, cannot be read, is no text or has no entry.
    """
    data = files.read_bytes(path, most=_MOST_LIST)
    if b"\0" in data:
        raise UserError(f"{shown(path)} is not a text file of UTF-8: it holds a NUL; a list has one image per line")
    # Bytes that are no UTF-8 may be those of a file's name.
    lines = [line.strip() for line in data.decode("utf-8-sig", "surrogateescape").splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        raise UserError(f"{shown(path)} is empty: a split needs at least one image")
    return lines


def unused(folder: Path, used: Iterable[Path]) -> str:
    """What holds images below `folder` and is not `used`, such as 'valid/images (5 images)'; '' where nothing is.

    Hidden files and folders count for nothing.
    """
    taken = {os.fspath(path) for path in used}
    told, entries, complete = [], 0, True
    for place, names in _walk(os.fspath(folder)):
        images = [name for name in names if os.path.splitext(name)[1].lower() in ANY_IMAGE]
        left = sum(os.path.join(place, name) not in taken for name in images)
        if left:
            of = f"{left} of {len(images)}" if left < len(images) else f"{left}"
            relative = shown(os.path.relpath(place, folder))
            told.append(f"{relative} ({of} {'image' if len(images) == 1 else 'images'})")
        entries += len(names)
        if entries > _MOST_ENTRIES:
            complete = False
            break
    more = f" and {len(told) - _FOLDERS_TOLD} folders more" if len(told) > _FOLDERS_TOLD else ""
    rest = "" if complete else f"; what comes after {_MOST_ENTRIES:,} files was not looked at"
    return ", ".join(told[:_FOLDERS_TOLD]) + more + rest


def _walk(folder: str) -> Iterator[tuple[str, list[str]]]:
    """Folders and the names of their files, links followed, each folder once."""
    todo, seen = [(folder, 0)], set()
    while todo:
        place, depth = todo.pop()
        try:
            stat = os.stat(place)
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError:
            continue
        if (stat.st_dev, stat.st_ino) in seen:
            continue
        seen.add((stat.st_dev, stat.st_ino))
        names, below = [], []
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            try:
                is_folder = entry.is_dir()
            except OSError:
                continue
            (below if is_folder else names).append(entry.name)
        yield place, names
        if depth < _DEEPEST:
            todo += [(os.path.join(place, name), depth + 1) for name in reversed(below)]


def divide(items: Sequence[T], counts: Sequence[int], seed: int = 42) -> list[list[T]]:
    """As many of `items` as `counts` say, drawn by chance, part after part; each part is in the order of `items`.

    With counts of (test, train) these are the parts of scikit-learn's `train_test_split`. NumPy keeps this generator's
    numbers for good, those of `default_rng` it may change.
    """
    order = np.random.RandomState(seed).permutation(len(items))
    ends = np.cumsum(counts)
    return [[items[i] for i in np.sort(order[end - count : end])] for end, count in zip(ends, counts, strict=True)]


def fingerprint_of(root: Path, paths: Iterable[Path]) -> str:
    """A hash of the names, sizes and modification times of files, names taken relative to `root`.

    Raises:
      UserError: one of them is not there.
    """
    rows = []
    for path in set(paths):
        try:
            stat = path.stat()
        except OSError as error:
            raise UserError(f"cannot read {shown(path)}: {error.strerror or error}") from error
        row = os.fsencode(os.path.relpath(path, root))
        rows.append(row + f"\0{stat.st_size}\0{stat.st_mtime_ns}".encode())
    return hashlib.sha256(b"\n".join(sorted(rows))).hexdigest()[:12]


def folder_of(directory: str) -> Path:
    """`directory` as an absolute path.

    Raises:
      UserError: there is no such folder.
    """
    try:
        path = Path(directory).expanduser().absolute()
    except RuntimeError as error:
        raise UserError(f"the data folder {shown(directory)}: {error}; write its path out") from error
    if not os.path.isdir(path):
        what = "is not a folder" if os.path.lexists(path) else "does not exist"
        raise UserError(f"the data folder {shown(path)} {what}: pass the right one with --config.data.dir=FOLDER")
    return path


def data_root() -> Path:
    """Where prepared data lives: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser().absolute()
