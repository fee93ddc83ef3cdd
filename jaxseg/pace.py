"""Which process of a run the others wait for: its batches come late, or its device is slow.

All processes end a step together, so the time of a step tells nothing of one of them. Each times what it does alone:
the wait for its batches, and a product of matrices on its own device.
"""

import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxseg.processes.group import Group

EVERY = 10.0  # seconds, at least, between two figures of a process
PROBE = 0.02  # seconds, at least, that a product is timed for


class Pace:
    """That of this process, and in process 0 that of all."""

    def __init__(self, group: Group):
        self._group, self._slow = group, set()
        self._matrix = jax.device_put(jnp.ones((512, 512)), jax.local_devices()[0])
        self._products = jax.jit(lambda a, times: jax.lax.fori_loop(0, times, lambda _, b: a @ b / 512.0, a))
        self._times = 1
        self._waited, self._steps, self._since = 0.0, 0, None

    def wait_for(self, batches: Iterator[dict[str, Any]]) -> dict[str, Any]:
        """The next of `batches`; how long it took is noted, but for the first one, which waits for threads to start."""
        started = time.perf_counter()
        self._group.waits_since = time.monotonic()
        try:
            batch = next(batches)
        finally:
            self._group.waits_since = None
        now = time.perf_counter()
        if self._since is None:
            self._since = now
        else:
            self._waited, self._steps = self._waited + now - started, self._steps + 1
        return batch

    def restart(self) -> None:
        """What follows a pause for scores or a checkpoint is counted anew."""
        self._waited, self._steps, self._since = 0.0, 0, time.perf_counter()

    def slow(self) -> list[str]:
        """To be called now and then in all processes; in process 0 a line on each one that has become slow."""
        now = time.perf_counter()
        if self._steps and now - self._since >= EVERY:
            figures = {"input": self._waited / self._steps, "step": (now - self._since) / self._steps}
            self._group.tell_pace(**figures, product=self._product())
            self.restart()
        found = who_is_slow(dict(self._group.paces))  # of which the watch writes another one
        lines = [f"{self._group.names[key[0]]} {why}" for key, why in found.items() if key not in self._slow]
        self._slow = set(found)
        return lines

    def _product(self) -> float:
        """Seconds of one product."""
        while True:
            started = time.perf_counter()
            jax.block_until_ready(self._products(self._matrix, self._times))
            seconds = time.perf_counter() - started
            if seconds >= PROBE:
                return seconds / self._times
            self._times *= 2


def who_is_slow(paces: Mapping[int, Mapping[str, float]]) -> dict[tuple[int, str], str]:
    """Why a process holds the others up, by its number and the figure that tells it.

    Args:
      paces: by number: `input`, seconds a step that it waits for its batch; `step`, seconds of a whole one; `product`,
        seconds of the same product of matrices on its device.
    """
    found = {}
    for number, own in paces.items():
        others = [pace for other, pace in paces.items() if other != number]
        if not others:
            continue
        usual = {name: statistics.median(pace[name] for pace in others) for name in own}
        if own["input"] > 2 * usual["input"] and own["input"] - usual["input"] > 0.1 * own["step"]:
            found[number, "input"] = (
                f"holds the others up: it waits {own['input']:.3f} s of a step of {own['step']:.3f} s for its batch, "
                f"the others {usual['input']:.3f} s"
            )
        if own["product"] > 1.5 * usual["product"]:
            found[number, "product"] = (
                f"is {own['product'] / usual['product']:.1f} times as slow as the others at a product of matrices"
            )
    return found
