"""Who is slow: of figures, and of processes that tell theirs."""

import time
import types

import pytest

from jaxseg import pace
from jaxseg.pace import Pace, who_is_slow

USUAL = {"input": 0.01, "step": 0.5, "product": 0.004}


def test_nobody_is_slow_alone_or_among_equals():
    assert who_is_slow({}) == {}
    assert who_is_slow({0: USUAL}) == {}
    assert who_is_slow(dict.fromkeys(range(4), USUAL)) == {}


def test_a_process_whose_batches_come_late_is_named_with_its_wait():
    found = who_is_slow({0: USUAL, 1: {**USUAL, "input": 0.2}, 2: USUAL})
    assert list(found) == [(1, "input")]
    assert "waits 0.200 s of a step of 0.500 s for its batch, the others 0.010 s" in found[1, "input"]
    # Three times as long, and still nothing beside the step.
    assert who_is_slow({0: USUAL, 1: {**USUAL, "input": 0.03}}) == {}


def test_a_slow_device_is_named_with_its_share():
    found = who_is_slow({0: {**USUAL, "product": 0.010}, 1: USUAL, 2: {**USUAL, "product": 0.005}})
    assert list(found) == [(0, "product")]
    assert "2.2 times as slow as the others" in found[0, "product"]


@pytest.fixture
def group():
    told = {1: {**USUAL, "product": 1e-9}}
    names = ["process 0 (a, pid 1)", "process 1 (b, pid 2)"]
    return types.SimpleNamespace(
        place=types.SimpleNamespace(process_id=0),
        names=names,
        paces=told,
        tell_pace=lambda **figures: told.update({0: figures}),
    )


def test_a_process_times_its_wait_and_a_product_and_is_named_once(group, monkeypatch):
    monkeypatch.setattr(pace, "EVERY", 0.05)
    ours = Pace(group)

    def batches():
        while True:
            time.sleep(0.03)
            yield {}

    stream = batches()
    for _ in range(4):
        ours.wait_for(stream)
    (line, *others) = ours.slow()
    figures = group.paces[0]
    assert 0.03 <= figures["input"] <= figures["step"] < 0.3
    assert figures["product"] > 1e-6
    assert line.startswith("process 0 (a, pid 1) ") and "product" in " ".join([line, *others])
    for _ in range(4):
        ours.wait_for(stream)
    assert not any("product" in line for line in ours.slow())
