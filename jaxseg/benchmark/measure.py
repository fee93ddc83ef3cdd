"""Measuring: contenders in turn, so that whatever else the machine does meets them all alike."""

import dataclasses
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import jax

BLOCK_SECONDS = 0.2  # the least time that is taken by the clock at once; shorter steps are run several at a time


@dataclasses.dataclass
class Contender:
    """One implementation, ready to run.

    Fields:
      name: who it is, 'jaxseg' or 'PyTorch compiled, channels-last'.
      run: `run(n)` does n steps one after another and returns when the last is done.
      compile_seconds: from the program's text to the end of its first step.
      memory: bytes on the device while a step runs, weights and optimizer included; None where it can't be told.
    """

    name: str
    run: Callable[[int], None]
    compile_seconds: float = 0.0
    memory: int | None = None


def alternate(contenders: Sequence[Contender], rounds: int, block: int | None = None) -> dict[str, list[float]]:
    """Seconds a step, `rounds` figures for each contender, who take turns: A B A B.

    Args:
      block: steps between two looks at the clock; None for as many as take `BLOCK_SECONDS`. With 1 a figure is the time
        of one step alone; with more, a step may begin on the host while the device ends the one before it, as in
        training.
    """
    blocks = {}
    for contender in contenders:
        contender.run(1)
        started = time.perf_counter()
        contender.run(1)
        took = time.perf_counter() - started
        blocks[contender.name] = block or max(1, round(BLOCK_SECONDS / took))
        contender.run(blocks[contender.name])
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for _ in range(rounds):
        for contender in contenders:
            n = blocks[contender.name]
            started = time.perf_counter()
            contender.run(n)
            seconds[contender.name].append((time.perf_counter() - started) / n)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], ours: str, theirs: str) -> tuple[float, float, float]:
    """How many times as fast `ours` is: the median over the rounds of theirs / ours, the smallest and the largest."""
    by_round = sorted(b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True))
    return statistics.median(by_round), by_round[0], by_round[-1]


def matmul_rate(dtype: str, rounds: int = 5) -> float:
    """Multiply-adds a second of the first device at a square matrix product, the best of `rounds`.

    The yardstick for a network's share. float32 is what the device does by default, which on recent NVIDIA GPUs is
    TF32 for JAX.
    """
    size = 2048 if jax.default_backend() == "cpu" else 8192
    # Random numbers, scaled so that products stay of their size: with equal ones a GPU draws less power and is faster.
    a = (jax.random.normal(jax.random.key(0), (size, size)) * size**-0.5).astype(dtype)
    product = jax.jit(lambda a, b: a @ b)

    def run(n):
        b = a
        for _ in range(n):
            b = product(a, b)
        b.block_until_ready()

    return size**3 / min(alternate([Contender("product", run)], rounds)["product"])


def peak_host_memory() -> int:
    """The most bytes of memory that this process has had since its start."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine() -> str:
    """The device in words: 'NVIDIA H200', or the processor and its cores."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:
            name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}, {num_cores()} cores"


def num_cores() -> int:
    """The processor cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
