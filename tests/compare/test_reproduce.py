"""The table of published experiments."""

import re

import pytest

from jaxseg.compare import reproduce, runs, write_reproduction
from jaxseg.errors import UserError

CARD = """
from helpers import tiny_config

def get_config(variant=""):
    config = tiny_config(train__num_steps=0, train__num_epochs=50.0)
    if variant == "as_published":
        config.optim.learning_rate = 0.5
    elif variant:
        raise ValueError(variant)
    return config
"""


@pytest.fixture
def cards(tmp_path):
    """A folder of configs with one in it, `a_net`."""
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "a_net.py").write_text(CARD)
    return folder


def table(cards, *folders) -> list[dict[str, str]]:
    rows = runs.rows(runs.group(runs.read_runs(folders)[0]))
    text = reproduce.readme(rows, str(cards / "README.md"))
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(reproduce.HEADER, (cell.strip() for cell in line), strict=True)) for line in lines[2:]]


def test_a_line_has_what_was_measured_and_what_was_published(cards, write_run):
    published = {
        "config": "a_net",
        "setting": "4 epochs | theirs",
        "split": "val",
        "data": "a subset",
        "published/f1": 0.37,
    }
    folder = write_run("a", published=published, evaluation={"published": {"f1": 0.7}}, data__dir="/somebody/camvid")
    [line] = table(cards, folder)
    assert line["config"] == "[`a_net`](a_net.py)"
    assert line["data"] == "camvid, a subset"
    assert line["length"] == "3 of 50 epochs, shortened"
    assert line["protocol"] == "val, whole image, best, chosen here"
    assert line["measured"].startswith("mean IoU 0.6379, pixel accuracy 0.8000")
    assert line["measured by the project's definitions"] == "F1 0.7000"
    assert line["published"] == "F1 0.3700; 4 epochs \\| theirs"
    assert (line["hardware"], line["time"]) == ("cpu", "2 min")
    flags = "--config.data.dir=DIR --config.train.num_epochs=0.0 --config.train.num_steps=12"
    assert line["command"] == f"`python -m jaxseg.main --config={cards}/a_net.py {flags}`"


def test_a_variant_is_compared_with_its_own_config(cards, write_run):
    fields = {"train__num_steps": 0, "train__num_epochs": 50.0, "optim__learning_rate": 0.5, "data__name": "voc"}
    about = {"epochs": 12.0, "status": "stopped early"}
    [line] = table(cards, write_run("a", published={"config": "a_net:as_published"}, about=about, **fields))
    assert line["config"] == "[`a_net:as_published`](a_net.py)"
    assert line["length"] == "12 of 50 epochs, stopped early"
    assert line["data"] == "voc, in place of camvid"
    assert line["command"].endswith("a_net.py:as_published --config.data.name=voc`")
    assert line["published"] == "–"


@pytest.mark.parametrize(
    ("workdir", "name"),
    [
        ("a_net", "a_net"),
        ("a_net-as_published", "a_net:as_published"),
        ("a_net_long-b-c", "a_net_long:b,c"),
        ("a_net/train.seed=1", "a_net"),
        ("a_network", ""),
    ],
)
def test_a_run_is_of_the_config_that_its_workdir_is_called_after(cards, write_run, workdir, name):
    (cards / "a_net_long.py").touch()
    assert reproduce.config_name(runs.read_run(write_run(workdir)), cards) == name


def test_a_run_of_no_config_there_has_no_command(cards, write_run):
    [line] = table(cards, write_run("else", old=True))
    assert (line["config"], line["command"], line["length"]) == ("else", "–", "12 of 12 steps")


def test_lines_of_one_config_stand_together(cards, write_run):
    first, second = (
        write_run(n, published={"config": "a_net"}, optim__learning_rate=r) for n, r in (("a", 0.5), ("b", 0.25))
    )
    for folder in (first, second):
        text = (folder / "evaluations" / "val-best.json").read_text()
        (folder / "evaluations" / "test-best.json").write_text(text.replace('"val"', '"test"'))
    assert [line["protocol"].split(",")[0] for line in table(cards, first, second)] == ["test", "val"] * 2


@pytest.mark.parametrize(
    ("epochs", "text"),
    [(3.0, "voc 2012, a subset of 32 of 1,464 training images"), (12 * 8 / 1464, "voc 2012")],
)
def test_a_part_of_voc_is_told(epochs, text, cards, write_run):
    fields = {"data__name": "voc", "data__version": "2012", "data__batch_size": 8}
    [line] = table(cards, write_run("a", about={"epochs": epochs, "step": 12}, **fields))
    assert line["data"] == text


@pytest.mark.parametrize(
    ("about", "fields", "text"),
    [
        ({}, {}, "12 of 12 steps"),
        ({"step": 6, "status": "running"}, {}, "12 of 12 steps"),
        ({"epochs": 20.04}, {"train__num_steps": 0, "train__num_epochs": 20.0}, "20 of 20 epochs"),
        # A step is 1.6 epochs: as many whole steps as there are in 20.
        ({"epochs": 19.2}, {"train__num_steps": 0, "train__num_epochs": 20.0}, "20 of 20 epochs"),
        (
            {"epochs": 17.6, "step": 11},
            {"train__num_steps": 0, "train__num_epochs": 20.0},
            "17.6 of 20 epochs, shortened",
        ),
        ({"epochs": None}, {"train__num_steps": 0, "train__num_epochs": 8.0}, "8 of 8 epochs"),
        ({"status": "stopped"}, {"train__num_steps": 12_345}, "12 of 12,345 steps, shortened"),
        ({"status": "running"}, {"train__num_steps": 24}, "12 of 24 steps, running"),
    ],
)
def test_lengths(write_run, about, fields, text):
    assert reproduce.length(runs.read_run(write_run("a", about=about, **fields)), None) == text


def test_a_card_that_gives_no_config_is_an_error_that_names_it(cards, write_run):
    folder = write_run("a", published={"config": "a_net:no_such"})
    with pytest.raises(UserError, match=r"a_net\.py gives no config for 'a_net:no_such'"):
        table(cards, folder)


def test_the_file_is_written_and_says_how(cards, write_run):
    lines = []
    write_reproduction([write_run("a"), cards / "no_run"], str(cards / "README.md"), log=lines.append)
    text = (cards / "README.md").read_text()
    assert text.startswith("# Published experiments") and f"--reproduce={cards / 'README.md'}" in text
    assert "no_run" in lines[0] and lines[-1].startswith("1 run in")
    assert sorted(path.name for path in cards.iterdir() if path.is_file()) == ["README.md", "a_net.py"]
