"""Standard output and error that are closed, full, stuck or narrow: the work goes on and says so once."""

import os
import re
import subprocess
import sys
import time

import pytest
from helpers import ROOT

COMMAND = "from jaxseg.streams import keep_streams, print_line\nkeep_streams()\n"
PYTHON = "from jaxseg.streams import print_line\n"
WORK = """
import pathlib, sys
for i in range(3):
    print_line(f"line {i}")
pathlib.Path(sys.argv[1]).write_text("done")
"""


def run(redirected: str, code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """`code` in a process behind a shell that redirects its streams; its own status, not that of what reads it."""
    command = f'"$0" -c "$1" "${{@:2}}" {redirected}; exit ${{PIPESTATUS[0]}}'
    return subprocess.run(
        ["bash", "-c", command, sys.executable, code, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        timeout=60,
    )


@pytest.mark.parametrize("begin", [COMMAND, PYTHON])
@pytest.mark.parametrize(
    ("redirected", "told"),
    [
        (">&-", b""),
        ("2>&-", b""),
        (">&- 2>&- <&-", b""),
        (">/dev/full", b"No space left"),
        (">/dev/full 2>/dev/full", b""),
        ("| sleep 0", b"Broken pipe"),
    ],
)
def test_a_stream_that_takes_nothing_ends_nothing(begin, redirected, told, tmp_path):
    slow = WORK.replace("print_line(f", "__import__('time').sleep(0.2); print_line(f")
    done = run(redirected, begin + (slow if "|" in redirected else WORK), str(tmp_path / "file"))
    assert (done.returncode, (tmp_path / "file").read_text()) == (0, "done")
    assert done.stderr.count(told) == 1 if told else b"Traceback" not in done.stderr
    assert done.stdout == (b"line 0\nline 1\nline 2\n" if redirected == "2>&-" else b"")


def test_a_closed_stream_is_told_on_the_other_once_and_its_number_is_no_files(tmp_path):
    code = COMMAND + WORK + "print(open(sys.argv[1]).fileno() > 2, file=sys.stderr)\n"
    done = run(">&-", code, str(tmp_path / "file"))
    assert done.returncode == 0
    told, numbered = done.stderr.splitlines()
    assert b"standard output" in told and numbered == b"True"


def test_a_stream_that_nobody_reads_is_left_out_and_said_where_it_goes_on():
    code = (
        "import sys, time\nfrom jaxseg import streams\nstreams.PATIENCE = 0.5\nstreams.keep_streams()\n"
        "for i in range(200):\n    print('x' * 999)\n"
        "print('all written', file=sys.stderr, flush=True)\nsys.stdin.readline()\nprint('end')\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes)
    started = time.monotonic()
    assert b"nobody reads it" in process.stderr.readline()
    assert process.stderr.readline() == b"all written\n"  # and it did not wait again and again
    assert time.monotonic() - started < 20
    os.set_blocking(process.stdout.fileno(), False)
    read = process.stdout.read()
    os.set_blocking(process.stdout.fileno(), True)
    process.stdin.write(b"\n")
    process.stdin.close()
    read += process.stdout.read()
    assert process.wait() == 0
    assert read.endswith(b"\nend\n")
    (note,) = re.findall(rb"\[(\d+) bytes [^\n]*\n", read)
    (whole,) = re.findall(rb"\[\d+ bytes [^\n]*\n", read)
    assert len(read) - len(whole) + int(note) == 200 * 1000 + len(b"end\n")


@pytest.mark.parametrize("module", ["predict", "compare", "launch", "data.folder"])
def test_every_command_keeps_its_streams(module):
    """A full standard output gave the status 120 at the interpreter's end."""
    code = f"import runpy, sys\nsys.argv = ['', '--help']\nrunpy.run_module('jaxseg.{module}', run_name='__main__')"
    done = run(">/dev/full", code)
    assert done.returncode == 0
    assert done.stderr.count(b"No space left") == 1 and b"Traceback" not in done.stderr


def test_what_python_says_of_preparing_is_lost_alone(tmp_path):
    code = "from jaxseg.data.progress import say\nfor i in range(3):\n    say(str(i))\nopen(sys.argv[1], 'w').close()"
    for redirected in ("2>/dev/full", "2>&-"):
        assert run(redirected, f"import sys\n{code}", str(tmp_path / "file")).returncode == 0
        assert (tmp_path / "file").exists()


@pytest.mark.parametrize("begin", [COMMAND, PYTHON])
def test_characters_beyond_the_encoding_are_escaped(begin):
    narrow = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run("", begin + r"print_line('stra\xdfe \u4e2d')", **narrow)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"stra\\xdfe \\u4e2d\n", b"")
