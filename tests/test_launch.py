"""`jaxseg.launch`: several processes of one command, with a command that trains nothing."""

import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT

from jaxseg import launch as launching
from jaxseg.errors import UserError
from jaxseg.launch import launch, main
from jaxseg.processes.group import FAULT, MISTAKE

# Notes each of its starts, and ends as it is told: `IDS:STATUS` for the first try; negative for a signal.
CHILD = """
import os, signal, sys, time
place = dict(word.lstrip("-").split("=") for word in sys.argv[1:] if word.startswith("--"))
folder, told, seconds = sys.argv[1:4]
time.sleep(0.2)
first = not os.path.exists(f"{folder}/{place['process_id']}")
with open(f"{folder}/{place['process_id']}", "a") as file:
    file.write(place["coordinator"] + " " + place["num_processes"] + "\\n")
print("cores", sorted(os.sched_getaffinity(0)), flush=True)
status = dict(pair.split(":") for pair in told.split(",")).get(place["process_id"]) if told and first else None
if status and int(status) < 0:
    os.kill(os.getpid(), -int(status))
time.sleep(float(seconds))
sys.exit(int(status or 0))
"""
COMMAND = (sys.executable, "-c", CHILD)


def starts(folder) -> list[int]:
    """How often each process was started."""
    return [len(path.read_text().splitlines()) for path in sorted(folder.iterdir())]


def run(folder, told: str, seconds: float = 0.2, **settings) -> tuple[int, list[str]]:
    lines = []
    return launch(3, [str(folder), told, str(seconds)], command=COMMAND, log=lines.append, **settings), lines


def test_processes_are_started_with_their_places_and_heard(tmp_path):
    status, lines = run(tmp_path, "")
    assert status == 0
    assert starts(tmp_path) == [1, 1, 1]
    assert sorted(line[:9] for line in lines) == ["[0] cores", "[1] cores", "[2] cores"]
    told = {path.read_text() for path in tmp_path.iterdir()}
    assert len(told) == 1 and told.pop().endswith(" 3\n")


@pytest.mark.parametrize("told", [f"1:-{signal.SIGKILL:d}", f"0:{FAULT},1:{FAULT},2:-9", f"2:{FAULT},0:{MISTAKE}"])
def test_all_are_started_again_where_one_is_lost(told, tmp_path):
    status, lines = run(tmp_path, told)
    assert status == 0
    assert starts(tmp_path) == [2, 2, 2]
    assert "a process was lost; starting all again, 1 of at most 3 times" in lines


def test_a_mistake_is_not_tried_again(tmp_path):
    status, lines = run(tmp_path, "0:1,1:1,2:1")
    assert (status, starts(tmp_path)) == (MISTAKE, [1, 1, 1])
    assert not any("again" in line for line in lines)


def test_a_run_that_a_signal_to_one_has_stopped_stays_so(tmp_path):
    status, lines = run(tmp_path, "0:143,1:143,2:143")
    assert (status, starts(tmp_path)) == (143, [1, 1, 1])
    assert not any("again" in line for line in lines)


def test_it_gives_up(tmp_path):
    status, lines = run(tmp_path, "1:-9", max_restarts=0)
    assert status == 128 + signal.SIGKILL
    assert lines[-1] == "given up after 0 restarts"


def test_those_who_outlive_a_lost_one_for_long_are_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(launching, "GRACE", 0.5)
    started = time.monotonic()
    status, _ = run(tmp_path, "1:-9", seconds=60.0, max_restarts=0)
    assert status == 128 + signal.SIGKILL
    assert time.monotonic() - started < 30


# Says when it is ready, and at SIGTERM saves for so many seconds.
SAVING = """
import os, signal, sys, time
place = dict(word.lstrip("-").split("=") for word in sys.argv[1:] if word.startswith("--"))
def save(number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(float(sys.argv[2]))
    open(f"{sys.argv[1]}/{place['process_id']}", "w").close()
    os._exit(128 + number)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)
"""


def start_saving(folder, seconds: float, *before: str) -> subprocess.Popen:
    script = (
        "import sys; from jaxseg import launch, process; process.BURST = 0.2; "
        f"sys.exit(launch.launch(2, sys.argv[1:], command=(sys.executable, '-c', {SAVING!r})))"
    )
    command = [*before, sys.executable, "-c", script, str(folder), str(seconds)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for _ in range(2):
        assert "ready" in process.stdout.readline()
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_signals_are_passed_on_once_and_all_save(number, pause, tmp_path):
    process = start_saving(tmp_path, 1.0)
    process.send_signal(number)
    time.sleep(pause)
    process.send_signal(number)
    assert process.wait(timeout=30) == 128 + number
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def test_a_third_signal_ends_all_at_once(tmp_path):
    process, began = start_saving(tmp_path, 50.0), time.monotonic()
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.4)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 25 and list(tmp_path.iterdir()) == []


def test_a_terminal_that_is_closed_ends_nothing_under_nohup(tmp_path):
    process = start_saving(tmp_path, 0.0, "nohup")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None and list(tmp_path.iterdir()) == []
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM


def test_gpus_are_dealt_out_evenly(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert [launching._devices(i, 2)["CUDA_VISIBLE_DEVICES"] for i in range(2)] == ["4,5", "6,7"]
    with pytest.raises(UserError, match=r"--num_processes is 3, and there are 4 GPUs"):
        launching._devices(0, 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert launching._devices(0, 2) == {}


def test_cores_are_dealt_out_evenly(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cores = sorted(os.sched_getaffinity(0))
    lines = []
    launch(len(cores), [str(tmp_path), "", "0"], command=COMMAND, log=lines.append)
    assert sorted(lines) == sorted(f"[{i}] cores [{core}]" for i, core in enumerate(cores))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--num_processes=0", "--", "--config=a.py"], "--num_processes is 0: at least 1 is due"),
        (["--num_processes=2", "--max_restarts=-1", "--", "x"], "--max_restarts is -1: at least 0 is due"),
        (["--num_processes=2"], "the flags of jaxseg.main are missing"),
    ],
)
def test_a_command_line_that_can_not_be_is_refused(arguments, words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
