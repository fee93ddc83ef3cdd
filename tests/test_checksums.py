"""Checksums: what is not as it was written is named, in a form that `b2sum` reads, and no kill leaves files unknown."""

import os
import shutil
import subprocess

import pytest

from jaxseg import checksums, forms
from jaxseg import config as configs
from jaxseg.errors import UserError
from jaxseg.predict import load

pytest_plugins = ["tiny_runs"]


def a_folder(folder):
    (folder / "part").mkdir(parents=True)
    (folder / "part" / "a").write_bytes(b"abc")
    (folder / "b").write_bytes(b"")
    checksums.write(folder, "step 3", checksums.files_in(folder))
    return folder


def test_a_folder_as_it_was_written_has_no_fault_and_b2sum_agrees(tmp_path):
    folder = a_folder(tmp_path / "x")
    assert checksums.fault(folder, "step 3") == ""
    if shutil.which("b2sum"):
        subprocess.run(["b2sum", "--check", "--strict", "B2SUMS"], cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: (folder / "part" / "a").write_bytes(b"abd"), "part/a"),
        (lambda folder: (folder / "part" / "a").write_bytes(b""), "part/a"),
        (lambda folder: (folder / "b").write_bytes(b"\0"), "b"),
        (lambda folder: (folder / "b").unlink(), "b"),
        (lambda folder: (folder / "b").unlink() or os.mkfifo(folder / "b"), "b"),
        (lambda folder: (folder / "B2SUMS").write_bytes((folder / "B2SUMS").read_bytes()[:-70]), "B2SUMS"),
        (lambda folder: (folder / "B2SUMS").write_bytes(b""), "B2SUMS"),
    ],
)
def test_what_is_not_as_it_was_written_is_named(damage, named, tmp_path):
    folder = a_folder(tmp_path / "x")
    damage(folder)
    assert named in checksums.fault(folder, "step 3")


def test_every_flipped_bit_of_the_list_itself_is_seen(tmp_path):
    folder = a_folder(tmp_path / "x")
    data = (folder / "B2SUMS").read_bytes()
    for place in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            (folder / "B2SUMS").write_bytes(changed)
            assert checksums.fault(folder, "step 3"), (place, bit)


def test_the_step_is_covered_and_parts_are_checked_alone(tmp_path):
    folder = a_folder(tmp_path / "x")
    assert "step 3" in checksums.fault(folder, "step 4")
    (folder / "b").write_bytes(b"changed")
    assert checksums.fault(folder, "step 3", ("part",)) == "" and "b" in checksums.fault(folder, "step 3")


def test_a_folder_without_a_list_is_told_from_one_without_fault(tmp_path):
    assert checksums.fault(tmp_path, "step 3") is None
    assert checksums.note(tmp_path) and not checksums.note(a_folder(tmp_path / "x"))


@pytest.mark.parametrize("writes", range(5))
def test_whenever_writing_is_killed_the_files_are_ones_that_the_checksums_know(writes, tmp_path, monkeypatch):
    checksums.seal(tmp_path, {"config.json": "old", "info.json": "old too"})
    replace, done = os.replace, []

    def killed(*paths):
        if len(done) == writes:
            raise KeyboardInterrupt
        done.append(replace(*paths))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        try:
            checksums.seal(tmp_path, {"config.json": "new", "info.json": "new too"})
        except KeyboardInterrupt:
            assert writes < 4
    found = [checksums.read_sealed(tmp_path / name, most=100) for name in ("config.json", "info.json")]
    assert found == [b"new" if writes > 1 else b"old", b"new too" if writes > 2 else b"old too"]
    checksums.seal(tmp_path, {"config.json": "newer", "info.json": "newer too"})
    (tmp_path / "config.json").write_text("old")
    with pytest.raises(UserError, match=r"config\.json"):
        checksums.read_sealed(tmp_path / "config.json", most=100)


# ------------------------------------------------------------------------------------------- edited by hand, by a user


@pytest.mark.parametrize(("name", "old", "new"), [("config.json", "0.485", "0.585"), ("info.json", '"sky"', '"sea"')])
def test_a_file_that_was_edited_is_refused_by_every_reader_unless_it_is_accepted(name, old, new, finished_copy, tiny):
    path = finished_copy / name
    text = path.read_text()
    path.write_text(text.replace(old, new))
    assert path.read_text() != text
    readers = {"load": lambda: load(finished_copy), "forms": lambda: forms.read_json(path, forms.FORMS[name])}
    for read in readers.values():
        with pytest.raises(UserError) as error:
            read()
        assert str(path) in str(error.value) and "--accept_edited" in str(error.value)
        with checksums.accepting_edited():
            assert read()
        with checksums.accepting_edited(False), pytest.raises(UserError):
            read()
    path.unlink()
    with pytest.raises(UserError, match=name):
        load(finished_copy)


def test_a_run_without_checksums_is_loaded_with_a_word(finished_copy, tiny):
    (finished_copy / "B2SUMS").unlink()
    with pytest.warns(UserWarning, match="B2SUMS"):
        run = load(finished_copy)
    assert run.step == 8
    configs.read(finished_copy)
