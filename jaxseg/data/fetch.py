"""Archives from the network: fetched once, checked, unpacked whole or not at all."""

import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from jaxseg.data.progress import bar, say
from jaxseg.errors import UserError

_CHUNK = 1 << 20


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

    Args:
      archives: what is needed.
      folder: an archive that somebody has put here is used instead of fetching it.
      otherwise: the end of the message where the network fails: what else the user can do.
      progress: whether to show how far it is.

    Raises:
      UserError: an archive cannot be fetched, has a wrong checksum or cannot be unpacked.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        wanted = [archive for archive in archives if not (folder / archive.stem).is_dir()]
        absent = [archive for archive in wanted if not (folder / archive.file).exists()]
        for archive in absent:
            _fetch(archive, folder, absent, otherwise, progress)
        for archive in wanted:
            if archive not in absent:
                _verify(archive, folder / archive.file, progress)
            _unpack(folder / archive.file, folder / archive.stem, progress)
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror or error}. Set the environment variable TFDS_DATA_DIR to a "
            "folder that can be written and has room."
        ) from error
    return [folder / archive.stem for archive in archives]


def _fetch(archive: Archive, folder: Path, absent: Sequence[Archive], otherwise: str, progress: bool) -> None:
    part = folder / f"{archive.file}.{os.getpid()}.part"
    digest = hashlib.new(archive.algorithm)
    try:
        try:
            answer = urllib.request.urlopen(archive.url, timeout=60)
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(error, folder, absent, otherwise) from error
        total = int(answer.headers.get("Content-Length") or 0)
        say(f"fetching {archive.url} ({total / 1e6:.0f} MB) to {folder}", progress)
        with answer, part.open("wb") as file, bar(total, archive.file, "B", progress) as counter:
            while chunk := _read(answer, folder, absent, otherwise):
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
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(error, folder, absent, otherwise) from error


def _unreachable(error: Exception, folder: Path, absent: Sequence[Archive], otherwise: str) -> UserError:
    why = getattr(error, "reason", None) or error
    urls = ", ".join(archive.url for archive in absent)
    return UserError(
        f"cannot fetch {urls} ({why}). Fetch what is missing by other means and put it into {folder}. {otherwise}"
    )


def _verify(archive: Archive, path: Path, progress: bool) -> None:
    say(f"checking {path}", progress)
    digest = hashlib.new(archive.algorithm)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != archive.checksum:
        path.unlink()
        raise UserError(
            f"{path} had the {archive.algorithm} {digest.hexdigest()} instead of {archive.checksum} and was removed: "
            f"it is cut short or another file. Fetch {archive.url} anew."
        )


def _inside(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in archive:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
            raise tarfile.TarError(f"{member.name} is no file or folder inside it")
        yield member


def _unpack(path: Path, folder: Path, progress: bool) -> None:
    say(f"unpacking {path}", progress)
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        with tarfile.open(path) as archive:
            safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since Python 3.11.4
            archive.extractall(part, members=_inside(archive), **safely)
        try:
            part.rename(folder)
        except OSError:
            # Another process may have been quicker; its folder is as good.
            if not folder.is_dir():
                raise
    except tarfile.TarError as error:
        raise UserError(f"cannot unpack {path}: {error}. Remove it and fetch it anew.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
