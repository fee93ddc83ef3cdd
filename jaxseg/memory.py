"""Whether a step fits: what it takes at the least, counted over its abstract trace, beside the memory that there is.

Nothing is computed for it. A network that needs more than the least may still be too large; but what is refused here
could not have run.
"""

import contextlib
import pathlib
import resource
from collections.abc import Iterator
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh

from jaxseg.errors import UserError
from jaxseg.models.layers import Conv, ConvTranspose, DepthwiseConv

# Layers whose gradient wants what went into them.
_KEEP_INPUT = (Conv, ConvTranspose, DepthwiseConv, nn.Conv, nn.ConvTranspose, nn.Dense, nn.BatchNorm, nn.GroupNorm)


@contextlib.contextmanager
def layer_inputs() -> Iterator[dict[int, tuple[tuple[str, ...], int]]]:
    """While it lasts, what goes into each layer of networks that are called or traced: path of the layer and bytes."""
    found, seen = {}, []

    def note(call, arguments, keywords, context):
        if isinstance(context.module, _KEEP_INPUT) and context.method_name == "__call__":
            x = arguments[0]
            seen.append(x)  # an array that is gone could leave its id to another
            found[id(x)] = (context.module.path, x.size * x.dtype.itemsize)
        return call(*arguments, **keywords)

    with nn.intercept_methods(note):
        yield found
    seen.clear()


def bytes_of(tree: Any) -> int:
    """Bytes of all arrays of a tree, or of their shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def free_memory(mesh: Mesh) -> tuple[int, str]:
    """Bytes that a computation may take, and of what: of one device of the mesh, or of this machine for CPU devices."""
    device = mesh.local_devices[0]
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats.get("bytes_limit", 2**63) - stats.get("bytes_in_use", 0), f"a {device.device_kind}"
    limits = [2**63]
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        known = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        limits.append(known["MemAvailable"] + known.get("SwapFree", 0))
    with contextlib.suppress(OSError, ValueError):
        limits.append(int(pathlib.Path("/sys/fs/cgroup/memory.max").read_text()))
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY:
        with contextlib.suppress(OSError, ValueError):
            pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
            space -= pages * resource.getpagesize()
        limits.append(max(space, 0))
    return min(limits), "this machine"


def check_fits(taken: int, mesh: Mesh, what: str, remedy: str) -> None:
    """Raises a `UserError` where `taken` bytes, of one device or of this machine, are more than are free."""
    free, where = free_memory(mesh)
    if taken > free:
        raise UserError(
            f"{what} takes at least {taken / 2**30:,.1f} GiB, and {where} has {free / 2**30:,.1f} GiB free: {remedy}"
        )
