"""One run in several processes: real ones, real sockets, the tiny network."""

import collections
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import ROOT, flags_of, one_error, rows, saved, steps
from PIL import Image

from jaxseg.processes.group import FAULT, MISTAKE
from jaxseg.processes.place import free_port

pytest_plugins = ["tiny_runs"]

# Not Adam: it makes full steps of the rounding in the gradient of a bias that BatchNorm takes away again.
SETTINGS = {"data__batch_size": 4, "data__eval_batch_size": 4, "train__log_every": 1, "optim__name": "sgd"}
KILLS = int(os.environ.get("JAXSEG_KILLS", "2"))  # of one run; .ci/nightly has twenty, which take ten minutes
# Every process notes the records of each of its steps beside the workdir.
NOTE_IDS = """
import json, os, jax
from jaxseg import record
step = record.Record.step
def noted(self, loss, ids):
    step(self, loss, ids)
    line = [self._start + self._steps, jax.process_index(), jax.process_count(), ids]
    with open(f"{self.workdir}.ids", "a") as file:
        file.write(json.dumps(line) + "\\n")
record.Record.step = noted
helpers.without_tensorflow()
"""
SLOW_STEPS = "import time, jaxseg.train as t; put = t.put_batch\nt.put_batch = lambda *a: time.sleep(0.1) or put(*a)\n"


def start(workplace, count: int, workdir: pathlib.Path, before: str = "", **overrides) -> list[subprocess.Popen]:
    """The processes of a run of the tiny network on batches of four, one device each."""
    flags = [*flags_of(workplace.config(**SETTINGS, **overrides)), f"--workdir={workdir}"]
    of_all = (f"--coordinator=localhost:{free_port()}", f"--num_processes={count}")
    places = [(*of_all, f"--process_id={i}") for i in range(count)]
    environment = {"before": NOTE_IDS + before, "JAX_NUM_CPU_DEVICES": "1"}
    return [workplace.start("jaxseg.main", *flags, *(place if count > 1 else ()), **environment) for place in places]


def ends(started: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Status, output and errors of each."""
    results = []
    for process in started:
        out, err = process.communicate(timeout=240)
        results.append((process.returncode, out, err))
    return results


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [int(child) for child in found]


def until(process: subprocess.Popen, word: str) -> str:
    for line in process.stdout:
        if word in line:
            return line
    raise AssertionError(f"it ended without '{word}': {process.stderr.read()}")


def batches(workdir: pathlib.Path) -> dict[int, list[str]]:
    """The records of each step in order, the same however often and by however many processes it was taken."""
    parts = collections.defaultdict(dict)
    for line in pathlib.Path(f"{workdir}.ids").read_text().splitlines():
        step, index, count, ids = json.loads(line)
        assert parts[step, count].setdefault(index, ids) == ids
    whole = {}
    for (step, count), found in sorted(parts.items()):
        if len(found) == count:  # of a step that a kill came into some processes have noted nothing
            ids = [i for index in range(count) for i in found[index]]
            assert whole.setdefault(step, ids) == ids
    return whole


def assert_equal_run(workdir: pathlib.Path, due: pathlib.Path) -> None:
    """The same steps on the same records, the same counts, and numbers equal to rounding."""
    ours, theirs = rows(workdir), rows(due)
    assert [(row["step"], sorted(row)) for row in ours] == [(row["step"], sorted(row)) for row in theirs]
    for row, other in zip(ours, theirs, strict=True):
        for name, value in row.items():
            close = pytest.approx(other[name], rel=1e-4, abs=1e-5) if other[name] is not None else None
            assert value == close, name
    assert batches(workdir) == batches(due)
    counts = [json.loads((each / "evaluations" / "val-best.json").read_text())["counts"] for each in (workdir, due)]
    assert counts[0] == counts[1]
    left, right = saved(workdir, "latest"), saved(due, "latest")
    for name in left.keys() - {"progress"}:
        np.testing.assert_allclose(left[name], right[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def alone(workplace) -> pathlib.Path:
    """The workdir of an unbroken run of one process."""
    workdir = workplace.root / "alone"
    ((status, _, err),) = ends(start(workplace, 1, workdir))
    assert status == 0, err
    return workdir


@pytest.fixture(autouse=True)
def nothing_left(workplace):
    """A test that fails leaves no processes behind, which would wait for each other and slow the next ones down."""
    yield
    for process in workplace.started:
        process.kill()
        process.wait()
    workplace.started.clear()


@pytest.mark.slow
@pytest.mark.parametrize(("count", "fsdp"), [(2, False), (4, False), (2, True)])
def test_several_processes_are_one(count, fsdp, alone, workplace, tmp_path):
    results = ends(start(workplace, count, tmp_path / "run", train__fsdp=fsdp))
    assert [status for status, _, _ in results] == [0] * count, results
    assert_equal_run(tmp_path / "run", alone)
    # Process 0 alone speaks.
    assert "done: " in results[0][1]
    assert [line for _, out, _ in results[1:] for line in out.splitlines() if "Gloo" not in line] == []


@pytest.mark.slow
def test_a_signal_to_any_saves_all_and_another_number_goes_on(alone, workplace, tmp_path):
    for number, (count, victim, fsdp) in enumerate([(2, 1, True), (4, 2, False)]):
        started = start(workplace, count, tmp_path / "run", before=SLOW_STEPS, train__fsdp=fsdp)
        until(started[0], f"step {3 + 4 * number}/12")
        sent = signal.SIGINT if number else signal.SIGHUP
        for _ in range(2):
            started[victim].send_signal(sent)
        results = ends(started)
        assert [status for status, _, _ in results] == [128 + sent] * count, results
        assert f"stopped by {sent.name}; step" in results[0][1]
        assert steps(tmp_path / "run", "latest")[0] >= 3 + 4 * number
    ((status, out, err),) = ends(start(workplace, 1, tmp_path / "run"))
    assert status == 0, err
    assert "going on from step" in out
    assert_equal_run(tmp_path / "run", alone)


@pytest.mark.slow
def test_a_signal_while_a_resumed_run_saves_stops_all_at_once(alone, workplace, tmp_path):
    """Orbax asks JAX for signals too, with the number of the step, where ours is that of the question."""
    workdir, every_step = tmp_path / "run", {"train__checkpoint_every": 1, "train__num_steps": 60}
    for first in (False, True):
        started = start(workplace, 2, workdir, before=SLOW_STEPS, **every_step)
        until(started[0], "/60")
        time.sleep(0.7 if first else 2.0)
        started[1].send_signal(signal.SIGTERM)
        told = time.monotonic()
        results = ends(started)
        assert time.monotonic() - told < 15
        assert [status for status, _, _ in results] == [128 + signal.SIGTERM] * 2, results
    assert 0 < steps(workdir, "latest")[0] < 60


@pytest.mark.slow
def test_worker_processes_end_with_a_process_that_is_killed(workplace, tmp_path):
    started = start(workplace, 2, tmp_path / "run", before=SLOW_STEPS, data__workers=1, train__num_steps=200)
    until(started[0], "step 2/")
    workers = [pid for process in started for pid in children(process.pid)]
    assert len(workers) >= 2
    started[1].kill()
    assert ends(started)[0][0] == FAULT
    for _ in range(100):
        left = [pid for pid in workers if pathlib.Path(f"/proc/{pid}").exists()]
        if not left:
            break
        time.sleep(0.1)
    assert left == []


@pytest.mark.slow
def test_a_process_that_is_stopped_is_waited_for_in_training(alone, workplace, tmp_path):
    started = start(workplace, 2, tmp_path / "run", before=SLOW_STEPS)
    until(started[0], "step 3/12")
    threads = [int(thread) for thread in os.listdir(f"/proc/{started[0].pid}/task")]
    assert 19 in [os.getpriority(os.PRIO_PROCESS, thread) for thread in threads]  # Gloo's
    started[1].send_signal(signal.SIGSTOP)
    assert "waiting for process 1 (" in until(started[0], "waiting for")
    started[1].send_signal(signal.SIGCONT)
    assert [status for status, _, _ in ends(started)] == [0, 0]
    assert_equal_run(tmp_path / "run", alone)


@pytest.mark.nightly
def test_a_third_signal_ends_all_though_one_waits_for_numbers_of_another(workplace, tmp_path):
    started = start(workplace, 2, tmp_path / "run", before=SLOW_STEPS, train__num_steps=200)
    until(started[0], "step 3/")
    started[1].send_signal(signal.SIGSTOP)
    time.sleep(2.0)
    for _ in range(3):
        assert started[0].poll() is None
        started[0].send_signal(signal.SIGTERM)
        time.sleep(0.8)
    assert started[0].wait(timeout=10) == 128 + signal.SIGTERM
    started[1].send_signal(signal.SIGCONT)
    status, _, err = ends(started)[1]
    assert status == 128 + signal.SIGTERM
    assert re.search(r"error: process 0 \(.* third SIGTERM", err)


@pytest.mark.slow
def test_the_end_of_process_0_is_told_though_jax_aborts_first(workplace, tmp_path):
    slow_watch = "import time\nfrom jaxseg.processes.group import Group\nhear = Group._hear\n"
    slow_watch += "Group._hear = lambda self: time.sleep(3) or hear(self)\n"
    started = start(workplace, 2, tmp_path / "run", before=SLOW_STEPS + slow_watch, train__num_steps=200)
    until(started[0], "step 2/")
    started[0].kill()
    status, _, err = ends(started)[1]
    assert "Terminating process because the JAX distributed service detected fatal errors" in err
    assert status == FAULT
    assert re.search(r"error: process 0 \(.* ended without a word", err)


@pytest.mark.slow
def test_an_error_of_one_process_ends_all_with_its_words(workplace, tmp_path):
    fail = "import jax\nif '--process_id=1' in sys.argv: t.put_batch = lambda *a: 1 / 0\n"
    results = ends(start(workplace, 2, tmp_path / "run", before=f"import sys\n{SLOW_STEPS}{fail}"))
    assert [status for status, _, _ in results] == [FAULT, FAULT]
    assert "failed: ZeroDivisionError: division by zero" in results[0][2]
    assert "ZeroDivisionError" in results[1][2]


@pytest.mark.slow
def test_processes_that_are_killed_at_any_moment_lose_and_repeat_nothing(workplace, tmp_path):
    chance, workdir, due, counts = random.Random(7), tmp_path / "run", tmp_path / "due", [4, 2, 1, 4]
    settings = {"train__num_steps": 12 * KILLS}
    for number in range(KILLS):
        count = counts[number % len(counts)]
        started = start(workplace, count, workdir, before=SLOW_STEPS, **settings)
        if number % 3:  # else it comes into starting, most of the time
            until(started[0], "first step after")
        time.sleep(chance.uniform(0.0, 2.5))
        started[chance.randrange(count)].kill()
        killed = time.monotonic()
        results = ends(started)
        # One that was killed before it came is waited for, 50 s from when the others have started.
        assert time.monotonic() - killed < 75
        for status, _, err in results:
            # Before they have met, a process that is missing is a mistake.
            met = "did not come" not in err and "ended before all" not in err and "could not reach" not in err
            assert status in ((FAULT, -signal.SIGKILL) if met else (MISTAKE,)), results
            assert status != FAULT or re.search(r"error: process \d .* ended without a word", err), err
    results = ends(start(workplace, 2, workdir, **settings))
    assert [status for status, _, _ in results] == [0, 0], results
    ((status, _, err),) = ends(start(workplace, 1, due, **settings))
    assert status == 0, err
    assert_equal_run(workdir, due)


@pytest.mark.slow
def test_a_lost_process_is_named_and_launch_starts_again(alone, workplace, tmp_path):
    workdir = tmp_path / "run"
    code = f"import helpers\nhelpers.register()\n{NOTE_IDS}{SLOW_STEPS}\nhelpers.run_module('jaxseg.main')"
    script = (
        "import sys\nfrom jaxseg.launch import launch\n"
        f"sys.exit(launch(2, sys.argv[1:], max_restarts=1, command=(sys.executable, '-c', {code!r})))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, *flags_of(workplace.config(**SETTINGS)), f"--workdir={workdir}"],
        env=workplace.environment(JAX_NUM_CPU_DEVICES="1"),
        stdout=subprocess.PIPE,
        text=True,
    )
    until(process, "step 4/12")
    listed = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "process_id=1"], capture_output=True, text=True)
    os.kill(int(listed.stdout.split()[0]), signal.SIGKILL)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert "[0] error: process 1 (" in out and "ended without a word: it was killed" in out
    assert "a process was lost; starting all again, 1 of at most 1 times" in out
    assert "[0] going on from step 3" in out
    assert_equal_run(workdir, alone)


@pytest.mark.slow
def test_a_finished_run_is_scored_by_two_processes_as_by_one(alone, workplace, tmp_path):
    workdir = pathlib.Path(shutil.copytree(alone, tmp_path / "run"))
    port = free_port()
    flags = ["--mode=eval", "--split=test", f"--workdir={workdir}", f"--coordinator=localhost:{port}"]
    places = [("--num_processes=2", f"--process_id={i}") for i in range(2)]
    started = [workplace.start("jaxseg.main", *flags, *place, JAX_NUM_CPU_DEVICES="1") for place in places]
    for number, (status, out, err) in enumerate(ends(started)):
        assert status == 0, err
        assert ("mean IoU" in out) == (number == 0)
    written = json.loads((workdir / "evaluations" / "test-best.json").read_text())
    (status, _, err) = workplace.run("jaxseg.main", *flags[:3], JAX_NUM_CPU_DEVICES="1")
    assert status == 0, err
    due = json.loads((workdir / "evaluations" / "test-best.json").read_text())
    assert (written["images"], written["counts"]) == (due["images"], due["counts"]) and due["images"] == 2


def test_processes_of_different_configs_are_told_apart(workplace, tmp_path):
    first = start(workplace, 2, tmp_path / "run")
    first[1].kill()
    port = next(word for word in first[0].args if word.startswith("--coordinator="))
    flags = [
        *flags_of(workplace.config(**SETTINGS, train__seed=1)),
        f"--workdir={tmp_path / 'run'}",
        port,
        "--num_processes=2",
        "--process_id=1",
    ]
    other = workplace.start("jaxseg.main", *flags, JAX_NUM_CPU_DEVICES="1")
    for status, _, err in ends([first[0], other]):
        assert "differs from process 0" in one_error(status, err)
        assert "in its config: train.seed is 1 and not 0" in err


def folders(tmp_path, names: tuple[str, str]) -> list[pathlib.Path]:
    """Two machines' folders of the same images and masks; their classes' names may differ."""
    there = []
    for number, classes in enumerate(names):
        folder = tmp_path / f"machine{number}" / "data"
        for split in ("train", "val"):
            for i in range(4):
                rng = np.random.default_rng(i)
                mask = np.arange(32, dtype=np.uint8).repeat(32).reshape(32, 32) // 16
                for kind, pixels in (("images", rng.integers(0, 255, (32, 32, 3), np.uint8)), ("masks", mask)):
                    (folder / kind / split).mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(folder / kind / split / f"{i}.png")
        (folder / "classes.yaml").write_text(f"names: [{classes}]\n")
        there.append(folder)
    return there


def start_elsewhere(workplace, there: list[pathlib.Path], *more: str, **overrides) -> list[subprocess.Popen]:
    """A process on each of these machines: one command, whose data.dir is theirs."""
    flags = flags_of(workplace.config(**SETTINGS, **overrides, data__name="folder", data__dir="data"))
    flags[0] = f"--config={ROOT / 'configs' / 'default.py'}"
    places = [f"--coordinator=localhost:{free_port()}", f"--num_processes={len(there)}", *more]
    started = []
    for number, folder in enumerate(there):
        before = f"import os\nos.chdir({str(folder.parent)!r})\nhelpers.without_tensorflow()"
        environment = {"TFDS_DATA_DIR": str(folder.parent / "prepared"), "JAX_NUM_CPU_DEVICES": "1"}
        arguments = [*flags, *places, f"--process_id={number}"]
        started.append(workplace.start("jaxseg.main", *arguments, before=before, **environment))
    return started


def test_processes_whose_classes_have_other_names_do_not_start(workplace, tmp_path):
    there = folders(tmp_path, ("blue, red", "red, blue"))
    started = start_elsewhere(workplace, there, f"--workdir={tmp_path / 'run'}", train__best="iou/red")
    for status, _, err in ends(started):
        assert re.search(r"process 1 .* in its classes: class 0 is red and not blue", one_error(status, err))
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.nightly
def test_the_first_record_that_differs_is_named_in_training_and_scoring(workplace, tmp_path):
    there = folders(tmp_path, ("blue, red", "blue, red"))
    workdir = f"--workdir={tmp_path / 'run'}"
    results = ends(start_elsewhere(workplace, there, workdir, train__best="iou/red", train__num_steps=4))
    assert [status for status, _, _ in results] == [0, 0], results
    for split, name in (("val", "2"), ("train", "1")):
        path = there[1] / "masks" / split / f"{name}.png"
        mask = np.array(Image.open(path))
        mask[:4] = 1 - mask[:4]
        Image.fromarray(mask).save(path)
    started = start_elsewhere(workplace, there, f"--workdir={tmp_path / 'other'}", train__num_steps=4)
    for status, _, err in ends(started):
        assert re.search(r"process 1 .* in its data: record 1 of train is 1, images", one_error(status, err))
    places = [f"--coordinator=localhost:{free_port()}", "--num_processes=2", "--mode=eval", workdir]
    started = []
    for number, folder in enumerate(there):
        before = f"import os\nos.chdir({str(folder.parent)!r})"
        environment = {"TFDS_DATA_DIR": str(folder.parent / "prepared"), "JAX_NUM_CPU_DEVICES": "1"}
        arguments = [*places, f"--process_id={number}"]
        started.append(workplace.start("jaxseg.main", *arguments, before=before, **environment))
    for status, _, err in ends(started):
        assert re.search(r"process 1 .* in its data: record 2 of val is 2, images", one_error(status, err))


def test_a_batch_that_processes_do_not_divide_is_refused_with_the_next_that_they_do(workplace, tmp_path):
    results = ends(start(workplace, 3, tmp_path / "run"))
    for status, _, err in results:
        assert "data.batch_size is 4, which 3 devices don't divide: take 3 or 6" in one_error(status, err)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_sweep_in_several_processes_is_refused(workplace, tmp_path):
    flags = ["--coordinator=localhost:1", "--num_processes=2", "--process_id=0", f"--workdir={tmp_path}"]
    status, _, err = workplace.run("jaxseg.main", *flags_of(workplace.config()), *flags, "--sweep=train.seed=0,1")
    assert "--sweep starts one run after another" in one_error(status, err)
