"""The lock on a workdir: one run at a time, of processes that live; and a workdir that goes away under a run."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from helpers import at_step, steps

from jaxseg import lock
from jaxseg.errors import UserError
from jaxseg.train import train

pytest_plugins = ["tiny_runs"]

HOLD = """
import sys, time
from jaxseg import lock
with lock.hold(sys.argv[1], print):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of `tmp_path / 'run'`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def take(workdir) -> list[str]:
    """Takes the lock and gives what was said."""
    lines = []
    with lock.hold(workdir, lines.append):
        pass
    return lines


def test_a_second_run_is_told_who_trains_there_and_since_when(holder, tmp_path):
    written = json.loads((tmp_path / "run" / ".lock").read_text())
    with pytest.raises(UserError) as error:
        take(tmp_path / "run")
    assert f"process {holder.pid} " in str(error.value) and written["since"] in str(error.value)
    assert written["pid"] == holder.pid and "\n" not in str(error.value)


def test_the_lock_of_a_process_that_was_killed_is_taken_over(holder, tmp_path):
    holder.kill()
    holder.wait()
    (line,) = take(tmp_path / "run")
    assert f"process {holder.pid} " in line
    assert take(tmp_path / "run") == []
    assert not (tmp_path / "run" / ".lock").exists()


def test_one_of_this_process_is_held_too_and_is_free_afterwards(tmp_path):
    with lock.hold(tmp_path, print), pytest.raises(UserError, match=f"process {os.getpid()} "):
        take(tmp_path)
    assert take(tmp_path) == [] and list(tmp_path.iterdir()) == []


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path):
    with pytest.raises(ZeroDivisionError), lock.hold(tmp_path / "a" / "b", print):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def written_by(workdir, **other) -> None:
    with lock.hold(workdir, print):
        own = json.loads((workdir / ".lock").read_text())
    (workdir / ".lock").write_text(json.dumps(own | other))


def test_the_lock_of_another_machine_is_explained(tmp_path):
    written_by(tmp_path, host="elsewhere\x1b[2J", boot="another", pid=7)
    with pytest.raises(UserError) as error:
        take(tmp_path)
    assert "process 7 on elsewhere" in str(error.value) and str(tmp_path / ".lock") in str(error.value)
    assert "\x1b" not in str(error.value)
    (tmp_path / ".lock").unlink()
    assert take(tmp_path) == []


def test_a_machine_that_was_started_again_has_lost_its_processes(tmp_path):
    written_by(tmp_path, boot="the one before")
    assert len(take(tmp_path)) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', "\0\0"])
def test_a_lock_file_that_says_nothing_is_taken(text, tmp_path):
    (tmp_path / ".lock").write_text(text)
    assert take(tmp_path) == []


@pytest.mark.parametrize(("started", "lives"), [(None, True), ("1", False)])
def test_where_the_file_system_has_no_locks_the_process_is_looked_for(started, lives, holder, tmp_path, monkeypatch):
    def unsupported(file, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    path = tmp_path / "run" / ".lock"
    if started:  # a process that was given the number of one that ended
        path.write_text(json.dumps(json.loads(path.read_text()) | {"started": started}))
    if lives:
        with pytest.raises(UserError, match=f"process {holder.pid} "):
            take(tmp_path / "run")
    else:
        assert len(take(tmp_path / "run")) == 1


def test_a_run_in_a_workdir_that_is_held_touches_nothing(finished_copy, tiny):
    before = {path: path.stat().st_mtime_ns for path in finished_copy.rglob("*") if path.is_file()}
    with lock.hold(finished_copy, print), pytest.raises(UserError, match="in use"):
        train(tiny.config(train__num_steps=14), finished_copy, log=lambda line: None)
    assert {path: path.stat().st_mtime_ns for path in finished_copy.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("how", ["moved", "deleted", "replaced", "without its lock"])
def test_a_workdir_that_goes_away_ends_the_run_and_nothing_is_made_at_its_place(how, tiny, tmp_path, monkeypatch):
    workdir, moved = tmp_path / "run", tmp_path / "moved"

    def go() -> None:
        if how == "without its lock":
            (workdir / ".lock").unlink()
        elif how == "deleted":
            shutil.rmtree(workdir, ignore_errors=True)
            shutil.rmtree(workdir, ignore_errors=True)  # a save may have been writing
        else:
            workdir.rename(moved)
        if how == "replaced":
            workdir.mkdir()
            (workdir / "mine").write_text("mine")

    with monkeypatch.context() as patch:
        at_step(patch, 7, go)
        with pytest.raises(UserError) as error:
            train(tiny.config(), workdir, log=lambda line: None)
    assert str(workdir) in str(error.value) and "\n" not in str(error.value)
    if how == "without its lock":
        return
    assert [path.name for path in tmp_path.rglob("run/*")] == (["mine"] if how == "replaced" else [])
    if how != "deleted":
        assert f"--workdir={moved}" in str(error.value)
        assert steps(moved, "latest")[0] in (3, 6)
        train(tiny.config(), moved, log=lambda line: None)
        assert steps(moved, "latest") == [12]


def test_the_lock_ends_with_a_signal(holder, tmp_path):
    holder.send_signal(signal.SIGTERM)
    holder.wait()
    assert len(take(tmp_path / "run")) == 1
