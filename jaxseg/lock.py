"""One run at a time trains in a workdir: who holds it, since when, and whether the folder is still where it was.

The lock is the kernel's (`flock`) on `WORKDIR/.lock`, so it ends with the process that holds it, however that ends, and
no process id can be mistaken for another's. Who holds it stands in the file. NFS on Linux passes `flock` on to all
machines; other file systems over the network may keep it to each machine, so a process elsewhere is believed to live as
long as it stands in the file. Of a run in several processes process 0 has the lock. Readers take none.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from jaxseg.errors import UserError, shown

LOCK = ".lock"
_BOOT = pathlib.Path("/proc/sys/kernel/random/boot_id")
_WRITTEN = 1.0  # seconds in which who has taken a lock has written who it is


@contextlib.contextmanager
def hold(workdir: str | os.PathLike, say: Callable[[str], object]) -> Iterator[Callable[[], None]]:
    """Within it this process alone trains in `workdir`, a folder that is there or is made.

    A folder that was made and is still empty at the end is removed again. A workdir that is gone from its place when an
    error comes is told in place of the error.

    Args:
      say: called with a line where the lock of a process that ended without a word is taken over.

    Yields:
      a function that raises a `UserError` once the folder is no more where it was: moved, deleted or another's.

    Raises:
      UserError: a run is going on there, or seems to on another machine, or the folder can't be made or written.
    """
    workdir = pathlib.Path(os.path.abspath(workdir))
    try:
        made = _make(workdir)
    except OSError as error:
        raise _unwritable(workdir, error) from error
    try:
        with _locked(workdir, say) as (folder, file):

            def check() -> None:
                _check(workdir, folder, file)

            try:
                yield check
            except Exception:
                check()
                raise
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def _make(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Makes a folder and gives what was made, the innermost first."""
    missing = [path for path in (workdir, *workdir.parents) if not path.exists()]
    workdir.mkdir(parents=True, exist_ok=True)
    return missing


@contextlib.contextmanager
def _locked(workdir: pathlib.Path, say: Callable[[str], object]) -> Iterator[tuple[int, int]]:
    try:
        folder = os.open(workdir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unwritable(workdir, error) from error
    try:
        file = _take(workdir, folder, say)
        try:
            yield folder, file
        finally:
            # By the folder, which may lie elsewhere by now; before the lock ends, so that nobody else's is deleted.
            with contextlib.suppress(OSError):
                if _is_same(file, folder):
                    os.unlink(LOCK, dir_fd=folder)
            os.close(file)
    finally:
        os.close(folder)


def _take(workdir: pathlib.Path, folder: int, say: Callable[[str], object]) -> int:
    """The lock file, locked, with this process in it."""
    while True:
        try:
            file = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=folder)
        except OSError as error:
            raise _unwritable(workdir, error) from error
        try:
            if not _flock(file):
                raise _held(workdir, _wait_for_holder(file))
            if not _is_same(file, folder):
                os.close(file)  # whoever held it has just ended, and another may have come in between
                continue
            if before := _holder(file):
                _take_over(workdir, before, say)
            text = json.dumps(_this_process()).encode()
            os.ftruncate(file, 0)
            os.pwrite(file, text, 0)
            return file
        except OSError as error:
            os.close(file)
            raise _unwritable(workdir, error) from error
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(file)
            raise


def _flock(file: int) -> bool:
    """Whether the kernel gives the lock; also where the file system has none, and what the file says must do."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL):
            raise
    return True


def _is_same(file: int, folder: int) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(LOCK, dir_fd=folder, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _take_over(workdir: pathlib.Path, before: dict[str, Any], say: Callable[[str], object]) -> None:
    """Says whose lock is taken over.

    Raises:
      UserError: it may still be alive.
    """
    own = _this_process()
    here = before["boot"] == own["boot"] if before["boot"] and own["boot"] else before["host"] == own["host"]
    # A machine that was started again has another boot id and the same name.
    restarted = not here and before["host"] == own["host"]
    if not here and not restarted:
        raise UserError(
            f"{shown(workdir)} is in use: {_words(before)}, trains in it, on a machine that can't be seen from "
            f"here; wait for it or end it there, or if it has ended delete {shown(workdir / LOCK)} and start again"
        )
    if here and _lives(before):
        raise _held(workdir, before)
    say(f"the run of {_words(before)}, ended without a word: its workdir is taken over")


def _lives(holder: dict[str, Any]) -> bool:
    """Whether a process of this machine is alive and the same; a number is given again after a while."""
    return holder["pid"] != os.getpid() and _started(holder["pid"]) == holder["started"] != ""


def _held(workdir: pathlib.Path, holder: dict[str, Any]) -> UserError:
    return UserError(
        f"{shown(workdir)} is in use: {_words(holder)}, trains in it; wait for it, end it or choose another --workdir"
    )


def _words(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    return f"process {holder['pid']} on {shown(holder['host'])}, since {shown(holder['since'])}"


def _this_process() -> dict[str, Any]:
    with contextlib.suppress(OSError):
        boot = _BOOT.read_text().strip()
        return _facts(boot)
    return _facts("")


def _facts(boot: str) -> dict[str, Any]:
    since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    started = _started(os.getpid())
    return {"pid": os.getpid(), "started": started, "host": socket.gethostname(), "boot": boot, "since": since}


def _started(pid: int) -> str:
    """When a process started, in the kernel's count; '' for one that there is not, or where that can't be told."""
    try:
        # Behind the name in brackets, which may hold anything.
        return pathlib.Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _holder(file: int) -> dict[str, Any]:
    """Who a lock file says holds it; {} for nobody, or where it can't be told."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(os.pread(file, 2**12, 0))
        kinds = {"pid": int, "started": str, "host": str, "boot": str, "since": str}
        if isinstance(found, dict) and all(isinstance(found.get(key), kind) for key, kind in kinds.items()):
            return found
    return {}


def _wait_for_holder(file: int) -> dict[str, Any]:
    deadline = time.monotonic() + _WRITTEN
    while not (holder := _holder(file)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return holder


def _check(workdir: pathlib.Path, folder: int, file: int) -> None:
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(folder), os.stat(workdir)):
            if _is_same(file, folder):
                return
            raise UserError(
                f"{shown(workdir / LOCK)} is no longer this run's: somebody deleted it, or all of the workdir; the run "
                "ends here and writes no more"
            )
    where = ""
    with contextlib.suppress(OSError):
        where = os.readlink(f"/proc/self/fd/{folder}")
    moved = bool(where) and not where.endswith(" (deleted)")
    what = f"it was moved to {shown(where)}" if moved else "it was deleted or moved"
    raise UserError(
        f"{shown(workdir)} is no longer there, {what}: the run ends here and writes no more; "
        + (f"start again with --workdir={shown(where)} to go on from its last checkpoint" if moved else "start again")
    )


def _unwritable(workdir: pathlib.Path, error: OSError) -> UserError:
    return UserError(
        f"the workdir {shown(workdir)} can't be written ({error.strerror or error}): choose another --workdir"
    )
