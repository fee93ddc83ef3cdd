"""Standard output and error of a command. They may be closed, full or of a narrow encoding; the work goes on.

What can't be written is left out, and that is said once, on the other stream or when this one takes something again.
"""

import io
import os
import select
import sys

from jaxseg.errors import printable

PATIENCE = 5.0  # seconds that the work waits for a reader who reads nothing
PART = 4096  # bytes at a time: so many a pipe that is ready takes without waiting (PIPE_BUF)
NAMES = {"stdout": "standard output", "stderr": "standard error"}
_kept: list["_Sturdy"] = []


def keep_streams() -> None:
    """Puts streams that raise nothing in the place of `sys.stdout` and `sys.stderr`.

    Characters beyond their encoding are printed escaped. Those that were closed when the process started, and standard
    input, become the null device, for a file that is opened later would get their numbers and what C prints. Streams
    that Python code has put there are left alone.
    """
    closed = {number for number in range(3) if not _is_open(number)}
    for number in sorted(closed):
        if os.open(os.devnull, os.O_RDWR) == number:  # the lowest free one
            os.set_inheritable(number, True)
    for number, (name, said) in enumerate(NAMES.items(), 1):
        stream = getattr(sys, name)
        if stream is not None and stream is not getattr(sys, f"__{name}__"):
            continue
        raw = _Sturdy(number, said, "it is closed" if number in closed or stream is None or stream.closed else "")
        _kept.append(raw)
        kept = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=stream.encoding if stream else "utf-8",
            errors="backslashreplace",
            line_buffering=name == "stderr" or raw.isatty(),
            write_through=bool(stream) and stream.write_through,
        )
        kept.mode = "w"
        setattr(sys, name, kept)


def print_line(text: str, stream: str = "stdout") -> None:
    """Prints a line at once to `sys.stdout` or `sys.stderr`, control characters escaped, from Python too.

    Where that raises, both streams are kept.
    """
    text = printable(text)
    for _ in range(2):
        file = getattr(sys, stream)
        if file is None:
            return
        try:
            print(text, file=file, flush=True)
            return
        except (OSError, ValueError):  # of a stream that somebody else put there, the second time too
            keep_streams()


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


class _Sturdy(io.FileIO):
    """Bytes to a descriptor; what it does not take is dropped and counted."""

    def __init__(self, number: int, said: str, closed: str):
        super().__init__(number, "w", closefd=False)
        self._said, self._closed = said, closed
        self._lost, self._reason = 0, ""
        self._told = False

    def write(self, data) -> int:
        data = bytes(data)
        reason = self._closed or self._put(self._missing())
        if not reason:
            if self._lost:
                self._lost, self._told = 0, False
            part = data[:PART]
            reason = self._put(part)
            if not reason:
                _tell_of_others(self)
                return len(part)
        self._lost, self._reason = self._lost + len(data), reason
        for other in _kept:
            if other is not self:
                _tell_of_others(other)
        return len(data)

    def _put(self, data: bytes) -> str:
        """Why not all of `data` was written, '' where it was."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLOUT)
        try:
            while data:
                if not poll.poll(0 if self._lost else 1000 * PATIENCE):
                    return "nobody reads it"
                data = data[os.write(self.fileno(), data) :]
        except BlockingIOError:
            return "nobody reads it"
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def _missing(self) -> bytes:
        """What is said where it goes on, once something was lost."""
        return f"[{self._lost} bytes are missing here: {self._reason}]\n".encode() if self._lost else b""


def _tell_of_others(stream: _Sturdy) -> None:
    """Says on `stream`, where it takes it, of which others something was lost."""
    for other in _kept:
        if other is not stream and other._lost and not other._told and not stream._closed and not stream._lost:
            line = f"{other._said} can't be written ({other._reason}): what it is to hold is left out, the work goes on"
            other._told = not stream._put(line.encode() + b"\n")
