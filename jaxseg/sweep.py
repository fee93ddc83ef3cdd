"""A sweep: one run after another with each combination of values, and in the end their comparison.

Each run is a process of its own with a workdir of its own, so one that fails takes no other with it. Given again, the
same sweep goes on where it stopped.
"""

import ast
import contextlib
import copy
import dataclasses
import fcntl
import itertools
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxseg import config as configs
from jaxseg import files, forms
from jaxseg.compare import compare
from jaxseg.errors import UserError
from jaxseg.lookup import nearest
from jaxseg.process import Interrupted, heeded
from jaxseg.streams import print_line
from jaxseg.writers import duration

COMMAND = (sys.executable, "-m", "jaxseg.main")
KINDS = {int: "a whole number", float: "a number", bool: "True or False", tuple: "a tuple such as (0.5,2.0)"}


@dataclasses.dataclass(frozen=True)
class Run:
    """One combination of a sweep: the values of its fields, its workdir and its config."""

    values: dict[str, Any]
    workdir: pathlib.Path
    config: ConfigDict

    @property
    def log_file(self) -> pathlib.Path:
        """What the run prints."""
        return self.workdir.with_name(f"{self.workdir.name}.log")


def sweep(
    config: ConfigDict,
    texts: Sequence[str],
    workdir: str | os.PathLike,
    flags: Sequence[str],
    log: Callable[[str], object] = print_line,
) -> None:
    """Trains `config` with every combination of the values in `texts`, one after another, and compares the runs.

    Leaves in `workdir` a workdir and a log file of each run, `FIELD=VALUE,FIELD=VALUE`, and what the comparison writes.
    A finished run is not started again, one that was stopped goes on, and one that fails is told at the end.

    Args:
      texts: `FIELD=VALUE,VALUE,...` each.
      flags: of the command that trains `config`, without `--workdir`.

    Raises:
      UserError: before anything runs, a field, value or workdir that can't be; in the end, the runs that failed.
      Interrupted: after a signal, once the run that it came in has saved and ended.
    """
    runs = plan(config, texts, pathlib.Path(workdir))
    done = [finished(run) for run in runs]
    log(f"a sweep of {len(runs)} runs in {workdir}" + (f", {sum(done)} of them finished" if any(done) else ""))
    failures, times = {}, []
    with _passing_signals_on() as (caught, children):
        for number, (run, was_done) in enumerate(zip(runs, done, strict=True), 1):
            if was_done:
                continue
            log(f"run {number} of {len(runs)}: {run.workdir.name}, see {run.log_file}")
            started = time.monotonic()
            status, line = _train(run, flags, caught, children)
            if caught:
                log(f"stopped by {signal.Signals(caught[0]).name} ({line}); the same sweep goes on from here")
                raise Interrupted(caught[0])
            times.append(time.monotonic() - started)
            if status:
                failures[run.workdir] = f"{run.workdir.name}: {line} (see {run.log_file})"
            left = duration(statistics.mean(times) * done[number:].count(False))
            ending = f" in {duration(times[-1])}" + (f", about {left} left" if not all(done[number:]) else "")
            log(f"run {number} of {len(runs)} {'failed' if status else 'finished'}{ending}: {line}")
    # Whatever a run that failed has scored before is ranked nowhere; `compare` reads how the others ended.
    scored = [run for run in runs if run.workdir not in failures and _has_scores(run)]
    if scored:
        try:
            _compare(scored, pathlib.Path(workdir), log)
        except UserError as error:
            log(f"not compared: {error}")
    if failures:
        raise UserError(f"{len(failures)} of {len(runs)} runs failed:\n  " + "\n  ".join(failures.values()))


def _has_scores(run: Run) -> bool:
    return any((run.workdir / files.EVALUATIONS).glob("*.json"))


def plan(config: ConfigDict, texts: Sequence[str], workdir: pathlib.Path) -> list[Run]:
    """The runs of a sweep, the values of the last field changing fastest.

    Raises:
      UserError: there is no such field, a value is of another type, out of range or there twice, or the workdir of a
        run holds a run with another config.
    """
    table = _values(config, texts)
    runs = []
    for combination in itertools.product(*table.values()):
        values = dict(zip(table, combination, strict=True))
        changed = copy.deepcopy(config)
        changed.update_from_flattened_dict(values)
        configs.validate(changed)
        run = Run(values, workdir / _name(values), changed)
        if (run.workdir / files.CONFIG).exists():
            # What a run fills in when it starts is no difference.
            data = configs.read(run.workdir).data
            configs.check_same(configs.with_normalisation(changed, data.mean, data.std), run.workdir)
        runs.append(run)
    return runs


def finished(run: Run) -> bool:
    """Whether a run is done, of the length that it has now.

    Raises:
      UserError: its config or its run.json is not of its form.
    """
    if not (run.workdir / files.CONFIG).exists():
        return False
    before, about = configs.read(run.workdir), forms.read_run(run.workdir)
    if not about:
        names = [path.name for path in (run.workdir / files.CHECKPOINTS / "latest").glob("*")]
        about = {"status": "finished" if str(run.config.train.num_steps) in names else "running"}
    # Where the data has moved the run itself looks whether it is the same.
    fields = ("train.num_steps", "train.num_epochs", *configs.BY_CONTENT)
    then, now = configs.flatten(before), configs.flatten(run.config)
    same_length = all(then.get(field) == now[field] for field in fields)
    return same_length and about.get("status") in ("finished", "stopped early")


def _values(config: ConfigDict, texts: Sequence[str]) -> dict[str, list[Any]]:
    fields = {field: tuple(v) if isinstance(v, list) else v for field, v in configs.flatten(config).items()}
    table = {}
    for text in texts:
        field, equals, values = text.partition("=")
        if not equals:
            raise UserError(f"--sweep={text}: FIELD=VALUE,VALUE,... is due, such as --sweep=train.seed=0,1,2")
        if field not in fields:
            raise UserError(f"there is no field {field} to sweep: {nearest(field, fields)}")
        if field in table:
            raise UserError(f"--sweep has {field} twice: give all its values in one")
        # Commas inside a tuple are its own.
        kinds = (int, tuple) if field == "data.crop_size" else (type(fields[field]),)
        table[field] = [_parsed(field, value, kinds) for value in re.split(r",(?![^(]*\))", values)]
        names = [_name({field: value}) for value in table[field]]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise UserError(f"--sweep={text}: {twice[0]} is there twice")
    return table


def _parsed(field: str, text: str, kinds: Sequence[type]) -> Any:
    if str in kinds:
        return text
    try:
        value = {"true": True, "false": False}[text.lower()] if bool in kinds else ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, KeyError, MemoryError, RecursionError):
        value = None
    if float in kinds and type(value) is int:
        value = float(text)  # which is infinite where it is too large
    if type(value) not in kinds:
        due = " or ".join(KINDS.get(kind, kind.__name__) for kind in kinds)
        raise UserError(f"--sweep={field}=...: '{text}' is not {due}")
    return value


def _name(values: dict[str, Any]) -> str:
    """`learning_rate=0.001,seed=0`; the whole field where two end alike."""
    ends = [field.rpartition(".")[2] for field in values]
    shown = [end if ends.count(end) == 1 else field for field, end in zip(values, ends, strict=True)]
    text = ",".join(f"{name}={value}" for name, value in zip(shown, values.values(), strict=True))
    return re.sub(r"[^\w.,=()+-]", "_", text.replace(" ", ""))


def _train(run: Run, flags: Sequence[str], caught: list[int], children: list) -> tuple[int, str]:
    """Exit status and last line of a run."""
    overrides = [f"--config.{field}={value}" for field, value in run.values.items()]
    try:
        run.log_file.parent.mkdir(parents=True, exist_ok=True)
        with open(run.log_file, "ab") as file:
            # Held as long as the run lives, also where the sweep was killed and the run was not.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            before = file.tell()
            # A process group of its own: Ctrl-C in a terminal reaches it through this process alone, once.
            process = subprocess.Popen(
                [*COMMAND, *flags, *overrides, f"--workdir={run.workdir}"],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
            children[:] = [process]
            for number in caught:
                process.send_signal(number)
            process.wait()
            children.clear()
        lines = [line for line in run.log_file.read_bytes()[before:].decode(errors="replace").splitlines() if line]
    except BlockingIOError:
        raise UserError(f"{run.workdir} is being trained by another process: wait for it or end it") from None
    except OSError as error:
        raise UserError(f"{run.log_file} can't be written ({error.strerror}): choose another --workdir") from error
    status = process.returncode
    if status < 0:
        return status, f"it ended by {signal.Signals(-status).name}"
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return status, (errors or lines or [f"it ended with status {status}"])[-1]


@contextlib.contextmanager
def _passing_signals_on() -> Iterator[tuple[list[int], list[subprocess.Popen]]]:
    """The signals that came, each passed on to the children as it came: what a third one does is theirs to say."""
    caught, children, before = [], [], {}

    def pass_on(number, frame):
        caught.append(number)
        for child in children:
            child.send_signal(number)

    with contextlib.suppress(ValueError):  # outside the main thread there are no signals to catch
        for number in heeded():
            before[number] = signal.signal(number, pass_on)
    try:
        yield caught, children
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _compare(runs: Sequence[Run], output: pathlib.Path, log: Callable[[str], object]) -> None:
    compare([run.workdir for run in runs], output, log=log)
    log((output / "table.md").read_text(encoding="utf-8").rstrip())
