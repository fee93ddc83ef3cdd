"""The command as it is given, and what it leaves when it is stopped."""

import errno
import json
import pathlib
import re
import shutil
import sys
import tempfile

import pytest
import written_runs
from helpers import seal_again
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg import compare as package
from jaxseg.compare import __main__ as command
from jaxseg.compare import compare, page, write
from jaxseg.errors import UserError

pytest_plugins = ["tiny_runs"]

FILES = ["report.html", "table.csv", "table.md"]


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_finished_and_broken_runs_in_one_command(workplace, finished, tiny, tmp_path):
    other = shutil.copytree(finished, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["train"]["seed"] = 5
    (other / "config.json").write_text(json.dumps(config))
    seal_again(other)
    (tmp_path / "broken").mkdir()
    arguments = [str(finished), str(other), str(tmp_path / "broken"), f"--output={tmp_path / 'out'}", "--images=2"]
    status, out, err = workplace.run("jaxseg.compare", *arguments)
    assert status == 0, err
    assert "Traceback" not in err
    assert names(tmp_path / "out") == FILES
    assert "skipped: " in out and "broken" in out and "2 runs of 1 config:" in out
    report = (tmp_path / "out" / "report.html").read_text()
    assert report.count("<img ") == 2 * 3 and "· 2 seeds" in report
    assert "| 2 | camvid | val |" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing", "--output=OUT"], "error: there is nothing to compare: skipped: .*missing is no workdir"),
        (["missing"], "where to"),
        (["missing", "--output=OUT", "--images=-1"], "--images is -1"),
        (["missing", "--output=OUT", "--images=two"], "invalid int"),
        (["--output=OUT"], "RUN"),
    ],
)
def test_a_mistake_ends_in_one_message(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compare", *arguments])
    with pytest.raises(SystemExit) as stop:
        command.main()
    said = capsys.readouterr().err + str(stop.value.code)
    assert stop.value.code not in (0, None) and re.search(message, said)
    assert names(tmp_path) == []


def test_help_says_what_it_does(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare", "--help"])
    with pytest.raises(SystemExit) as stop:
        command.main()
    out = capsys.readouterr().out
    assert stop.value.code == 0
    for word in ("RUN", "--output", "--images", "--reproduce", "report.html"):
        assert word in out


def test_images_may_be_left_out(write_run, tmp_path):
    compare([write_run("a")], tmp_path / "out", images=0, log=lambda line: None)
    assert "<img " not in (tmp_path / "out" / "report.html").read_text()
    assert names(tmp_path / "out") == FILES


def test_interrupted_nothing_is_left(write_run, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(page, "page", stop)
    with pytest.raises(KeyboardInterrupt):
        compare([write_run("a")], tmp_path / "out", images=0, log=lambda line: None)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_full_leaves_the_files_of_before(tmp_path, monkeypatch):
    package.write(tmp_path, {"a": "before", "b": "before"})
    write_text = pathlib.Path.write_text

    def until_full(path, text, **options):
        write_text(path, text[:2], **options)
        if ".b." in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", until_full)
    with pytest.raises(UserError, match="No space left"):
        package.write(tmp_path, {"a": "after", "b": "after"})
    assert names(tmp_path) == ["a", "b"]
    assert {path.read_text() for path in tmp_path.iterdir()} == {"before"}


def test_an_output_that_is_a_file_is_an_error(write_run, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="out can't be written"):
        compare([write_run("a")], tmp_path / "out", images=0, log=lambda line: None)
    assert (tmp_path / "out").read_text() == "mine"


FILES_OF_A_RUN = ("config.json", "run.json", "evaluations/val-best.json", "metrics.jsonl")
ODD = (None, "x|<y>", -1, [], {}, 1e308, True, [[1]], {"a": {"b": 1}}, 10**30)


def places(value, path=()):
    """The paths of all values in what JSON holds."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*path, key))


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(FILES_OF_A_RUN), st.data())
def test_whatever_stands_in_a_file_there_is_a_report(file, data):
    with tempfile.TemporaryDirectory() as root:
        published = {"setting": "theirs", "mean_iou": 0.5}
        sound, spoilt = (
            written_runs.write_run(pathlib.Path(root, name), optim__learning_rate=rate, published=published)
            for name, rate in (("sound", 0.1), ("spoilt", 0.2))
        )
        *before, last = (spoilt / file).read_text().splitlines() if file == "metrics.jsonl" else ["{}"]
        value = json.loads(last if before else (spoilt / file).read_text())
        place, odd = data.draw(st.sampled_from(list(places(value)))), data.draw(st.sampled_from(ODD))
        whole = {"all": value}
        part = whole
        for key in ("all", *place)[:-1]:
            part = part[key]
        part[("all", *place)[-1]] = odd
        (spoilt / file).write_text("\n".join([*before, json.dumps(whole["all"])]))
        lines = []
        compare([sound, spoilt], pathlib.Path(root, "out"), images=0, log=lines.append)
        assert names(pathlib.Path(root, "out")) == FILES
        assert lines[-1].startswith(("1 run of", "2 runs of"))
        package.write_reproduction([sound, spoilt], str(pathlib.Path(root, "README.md")), log=lines.append)


def test_a_name_that_is_no_utf8_is_written_as_an_escape(tmp_path):
    write(tmp_path / "out", {"table.md": "| caf\udce9 |\n"})
    assert (tmp_path / "out" / "table.md").read_text() == "| caf\\udce9 |\n"
