"""Curves as SVG: scales, gaps, and as many lines as runs."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxseg.compare import charts, runs


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_are_round_evenly_spaced_and_enclose_all(low, span):
    found = np.array(charts.ticks(low, low + span))
    slack = 1e-8 * max(span, 1, abs(low))
    assert found[0] <= low + slack and found[-1] >= low + span - slack
    assert 2 <= len(found) <= 8
    steps = np.diff(found)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3)
    assert float(f"{steps[0]:.1e}") == pytest.approx(steps[0], rel=1e-3), "1, 2, 2.5 or 5 and noughts"


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (0.25, "0.25"), (900, "900"), (20000, "20k"), (2e6, "2M")])
def test_tick_texts(value, text):
    assert charts.tick_text(value) == text


def test_a_long_curve_keeps_its_ends_and_its_mean():
    rows = [{"step": step, "train/loss": float(step % 7)} for step in range(1, 10_001)]
    steps, values = charts.series(rows, "train/loss")
    assert len(steps) == charts.POINTS
    assert steps[0] < 50 and steps[-1] > 9950
    assert values.mean() == pytest.approx(np.mean([row["train/loss"] for row in rows]), rel=1e-3)


def test_gaps_and_what_is_not_finite_are_left_out():
    rows = [{"step": 1, "a": 2.0}, {"step": 2, "a": float("nan")}, {"step": 3}, {"step": 4, "a": float("inf")}]
    steps, values = charts.series(rows, "a")
    assert (steps.tolist(), values.tolist()) == ([1.0], [2.0])


def test_every_run_has_its_curve_named_and_escaped(write_run):
    seeds = [write_run(f"<seed {seed}>", train__seed=seed) for seed in range(2)]
    other = write_run("other & more", optim__learning_rate=0.5, old=True)
    groups = runs.group(runs.read_runs([*seeds, other])[0])
    panels = dict(charts.panels(groups))
    assert list(panels) == ["Training loss", "Loss on val", "Mean IoU on val", "Pixel accuracy on val"]
    for title, svg in panels.items():
        root = ET.fromstring(svg)
        curves = [node for node in root.iter("g") if "curve" in node.get("class", "")]
        assert len(curves) == 3, title
        names = [curve.find("title").text for curve in curves]
        assert "<seed 1>" in names[1] and names[2].startswith("other & more")
        assert len({curve.get("style") for curve in curves}) == 2
        for path in (curve.find("path").get("d") for curve in curves):
            numbers = np.array(re.findall(r"-?[\d.]+", path), float).reshape(-1, 2)
            assert (numbers[:, 0] >= charts.LEFT - 1).all() and (numbers[:, 0] <= charts.WIDTH).all()
            assert (numbers[:, 1] <= charts.HEIGHT - charts.BOTTOM + 1).all()


def test_a_panel_that_no_run_has_anything_for_is_left_out(write_run):
    folder = write_run("a")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines if "train/" not in line))
    panels = charts.panels(runs.group(runs.read_runs([folder])[0]))
    assert [title for title, _ in panels] == ["Loss on val", "Mean IoU on val", "Pixel accuracy on val"]
