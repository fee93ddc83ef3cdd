"""Variables of the environment that are wrong end in one line, names beyond ASCII are read whatever the locale."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT, one_error

from jaxseg.environment import check_environment, find_devices
from jaxseg.errors import UserError
from jaxseg.process import one_line_errors

UTF8 = "from jaxseg.environment import check_environment; check_environment(); import sys, os\n"


def python(code: str, *options: str, **environment: str) -> tuple[int, str, str]:
    """Exit status, standard output and error of a command that begins as all commands do."""
    code = f"from jaxseg.process import one_line_errors\nwith one_line_errors():\n    {code}"
    command = [sys.executable, *options, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, timeout=120)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("JAX_PLATFORMS", "cuda"),
        ("JAX_PLATFORMS", "nonsense"),
        ("JAX_ENABLE_X64", "maybe"),
        ("XLA_FLAGS", "--xla_no=1"),
    ],
)
def test_a_variable_that_jax_refuses_is_named_in_one_line(variable, value):
    code = "from jaxseg.environment import *; check_environment(); find_devices(); print('found')"
    status, out, err = python(code, **{variable: value})
    if "found" in out:
        pytest.skip(f"this machine has {value}")
    message = one_error(status, err)
    assert variable.partition("_")[0] in message and value in message


@pytest.mark.parametrize(
    "flags", ["--xla_foo", "--xla_force_host_platform_device_count=abc", "/nowhere/flags --xla_foo"]
)
def test_flags_that_xla_would_abort_at_are_refused(flags, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", flags)
    with pytest.raises(UserError, match=r"^XLA_FLAGS is "):
        check_environment()


def test_flags_that_xla_has_are_taken(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    check_environment()
    find_devices()


@pytest.mark.parametrize("environment", [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0"}])
def test_names_beyond_ascii_are_read_whatever_the_locale(environment, tmp_path):
    (tmp_path / "straße.txt").write_text("größer", encoding="utf-8")
    code = f"{UTF8}    print(ascii(open(os.listdir(sys.argv[1])[0] and sys.argv[1] + '/stra\\u00dfe.txt').read()))"
    code = code.replace("; import", "\n    import")
    done = subprocess.run(
        [sys.executable, "-c", f"if True:\n    {code}", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONCOERCECLOCALE": "0", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == ascii("größer") + "\n", done.stderr


def test_a_python_that_can_not_be_brought_to_utf8_is_refused():
    code = "from jaxseg.environment import *; check_environment()"
    environment = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    assert "utf8" in one_error(*python(code, "-X", "utf8=0", **environment)[::2])


def test_a_path_that_the_file_system_refuses_ends_in_one_line(tmp_path):
    with pytest.raises(SystemExit) as ended, one_line_errors():
        (tmp_path / ("x" * 300)).read_bytes()
    assert "x" * 100 in str(ended.value) and "\n" not in str(ended.value)
    with pytest.raises(SystemExit) as ended, one_line_errors():
        bytearray(2**60)
    assert "memory" in str(ended.value)
    with pytest.raises(RuntimeError, match="a mistake of ours"), one_line_errors():
        raise RuntimeError("a mistake of ours")
