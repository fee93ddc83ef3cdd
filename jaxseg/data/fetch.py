"""Archives from the network: fetched once, checked, unpacked whole or not at all."""

import bz2
import errno
import gzip
import hashlib
import http.client
import lzma
import os
import re
import shutil
import tarfile
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from jaxseg.data.progress import bar, say
from jaxseg.errors import UserError, shown
from jaxseg.files import open_regular, replacing

_CHUNK = 1 << 20
_MOST_BYTES, _MOST_FILES, _MOST_HEADER = 2**33, 200_000, 2**20  # of an archive, of its names
_DEEPEST = 100


@dataclass(frozen=True)
class Archive:
    """A tar file: where it is had and what it must hash to."""

    url: str
    algorithm: str
    checksum: str

    @property
    def file(self) -> str:
        """Its file name."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def stem(self) -> str:
        """The name of the folder it is unpacked to."""
        return self.file.split(".tar")[0].removesuffix(".tgz")


def unpacked(archives: Sequence[Archive], folder: Path, otherwise: str, progress: bool) -> list[Path]:
    """The folders with the contents of `archives`, fetched to `folder` and unpacked there where that is not yet done.

    An archive is at most 8 GiB, and so is what it holds, in at most 200,000 files.

    Args:
      archives: what is needed.
      folder: an archive that somebody has put here is used instead of fetching it.
      otherwise: the end of the message where the network fails: what else the user can do.
      progress: whether to show how far it is.

    Raises:
      UserError: an archive cannot be fetched, has a wrong checksum, is damaged or too large, cannot be unpacked, or
        files of it are missing where it was unpacked.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        wanted = [archive for archive in archives if not _is_whole(folder / archive.stem)]
        absent = [archive for archive in wanted if not os.path.lexists(folder / archive.file)]
        for archive in absent:
            _fetch(archive, folder, absent, otherwise, progress)
        for archive in wanted:
            if archive not in absent:
                _verify(archive, folder / archive.file, progress)
            _unpack(folder / archive.file, folder / archive.stem, progress)
    except OSError as error:
        raise UserError(
            f"cannot write to {shown(folder)}: {error.strerror or error}. Set the environment variable TFDS_DATA_DIR "
            "to a folder that can be written and has room"
        ) from error
    return [folder / archive.stem for archive in archives]


def _mark(folder: Path) -> Path:
    """The file beside an unpacked folder that says how many files it has."""
    return folder.with_name(f"{folder.name}.unpacked")


def _is_whole(folder: Path) -> bool:
    """Whether `folder` has what was unpacked to it; one without files has not been unpacked, and is removed.

    Raises:
      UserError: files are missing.
    """
    if not folder.is_dir():
        return False
    count = sum(len(names) for _, _, names in os.walk(folder))
    if not count:
        shutil.rmtree(folder)
        return False
    try:
        due = int(_mark(folder).read_text())
    except (OSError, ValueError):
        return True  # somebody unpacked it by hand; the lists in it say what is missing
    if count < due:
        raise UserError(f"{shown(folder)} has {count} of the {due} files that were unpacked: remove it and start again")
    return True


def _fetch(archive: Archive, folder: Path, absent: Sequence[Archive], otherwise: str, progress: bool) -> None:
    part = folder / f"{archive.file}.{os.getpid()}.part"
    digest = hashlib.new(archive.algorithm)
    try:
        try:
            answer = urllib.request.urlopen(archive.url, timeout=60)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _unreachable(error, folder, absent, otherwise) from error
        length = answer.headers.get("Content-Length") or ""
        # Only a hint: what came is checked by its hash.
        total = int(length) if re.fullmatch(r"[0-9]{1,15}", length, re.ASCII) else 0
        say(f"fetching {archive.url} ({total / 1e6:.0f} MB) to {folder}", progress)
        with answer, part.open("wb") as file, bar(total, archive.file, "B", progress) as counter:
            while chunk := _read(answer, folder, absent, otherwise):
                if file.tell() + len(chunk) > _MOST_BYTES:
                    raise UserError(f"what comes from {archive.url} has more than {_MOST_BYTES:,} bytes. {otherwise}")
                file.write(chunk)
                digest.update(chunk)
                counter.update(len(chunk))
        if digest.hexdigest() != archive.checksum:
            raise UserError(
                f"what came from {archive.url} has the {archive.algorithm} {digest.hexdigest()} instead of "
                f"{archive.checksum} and was removed: the transfer broke off or the file is another one. Try again. "
                f"{otherwise}"
            )
        part.replace(folder / archive.file)
    finally:
        part.unlink(missing_ok=True)


def _read(answer, folder: Path, absent: Sequence[Archive], otherwise: str) -> bytes:
    try:
        return answer.read(_CHUNK)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _unreachable(error, folder, absent, otherwise) from error


def _unreachable(error: Exception, folder: Path, absent: Sequence[Archive], otherwise: str) -> UserError:
    why = getattr(error, "reason", None) or error
    urls = ", ".join(archive.url for archive in absent)
    return UserError(
        f"cannot fetch {urls} ({shown(why)}). Fetch what is missing by other means and put it into {shown(folder)}. "
        + otherwise
    )


def _verify(archive: Archive, path: Path, progress: bool) -> None:
    say(f"checking {shown(path)}", progress)
    digest = hashlib.new(archive.algorithm)
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != archive.checksum:
        path.unlink()
        raise UserError(
            f"{shown(path)} had the {archive.algorithm} {digest.hexdigest()} instead of {archive.checksum} and was "
            f"removed: it is cut short or another file. Fetch {archive.url} again"
        )


class _Bounded:
    """What an archive unpacks to, as a file that ends in an error where it is too much."""

    def __init__(self, file: BinaryIO):
        self._file, self._left = file, _MOST_BYTES

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise tarfile.TarError(f"it unpacks to more than {_MOST_BYTES:,} bytes")
        return data


class _Header(tarfile.TarInfo):
    """A header whose size is one: tarfile reads those that hold names into memory, whatever they claim."""

    @classmethod
    def frombuf(cls, *args, **keywords) -> tarfile.TarInfo:
        header = super().frombuf(*args, **keywords)
        most = _MOST_BYTES if header.type in (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE) else _MOST_HEADER
        if not 0 <= header.size <= most:
            raise tarfile.TarError(f"a header of it claims {header.size:,} bytes")
        return header


def _decompressed(file: BinaryIO) -> BinaryIO:
    head = file.read(6)
    file.seek(0)
    for magic, opened in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open)):
        if head.startswith(magic):
            return opened(file)
    return file


def _read_to_the_end(file: BinaryIO) -> None:
    """What was compressed has its checksum at the very end, behind the last file."""
    rest = _Bounded(file)
    try:
        while rest.read(_CHUNK):
            pass
    except gzip.BadGzipFile as error:
        # Whatever hangs on behind the end has no meaning.
        if "Not a gzipped file" not in str(error):
            raise


def _inside(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    size = 0
    for count, member in enumerate(archive, 1):
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
            raise tarfile.TarError(f"{member.name} is no file or folder inside it")
        if len(path.parts) > _DEEPEST:
            raise tarfile.TarError(f"{member.name[:100]}... is in {len(path.parts):,} folders")
        size += member.size
        if count > _MOST_FILES or size > _MOST_BYTES:
            raise tarfile.TarError(f"it has more than {_MOST_FILES:,} files or {_MOST_BYTES:,} bytes")
        yield member


def _unpack(path: Path, folder: Path, progress: bool) -> None:
    say(f"unpacking {shown(path)}", progress)
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        with open_regular(path) as packed, _decompressed(packed) as file:
            with tarfile.open(fileobj=_Bounded(file), mode="r|", tarinfo=_Header) as archive:
                safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since Python 3.11.4
                archive.extractall(part, members=_inside(archive), **safely)
            _read_to_the_end(file)
        count = sum(len(names) for _, _, names in os.walk(part))
        if not count:
            raise tarfile.TarError("it holds no file")
        with replacing(_mark(folder)) as mark:
            mark.write_text(f"{count}\n")
        try:
            part.rename(folder)
        except OSError:
            # Another process may have been quicker; its folder is as good.
            if not folder.is_dir():
                raise
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot unpack {shown(path)}: {shown(error)}. Remove it and fetch it again") from error
    except OSError as error:
        if error.errno in _NAMES_OF_IT:
            why = f"a name in it can't be written, {error.strerror}"
        elif error.errno is None:
            why = shown(error)  # of bz2: "Invalid data stream"
        else:
            raise
        raise UserError(f"cannot unpack {shown(path)}: {why}. Remove it and fetch it again") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


# What the system says of a name that is too long, or of a file in the place of a folder.
_NAMES_OF_IT = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EILSEQ, errno.EINVAL)
