"""Checksums: what is read back is what a run wrote, or it is refused by name.

Each checkpoint has a file `B2SUMS` of the files of its items, and a workdir one of `config.json` and `info.json`. Its
form is that of coreutils, so that `b2sum --check B2SUMS` checks a folder by hand; the first line, a comment to that
command, says what the folder is and how many lines follow, so that neither a checkpoint under another step nor a list
that was cut short passes. A run from before there were checksums is taken as it is, and that is said.

BLAKE2b is in Python's standard library, lets other threads run meanwhile and takes a second a gigabyte on any
processor; SHA-256 takes twice that where there are no instructions for it. CRC-32 takes a quarter, but it misses one
damage in four billion, and no command checks it.
"""

import contextlib
import hashlib
import os
import pathlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from jaxseg.errors import UserError, shown
from jaxseg.files import open_regular, read_bytes, replacing

SUMS = "B2SUMS"
_MOST = 2**24  # bytes of such a file
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_SIZE = 32  # bytes of a digest


def digest(data: bytes) -> str:
    """Of bytes, as a line of `B2SUMS` begins."""
    return hashlib.blake2b(data, digest_size=_SIZE).hexdigest()


def write(folder: pathlib.Path, title: str, names: Iterable[str]) -> None:
    """Writes the checksums of files in `folder`, which is called `title`, whole or not at all.

    Raises:
      OSError, UserError: a file can't be read, or the list not be written.
    """
    _write(folder, title, [(_of_file(folder / name), name) for name in names])


def fault(folder: pathlib.Path, title: str, parts: Sequence[str] = ()) -> str | None:
    """What is wrong with the files of `folder` by its checksums; '' for nothing, None where it has none.

    Args:
      title: what it must be called.
      parts: folders in there, of which alone the files are read; () for all.
    """
    if not os.path.lexists(folder / SUMS):
        return None
    try:
        called, lines = _read(folder)
        if called != title:
            return f"{SUMS} was written for {shown(called)} and not for {title}"
        for due, name in lines:
            if parts and name.partition("/")[0] not in parts:
                continue
            if not os.path.lexists(folder / name):
                return f"{shown(name)} is missing"
            if _of_file(folder / name) != due:
                return f"{shown(name)} is not as it was written, by {SUMS}"
    except UserError as error:
        return str(error)
    return ""


def names(folder: pathlib.Path) -> list[str]:
    """The files that the list in `folder` has; of a folder without a list those that are there."""
    try:
        return [name for _, name in _read(folder)[1]]
    except UserError:
        return files_in(folder)


def files_in(folder: pathlib.Path) -> list[str]:
    """The files under `folder`, relative to it, in order."""
    found = (os.path.join(root, name) for root, _, files in os.walk(folder) for name in files)
    return sorted(os.path.relpath(path, folder) for path in found)


# ------------------------------------------------------------------------------------------------- files of a workdir


def seal(folder: pathlib.Path, texts: Mapping[str, str]) -> None:
    """Writes files, NAME to text, and their checksums; one that is edited later is refused by `unsealed`.

    Wherever this is killed, each file is one that the checksums know: the old one or the new one.

    Raises:
      OSError: they can't be written.
    """
    new = [(digest(text.encode()), name) for name, text in texts.items()]
    try:
        old = [line for line in _read(folder)[1] if line not in new]
    except UserError:
        old = []
    _write(folder, _TITLE, [*new, *old])
    for name, text in texts.items():
        with replacing(folder / name) as temporary:
            temporary.write_bytes(text.encode())
    if old:
        _write(folder, _TITLE, new)


_TITLE = "the files of a run"
ACCEPT_EDITED = "Take config.json and info.json of a run as they are, though they were edited by hand."


def read_sealed(path: str | os.PathLike, *, most: int) -> bytes:
    """A file of a workdir, as `seal` wrote it where it did.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: it was changed since, outside `accepting_edited`, or can't be read.
    """
    path = pathlib.Path(path)
    for last in (False, False, True):
        data = read_bytes(path, most=most) if os.path.lexists(path) else None
        lines = [] if _accepting or not os.path.lexists(path.parent / SUMS) else _read(path.parent)[1]
        due = [of_file for of_file, name in lines if name == path.name]
        if data is None and not due:
            raise FileNotFoundError(f"there is no {shown(path)}")
        if data is not None and (not due or digest(data) in due):
            return data
        if not last:
            time.sleep(0.1)  # a run that begins may just be writing both
    what = "missing" if data is None else "not as the run wrote it"
    raise UserError(
        f"{shown(path)} is {what}, by its {SUMS}: put it back, or take it as it is with "
        "--accept_edited (in Python: with jaxseg.checksums.accepting_edited())"
    )


@contextlib.contextmanager
def accepting_edited(accept: bool = True) -> Iterator[None]:
    """Within it a `config.json` or `info.json` that was edited by hand is taken as it is, where `accept`."""
    _accepting.extend([True] * accept)
    try:
        yield
    finally:
        del _accepting[len(_accepting) - accept :]


_accepting: list[bool] = []


def note(workdir: str | os.PathLike) -> str:
    """A line where a workdir has no checksums, '' where it has."""
    if os.path.lexists(pathlib.Path(workdir) / SUMS):
        return ""
    return f"{shown(workdir)} has no {SUMS}, as runs from before there were checksums: its files are taken as they are"


# ----------------------------------------------------------------------------------------------------------- the list


def _of_file(path: pathlib.Path) -> str:
    with open_regular(path) as file:
        try:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_SIZE)).hexdigest()
        except OSError as error:
            raise UserError(f"cannot read {shown(path)}: {error.strerror or error}") from error


def _write(folder: pathlib.Path, title: str, lines: Sequence[tuple[str, str]]) -> None:
    with replacing(folder / SUMS) as temporary:
        text = "".join(f"{due}  {name}\n" for due, name in lines)
        temporary.write_text(f"# {title}, {len(lines)} files\n{text}", encoding="utf-8")


def _read(folder: pathlib.Path) -> tuple[str, list[tuple[str, str]]]:
    """What the folder is called, and a pair of digest and name a line.

    Raises:
      UserError: there is no list, or it is damaged.
    """
    data = read_bytes(folder / SUMS, most=_MOST)
    damaged = UserError(f"{shown(folder / SUMS)} is damaged: what it lists can't be checked")
    try:
        head, *lines = data.decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        raise damaged from None
    title = re.fullmatch(r"# (.+), (\d+) files", head)
    matches = [_LINE.fullmatch(line) for line in lines]
    if not data.endswith(b"\n") or not title or int(title[2]) != len(matches) or not all(matches):
        raise damaged
    return title[1], [(match[1], match[2]) for match in matches]
