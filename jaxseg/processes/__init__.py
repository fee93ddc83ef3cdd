"""The processes of one run: who takes part, that they agree, and who has gone.

JAX's distributed runtime moves the numbers. Where a process is missing or started otherwise it waits and then aborts
with pages that do not say which, so all processes meet here before it starts (`place`, `meeting`), and tell each other
that they live until the run ends (`group`). Process 0 hears and answers; a message is a line of JSON over TCP (`line`).
"""

import contextlib
import ctypes
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Iterator

from jaxseg.errors import UserError, printable
from jaxseg.process import Interrupted
from jaxseg.processes.facts import Facts
from jaxseg.processes.group import FAULT, MISTAKE, Group, Say
from jaxseg.processes.meeting import meet
from jaxseg.processes.place import Place

# Of JAX: they decide which numbers the same program computes, or which program it is.
SETTINGS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl", "jax_threefry_partitionable")


@contextlib.contextmanager
def together(
    place: Place, facts: Facts, workdir: str | os.PathLike, *, start_timeout: float, silence: float, say: Say
) -> Iterator[Group]:
    """Within it all processes are there, agree on `facts` and run JAX as one; for a command, before it uses JAX.

    An error in any of them ends all of them at once, with their statuses `MISTAKE` or `FAULT`. `Interrupted`, which is
    raised in all, passes.
    """
    import jax
    from jax.experimental import multihost_utils

    _abort_later()
    # Its handler of SIGTERM would take the place of ours, which tells the others itself.
    jax.config.update("jax_enable_preemption_service", False)
    with _ending_at_once(), meet(place, facts, workdir, start_timeout, say).watch(say, silence) as group:
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
        devices = {"number": jax.local_device_count(), "platform": device.platform}
        group.agree({"devices": devices, "settings of JAX": {name: getattr(jax.config, name) for name in SETTINGS}})
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
        print(printable(f"error: {error}"), file=sys.stderr, flush=True)
        os._exit(MISTAKE)
    except KeyboardInterrupt:
        os._exit(128 + signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(FAULT)
