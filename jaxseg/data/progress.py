"""Progress of long work: one bar on a terminal, a few plain lines in a log file."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

from jaxseg.streams import print_line

T = TypeVar("T")


def say(text: str, shown: bool = True) -> None:
    """Writes `text` as a line of its own to standard error, unless `shown` is False."""
    if shown:
        with tqdm.external_write_mode():
            print_line(text, "stderr")


class _Lines:
    """What a bar is to a terminal: a line when a quarter more is done and ten seconds have passed."""

    def __init__(self, total: int, what: str, shown: bool):
        self.total, self.what, self.shown = total, what, shown
        self.done, self.quarter, self.start = 0, 0, time.monotonic()
        self.last = self.start

    def update(self, n: int = 1) -> None:
        self.done += n
        quarter = 4 * self.done // max(self.total, 1)
        now = time.monotonic()
        if quarter > self.quarter and self.done < self.total and now - self.last > 10:
            left = (now - self.start) / self.done * (self.total - self.done)
            say(f"{self.what}: {100 * self.done // self.total} %, about {left:.0f} s left", self.shown)
            self.quarter, self.last = quarter, now


@contextmanager
def bar(total: int, what: str, unit: str, shown: bool = True) -> Iterator:
    """A context with an object whose `update(n)` counts on; nothing is written where `shown` is False."""
    if shown and sys.stderr is not None and sys.stderr.isatty():
        with tqdm(total=total, desc=what, unit=unit, unit_scale=unit == "B", dynamic_ncols=True, file=sys.stderr) as b:
            yield b
    else:
        yield _Lines(total, what, shown)


def counted(items: Iterable[T], counter) -> Iterator[T]:
    """`items`, one `counter.update(1)` after each."""
    for item in items:
        yield item
        counter.update(1)
