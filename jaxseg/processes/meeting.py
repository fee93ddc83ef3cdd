"""How the processes of a run find each other, or say why not.

Process 0 writes a secret into the workdir, which all share. Whoever connects proves that it knows it, and process 0
proves it in turn, before either says more; the secret itself is never sent. Everybody else is turned away.
"""

import contextlib
import os
import pathlib
import secrets
import socket
import time
from collections.abc import Mapping
from typing import Any

from jaxseg.errors import UserError, shown
from jaxseg.files import read_bytes
from jaxseg.processes.door import HELLO, Door, equal, proof
from jaxseg.processes.facts import Facts, difference, in_words
from jaxseg.processes.group import Group, Say, in_lines
from jaxseg.processes.line import Line
from jaxseg.processes.place import Place, free_port
from jaxseg.streams import print_line

TOKEN = ".processes"  # in the workdir while they meet: the secret


def meet(place: Place, facts: Facts, workdir: str | os.PathLike, timeout: float, say: Say = print_line) -> Group:
    """Returns once all processes are there and agree.

    Args:
      facts: of this process, by what they are about, such as `{'config': {'train.seed': 0}}`; all must have the same.
      workdir: a folder that all processes share.
      timeout: seconds that they have to come.
      say: called with a line on each address that somebody without the run's secret connected from.

    Raises:
      UserError: a process did not come, was started with another count or a number that is taken, has other facts or
        another workdir, or process 0 can't be reached. All processes that came raise the same one.
    """
    own = {"id": place.process_id, "of": place.num_processes, "host": socket.gethostname(), "pid": os.getpid()}
    own["facts"] = in_words(facts)
    if place.process_id == 0:
        return _receive_all(place, own, pathlib.Path(workdir), timeout, say)
    return _go_to(place, own, pathlib.Path(workdir), timeout)


def _receive_all(place: Place, own: dict[str, Any], workdir: pathlib.Path, timeout: float, say: Say) -> Group:
    deadline = time.monotonic() + timeout
    members, lines = {0: own}, {}
    with contextlib.ExitStack() as stack:
        token = stack.enter_context(_token(workdir))
        door = stack.enter_context(contextlib.closing(Door(place, token, say)))
        try:
            while len(members) < place.num_processes:
                if time.monotonic() > deadline:
                    raise UserError(_missing(place, members, timeout) + _hint(door, workdir))
                for line, hello in door.wait(min(0.5, max(0.01, deadline - time.monotonic()))):
                    lines[line] = hello["id"]
                    # One that has gone in the meantime may have been started again.
                    for gone in [each for each, number in lines.items() if number == hello["id"] and _is_gone(each)]:
                        del lines[gone]
                        members.pop(hello["id"], None)
                    if fault := _fault(hello, members):
                        raise UserError(fault)
                    if line in lines:
                        members[hello["id"]] = hello
        except UserError as error:
            for line in lines:
                line.send(error=str(error))
                line.close()
            raise
    names = [_name(members[i]) for i in range(place.num_processes)]
    # The port beside ours, so that a firewall can be told.
    jax = f"{place.coordinator.rpartition(':')[0]}:{_free_port_after(place.address[1])}"
    for line in lines:
        line.send(names=names, jax=jax)
    return Group(place, names, jax, {number: line for line, number in lines.items()})


def _go_to(place: Place, own: dict[str, Any], workdir: pathlib.Path, timeout: float) -> Group:
    deadline, fault, answered = time.monotonic() + timeout, "", False
    while (left := deadline - time.monotonic()) > 0:
        try:
            line = Line(socket.create_connection(place.address, timeout=left))
        except OSError as error:
            fault = error.strerror or str(error)
            time.sleep(min(0.2, left))
            continue
        line.socket.settimeout(None)
        if _introduce(line, own, workdir, min(HELLO, left)):
            return _await_names(place, line, timeout)
        # Somebody else, or a folder over a network that does not show the new secret yet.
        line.close()
        answered = True
        time.sleep(min(0.5, left))
    if answered:
        raise UserError(
            f"process {place.process_id} does not see what process 0 at --coordinator={place.coordinator} writes to "
            f"the workdir, {workdir / TOKEN}, or somebody else answers there: give all processes one folder that they "
            "share, with --workdir, and the address of process 0"
        )
    raise UserError(
        f"process {place.process_id} could not reach process 0 at --coordinator={place.coordinator} in "
        f"{timeout:.0f} s ({fault}): is it started, on that machine, and is the port open?"
    )


def _introduce(line: Line, own: dict[str, Any], workdir: pathlib.Path, timeout: float) -> bool:
    """Whether it is process 0 that answers; then it knows who this is."""
    nonce = secrets.token_hex(16)
    line.send(nonce=nonce)
    answer = _answer(line, timeout)
    theirs, token = answer.get("nonce"), _read_token(workdir)
    if not token or not isinstance(theirs, str) or not equal(answer.get("proof"), proof(token, "host", nonce, theirs)):
        return False
    line.send(**own, proof=proof(token, "guest", nonce, theirs))
    line.most = 0
    return _answer(line, timeout).get("met") is True


def _answer(line: Line, timeout: float) -> dict[str, Any]:
    """What comes next; {} where nothing does, or what is no message."""
    try:
        return line.one(timeout) or {}
    except ValueError:
        return {}


def _await_names(place: Place, line: Line, timeout: float) -> Group:
    # Process 0 may wait for others for as long as it was given.
    answer = _answer(line, timeout + 30.0)
    if not answer:
        line.close()
        raise UserError(f"process 0 at {place.coordinator} ended before all processes were there: see what it said")
    if "error" in answer:
        line.close()
        raise UserError(in_lines(answer["error"]))
    return Group(place, answer["names"], answer["jax"], {0: line})


@contextlib.contextmanager
def _token(workdir: pathlib.Path):
    path, token = workdir / TOKEN, secrets.token_hex(16)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # of a process 0 that was killed here
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(token)
    except OSError as error:
        raise UserError(f"the workdir {workdir} can't be written to: {error.strerror}") from error
    try:
        yield token
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def _is_gone(line: Line) -> bool:
    """Whether the other side, which has nothing to say, has ended."""
    try:
        return line.receive(0) is None
    except ValueError:
        return True


def _read_token(workdir: pathlib.Path) -> str:
    # A folder over the network may show a new file seconds late.
    for _ in range(50):
        with contextlib.suppress(UserError):
            if token := read_bytes(workdir / TOKEN, most=100).decode(errors="replace"):
                return token
        time.sleep(0.1)
    return ""


def _hint(door: Door, workdir: pathlib.Path) -> str:
    """On those who were turned away: they may be processes of the run with another workdir."""
    count = sum(door.strangers.values())
    return (
        f"; {count} who connected did not know what process 0 wrote to {workdir / TOKEN}: give all processes one "
        "folder that they share, with --workdir"
        if count
        else ""
    )


def _missing(place: Place, members: Mapping[int, Any], timeout: float) -> str:
    missing = [str(i) for i in range(place.num_processes) if i not in members]
    return (
        f"process{'es' if len(missing) > 1 else ''} {', '.join(missing)} of {place.num_processes} did not come within "
        f"{timeout:.0f} s: start all with --coordinator={place.coordinator} --num_processes={place.num_processes} "
        "and a --process_id of their own"
    )


def _fault(hello: Mapping[str, Any], members: Mapping[int, Mapping[str, Any]]) -> str:
    """What is wrong with a process that has come, '' for nothing."""
    first, number = members[0], hello["id"]
    if hello["of"] != first["of"]:
        return (
            f"{_name(hello)} was started with --num_processes={hello['of']} and {_name(first)} with {first['of']}: "
            "give all the same"
        )
    if number in members:
        return f"there are two processes with --process_id={number}: {_name(members[number])} and {_name(hello)}"
    return difference(_name(hello), hello["facts"], _name(first), first["facts"])


def _name(member: Mapping[str, Any]) -> str:
    return f"process {member['id']} ({shown(member['host'])[:100]}, pid {member['pid']})"


def _free_port_after(port: int) -> int:
    with contextlib.suppress(OSError, OverflowError), socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("", port + 1))
        return port + 1
    return free_port()
