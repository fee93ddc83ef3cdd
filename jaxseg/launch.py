"""Several processes of one run on this machine: `python -m jaxseg.launch --num_processes=4 -- --config=...`.

What follows `--` is the command line of `jaxseg.main`. Each process gets an equal part of the machine's GPUs, or of its
cores where there are none. A run that loses a process ends, and is started again from its last checkpoint.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

from jaxseg.errors import Parser, UserError
from jaxseg.process import SIGNALS, at_once, heeded, one_line_errors
from jaxseg.processes.group import MISTAKE
from jaxseg.processes.place import free_port
from jaxseg.streams import keep_streams, print_line

COMMAND = (sys.executable, "-m", "jaxseg.main")
GRACE = 20.0  # seconds in which the others end once one has; the watch of a group takes one


def launch(
    num_processes: int,
    arguments: Sequence[str],
    *,
    max_restarts: int = 3,
    command: Sequence[str] = COMMAND,
    log: Callable[[str], object] = print_line,
) -> int:
    """Runs `command` with `arguments` in so many processes, and again where one of them is lost.

    What they print is logged a line at a time behind their numbers. A signal asks all of them to save and end; a second
    one changes nothing, a third, later, kills them, see `process.at_once`.

    Returns:
      The exit status: 0, that of a mistake which starting again does not mend, or that of the last try.
    """
    signals: list[int] = []
    times: list[float] = []
    children: list[subprocess.Popen] = []

    def tell(child: subprocess.Popen) -> None:
        if at_once(times):
            _kill(child)
        elif child.poll() is None:
            child.send_signal(signal.SIGTERM)

    def pass_on(number, frame):
        signals.append(number)
        times.append(time.monotonic())
        if len(times) == 1 or at_once(times):
            for child in children:
                tell(child)

    before = {number: signal.signal(number, pass_on) for number in heeded()}
    try:
        for restarts in range(max_restarts + 1):
            address = f"--coordinator=localhost:{free_port()}"
            children.clear()
            for i in range(num_processes):
                child = subprocess.Popen(
                    [*command, *arguments, address, f"--num_processes={num_processes}", f"--process_id={i}"],
                    env=os.environ | _devices(i, num_processes),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    encoding="utf-8",
                    errors="backslashreplace",
                    # Ctrl-C on a terminal goes to a whole group of processes, and would come twice.
                    start_new_session=True,
                )
                children.append(child)
                _put_on_cores(child.pid, i, num_processes)
                if signals:
                    tell(child)
            statuses = _watch(children, log)
            if signals:
                return 128 + signals[0]
            # A signal to one of them has stopped all, in order; of what was killed the status is the signal's.
            ends = (0, MISTAKE, *(128 + number for number in SIGNALS))
            lost = [status for status in statuses if status not in ends]
            if not lost:
                return max(statuses)
            if restarts < max_restarts:
                log(f"a process was lost; starting all again, {restarts + 1} of at most {max_restarts} times")
        log(f"given up after {max_restarts} restarts")
        return lost[0] if lost[0] > 0 else 128 - lost[0]
    finally:
        for child in children:
            _kill(child)
        for number, handler in before.items():
            signal.signal(number, handler)


def _kill(child: subprocess.Popen) -> None:
    """The process and those that it started, which may outlive it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def _watch(children: Sequence[subprocess.Popen], log: Callable[[str], object]) -> list[int]:
    """Logs what the processes print until all have ended; those that outlive a lost one for long are killed."""

    def forward(number: int, child: subprocess.Popen) -> None:
        with child.stdout:
            for line in child.stdout:
                log(f"[{number}] {line.rstrip()}")

    threads = [threading.Thread(target=forward, args=pair, daemon=True) for pair in enumerate(children)]
    for thread in threads:
        thread.start()
    deadline = None
    while None in (statuses := [child.poll() for child in children]):
        if deadline is None and any(statuses):
            deadline = time.monotonic() + GRACE
        if deadline and time.monotonic() > deadline:
            for child in children:
                _kill(child)
        time.sleep(0.1)
    for child in children:
        _kill(child)  # what it left behind would hold its pipe
    for thread in threads:
        thread.join(5.0)
    return statuses


def _devices(number: int, num_processes: int) -> dict[str, str]:
    """The environment in which a process sees its part of the GPUs; {} where there are none.

    Raises:
      UserError: the processes do not divide them.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = len(list(pathlib.Path("/dev").glob("nvidia[0-9]*")))
    gpus = [str(i) for i in range(found)] if given is None else list(filter(None, given.split(",")))
    if not gpus:
        return {}
    if len(gpus) % num_processes:
        raise UserError(
            f"--num_processes is {num_processes}, and there are {len(gpus)} GPUs, each of which is for one process: "
            "take a number that divides them, or hide them with CUDA_VISIBLE_DEVICES= to run on cores"
        )
    each = len(gpus) // num_processes
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[number * each : (number + 1) * each])}


def _put_on_cores(pid: int, number: int, num_processes: int) -> None:
    """A process that has just begun, on its part of the cores, unless it has GPUs or there are too few cores."""
    if _devices(number, num_processes) or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    each = len(cores) // num_processes
    if each:
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            os.sched_setaffinity(pid, cores[number * each : (number + 1) * each])


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    keep_streams()
    parser = Parser(
        prog="python -m jaxseg.launch",
        usage="%(prog)s --num_processes=N [--max_restarts=N] -- --config=... [flags of jaxseg.main]",
        description="Trains one run in several processes on this machine, and starts it again where one is lost. "
        "SIGTERM, Ctrl-C and a closed terminal ask all to save and end; a third signal ends them at once.",
    )
    parser.add_argument("--num_processes", type=int, required=True, help="how many; each gets its part of the devices")
    parser.add_argument("--max_restarts", type=int, default=3, help="how often a run is started again (default: 3)")
    parser.add_argument("arguments", nargs="*", metavar="-- FLAGS", help="the command line of jaxseg.main")
    given = parser.parse_args(argv)
    if given.num_processes < 1:
        parser.error(f"--num_processes is {given.num_processes}: at least 1 is due")
    if given.max_restarts < 0:
        parser.error(f"--max_restarts is {given.max_restarts}: at least 0 is due")
    if not given.arguments:
        parser.error("the flags of jaxseg.main are missing: python -m jaxseg.launch --num_processes=2 -- --config=...")
    with one_line_errors():
        sys.exit(launch(given.num_processes, given.arguments, max_restarts=given.max_restarts))


if __name__ == "__main__":
    main()
