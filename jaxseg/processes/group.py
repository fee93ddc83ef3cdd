"""Processes that have met: they agree, live and end together."""

import contextlib
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from jaxseg.errors import UserError, printable, shown
from jaxseg.process import Interrupted, catch_signals
from jaxseg.processes.facts import Facts, difference, in_words
from jaxseg.processes.line import Line, readable
from jaxseg.processes.place import Place

MISTAKE, FAULT = 1, 75  # exit statuses: of what starting again does not mend, and of what it may (EX_TEMPFAIL)
BEAT = 1.0  # seconds between two signs of life
SILENT = 10.0  # seconds without one, and it is said who is waited for
PATIENCE = 5.0  # seconds that an error waits for a better one: who is gone

LONGEST = 10_000  # characters of what another process says that are shown

Say = Callable[[str], None]


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

    def __init__(self, place: Place, names: list[str], jax_address: str, lines: dict[int, Line]):
        self.place, self.names, self.jax_address = place, names, jax_address
        self._lines, self._heard = lines, dict.fromkeys(lines, time.monotonic())
        self._waiting: set[int] = set()
        self._ended = threading.Event()
        self._told: queue.Queue[tuple[int, Any]] = queue.Queue()  # facts that others sent, or what was found of them
        self.paces: dict[int, dict[str, float]] = {}
        self.waits_since: float | None = None
        self._decisions: queue.Queue[Any] = queue.Queue()  # of process 0, in the others
        # The signal that stops all, and the call of the function of `catch_signals` at which it does; 0 for none.
        self._stopping, self._stop_at = 0, 0
        self._calls, self._calls_change = 0, threading.Condition()
        self._calls_of: dict[int, int] = {}  # in process 0, once a signal has come
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

    def agree(self, facts: Facts, closer: Callable[[], Facts] = dict) -> None:
        """Returns once all processes have called this with the same facts, see `meet`; however long that takes.

        Args:
          closer: facts that tell more exactly what differs; asked for only where `facts` do.

        Raises:
          UserError: on all of them, with what differs.
        """
        facts = in_words(facts)
        if self.place.process_id:
            self._lines[0].send(facts=facts)
            _, fault = self._told.get()
            if fault is None:
                self._lines[0].send(facts=in_words(closer()))
                _, fault = self._told.get()
        else:
            fault = self._compare(facts)
            if fault:
                for line in self._lines.values():
                    line.send(agreed=None)
                fault = self._compare(in_words(closer())) or fault
                self._ended.set()  # each ends by itself then, in these words; that others are faster is no news
            for line in self._lines.values():
                line.send(agreed=fault)
        if fault:
            raise UserError(in_lines(fault))

    def _compare(self, facts: dict[str, dict[str, str]]) -> str:
        """In process 0, in what the facts that the others send differ from its own."""
        theirs = dict(self._told.get() for _ in range(len(self._lines)))
        found = (difference(self.names[i], theirs[i], self.names[0], facts) for i in sorted(theirs))
        return next(filter(None, found), "")

    def tell_pace(self, **figures: float) -> None:
        """Puts the figures of this process into the `paces` of process 0."""
        number = self.place.process_id
        self.paces[number] = figures
        if number:
            self._lines[0].send(pace=figures)

    def decided(self, value: Any) -> Any:
        """The `value` of process 0, in all processes: what is decided once is decided there. All call it equally often.

        Args:
          value: what JSON can hold; NaN and infinities too.
        """
        if self.place.process_id:
            return self._decisions.get()
        for line in list(self._lines.values()):
            line.send(decision=value)
        return value

    @contextlib.contextmanager
    def catch_signals(self) -> Iterator[Callable[[], int]]:
        """As `process.catch_signals`, but a signal to any process is told to all of them, at the same call.

        All of them must call the function equally often.
        """
        with catch_signals(self._end_all) as signalled:
            told = False

            def ask() -> int:
                nonlocal told
                if (number := signalled()) and not told:
                    told = True
                    self._stop(number)
                with self._calls_change:
                    # Where one that is ahead would go on, the others could not come to the same call.
                    self._calls_change.wait_for(lambda: self._stop_at or not self._stopping)
                    self._calls += 1
                    return self._stopping if self._stop_at and self._calls >= self._stop_at else 0

            yield ask

    def _stop(self, number: int) -> None:
        """Process 0 learns of a signal, holds all and asks how far they are; once all have answered it says where."""
        if self.place.process_id:
            self._lines[0].send(signal=number)
            return
        with self._calls_change:
            if self._stopping:
                return
            self._stopping, calls = number, self._calls
        for line in list(self._lines.values()):
            line.send(stopping=number)
        self._count_calls(0, calls)

    def _hold(self, number: int) -> int:
        """From here on no call comes back before it is known which one is the last; how many have."""
        with self._calls_change:
            self._stopping = number
            return self._calls

    def _count_calls(self, process_id: int, calls: int) -> None:
        with self._calls_change:
            self._calls_of[process_id] = calls
            if not self._calls_of.keys() >= {0, *self._lines}:
                return
            stop_at = 1 + max(self._calls_of.values())
        for line in list(self._lines.values()):
            line.send(stop_at=stop_at)
        self._stop_where(stop_at)

    def _stop_where(self, call: int) -> None:
        with self._calls_change:
            self._stop_at = call
            self._calls_change.notify_all()

    def _end_all(self, number: int) -> None:
        """At once, without saving: what a third signal asks for."""
        why = f"{self.names[self.place.process_id]} was ended by a third {signal.Signals(number).name}"
        for line in list(self._lines.values()):
            line.send(lost=why, status=128 + number)
        os._exit(128 + number)

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
        for line in readable(list(self._lines.values()), BEAT / 2):
            number = next(number for number, each in self._lines.items() if each is line)
            try:
                messages = line.receive(0)
                if messages is None:
                    return f"{self.names[number]} ended without a word: it was killed, or its machine is gone"
                self._heard[number] = time.monotonic()
                for message in messages:
                    if lost := self._take(number, line, message):
                        return lost
            except (KeyError, TypeError, ValueError):
                return f"{self.names[number]} sent what no process of a run sends"
        return ""

    def _take(self, number: int, line: Line, message: dict[str, Any]) -> str | tuple[str, int]:
        if "lost" in message:
            return in_lines(message["lost"]), int(message["status"])
        if "failed" in message:
            return f"{self.names[number]} failed: {in_lines(message['failed'])}", int(message["status"])
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
        if "decision" in message:
            self._decisions.put(message["decision"])
        if "signal" in message:
            self._stop(message["signal"])
        if "stopping" in message:
            line.send(calls=self._hold(message["stopping"]))
        if "calls" in message:
            self._count_calls(number, message["calls"])
        if "stop_at" in message:
            self._stop_where(message["stop_at"])
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


def in_lines(text: str) -> str:
    """What another process said of itself, to be printed: its lines, escaped, and not too many."""
    return "\n".join(shown(line) for line in str(text)[:LONGEST].split("\n"))


def _end(why: str, status: int) -> None:
    remedy = "; start again to go on from the last checkpoint" if status == FAULT else ""
    print(printable(f"error: {why}{remedy}"), file=sys.stderr, flush=True)
    os._exit(status)
