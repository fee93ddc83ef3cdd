"""Random changes of a config: each is refused in one line, or trains two steps to a finite loss within memory."""

import collections
import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest
from helpers import ROOT, write_camvid

pytestmark = pytest.mark.nightly

CASES = 1000
SEED = 24
TOGETHER = 25  # cases of a process
SECONDS = 300.0  # that a case may take; most take one or two


def results(data: pathlib.Path, work: pathlib.Path, first: int, last: int) -> list[dict]:
    """What came of the cases from `first` to `last`; a process that hangs or dies costs the case it was at."""
    script, found = pathlib.Path(__file__).with_name("config_cases.py"), []
    environment = {
        **os.environ,
        "TFDS_DATA_DIR": str(work / "prepared"),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_NUM_CPU_DEVICES": str(1 + first // TOGETHER % 2),
        "PYTHONPATH": str(ROOT),
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0",
    }
    while first < last:
        count = min(TOGETHER, last - first)
        command = [sys.executable, str(script), str(data), str(work), str(SEED), str(first), str(count)]
        with open(work / "errors", "wb") as errors:
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        for _ in range(count):
            timer = threading.Timer(SECONDS, process.kill)
            timer.start()
            line = process.stdout.readline()
            hung = not timer.is_alive()
            timer.cancel()
            if not line:
                said = (work / "errors").read_text(errors="replace")[-400:]
                found.append({"number": first, "outcome": "hang" if hung else "died", "said": said})
                first += 1
                break
            found.append(json.loads(line))
            first += 1
        process.kill()
        process.wait()
        process.stdout.close()
    return found


def test_a_random_config_is_refused_in_one_line_or_trains(tmp_path):
    data = write_camvid(tmp_path / "camvid")
    found = results(data, tmp_path, 0, CASES)
    counts = collections.Counter(result["outcome"] for result in found)
    print(dict(counts))
    wrong = [result for result in found if result["outcome"] not in ("refused", "trained")]
    assert not wrong, "\n".join(map(str, wrong))
    assert counts["trained"] > CASES / 20 and counts["refused"] > CASES / 2
