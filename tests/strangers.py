"""Who connects to the port of process 0, or answers at its address, without belonging to the run."""

import contextlib
import json
import random
import socket
import threading
import time
from collections.abc import Iterator

ESCAPES = "\x1b[2J\x1b]0;mine\x07"
RIGHT = {"id": 1, "of": 2, "host": ESCAPES, "pid": 1, "facts": {}, "token": "0" * 32, "proof": "0" * 64}
STRANGERS = [  # each a list of what is sent, one after another
    [b""],
    [b"GET / HTTP/1.1\r\n\r\n"],
    *([json.dumps(value).encode() + b"\n"] for value in ([], 5, None, "x", {}, {"id": 1, "of": 2}, {"nonce": []})),
    *([b"[" * depth + b"\n"] for depth in (60_000, 100_000)),
    [b'{"nonce":' * 20_000 + b"\n"],
    [b"a" * 3_000_000],
    [b"\xff\xfe\0\n"],
    [b"9" * 10_000 + b"\n"],
    [json.dumps(RIGHT).encode() + b"\n"],
    [json.dumps({**RIGHT, "nonce": "0"}).encode() + b"\n", json.dumps(RIGHT).encode() + b"\n"],
    *([b'{"nonce": "0"}\n', json.dumps({**RIGHT, **wrong}).encode() + b"\n"] for wrong in ({}, {"of": 3}, {"id": []})),
    [b'{"nonce": "\\ud800\\u001b[2J"}\n', b'{"proof": "\\ud800"}\n'],
    [b'{"nonce": "0"}\n{"nonce": "1"}\n{"nonce": "2"}\n'],
]


def visit(port: int, sent: list[bytes], *, stay: float = 0.0) -> bool:
    """Whether a stranger found somebody at the port."""
    for _ in range(100):
        try:
            with socket.create_connection(("localhost", port), timeout=5.0) as stranger:
                for words in sent:
                    stranger.sendall(words)
                    stranger.settimeout(0.1)
                    with contextlib.suppress(TimeoutError):
                        stranger.recv(1000)
                time.sleep(stay)
            return True
        except ConnectionRefusedError:
            time.sleep(0.05)
        except OSError:  # it was turned away meanwhile
            return True
    return False


def any_stranger(chance: random.Random) -> list[bytes]:
    """One of those, or of their parts with bytes changed, or bytes at random."""
    kind = chance.randrange(3)
    if kind == 0:
        return chance.choice(STRANGERS)
    if kind == 1:
        return [chance.randbytes(chance.choice((1, 100, 70_000))) + b"\n" * chance.randrange(2)]
    sent = [bytearray(words) for words in chance.choice(STRANGERS) if words] or [bytearray(b"{}\n")]
    for _ in range(chance.randint(1, 5)):
        words = chance.choice(sent)
        words[chance.randrange(len(words))] = chance.randrange(256)
    return [bytes(words) for words in sent]


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """A port that answers so, with its own echo where that is `echo`, and what it has heard."""
    heard: list[bytes] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection, contextlib.suppress(OSError):
                    first = connection.recv(1000)
                    connection.sendall(first if answer == b"echo" else answer)
                    heard.extend([first, connection.recv(10_000)])

    with socket.create_server(("localhost", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1], heard
