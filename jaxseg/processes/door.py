"""Where process 0 listens: who proves to be a process of the run comes in, whoever else is turned away.

Who connects sends a nonce; process 0 answers with its own and a proof that it knows the run's secret, then hears the
other's. A proof is an HMAC of both nonces under the secret, which is never sent itself.
"""

import errno
import hmac
import secrets
import socket
import time
from collections.abc import Mapping
from typing import Any

from jaxseg.errors import UserError, shown
from jaxseg.processes.group import Say
from jaxseg.processes.line import Line, readable
from jaxseg.processes.place import Place, free_port

HELLO = 10.0  # seconds in which who connects proves that it belongs here
GUESTS = 64  # connections at a time that have not proved it yet; of more the oldest is turned away
TOLD = 5  # addresses of strangers that are named


class Door:
    """Where process 0 listens: who knows the secret comes in, whoever else is turned away.

    Attributes:
      strangers: how many were turned away, by address.
    """

    def __init__(self, place: Place, token: str, say: Say):
        self._token, self._say, self._port = token, say, place.address[1]
        self._listener = _listen(place)
        self._listener.setblocking(False)
        self._guests: dict[Line, dict[str, Any]] = {}  # in the order in which they came
        self.strangers: dict[str, int] = {}

    def wait(self, timeout: float) -> list[tuple[Line, dict[str, Any]]]:
        """Who has come in within `timeout` seconds, with what they say of themselves."""
        now, come_in = time.monotonic(), []
        for line in [line for line, guest in self._guests.items() if now > guest["until"]]:
            self._turn_away(line)
        for source in readable([self._listener, *self._guests], timeout):
            if source is self._listener:
                self._open()
            elif source in self._guests and (hello := self._hear(source)):
                del self._guests[source]
                source.most = 0
                source.send(met=True)
                come_in.append((source, hello))
        return come_in

    def close(self) -> None:
        for line in self._guests:
            line.close()
        self._listener.close()

    def _open(self) -> None:
        try:
            connection, address = self._listener.accept()
        except OSError:  # it has gone again, or no more files can be open
            time.sleep(0.02)
        else:
            connection.setblocking(True)
            self._guests[Line(connection)] = {"until": time.monotonic() + HELLO, "from": address[0], "nonces": None}
        while len(self._guests) > GUESTS:
            self._turn_away(next(iter(self._guests)))

    def _hear(self, line: Line) -> dict[str, Any] | None:
        """What a guest says of itself, once it has proved that it belongs here."""
        guest = self._guests[line]
        try:
            messages = line.receive(0)
        except ValueError:
            messages = None
        if messages == []:
            return None
        if messages is None or len(messages) > 1:
            self._turn_away(line)
        elif guest["nonces"]:
            due = proof(self._token, "guest", *guest["nonces"])
            if equal(messages[0].get("proof"), due) and _is_hello(messages[0]):
                return messages[0]
            self._turn_away(line)
        elif isinstance(theirs := messages[0].get("nonce"), str):
            guest["nonces"] = (theirs, secrets.token_hex(16))
            line.send(nonce=guest["nonces"][1], proof=proof(self._token, "host", *guest["nonces"]))
        else:
            self._turn_away(line)
        return None

    def _turn_away(self, line: Line) -> None:
        # Nothing of what it sent is shown.
        address = shown(self._guests.pop(line)["from"])
        line.close()
        if address not in self.strangers and len(self.strangers) < TOLD:
            self._say(
                f"somebody at {address} connected to port {self._port} and did not prove to be a process of this run: "
                "turned away"
            )
        self.strangers[address] = self.strangers.get(address, 0) + 1


def proof(token: str, role: str, *nonces: str) -> str:
    """That its author, the 'host' or the 'guest', knows the secret, which the nonces of both make good for once."""
    return hmac.digest(token.encode(), "\n".join([role, *nonces]).encode(errors="replace"), "sha256").hex()


def equal(given: Any, due: str) -> bool:
    """Whether what came is the proof that must come, in a time that tells nothing of it."""
    return isinstance(given, str) and hmac.compare_digest(given.encode(errors="replace"), due.encode())


def _is_hello(message: Mapping[str, Any]) -> bool:
    numbers = [message.get(key) for key in ("id", "of", "pid")]
    return (
        all(type(number) is int and number >= 0 for number in numbers)
        and isinstance(message.get("host"), str)
        and isinstance(facts := message.get("facts"), dict)
        and all(isinstance(values, dict) for values in facts.values())
    )


def _listen(place: Place) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(
            ("", place.address[1]), family=family, backlog=place.num_processes + GUESTS, dualstack_ipv6=both
        )
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"can't be listened on ({error.strerror})"
        raise UserError(
            f"--coordinator={place.coordinator}: port {place.address[1]} {reason} on {socket.gethostname()}; "
            f"take another for all processes, {free_port()} is free"
        ) from error
