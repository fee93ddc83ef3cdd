"""What processes say to each other: lines of JSON over TCP."""

import contextlib
import json
import select
import socket
import threading
import time
from typing import Any

GONE = 30.0  # seconds in which a machine does not take in what is sent to it, even for a process that is stopped


class Line:
    """A connection that lines of JSON come and go over."""

    def __init__(self, connection: socket.socket):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * GONE))
        self.socket, self._rest, self._lock = connection, b"", threading.Lock()

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
          ValueError: something came that is no JSON.
        """
        try:
            if not select.select([self], [], [], timeout)[0]:
                return []
            data = self.socket.recv(2**16)
        except OSError:
            return None
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def one(self, timeout: float) -> dict[str, Any] | None:
        """The next message; None where none came or the other side has ended."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            messages = self.receive(left)
            if messages is None:
                return None
            if messages:
                return messages[0]
        return None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.close()
