"""The table as Markdown and CSV."""

import csv
import io
import re
import statistics
import unicodedata

import numpy as np
import pytest
from written_runs import COUNTS, scores_of

from jaxseg.compare import runs, tables


def rows_of(*folders) -> list[runs.Row]:
    return runs.rows(runs.group(runs.read_runs(folders)[0]))


def cells(markdown: str) -> list[dict[str, str]]:
    """The rows of a Markdown table by their headings."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert len({len(line) for line in table}) == 1
    return [dict(zip(table[0], line, strict=True)) for line in table[2:]]


def three_seeds(write_run):
    folders, values = [], []
    for seed in range(3):
        counts = COUNTS + 10 * seed * np.eye(3, dtype=int)
        values.append(np.trace(counts) / counts.sum())
        folders.append(write_run(f"net{seed}", counts=counts, train__seed=seed))
    return folders, values


def test_markdown_has_scores_and_what_they_cost(write_run):
    folders, values = three_seeds(write_run)
    published = {"setting": "their | setting", "pixel_accuracy": 0.9, "kappa": 0.5}
    other = write_run("other", optim__learning_rate=0.5, published=published, about={"status": "stopped", "step": 6})
    old = write_run("old", old=True, optim__learning_rate=0.6)
    text = tables.markdown(rows_of(*folders, other, old), ["a | note"])
    seeds, other, old = cells(text)
    assert seeds["run"] == "net0, net1, net2" and seeds["seeds"] == "3"
    assert seeds["pixel accuracy"] == f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"
    assert seeds["pixel accuracy: published"] == "–"
    assert (seeds["parameters"], seeds["multiply-adds"], seeds["images/s"]) == ("12,345", "6.78 G", "7.5")
    assert (seeds["time"], seeds["hardware"], seeds["steps"]) == ("2 min", "cpu", "12 of 12")
    assert (seeds["data"], seeds["split"], seeds["protocol"]) == ("camvid", "val", "whole image")
    assert other["pixel accuracy"] == "0.8000" and other["pixel accuracy: published"] == "0.9000"
    assert other["steps"] == "12 of 12, stopped"
    assert (old["parameters"], old["multiply-adds"], old["hardware"]) == ("–", "–", "–")
    assert old["time"] == "3 s"
    assert "beside other: their \\| setting; kappa 0.5000 (not measured)" in text
    assert "- a \\| note" in text


def test_csv_has_all_digits_lowest_and_highest(write_run):
    folders, values = three_seeds(write_run)
    old = write_run("old", old=True, optim__learning_rate=0.6, published={"mean_iou": 0.5})
    seeds, old = csv.DictReader(io.StringIO(tables.as_csv(rows_of(*folders, old))))
    assert float(seeds["pixel_accuracy"]) == pytest.approx(statistics.mean(values), abs=1e-15)
    assert float(seeds["pixel_accuracy_std"]) == pytest.approx(statistics.stdev(values), abs=1e-15)
    assert (float(seeds["pixel_accuracy_min"]), float(seeds["pixel_accuracy_max"])) == (min(values), max(values))
    assert (seeds["parameters"], seeds["multiply-adds"], seeds["time"]) == ("12345", "6780000000", "90.0")
    assert seeds["step"] == "12;12;12"
    assert 0 < float(seeds["iou/sky"]) < 1
    assert (old["parameters"], old["mean_iou_std"], old["mean_iou_published"]) == ("", "", "0.5")
    assert "–" not in tables.as_csv(rows_of(folders[0]))


def test_columns_are_the_usual_scores_those_asked_for_and_any_other(write_run):
    ours = {name: value for name, value in scores_of(COUNTS).items() if name in ("mean_iou", "micro_iou", "pixels")}
    evaluation = {"scores": ours | {"boundary_f1": 0.3, "boundary_f1/sky": 0.3}}
    first = write_run("a", evaluation=evaluation)
    assert tables.shown_scores(rows_of(first)) == ["mean_iou", "boundary_f1"]
    second = write_run("b", evaluation=evaluation, published={"micro_iou": 0.8})
    assert tables.shown_scores(rows_of(first, second)) == ["mean_iou", "micro_iou", "boundary_f1"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (29.9, "30 s"), (31, "1 min"), (3599, "1 h 00 min"), (7500, "2 h 05 min")]
)
def test_durations(seconds, text):
    assert tables.duration(seconds) == text


def test_hostile_names_leave_no_trace_in_any_file(write_run, tmp_path):
    name = "=1+1 \x1b[2J|`_x_`<b>$"
    classes = ("=sky", "a|b\n\x1b[2J", "$_")
    write_run(name, train__seed=1, class_names=classes)
    folder = write_run("-b\r;@c", class_names=classes)
    texts = {
        "md": tables.markdown(rows_of(tmp_path / name, folder), ["\x1b[31mnote"]),
        "csv": tables.as_csv(rows_of(tmp_path / name, folder)),
    }
    for text in texts.values():
        assert not [char for char in text if char != "\n" and unicodedata.category(char) in ("Cc", "Cf")]
    (header, *lines) = csv.reader(io.StringIO(texts["csv"]))
    assert len(lines) and all(len(line) == len(header) for line in lines)
    for line in (header, *lines):
        assert not [cell for cell in line if cell[:1] in tuple("=+@\t\r")]
    assert "<b" not in texts["md"].replace("\\<", "")
    assert len(cells(texts["md"])) == len(lines)
