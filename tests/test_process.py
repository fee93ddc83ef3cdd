"""Signals to a process that must save before it ends."""

import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT

from jaxseg.process import at_once

# Saves for as long as it is told, in Python or within a call that Python's own handlers wait for.
SAVING = """
import ctypes, signal, sys, time
from jaxseg import process
process.BURST = 0.3
with process.catch_signals() as signalled:
    print("ready", flush=True)
    while not signalled():
        time.sleep(0.01)
    print("saving", flush=True)
    end = time.monotonic() + float(sys.argv[1])
    while time.monotonic() < end:
        time.sleep(0.01) if sys.argv[2] == "python" else ctypes.CDLL(None).pause()
    print("saved", signal.Signals(signalled()).name, flush=True)
"""


def start(seconds: float, where: str = "python", *before: str) -> subprocess.Popen:
    command = [*before, sys.executable, "-c", SAVING, str(seconds), where]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def test_only_a_third_and_later_signal_ends_at_once():
    assert not at_once([0.0]) and not at_once([0.0, 9.0])
    assert not at_once([0.0, 0.1, 0.2, 0.3])
    assert at_once([0.0, 0.1, 5.0]) and at_once([0.0, 4.0, 8.0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("pause", [0.0, 0.02, 0.05, 0.6])
def test_a_second_signal_does_not_prevent_the_saving(number, pause):
    process = start(1.0)
    process.send_signal(number)
    time.sleep(pause)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, f"saving\nsaved {number.name}\n", "")


@pytest.mark.parametrize("where", ["python", "library"])
def test_a_third_ends_at_once_wherever_the_process_waits(where):
    process = start(60.0, where)
    began = time.monotonic()
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (128 + signal.SIGTERM, "saving\n")
    assert time.monotonic() - began < 20


def test_a_terminal_that_is_closed_ends_nothing_under_nohup():
    process = start(0.0, "python", "nohup")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "saving\nsaved SIGTERM\n")
