"""A hundred strangers at the port of process 0, at every stage: the run ends as without them."""

import concurrent.futures
import random
import re
import time

import pytest
from strangers import answering, any_stranger, visit
from test_processes import ends as end_meeting
from test_processes import start as start_meeting
from test_several import SLOW_STEPS, assert_equal_run, ends, start, until

from jaxseg.processes.place import free_port

pytest_plugins = ["tiny_runs"]
COUNT = 100
ANSWERS = 40

pytestmark = pytest.mark.nightly


def strangers(seed: int, count: int) -> list[list[bytes]]:
    chance = random.Random(seed)
    return [any_stranger(chance) for _ in range(count)]


def quiet(*said: str) -> bool:
    return not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]|Traceback|Exception", "".join(said))


def test_no_stranger_ends_or_delays_a_meeting(tmp_path):
    found = []
    for number, sent in enumerate(strangers(0, COUNT)):
        port, workdir = free_port(), tmp_path / str(number)
        first = start_meeting(0, 2, port, workdir, timeout=30.0)
        came = visit(port, sent)
        began = time.monotonic()
        results = end_meeting(first, start_meeting(1, 2, port, workdir, timeout=30.0))
        statuses = [status for status, _, _ in results]
        if not came or statuses != [0, 0] or not quiet(*results[0][1:]) or time.monotonic() - began > 25:
            found.append((number, sent[0][:50], statuses, results[0][2]))
    assert found == []


def test_no_answer_of_a_stranger_is_believed(tmp_path):
    found = []
    for number, sent in enumerate(strangers(1, ANSWERS)):
        with answering(b"".join(sent)) as (port, _):
            began = time.monotonic()
            ((status, out, error),) = end_meeting(start_meeting(1, 2, port, tmp_path / str(number), timeout=1.0))
        if status != 1 or not error.startswith("error: process 1 ") or not quiet(out, error):
            found.append((number, sent[0][:50], status, error))
        assert time.monotonic() - began < 25
    assert found == []


def test_a_run_of_two_processes_ends_as_without_strangers(workplace, tmp_path):
    ((status, _, err),) = ends(start(workplace, 1, tmp_path / "due"))
    assert status == 0, err
    visits = iter(strangers(2, COUNT))
    started = start(workplace, 2, tmp_path / "run", before=SLOW_STEPS)
    (port,) = {int(word.rpartition(":")[2]) for word in started[0].args if word.startswith("--coordinator=")}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        # The second may meet the first at any time while these come.
        before = [pool.submit(visit, port, next(visits)) for _ in range(COUNT // 2)]
        until(started[0], "step 1/")
        during = [pool.submit(visit, at, sent) for at, sent in zip([port, port + 1] * COUNT, visits, strict=False)]
        results = ends(started)
        concurrent.futures.wait([*before, *during])
    assert [status for status, _, _ in results] == [0, 0], results
    assert quiet(*(text for result in results for text in result[1:]))
    assert_equal_run(tmp_path / "run", tmp_path / "due")
