"""Processes that meet, agree and watch each other: real ones, over real sockets, without JAX."""

import concurrent.futures
import json
import os
import pathlib
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from strangers import STRANGERS, answering, visit

from jaxseg.errors import UserError
from jaxseg.processes import _listeners_give_way, meeting
from jaxseg.processes.group import FAULT
from jaxseg.processes.place import Place, detect_place, free_port, place_from_flags

PROCESS = """
import json, sys, time
from jaxseg.errors import UserError
from jaxseg.processes import group as watch, meeting, place

given = json.loads(sys.argv[1])
watch.BEAT, watch.SILENT = 0.2, 2.0
try:
    group = meeting.meet(place.Place(*given["place"]), given["facts"], given["workdir"], given["timeout"])
except UserError as error:
    sys.exit(f"error: {error}")
print("met", group.names, group.jax_address, flush=True)
try:
    with group.watch(lambda text: print("say", text, flush=True), given["silence"]):
        if given["later"]:
            group.agree(given["later"], lambda: given["closer"])
        group.waits_since = time.monotonic() if given["waits"] else None
        time.sleep(given["waits"])
        group.waits_since = None
        time.sleep(given["seconds"])
        if given["mistake"]:
            raise UserError(given["mistake"])
        if given["fails"]:
            raise RuntimeError("out of luck")
except UserError as error:
    sys.exit(f"error: {error}")
print("left", flush=True)
"""


def start(process_id: int, num_processes: int, port: int, workdir, **given) -> subprocess.Popen:
    defaults = {"facts": {}, "timeout": 20.0, "silence": 60.0, "seconds": 0.5, "fails": False}
    defaults |= {"later": {}, "closer": {}, "mistake": "", "waits": 0.0}
    place = (f"localhost:{port}", num_processes, process_id)
    given = {**defaults, "place": place, "workdir": str(workdir), **given}
    command = [sys.executable, "-c", PROCESS, json.dumps(given)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, env={**os.environ, "PYTHONPATH": os.getcwd()})


def ends(*started: subprocess.Popen) -> list[tuple[int, str, str]]:
    """Status, output and the last line of the errors of each."""
    results = []
    for process in started:
        out, err = process.communicate(timeout=30)
        results.append((process.returncode, out, err.strip().splitlines()[-1] if err.strip() else ""))
    return results


def until(process: subprocess.Popen, word: str) -> str:
    for line in process.stdout:
        if word in line:
            return line
    raise AssertionError(f"it ended without '{word}': {process.stderr.read()}")


# -------------------------------------------------------------------------------------------------------------- flags


def test_a_place_is_three_flags_and_none_is_one_process():
    assert place_from_flags("node1:1234", 4, 3) == Place("node1:1234", 4, 3)
    assert Place("[::1]:1234", 2, 0).address == ("::1", 1234)
    assert place_from_flags("", 0, -1) is None
    assert place_from_flags("node1:1234", 1, 0) is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("node1:1234", 0, 2), "--num_processes must be given too"),
        (("", 2, -1), "--coordinator and --process_id must be given too"),
        (("node1:1234", 2, 2), "--process_id=2 is beyond --num_processes=2: count from 0"),
        (("node1", 2, 0), "--coordinator=node1 is no HOST:PORT"),
        (("node1:99999", 2, 0), "--coordinator=node1:99999 is no HOST:PORT"),
    ],
)
def test_flags_that_make_no_place_are_named(flags, words):
    with pytest.raises(UserError, match=words):
        place_from_flags(*flags)


# ------------------------------------------------------------------------------------------------------------- meeting


def test_processes_meet_and_leave(tmp_path):
    port = free_port()
    facts = {"config": {"train.seed": 0}}
    results = ends(*(start(i, 3, port, tmp_path / "run", facts=facts) for i in (2, 0, 1)))
    assert [status for status, _, _ in results] == [0, 0, 0]
    first = [out.splitlines()[0] for _, out, _ in results]
    assert len(set(first)) == 1
    assert [f"process {i} ({socket.gethostname()}, pid" in first[0] for i in range(3)] == [True] * 3
    assert all(out.endswith("left\n") for _, out, _ in results)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_process_that_does_not_come_is_named_by_all(tmp_path):
    port = free_port()
    for status, _, error in ends(*(start(i, 4, port, tmp_path, timeout=2.0) for i in (0, 2))):
        assert status == 1
        assert "error: processes 1, 3 of 4 did not come within 2 s" in error


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"num_processes": 3}, "was started with --num_processes=3 and process 0"),
        ({"process_id": 0}, "port {port} is in use"),
        (
            {"facts": {"config": {"train.seed": 1, "data.name": "voc"}}},
            "differs from process 0 .* in its config: train.seed",
        ),
        ({"workdir": "elsewhere", "timeout": 6.0}, "does not see what process 0 .* writes to the workdir"),
    ],
)
def test_a_process_that_was_started_otherwise_is_named_by_all(second, words, tmp_path):
    port = free_port()
    facts = {"config": {"train.seed": 0, "data.name": "voc"}}
    first = start(0, 2, port, tmp_path, facts=facts, timeout=8.0)
    time.sleep(0.5)
    if "workdir" in second:
        second["workdir"] = tmp_path / second["workdir"]
    other = start(**{"process_id": 1, "num_processes": 2, "port": port, "workdir": tmp_path, "facts": facts} | second)
    results = ends(first, other)
    assert [status for status, _, _ in results] == [1, 1]
    if "process_id" in second:  # it can't reach the other, which has the port
        assert re.search(words.format(port=port), results[1][2])
        assert "process 1 of 2 did not come" not in results[1][2]
    elif "workdir" in second:  # for all that process 0 knows it is a stranger
        assert re.search(r"process 1 of 2 did not come .*; \d who connected", results[0][2])
        assert re.search(words, results[1][2])
    else:
        assert all(re.search(words, error) for _, _, error in results)


def test_two_processes_of_one_number_are_named(tmp_path):
    port = free_port()
    for status, _, error in ends(*(start(i, 3, port, tmp_path) for i in (0, 1, 1))):
        assert status == 1
        assert "there are two processes with --process_id=1: process 1" in error


def test_a_process_0_that_is_not_there_is_named_with_its_address(tmp_path):
    port = free_port()
    ((status, _, error),) = ends(start(1, 2, port, tmp_path, timeout=1.0))
    assert status == 1
    assert f"process 1 could not reach process 0 at --coordinator=localhost:{port} in 1 s (Connection refused)" in error


def test_strangers_are_turned_away_and_told_of_once(tmp_path):
    port = free_port()
    first = start(0, 2, port, tmp_path, timeout=40.0)
    with concurrent.futures.ThreadPoolExecutor(len(STRANGERS) + 1) as pool:
        silent = pool.submit(visit, port, [b""], stay=3.0)
        assert all(pool.map(lambda sent: visit(port, sent), STRANGERS))
        results = ends(first, start(1, 2, port, tmp_path, timeout=40.0))
        assert silent.result()
    assert [status for status, _, _ in results] == [0, 0], results
    said = results[0][1] + results[0][2]
    assert said.count("turned away") == len(set(re.findall(r"somebody at (\S+) ", said))) in (1, 2)  # ::1, 127.0.0.1
    assert "\x1b" not in said and "Traceback" not in said


@pytest.mark.parametrize(
    "answer", [b"", b"echo", b"HTTP/1.1 400\r\n\r\n", b"[]\n", b"a" * 10**6, b'{"names": [], "jax": 1, "met": true}\n']
)
def test_a_stranger_at_the_address_of_process_0_is_not_believed(answer, tmp_path):
    with answering(answer) as (port, heard):
        other = start(1, 2, port, tmp_path, timeout=2.0)
        (tmp_path / ".processes").write_text("0" * 32)
        ((status, _, error),) = ends(other)
    assert status == 1
    assert error.startswith("error: process 1 ") and "somebody else answers there" in error
    assert b"facts" not in b"".join(heard) and b"0" * 32 not in b"".join(heard)


# ------------------------------------------------------------------------------------------------------ while they work


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_process_that_is_killed_is_named_by_all_others(victim, tmp_path):
    port = free_port()
    started = [start(i, 3, port, tmp_path, seconds=25.0) for i in range(3)]
    for process in started:
        until(process, "met")
    killed = time.monotonic()
    started[victim].kill()
    results = ends(*started)
    assert time.monotonic() - killed < 10
    for i, (status, _, error) in enumerate(results):
        if i != victim:
            assert status == FAULT
            assert error.startswith(f"error: process {victim} (")
            assert "ended without a word" in error


def test_an_error_of_one_ends_all_with_its_words(tmp_path):
    port = free_port()
    started = [start(i, 3, port, tmp_path, seconds=0.5 if i == 2 else 25.0, fails=i == 2) for i in range(3)]
    results = ends(*started)
    assert [status for status, _, _ in results] == [FAULT, FAULT, 1]
    for _, _, error in results[:2]:
        assert error.startswith("error: process 2 (")
        assert "failed: RuntimeError: out of luck" in error


@pytest.mark.parametrize(("stopped", "teller"), [(1, 0), (0, 1)])
def test_a_process_that_is_stopped_is_waited_for_by_name(stopped, teller, tmp_path):
    port = free_port()
    started = [start(i, 3, port, tmp_path, seconds=10.0) for i in range(3)]
    for process in started:
        until(process, "met")
    started[stopped].send_signal(signal.SIGSTOP)
    assert f"waiting for process {stopped} (" in until(started[teller], "say")
    started[stopped].send_signal(signal.SIGCONT)
    assert f"process {stopped} (" in until(started[teller], "is back")
    assert [status for status, _, _ in ends(*started)] == [0, 0, 0]


def test_a_process_that_stays_silent_is_given_up(tmp_path):
    port = free_port()
    started = [start(i, 2, port, tmp_path, seconds=25.0, silence=3.0) for i in range(2)]
    for process in started:
        until(process, "met")
    started[1].send_signal(signal.SIGSTOP)
    ((status, _, error),) = ends(started[0])
    assert status == FAULT
    assert "error: process 1 (" in error and "was silent for 3 s" in error
    started[1].send_signal(signal.SIGCONT)
    ((status, _, error),) = ends(started[1])
    assert status == FAULT


@pytest.mark.parametrize("late", [0, 2])
def test_a_process_whose_batch_does_not_come_is_named_once(late, tmp_path):
    port = free_port()
    given = [{"waits": 4.0, "seconds": 1.0} if i == late else {"waits": 0.1, "seconds": 5.0} for i in range(3)]
    results = ends(*(start(i, 3, port, tmp_path, **given[i]) for i in range(3)))
    assert [status for status, _, _ in results] == [0, 0, 0]
    said = [[line for line in out.splitlines() if line.startswith("say")] for _, out, _ in results]
    assert said[1:] == [[], []]
    assert len(said[0]) == 2
    assert re.fullmatch(rf"say waiting for process {late} \(.*\): its batch has not come for 2 s", said[0][0])
    assert re.fullmatch(rf"say process {late} \(.*\) has its batch, after [34] s", said[0][1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads have priorities on Linux alone")
def test_a_thread_that_starts_to_listen_gives_way_and_no_other():
    done, threads = threading.Event(), {}

    def listen():
        with select.epoll() as epoll:
            while not done.is_set():
                epoll.poll(1.0)

    def start_thread(name, work):
        threads[name] = threading.Thread(target=work)
        threads[name].start()

    start_thread("listened before", listen)
    with _listeners_give_way():
        start_thread("listens", listen)
        start_thread("works", done.wait)
        time.sleep(0.5)
    priorities = {name: os.getpriority(os.PRIO_PROCESS, thread.native_id) for name, thread in threads.items()}
    done.set()
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert priorities == {"listened before": own, "listens": 19, "works": own}


def test_facts_that_come_up_later_are_compared_too(tmp_path):
    for due in ("", "records"):
        port = free_port()
        given = [{"later": {"data": {"records": str(i) if due else "0", "train": 8}}} for i in range(3)]
        results = ends(*(start(i, 3, port, tmp_path, **given[i]) for i in range(3)))
        assert [status for status, _, _ in results] == [1 if due else 0] * 3
        if due:
            assert len({error for _, _, error in results}) == 1
            assert re.search(r"process \d .* differs from process 0 .* in its data: records is", results[0][2])


def test_what_differs_is_looked_at_more_closely_and_the_first_is_named(tmp_path):
    port, records = free_port(), [f"street_{i}, images 0, labels {i}" for i in range(12)]
    given = []
    for content in ("a", "b"):
        facts = {f"record {i} of train": record + content * (i > 9) for i, record in enumerate(records)}
        given.append({"later": {"data": {"content of train": content}}, "closer": {"data": facts}})
    results = ends(*(start(i, 2, port, tmp_path, **given[i]) for i in range(2)))
    for status, _, error in results:
        assert status == 1
        assert re.search(
            r"process 1 .* in its data: record 10 of train is street_10, images 0, labels 10b and not", error
        )
        assert "content of" not in error


ASKING = """
import json, os, pathlib, signal, sys, time
from jaxseg import process
from jaxseg.processes import group as watch, meeting, place

number, count, port, workdir, slow, signalled_at = json.loads(sys.argv[1])
watch.BEAT, process.BURST = 0.1, 0.3
with meeting.meet(place.Place(f"localhost:{port}", count, number), {}, workdir, 20.0).watch(print, 60.0) as group:
    decisions = [group.decided([number, float("inf"), {"stale": i}]) for i in range(100)]
    with group.catch_signals() as asked:
        for call in range(1, 10_000):
            if call == signalled_at:
                os.kill(os.getpid(), signal.SIGHUP)
            if came := asked():
                break
            time.sleep(slow)
    print(json.dumps([call, came, decisions]), flush=True)
"""


def test_a_signal_to_any_comes_to_all_at_one_call_and_process_0_decides(tmp_path):
    port, started = free_port(), []
    for number, (slow, signalled_at) in enumerate([(0.02, 0), (0.001, 100), (0.0005, 130)]):
        given = json.dumps([number, 3, port, str(tmp_path), slow, signalled_at])
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}
        started.append(subprocess.Popen([sys.executable, "-c", ASKING, given], **pipes, env=environment))
    results = ends(*started)
    assert [status for status, _, _ in results] == [0, 0, 0], results
    told = [json.loads(out) for _, out, _ in results]
    assert told[0] == told[1] == told[2]
    assert told[0][1] == signal.SIGHUP and told[0][0] >= 100
    assert told[0][2] == [[0, float("inf"), {"stale": i}] for i in range(100)]


def test_a_mistake_of_one_is_no_fault_of_the_others(tmp_path):
    port = free_port()
    started = [start(i, 2, port, tmp_path, seconds=0.2 if i else 25.0, mistake="no such file" * i) for i in range(2)]
    results = ends(*started)
    assert [status for status, _, _ in results] == [1, 1]
    assert results[0][2].endswith("failed: no such file")


def test_the_token_in_the_workdir_goes_whatever_happens(tmp_path):
    with pytest.raises(UserError, match="did not come"):
        meeting.meet(Place(f"localhost:{free_port()}", 2, 0), {}, tmp_path, 0.2)
    assert list(pathlib.Path(tmp_path).iterdir()) == []


# ----------------------------------------------------------------------------------------------- who tells of the place


def in_slurm(monkeypatch, processes_there: int) -> None:
    told = {"JOB_ID": 4000, "STEP_NODELIST": "gpu[07-09],gpu12", "NTASKS": processes_there, "PROCID": 2, "LOCALID": 0}
    for name, value in told.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))


def test_a_place_is_told_by_slurm(monkeypatch):
    assert detect_place() is None
    in_slurm(monkeypatch, 4)
    monkeypatch.setenv("JAX_COORDINATOR_PORT", "1234")
    assert detect_place() == Place("gpu07:1234", 4, 2, detected=True)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert detect_place() is None


def test_a_place_is_told_by_open_mpi(monkeypatch):
    uri = "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"
    told = {"MCA_orte_hnp_uri": uri, "COMM_WORLD_SIZE": "8", "COMM_WORLD_RANK": "5", "COMM_WORLD_LOCAL_RANK": "1"}
    for name, value in told.items():
        monkeypatch.setenv(f"OMPI_{name}", value)
    place = detect_place()
    assert (place.num_processes, place.process_id) == (8, 5)
    assert place.address[0] == "10.96.0.1"


def test_a_pod_of_no_indexed_job_is_one_process(monkeypatch, recwarn):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert detect_place() is None
    assert not recwarn.list


def test_a_place_that_can_not_be_read_is_said(monkeypatch):
    in_slurm(monkeypatch, 4)
    monkeypatch.setenv("SLURM_PROCID", "two")
    with pytest.raises(UserError, match=r"process of SlurmCluster, but .* can't be read .*give --coordinator"):
        detect_place()
