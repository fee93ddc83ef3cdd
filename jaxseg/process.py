"""What a command does to its own process: memory pages, compiled programs, signals."""

import contextlib
import errno
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from jaxseg.environment import find_devices
from jaxseg.errors import UserError, printable, shown

HUGE_PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
NEVER = 2**36  # bytes; no block is so large that it would be mapped on its own, and given back


def use_huge_pages(*, keep: bool = False) -> None:
    """Starts the process anew with glibc asking for huge pages, where it can and does not yet.

    Every step on a CPU takes gigabytes of fresh memory; mapped in pages of 4 KiB that costs two fifths of the step. The
    setting is read when a process starts, hence to be called before anything heavy is imported.

    With `keep` memory that is freed stays with the process. A run takes two to three times the memory for it, and only
    one of large batches was seen to be faster, by a third or more; but what is measured in turns with something else
    would begin each of them with memory to be mapped anew.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" in tunables or not HUGE_PAGES.exists() or "[madvise]" not in HUGE_PAGES.read_text():
        return
    settings = {"hugetlb": 1} | ({"mmap_threshold": NEVER, "trim_threshold": NEVER, "arena_max": 1} if keep else {})
    words = [f"glibc.malloc.{name}={value}" for name, value in settings.items()]
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, *words]))
    os.execv(sys.executable, sys.orig_argv)


_REFUSED = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
_SMALLER = "take smaller images or batches (data.crop_size, data.batch_size, data.eval_batch_size)"


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the command with one line and status 1 at a mistake of the user's, with 130 at Ctrl-C.

    Mistakes are a path that the file system refuses and more than memory holds, too.
    """
    try:
        yield
    except UserError as error:
        sys.exit(printable(f"error: {error}"))
    except OSError as error:
        if error.filename is None or error.errno not in _REFUSED:
            raise
        path = shown(os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename)
        path = path if len(path) <= 200 else f"{path[:200]}... ({len(path)} characters)"
        sys.exit(f"error: {shown(path)} can't be used: {error.strerror}; give another path, or mend that")
    except MemoryError as error:
        sys.exit(f"error: there is not enough memory ({shown(error) or 'none is left'}): {_SMALLER}")
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sys.exit(f"error: there is not enough memory on the device ({shown(str(error)[:200])}): {_SMALLER}")
    except KeyboardInterrupt:
        ignore_signals()
        sys.exit(128 + signal.SIGINT)


def use_compile_cache() -> None:
    """Programs compiled once are read from the user's cache folder the next time; JAX's own settings go first.

    On a CPU that has oneDNN's convolutions those `without_convolutions` alone: jaxlib can't write others, and they are
    worth more. Asks for JAX's devices: processes that belong together have to have met before.

    Raises:
      UserError: there are none, see `find_devices`.
    """
    find_devices()
    import jax

    from jaxseg.models.layers import onednn

    if jax.config.jax_compilation_cache_dir is not None:
        return
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.path.join(root, "jaxseg", "xla")
    if jax.default_backend() == "cpu" and onednn.usable(jax.numpy.float32):
        _kept_without_convolutions.append(folder)
    else:
        jax.config.update("jax_compilation_cache_dir", folder)


_kept_without_convolutions: list[str] = []  # the folder, where `use_compile_cache` found oneDNN's


@contextlib.contextmanager
def without_convolutions() -> Iterator[None]:
    """Programs that are compiled meanwhile have no convolutions, so that all of them can be kept."""
    if not _kept_without_convolutions:
        yield
        return
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    jax.config.update("jax_compilation_cache_dir", _kept_without_convolutions[-1])
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()


class Interrupted(Exception):
    """A signal of `SIGNALS` came; `number` is the signal's."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
BURST = 1.0  # seconds in which signals, however many, are one request


def heeded() -> list[signal.Signals]:
    """Those of `SIGNALS` that end a run: SIGHUP (a terminal closed) only where it was not ignored before (`nohup`)."""
    return [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


def at_once(times: Sequence[float]) -> bool:
    """Whether signals that came at these `times`, in seconds, ask for an end at once, without saving.

    The first asks to save and end; a second changes nothing; the third does, unless all came within `BURST`.
    """
    return len(times) > 2 and times[-1] - times[0] > BURST


def _exit(number: int) -> None:
    os._exit(128 + number)


@contextlib.contextmanager
def catch_signals(end: Callable[[int], object] = _exit) -> Iterator[Callable[[], int]]:
    """A function that tells the first of the signals `heeded` that came, 0 for none.

    Where they ask for an end `at_once`, a thread calls `end` with the last of them, whatever else the process waits in.
    """
    caught: list[int] = []
    try:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        wakes = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    except ValueError:  # outside the main thread there are no signals to catch
        os.close(reader)
        os.close(writer)
        yield lambda: 0
        return

    def watch() -> None:
        # Python's own handlers wait for the main thread, which may never come back from a call into a library.
        times = []
        while came := os.read(reader, 64):
            numbers = [number for number in came if number in before]
            times += [time.monotonic()] * len(numbers)
            if numbers and at_once(times):
                end(numbers[-1])

    before = {number: signal.signal(number, lambda number, frame: caught.append(number)) for number in heeded()}
    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    try:
        yield lambda: caught[0] if caught else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakes)
        os.close(writer)
        thread.join()
        os.close(reader)


def ignore_signals() -> None:
    """For what is left of a command that a signal has ended: another one is to change nothing of that."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
