"""Where a step's time goes: a trace for TensorBoard or Perfetto, and the operations that took longest."""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Callable

import jax

from jaxseg.errors import UserError


@dataclasses.dataclass
class Operation:
    """An operation of a compiled program in one step: milliseconds over all calls, its shape and where it came from."""

    name: str
    milliseconds: float
    calls: int
    shape: str
    origin: str


def trace(step: Callable[[], None], folder: str | pathlib.Path) -> pathlib.Path:
    """Runs `step` once and writes its trace below `folder`; the file's path.

    In it are an `.xplane.pb`, which TensorBoard's profile plugin reads, and a `.trace.json.gz` for ui.perfetto.dev.
    """
    folder = pathlib.Path(folder)
    before = set(folder.rglob("*.xplane.pb"))
    with jax.profiler.trace(folder):
        step()
    new = sorted(set(folder.rglob("*.xplane.pb")) - before)
    if not new:
        raise UserError(f"--profile: the profiler wrote no trace below {folder}")
    return new[-1]


def costliest(trace_file: pathlib.Path, program: str, most: int = 10) -> list[Operation]:
    """The operations of a compiled program's text that took longest in a trace, longest first.

    On a CPU an operation's helper threads are not in the trace, and what is called from within another counts in both.
    """
    shapes = dict(re.findall(r"%?([\w.\-]+) = (\S+?)(?:\{[\d,]*\})? ", program))
    origins = dict(re.findall(r'%?([\w.\-]+) = [^\n]*?metadata=\{[^}]*?op_name="([^"]*)"', program))
    seconds, calls = collections.Counter(), collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(str(trace_file)).planes:
        for line in plane.lines:
            for event in line.events:
                # A foreign call has its target's name behind its own.
                name = event.name.partition("__onednn$")[0]
                if name in shapes:
                    seconds[name] += event.duration_ns
                    calls[name] += 1
    return [
        Operation(name, spent / 1e6, calls[name], shapes[name], origins.get(name, ""))
        for name, spent in seconds.most_common(most)
    ]
