"""What names from outside do to a terminal: nothing."""

import importlib
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxseg import metrics, writers
from jaxseg.errors import printable, shown
from jaxseg.streams import print_line

HOSTILE = "\x1b[2J\rerror: \u202e\x9b\udcff"


def controls(text: str) -> list[str]:
    return [char for char in text if char != "\n" and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


@given(st.text())
def test_what_is_shown_is_one_line_and_can_be_encoded(name):
    assert not controls(shown(name)) and "\n" not in shown(name)
    assert not controls(printable(name)) and printable(name).count("\n") == name.count("\n")
    shown(name).encode()
    assert printable(printable(name)) == printable(name)


def test_a_printed_line_obeys_nothing_that_it_holds(capsys):
    print_line(f"{HOSTILE}\nsecond")
    out = capsys.readouterr().out
    assert not controls(out) and out.count("\n") == 2


@pytest.mark.parametrize("module", ["jaxseg.predict", "jaxseg.compare.__main__", "jaxseg.launch", "jaxseg.data.folder"])
def test_what_was_given_to_a_command_stands_escaped_in_its_errors(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", f"--{HOSTILE}", f"--x={HOSTILE}", "a", "b", HOSTILE])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main()
    out, err = capsys.readouterr()
    assert ended.value.code
    assert not controls(out + err + str(ended.value.code))


def test_a_table_has_a_line_a_class_whatever_they_are_called():
    names = (HOSTILE, "a\nb", "plain")
    lines = metrics.table(np.eye(3, dtype=int), names).split("\n")
    assert len(lines) == 1 + 3 + 1 + 1
    assert not [line for line in lines if controls(line)]


def test_tags_of_events_are_escaped_and_stay_apart():
    tagged = writers._tagged({"iou/a\x1b": 1, "iou/a\\x1b": 2, "iou/plain": 3})
    assert tagged["iou/plain"] == 3 and sorted(tagged.values()) == [1, 2, 3]
    assert not [name for name in tagged if controls(name)]
