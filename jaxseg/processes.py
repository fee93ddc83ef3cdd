"""The processes of one run: who takes part, that they agree, and who has gone.

JAX's distributed runtime moves the numbers. Where a process is missing or started otherwise it waits and then aborts
with pages that do not say which, so all processes meet here before it starts, `meet`, and tell each other that they
live until the run ends, `Group`. Process 0 hears and answers; a message is a line of JSON over TCP.
"""

import contextlib
import ctypes
import dataclasses
import errno
import hashlib
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import queue
import secrets
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxseg.errors import UserError
from jaxseg.process import Interrupted

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
MISTAKE, FAULT = 1, 75  # exit statuses: of what starting again does not mend, and of what it may (EX_TEMPFAIL)
HELLO = 10.0  # seconds in which who connects says who it is, and what it sees in the workdir
GONE = 30.0  # seconds in which a machine does not take in what is sent to it, even for a process that is stopped
BEAT = 1.0  # seconds between two signs of life
SILENT = 10.0  # seconds without one, and it is said who is waited for
PATIENCE = 5.0  # seconds that an error waits for a better one: who is gone
TOKEN = ".processes"  # in the workdir while they meet: who reads it sees the same folder

Facts = Mapping[str, Mapping[str, Any]]
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Place:
    """Which process of how many this is, and where process 0 is met."""

    coordinator: str
    num_processes: int
    process_id: int
    detected: bool = False  # told by what started the process, not by flags

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def place_from_flags(coordinator: str, num_processes: int, process_id: int) -> Place | None:
    """The place that the three flags name; None for one process, or where none of them is given ('', 0 and -1).

    Raises:
      UserError: some are given and others not, or they contradict each other.
    """
    given = {"--coordinator": bool(coordinator), "--num_processes": num_processes > 0, "--process_id": process_id >= 0}
    missing = [flag for flag, there in given.items() if not there]
    if len(missing) == 3 or (num_processes == 1 and process_id <= 0):
        return None
    if missing:
        raise UserError(f"{' and '.join(missing)} must be given too: several processes need all of {', '.join(given)}")
    if process_id >= num_processes:
        raise UserError(f"--process_id={process_id} is beyond --num_processes={num_processes}: count from 0")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator={coordinator} is no HOST:PORT, such as node1:1234")
    return Place(coordinator, num_processes, process_id)


def detect_place() -> Place | None:
    """The place that SLURM, Open MPI, Kubernetes or a TPU pod gave this process, as JAX reads it; None for one process.

    Raises:
      UserError: there is such a place, and it can't be read.
    """
    # What `jax.distributed.initialize` asks too; it has no public name, and that waits until all are there.
    from jax._src.clusters import ClusterEnv

    for cluster in ClusterEnv._cluster_types:
        # Of any pod of Kubernetes JAX asks the API server; only one of an indexed job is one of several processes.
        alone = cluster.__name__ == "K8sCluster" and "JOB_COMPLETION_INDEX" not in os.environ
        try:
            if alone or cluster.opt_in_only_method or not cluster.is_env_present():
                continue
            num_processes, process_id = cluster.get_process_count(), cluster.get_process_id()
            if num_processes == 1:
                return None
            port = os.environ.get("JAX_COORDINATOR_PORT")
            return Place(cluster.get_coordinator_address(60, port), num_processes, process_id, detected=True)
        except Exception as error:
            raise UserError(
                f"this seems to be a process of {cluster.__name__}, but its place can't be read ({error}): give "
                "--coordinator, --num_processes and --process_id"
            ) from error
    if "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ:
        raise UserError(
            "this is a pod of an indexed job, and its place can't be read without the kubernetes package: give "
            "--coordinator, --num_processes and --process_id, or --num_processes=1 if it is to train alone"
        )
    return None


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _free_port_after(port: int) -> int:
    with contextlib.suppress(OSError, OverflowError), socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("", port + 1))
        return port + 1
    return free_port()


class _Line:
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


# -------------------------------------------------------------------------------------------------------------- meeting


def meet(place: Place, facts: Facts, workdir: str | os.PathLike, timeout: float) -> "Group":
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
    own["facts"] = _in_words(facts)
    if place.process_id == 0:
        return _receive_all(place, own, pathlib.Path(workdir), timeout)
    return _go_to(place, own, pathlib.Path(workdir), timeout)


def _receive_all(place: Place, own: dict[str, Any], workdir: pathlib.Path, timeout: float) -> "Group":
    deadline = time.monotonic() + timeout
    members, lines = {0: own}, {}
    with contextlib.ExitStack() as stack:
        own["token"] = stack.enter_context(_token(workdir))
        listener = stack.enter_context(_listen(place))
        try:
            while len(members) < place.num_processes:
                listener.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    line = _Line(listener.accept()[0])
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


def _go_to(place: Place, own: dict[str, Any], workdir: pathlib.Path, timeout: float) -> "Group":
    deadline, fault = time.monotonic() + timeout, None
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise UserError(
                f"process {place.process_id} could not reach process 0 at --coordinator={place.coordinator} in "
                f"{timeout:.0f} s ({fault}): is it started, on that machine, and is the port open?"
            )
        try:
            line = _Line(socket.create_connection(place.address, timeout=left))
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


def _is_gone(line: _Line) -> bool:
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
    return _difference(_name(hello), hello["facts"], _name(first), first["facts"])


def _difference(name: str, facts: Facts, first_name: str, first_facts: Facts) -> str:
    for about, values in first_facts.items():
        theirs = facts.get(about, {})
        different = [key for key in sorted({*values, *theirs}) if values.get(key) != theirs.get(key)]
        if different:
            pairs = ((key, theirs.get(key, "not set"), values.get(key, "not set")) for key in different[:3])
            each = (f"{key} is {there} and not {here}" for key, there, here in pairs)
            more = f", and {len(different) - 3} more differ" if len(different) > 3 else ""
            return f"{name} differs from {first_name} in its {about}: {', '.join(each)}{more}"
    return ""


def _in_words(facts: Facts) -> dict[str, dict[str, str]]:
    return {about: {key: str(value) for key, value in values.items()} for about, values in facts.items()}


def _name(member: Mapping[str, Any]) -> str:
    return f"process {member['id']} ({member['host']}, pid {member['pid']})"


# ------------------------------------------------------------------------------------------------------------- starting


@contextlib.contextmanager
def together(
    place: Place, facts: Facts, workdir: str | os.PathLike, *, start_timeout: float, silence: float, say: Say
) -> Iterator["Group"]:
    """Within it all processes are there, agree on `facts` and run JAX as one; for a command, before it uses JAX.

    An error in any of them ends all of them at once, with their statuses `MISTAKE` or `FAULT`. `Interrupted`, which is
    raised in all, passes.
    """
    import jax
    from jax.experimental import multihost_utils

    _abort_later()
    with _ending_at_once(), meet(place, facts, workdir, start_timeout).watch(say, silence) as group:
        jax.distributed.initialize(
            coordinator_address=group.jax_address,
            initialization_timeout=60,
            num_processes=place.num_processes,
            process_id=place.process_id,
            # Where the place was told, it says too which of the machine's devices are this process's.
            cluster_detection_method=None if place.detected else "deactivate",
            # The group's own watch is to speak first.
            heartbeat_timeout_seconds=int(2 * silence) + 60,
        )
        with _listeners_give_way():
            device = jax.local_devices()[0]
        group.agree({"devices": {"number": jax.local_device_count(), "platform": device.platform}})
        # Gloo gives all of them 30 s to connect at their first exchange: now, while they are level.
        multihost_utils.sync_global_devices("jaxseg")
        try:
            yield group
        except Interrupted:
            jax.distributed.shutdown()
            raise
        # Waits for all of them, and is watched as long.
        jax.distributed.shutdown()


def _abort_later() -> None:
    # JAX's client aborts its process as soon as it hears that process 0 is gone, before the watch could name it. It may
    # be in any thread, with any lock, so that no Python may run: C's sleep is the handler, for as many seconds as the
    # signal has for a number, 6. That is more than `PATIENCE`.
    c = ctypes.CDLL(None)
    c.signal(signal.SIGABRT, c.sleep)


@contextlib.contextmanager
def _listeners_give_way() -> Iterator[None]:
    # Gloo's thread, which starts within, asks for news (epoll) without a pause while the others are ahead, and where it
    # has no core of its own takes a fifth of the one that computes; a step of two processes on two cores is a tenth
    # shorter where it has the lowest priority. Linux alone tells threads, and what they wait in.
    tasks = pathlib.Path("/proc/self/task")
    before = set(os.listdir(tasks)) if tasks.exists() else None
    yield
    for thread in set() if before is None else set(os.listdir(tasks)) - before:
        with contextlib.suppress(OSError):  # it may have ended
            if "epoll" in (tasks / thread / "wchan").read_text():
                os.setpriority(os.PRIO_PROCESS, int(thread), 19)


@contextlib.contextmanager
def _ending_at_once() -> Iterator[None]:
    # Python's own end waits for the runtime's, which waits for processes that are no more.
    try:
        yield
    except Interrupted:
        raise
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(MISTAKE)
    except KeyboardInterrupt:
        os._exit(128 + signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(FAULT)


def code_facts() -> dict[str, str]:
    """What this process runs: a digest of this package's source, and the versions beneath it."""
    root, digest = pathlib.Path(__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return {"source": digest.hexdigest()[:12], "python": platform.python_version(), **library_versions()}


def library_versions() -> dict[str, str]:
    """Of the libraries that numbers come from."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


# ------------------------------------------------------------------------------------------------------ while they work


class Group:
    """All processes of a run, once they have met; a context manager that watches them.

    A thread tells the others every second that this process lives. Who is silent is named; who ends without a word, or
    is silent for too long, ends the run: every process says who it was and exits with `FAULT`, at once, for a thread
    that waits for numbers of a process that is no more can't be woken. After a mistake of the user's it is `MISTAKE`.

    Attributes:
      names: of all processes, by number.
      jax_address: HOST:PORT for `jax.distributed.initialize`.
      paces: the last that each process told of its own with `tell_pace`; all of them in process 0 alone.
      waits_since: `time.monotonic` when this process began to wait for a batch, for the watch to tell; None while it
        has one.
    """

    def __init__(self, place: Place, names: list[str], jax_address: str, lines: dict[int, _Line]):
        self.place, self.names, self.jax_address = place, names, jax_address
        self._lines, self._heard = lines, dict.fromkeys(lines, time.monotonic())
        self._waiting: set[int] = set()
        self._ended = threading.Event()
        self._told: queue.Queue[tuple[int, Any]] = queue.Queue()  # facts that others sent, or what was found of them
        self.paces: dict[int, dict[str, float]] = {}
        self.waits_since: float | None = None
        self._waits: dict[int, float] = {}  # seconds, by number
        self._late: dict[int, float] = {}

    def watch(self, say: Say, silence: float) -> "Group":
        """Begins to; `say` is called with what is to be told.

        Args:
          silence: seconds after which a process that is silent is given up.
        """
        self._say, self._silence = say, silence
        self._thread = threading.Thread(target=self._run, name="processes", daemon=True)
        self._thread.start()
        return self

    def agree(self, facts: Facts) -> None:
        """Returns once all processes have called this with the same facts, see `meet`; however long that takes.

        Raises:
          UserError: on all of them, with what differs.
        """
        facts = _in_words(facts)
        if self.place.process_id:
            self._lines[0].send(facts=facts)
            _, fault = self._told.get()
        else:
            fault = ""
            for _ in range(len(self._lines)):
                number, theirs = self._told.get()
                fault = fault or _difference(self.names[number], theirs, self.names[0], facts)
            if fault:
                self._ended.set()  # each ends by itself then, in these words; that others are faster is no news
            for line in self._lines.values():
                line.send(agreed=fault)
        if fault:
            raise UserError(fault)

    def tell_pace(self, **figures: float) -> None:
        """Puts the figures of this process into the `paces` of process 0."""
        number = self.place.process_id
        self.paces[number] = figures
        if number:
            self._lines[0].send(pace=figures)

    @contextlib.contextmanager
    def catch_signals(self) -> Iterator[Callable[[], int]]:
        """As `process.catch_signals`, but SIGTERM or Ctrl-C to any process is told to all of them, at the same call.

        All of them must call the function equally often. JAX's runtime catches SIGTERM itself.
        """
        from jax.experimental import multihost_utils

        def pass_on(number, frame):
            signal.signal(number, before)
            os.kill(os.getpid(), signal.SIGTERM)

        before = signal.signal(signal.SIGINT, pass_on)
        calls = itertools.count(1)
        try:
            yield lambda: signal.SIGTERM if multihost_utils.reached_preemption_sync_point(next(calls)) else 0
        finally:
            signal.signal(signal.SIGINT, before)

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        """Says goodbye, or why not."""
        mistake = isinstance(error, UserError) and error.__cause__ is None
        if error is not None and not mistake and not isinstance(error, Interrupted | KeyboardInterrupt):
            # Perhaps for numbers that a process owed which is no more: the watch finds out which, and ends this one.
            self._thread.join(PATIENCE)
        self._ended.set()
        if error is None or isinstance(error, Interrupted):
            last_word = {"bye": True}
        elif isinstance(error, UserError):
            last_word = {"failed": str(error), "status": MISTAKE}
        else:
            last_word = {"failed": f"{kind.__name__}: {error}", "status": FAULT}
        for line in list(self._lines.values()):
            line.send(**last_word)
        self._thread.join(5 * BEAT)
        for line in self._lines.values():
            line.close()

    def _run(self) -> None:
        beat, last = 0.0, time.monotonic()
        while not self._ended.is_set():
            now = time.monotonic()
            if now - last > SILENT / 2:
                # This process was stopped itself; what the others said meanwhile is still to be read.
                self._heard = {number: heard + now - last for number, heard in self._heard.items()}
            last = now
            if now - beat >= BEAT:
                beat = now
                since = self.waits_since
                self._waits[self.place.process_id] = now - since if since else 0.0
                for line in self._lines.values():
                    line.send(alive=True, waits=self._waits[self.place.process_id])
                self._name_the_late()
            lost = self._hear() or self._count_silence()
            if lost and not self._ended.is_set():
                why, status = lost if isinstance(lost, tuple) else (lost, FAULT)
                for line in self._lines.values():
                    line.send(lost=why, status=status)
                _end(why, status)

    def _hear(self) -> str | tuple[str, int]:
        """Reads what has come; who was lost, if anybody, perhaps with the status that the others end with."""
        if not self._lines:
            time.sleep(BEAT)
            return ""
        for line in select.select(list(self._lines.values()), [], [], BEAT / 2)[0]:
            number = next(number for number, each in self._lines.items() if each is line)
            messages = line.receive(0)
            if messages is None:
                return f"{self.names[number]} ended without a word: it was killed, or its machine is gone"
            self._heard[number] = time.monotonic()
            for message in messages:
                if "lost" in message:
                    return message["lost"], message["status"]
                if "failed" in message:
                    return f"{self.names[number]} failed: {message['failed']}", message["status"]
                if "bye" in message:
                    del self._lines[number]
                if "waits" in message:
                    self._waits[number] = message["waits"]
                if "facts" in message:
                    self._told.put((number, message["facts"]))
                if "agreed" in message:
                    if message["agreed"]:
                        self._ended.set()
                    self._told.put((number, message["agreed"]))
                if "pace" in message:
                    self.paces[number] = message["pace"]
        return ""

    def _name_the_late(self) -> None:
        """In process 0, which process's batch does not come: the others wait for it within the step."""
        if self.place.process_id:
            return
        for number, seconds in self._waits.items():
            if seconds > SILENT:
                if number not in self._late:
                    self._say(f"waiting for {self.names[number]}: its batch has not come for {seconds:.0f} s")
                self._late[number] = seconds
            elif number in self._late:
                self._say(f"{self.names[number]} has its batch, after {self._late.pop(number):.0f} s")

    def _count_silence(self) -> str:
        for number in self._lines:
            name, seconds = self.names[number], time.monotonic() - self._heard[number]
            if seconds > self._silence:
                return f"{name} was silent for {seconds:.0f} s"
            # Of a process 0 that is silent one of the others tells.
            if self.place.process_id > (number == 0):
                continue
            if seconds > SILENT and number not in self._waiting:
                self._waiting.add(number)
                self._say(f"waiting for {name}: silent for {seconds:.0f} s, given up after {self._silence:.0f}")
            elif seconds < SILENT and number in self._waiting:
                self._waiting.discard(number)
                self._say(f"{name} is back")
        return ""


def _end(why: str, status: int) -> None:
    remedy = "; start again to go on from the last checkpoint" if status == FAULT else ""
    print(f"error: {why}{remedy}", file=sys.stderr, flush=True)
    os._exit(status)
