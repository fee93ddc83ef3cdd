"""Only regular files are opened; names from outside are shown escaped."""

import os

import pytest

from jaxseg.errors import UserError, shown
from jaxseg.files import open_regular, read_bytes


def test_a_regular_file_and_a_link_to_one_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_bytes(tmp_path / "file", most=3) == read_bytes(tmp_path / "link", most=3) == b"abc"


def test_a_larger_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"abcd")
    with pytest.raises(UserError, match=r"file has 4 bytes; at most 3"):
        read_bytes(tmp_path / "file", most=3)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "link to a device", "missing", "dangling link"])
def test_nothing_else_is_opened(tmp_path, kind):
    path = tmp_path / "it"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = "/dev/zero"
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to a device":
        path.symlink_to("/dev/random")
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot read"):
        open_regular(path)


@pytest.mark.parametrize(
    ("name", "due"),
    [
        ("plain é 漢 🎉.png", "plain é 漢 🎉.png"),
        ("a\rb", r"a\rb"),
        ("\x1b[2J", r"\x1b[2J"),
        ("x\u202ey", r"x\u202ey"),
        (os.fsdecode(b"caf\xe9"), r"caf\udce9"),
        ("two\nlines\u2028three", r"two\nlines\u2028three"),
    ],
)
def test_names_are_shown_escaped(name, due):
    assert shown(name) == due
    shown(name).encode()
