"""Archives: what is taken, what is refused, and that nothing is left of what was refused."""

import gzip
import hashlib
import http.server
import io
import os
import tarfile
import threading

import pytest

from jaxseg.data import fetch
from jaxseg.data.fetch import Archive, unpacked
from jaxseg.errors import UserError

CONTENT = b"".join(hashlib.sha256(bytes([i])).digest() for i in range(200))  # that does not compress


def packed(*members, form="gz", pax=None):
    """A tar file as bytes; members are (name, content) or ready `TarInfo`s."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=f"w:{form}", format=tarfile.PAX_FORMAT, pax_headers=pax or {}) as archive:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member[0])
            content = b"" if isinstance(member, tarfile.TarInfo) else member[1]
            info.size = info.size or len(content)
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


GOOD = packed(("a/one", CONTENT), ("a/two", b"2"))


def put(folder, data, name="made.tgz"):
    """`data` as the archive that somebody has put there, its hash right."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return Archive(f"http://127.0.0.1:9/{name}", "sha256", hashlib.sha256(data).hexdigest())


def unpack(folder, archive):
    [place] = unpacked([archive], folder, "Or else.", False)
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.mark.parametrize("form", ["", "gz", "bz2", "xz"])
def test_an_archive_of_any_compression(tmp_path, form):
    archive = put(tmp_path, packed(("a/one", CONTENT), ("a/two", b"2"), form=form))
    for _ in range(2):
        assert unpack(tmp_path, archive) == {"a/one": CONTENT, "a/two": b"2"}
        (tmp_path / "made.tgz").unlink(missing_ok=True)  # it is not looked at again


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def with_header(**fields):
    info = tarfile.TarInfo("a")
    for name, value in fields.items():
        setattr(info, name, value)
    return info.tobuf()


BROKEN = {
    "cut short": GOOD[:-200],
    "cut in the checksum": GOOD[:-3],
    "a flipped byte of a file": flipped(GOOD, len(GOOD) // 2),
    "a flipped byte of its own checksum": flipped(GOOD, len(GOOD) - 6),
    "no archive": b"<html>404</html>" * 100,
    "nothing": b"",
    "no file in it": packed(),
    "NUL in a pax name": packed(("x", b"1"), form="", pax={"path": "a\0b"}),
    "a name too long": packed(("a" * 300, b"1")),
    "a file for a folder": packed(("a", b"1"), ("a/b", b"2")),
    "a header that claims terabytes": with_header(size=2**42) + bytes(1024),
    "a name that claims a gigabyte": with_header(size=2**30, type=tarfile.XHDTYPE) + bytes(1024),
    "a size below zero": with_header(size=0)[:124] + b"\xff" * 12 + with_header(size=0)[136:] + bytes(1024),
    "a link out": b"",  # made in the test
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_damaged_is_refused_and_leaves_nothing(tmp_path, what):
    data = BROKEN[what]
    if what == "a link out":
        info = tarfile.TarInfo("b")
        info.type, info.linkname = tarfile.SYMTYPE, "../../out"
        data = packed(("a", b"1"), info)
    archive = put(tmp_path, data)
    with pytest.raises(UserError, match=r"cannot unpack .*made\.tgz"):
        unpack(tmp_path, archive)
    assert [path.name for path in tmp_path.iterdir()] == ["made.tgz"]


def test_a_bomb_is_stopped_at_the_stated_size(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "_MOST_BYTES", 2**20)
    bombs = {
        "one file": packed(("a", bytes(2**21))),
        "behind the end": gzip.compress(packed(("a", b"1"), form="") + bytes(2**21)),
        "many": packed(*((f"a{i}", bytes(2**18)) for i in range(5))),
    }
    for data in bombs.values():
        with pytest.raises(UserError, match=r"cannot unpack .*1,048,576 bytes|claims"):
            unpack(tmp_path, put(tmp_path, data))
    monkeypatch.setattr(fetch, "_MOST_FILES", 3)
    with pytest.raises(UserError, match=r"cannot unpack .*more than 3 files"):
        unpack(tmp_path, put(tmp_path, packed(*((f"a{i}", b"") for i in range(4)))))


def test_a_folder_of_its_name_is_taken_only_with_its_files(tmp_path):
    archive = put(tmp_path, GOOD)
    (tmp_path / "made" / "a").mkdir(parents=True)
    assert unpack(tmp_path, archive) == {"a/one": CONTENT, "a/two": b"2"}
    (tmp_path / "made" / "a" / "two").unlink()
    with pytest.raises(UserError, match=r"made has 1 of the 2 files"):
        unpack(tmp_path, archive)


@pytest.mark.parametrize("kind", ["fifo", "folder", "link to nothing", "/dev/zero"])
def test_an_archive_that_is_no_file_is_refused_at_once(tmp_path, kind):
    path, archive = tmp_path / "made.tgz", put(tmp_path, GOOD)
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("gone" if kind == "link to nothing" else kind)
    with pytest.raises(UserError, match=r"made\.tgz"):
        unpack(tmp_path, archive)


@pytest.fixture
def server():
    """A server that answers with `server.answer`, raw bytes."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.wfile.write(self.server.answer)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("length", ["abc", "-5", "1e9", "", "1" * 5000, "\xb2"])
def test_a_length_that_is_no_number_is_no_matter(tmp_path, server, length):
    server.answer = f"HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n".encode("latin-1") + GOOD
    archive = Archive(f"http://127.0.0.1:{server.server_port}/made.tgz", "sha256", hashlib.sha256(GOOD).hexdigest())
    assert unpack(tmp_path, archive)["a/two"] == b"2"


@pytest.mark.parametrize(
    "answer", [b"", b"\x1b[2J\r\n\r\n", b"HTTP/1.0 404 no\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n" + GOOD[:99]]
)
def test_an_answer_that_is_none_is_one_line(tmp_path, server, answer):
    server.answer = answer
    archive = Archive(f"http://127.0.0.1:{server.server_port}/made.tgz", "sha256", hashlib.sha256(GOOD).hexdigest())
    with pytest.raises(UserError, match=r"made\.tgz") as caught:
        unpack(tmp_path, archive)
    assert str(caught.value).isprintable() and not list(tmp_path.iterdir())
