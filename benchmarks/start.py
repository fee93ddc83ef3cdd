"""Seconds from the command to the first step, cold and warm: `python benchmarks/start.py [--config=FILE]`.

Cold is with an empty compile cache, warm with what the run before left there; the data is prepared in a run of its own.
Both as the machine is and, on a CPU, without oneDNN, whose programs can't be kept. Flags that are not known here go to
`jaxseg.main`.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time

MARKS = {
    "imports, data, weights": r"all of it goes to ",
    "to the end of the first step": r"first step after ",
    "to the end of the run": r"^done",
}


def run(config: str, flags: list[str], cache: str, onednn: str = "1") -> dict[str, float]:
    """Seconds from the start of a run of two steps to each of `MARKS`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "jaxseg.main", f"--config={config}", f"--workdir={folder}/run", *flags]
        command += ["--config.train.num_steps=2", "--config.train.num_epochs=0"]
        started, passed, said = time.perf_counter(), {}, []
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "XDG_CACHE_HOME": cache, "JAXSEG_ONEDNN": onednn},
        )
        for line in process.stdout:
            said.append(line)
            for mark, words in MARKS.items():
                if re.search(words, line):
                    passed.setdefault(mark, time.perf_counter() - started)
        if process.wait():
            sys.exit("".join(said))
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--rounds", type=int, default=3)
    arguments, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as cache:
        run(arguments.config, flags, cache)
    rows: dict[str, list[dict[str, float]]] = {}
    for _ in range(arguments.rounds):
        for onednn, words in (("1", ""), ("0", ", JAXSEG_ONEDNN=0")):
            with tempfile.TemporaryDirectory() as cache:
                for kind in ("cold", "warm"):
                    rows.setdefault(kind + words, []).append(run(arguments.config, flags, cache, onednn))
    print(f"Seconds, {arguments.config}, best of {arguments.rounds}\n\n| | {' | '.join(MARKS)} |")
    print(f"|---|{'---:|' * len(MARKS)}")
    for kind, runs in rows.items():
        print(f"| {kind} | {' | '.join(f'{min(passed[mark] for passed in runs):.1f}' for mark in MARKS)} |")


if __name__ == "__main__":
    main()
