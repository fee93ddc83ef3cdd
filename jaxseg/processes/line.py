"""What processes say to each other: lines of JSON objects over TCP."""

import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any

MOST = 2**16  # bytes of a line from somebody unknown; among processes that have met there is no limit
GONE = 30.0  # seconds in which a machine does not take in what is sent to it, even for a process that is stopped


class Line:
    """A connection that lines of JSON objects come and go over.

    Attributes:
      most: bytes that a line may have; 0 for any number.
    """

    def __init__(self, connection: socket.socket, most: int = MOST):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * GONE))
        self.socket, self.most, self._rest, self._lock = connection, most, b"", threading.Lock()
        self._kept: list[dict[str, Any]] = []  # messages that came with the one that was asked for

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, **message: Any) -> bool:
        """Whether it went out; the other side may be gone."""
        try:
            with self._lock:
                self.socket.sendall(json.dumps(message).encode() + b"\n")
            return True
        except OSError:
            return False

    def receive(self, timeout: float) -> list[dict[str, Any]] | None:
        """What came within `timeout` seconds, [] for nothing; None once the other side has ended.

        Raises:
          ValueError: something came that is no JSON object, or a line that is longer than `most`.
        """
        if self._kept:
            kept, self._kept = self._kept, []
            return kept
        try:
            if not readable([self], timeout):
                return []
            data = self.socket.recv(2**16)
        except OSError:
            return None
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        if self.most and max(map(len, [*lines, self._rest])) > self.most:
            raise ValueError(f"a line of more than {self.most} bytes")
        return [_message(line) for line in lines]

    def one(self, timeout: float) -> dict[str, Any] | None:
        """The next message; None where none came or the other side has ended.

        Raises:
          ValueError: as `receive`.
        """
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            messages = self.receive(left)
            if messages is None:
                return None
            if messages:
                self._kept = messages[1:]
                return messages[0]
        return None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.close()


def readable(sources: Iterable[Any], timeout: float) -> list[Any]:
    """Those of some sockets or lines that have something to read, or have ended, within `timeout` seconds."""
    poll, by_number = select.poll(), {source.fileno(): source for source in sources}  # `select` stops at 1,024
    for number in by_number:
        poll.register(number, select.POLLIN)
    return [by_number[number] for number, _ in poll.poll(1000 * timeout)]


def _message(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(message, dict):
        raise ValueError(f"{type(message).__name__} is no message")
    return message
