"""How the processes of a run find each other, or say why not."""

import contextlib
import errno
import os
import pathlib
import secrets
import socket
import time
from collections.abc import Mapping
from typing import Any

from jaxseg.errors import UserError
from jaxseg.processes.facts import Facts, difference, in_words
from jaxseg.processes.group import Group
from jaxseg.processes.line import Line
from jaxseg.processes.place import Place, free_port

HELLO = 10.0  # seconds in which who connects says who it is, and what it sees in the workdir
TOKEN = ".processes"  # in the workdir while they meet: who reads it sees the same folder


def meet(place: Place, facts: Facts, workdir: str | os.PathLike, timeout: float) -> Group:
    """Returns once all processes are there and agree.

    Args:
      facts: of this process, by what they are about, such as `{'config': {'train.seed': 0}}`; all must have the same.
      workdir: a folder that all processes share.
      timeout: seconds that they have to come.

    Raises:
      UserError: a process did not come, was started with another count or a number that is taken, has other facts or
        another workdir, or process 0 can't be reached. All processes that came raise the same one.
    """
    own = {"id": place.process_id, "of": place.num_processes, "host": socket.gethostname(), "pid": os.getpid()}
    own["facts"] = in_words(facts)
    if place.process_id == 0:
        return _receive_all(place, own, pathlib.Path(workdir), timeout)
    return _go_to(place, own, pathlib.Path(workdir), timeout)


def _receive_all(place: Place, own: dict[str, Any], workdir: pathlib.Path, timeout: float) -> Group:
    deadline = time.monotonic() + timeout
    members, lines = {0: own}, {}
    with contextlib.ExitStack() as stack:
        own["token"] = stack.enter_context(_token(workdir))
        listener = stack.enter_context(_listen(place))
        try:
            while len(members) < place.num_processes:
                listener.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    line = Line(listener.accept()[0])
                except TimeoutError:
                    raise UserError(_missing(place, members, timeout)) from None
                lines[line] = None
                try:
                    hello = line.one(min(HELLO, max(0.01, deadline - time.monotonic())))
                except ValueError:
                    hello = None
                if hello is None:  # somebody else who tried this port
                    del lines[line]
                    line.close()
                    continue
                # One that has gone in the meantime may have been started again.
                for gone in [other for other, number in lines.items() if number == hello["id"] and _is_gone(other)]:
                    del members[lines.pop(gone)]
                if fault := _fault(hello, members):
                    raise UserError(fault)
                members[hello["id"]], lines[line] = hello, hello["id"]
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
    deadline, fault = time.monotonic() + timeout, None
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise UserError(
                f"process {place.process_id} could not reach process 0 at --coordinator={place.coordinator} in "
                f"{timeout:.0f} s ({fault}): is it started, on that machine, and is the port open?"
            )
        try:
            line = Line(socket.create_connection(place.address, timeout=left))
            break
        except OSError as error:
            fault = error.strerror or str(error)
            time.sleep(min(0.2, left))
    line.socket.settimeout(None)
    line.send(**own, token=_read_token(workdir))
    # Process 0 may wait for others for as long as it was given.
    answer = line.one(timeout + 30.0)
    if answer is None:
        line.close()
        raise UserError(f"process 0 at {place.coordinator} ended before all processes were there: see what it said")
    if "error" in answer:
        line.close()
        raise UserError(answer["error"])
    return Group(place, answer["names"], answer["jax"], {0: line})


@contextlib.contextmanager
def _token(workdir: pathlib.Path):
    path, token = workdir / TOKEN, secrets.token_hex(8)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # of a process 0 that was killed here
        path.write_text(token, encoding="utf-8")
    except OSError as error:
        raise UserError(f"the workdir {workdir} can't be written to: {error.strerror}") from error
    try:
        yield token
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def _is_gone(line: Line) -> bool:
    """Whether the other side, which has nothing to say, has ended."""
    return line.receive(0) is None


def _read_token(workdir: pathlib.Path) -> str:
    # A folder over the network may show a new file seconds late.
    for _ in range(50):
        with contextlib.suppress(OSError):
            if token := (workdir / TOKEN).read_text(encoding="utf-8"):
                return token
        time.sleep(0.1)
    return ""


def _listen(place: Place) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(
            ("", place.address[1]), family=family, backlog=place.num_processes, dualstack_ipv6=both
        )
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"can't be listened on ({error.strerror})"
        raise UserError(
            f"--coordinator={place.coordinator}: port {place.address[1]} {reason} on {socket.gethostname()}; "
            f"take another for all processes, {free_port()} is free"
        ) from error


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
    if hello["token"] != first["token"]:
        return (
            f"{_name(hello)} does not see what {_name(first)} writes to the workdir: give all processes one folder "
            "that they share, with --workdir"
        )
    return difference(_name(hello), hello["facts"], _name(first), first["facts"])


def _name(member: Mapping[str, Any]) -> str:
    return f"process {member['id']} ({member['host']}, pid {member['pid']})"


def _free_port_after(port: int) -> int:
    with contextlib.suppress(OSError, OverflowError), socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("", port + 1))
        return port + 1
    return free_port()
