"""Broken files of a run through all that reads them: one line each, no traceback, no hang, nothing silently wrong.

Every case is made of a number. A file is broken in its bytes or in one entry, never into another sound file: whether
a number was edited by hand is what checksums are for, not forms. What a command says of a broken file, if it goes on,
must be what it says of the sound one, or the file is named among what is left out.
"""

import collections
import csv
import io
import json
import os
import pathlib
import random
import shutil
import signal

import numpy as np
import pytest
from helpers import use

import jaxseg
from jaxseg import sweep
from jaxseg.compare import compare
from jaxseg.errors import UserError, shown
from jaxseg.score import eval_run
from jaxseg.train import train

pytest_plugins = ["tiny_runs"]

CASES = 300
SECONDS = 60  # that a command may take of a case; one of a sound run takes two
FILES = ("config.json", "info.json", "run.json", "evaluations/val-best.json", "metrics.jsonl")


class Hang(BaseException):
    """Raised where a command takes longer than it may."""


# ------------------------------------------------------------------------------------------------------- what is broken

BYTES = {
    "null": lambda data, chance: b"null",
    "list": lambda data, chance: b"[]",
    "number": lambda data, chance: b"5",
    "empty": lambda data, chance: b"",
    "cut": lambda data, chance: data[: chance.randrange(len(data) - 3)],
    "UTF-16": lambda data, chance: data.decode().encode("utf-16"),
    "BOM": lambda data, chance: b"\xef\xbb\xbf" + data,
    "no UTF-8": lambda data, chance: _at(data, chance, b"\xff\xc3"),
    "NUL": lambda data, chance: _at(data, chance, b"\0"),
    "control": lambda data, chance: _at(data, chance, b"\x1b[2J"),
    "brackets": lambda data, chance: b"[" * 100_000,
    "objects": lambda data, chance: b'{"a":' * 100_000,
    "noise": lambda data, chance: chance.randbytes(300),
    "twice": lambda data, chance: data + data.replace(b"\n", b" ").lstrip(b"{"),
}
VALUES = {
    "null": "null",
    "empty list": "[]",
    "empty object": "{}",
    "text": '"text"',
    "NaN": "NaN",
    "huge": "1e308",
    "beyond": "1e999",
    "400 digits": "1" * 400,
    "5000 digits": "1" * 5000,
    "negative": "-1",
    "true": "true",
    "long": json.dumps("x" * 20_000),
    "deep": "[" * 3000 + "]" * 3000,
    "escapes": json.dumps("\x1b[2J\r\u202e"),
}
ALWAYS_WRONG = ("NaN", "huge", "beyond", "400 digits", "5000 digits", "deep")
KINDS = ("fifo", "folder", "large", "dangling")


def _at(data, chance, what):
    place = chance.randrange(1, len(data) - 1)
    return data[:place] + what + data[place:]


def break_file(path: pathlib.Path, number: int) -> str:
    """Breaks a file in the way of a number, and says how."""
    chance = random.Random(number)
    way = chance.choice(["bytes", "bytes", "entry", "entry", "entry", "kind"])
    if way == "kind":
        what = chance.choice(KINDS)
        path.unlink()
        if what == "fifo":
            os.mkfifo(path)
        elif what == "folder":
            path.mkdir()
        elif what == "large":
            path.touch()
            os.truncate(path, 2**33)
        else:
            path.symlink_to(path.with_name("nowhere"))
        return what
    if way == "bytes":
        what = chance.choice(list(BYTES))
        path.write_bytes(BYTES[what](path.read_bytes(), chance))
        return what
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    line = chance.randrange(len(lines) - 1) if len(lines) > 1 else 0  # a broken last line is one half written
    content = json.loads(lines[line])
    while True:
        part, name, before = content, None, content
        while isinstance(before, dict | list) and before and (name is None or chance.random() < 0.8):
            part, name = before, chance.choice(list(before) if isinstance(before, dict) else range(len(before)))
            before = part[name]
        what = chance.choice(list(VALUES))
        if what in ALWAYS_WRONG or not _sound(path.name, name, before, json.loads(VALUES[what])):
            break
    part[name] = "@@@"
    lines[line] = json.dumps(content).replace('"@@@"', VALUES[what])
    path.write_text("\n".join(lines) + "\n")
    return f"{name}: {what}"


def _sound(file, name, before, after) -> bool:
    """Whether a value of another entry would do as well, for a file that is edited by hand is no broken one."""
    if isinstance(before, bool) or isinstance(after, bool):
        return isinstance(before, bool) and isinstance(after, bool)
    if isinstance(after, int) and isinstance(before, int | float):
        return True  # whether -1 or a number of 400 digits will do is for the bounds of each field
    if after is None:
        return file in ("metrics.jsonl", "run.json", "val-best.json")  # NaN
    return isinstance(after, type(before))


# ------------------------------------------------------------------------------------------------- what is done with it


def results(workdir: pathlib.Path, config, output: pathlib.Path) -> dict:
    """Name to a function that gives what a command has to say of the run."""
    image = np.arange(48 * 64 * 3, dtype=np.uint32).reshape(48, 64, 3).astype(np.uint8)

    def load():
        predictor = jaxseg.load(workdir)
        return predictor.info.class_names, predictor.info.palette.tolist(), predictor(image).tolist()

    def resume():
        lines = []
        train(config, workdir, log=lines.append)
        return [json.loads((workdir / name).read_text()) for name in ("config.json", "info.json")]

    def comparison():
        lines = []
        compare([workdir], output, images=0, log=lines.append)
        [row] = csv.DictReader(io.StringIO((output / "table.csv").read_text()))
        named = [line for line in lines if "left out" in line]
        return "named" if named else {name: value for name, value in row.items() if name != "run"}

    def scoring():
        return {name: str(value) for name, value in eval_run(workdir, log=lambda line: None).items()}

    def sweeping():
        return sweep.finished(sweep.Run({}, workdir, config))

    # Going on writes some files again: it comes last.
    return {"load": load, "compare": comparison, "eval": scoring, "sweep": sweeping, "resume": resume}


def outcome(function, due) -> str:
    """What came of it, in a word."""

    def ring(number, frame):
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        found = function()
    except UserError as error:
        return "refused" if shown(str(error)) == str(error) and len(str(error)) < 2000 else "unhelpful"
    except Hang:
        return "hang"
    except Exception as error:
        return f"traceback {type(error).__name__}: {error}"[:200]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return "as before" if found in (due, "named") else "silently wrong"


@pytest.mark.nightly
def test_broken_files_of_a_run_end_in_one_line(finished, workplace, tmp_path, monkeypatch, record_property):
    use(workplace, monkeypatch)
    config = workplace.config()
    sound = tmp_path / "sound" / "run"
    shutil.copytree(finished, sound)
    due = {name: function() for name, function in results(sound, config, tmp_path / "table").items()}
    seen, wrong = collections.Counter(), []
    for number in range(int(os.environ.get("JAXSEG_CASES", CASES))):
        folder = tmp_path / str(number)
        workdir = pathlib.Path(shutil.copytree(sound, folder / "run"))
        file = FILES[number % len(FILES)]
        how = break_file(workdir / file, number)
        for name, function in results(workdir, config, folder / "table").items():
            word = outcome(function, due[name])
            seen[f"{name} {word.partition(' ')[0]}"] += 1
            if word not in ("refused", "as before"):
                wrong.append(f"{number}: {file} ({how}), {name}: {word}")
        shutil.rmtree(folder)
    print(dict(seen), *wrong, sep="\n")
    assert not wrong, "\n".join(wrong)
    assert sum(count for name, count in seen.items() if name.endswith("refused")) > sum(seen.values()) / 4
