"""Turns, ratios and the yardstick."""

import time

import pytest

from jaxseg.benchmark.measure import Contender, alternate, machine, matmul_rate, peak_host_memory, ratio


def test_contenders_take_turns_in_blocks_of_a_length_of_their_own():
    order = []

    def contender(name, seconds):
        def run(n):
            order.append((name, n))
            time.sleep(n * seconds)

        return Contender(name, run)

    seconds = alternate([contender("slow", 0.3), contender("fast", 0.05)], rounds=2)
    assert [name for name, _ in order[-4:]] == ["slow", "fast", "slow", "fast"]
    blocks = dict(order[-2:])
    assert blocks["slow"] == 1 and 2 <= blocks["fast"] <= 4
    assert len(seconds["slow"]) == len(seconds["fast"]) == 2
    # A figure is that of one step; sleeping may take longer, never shorter.
    assert min(seconds["slow"]) >= 0.3 and 0.05 <= min(seconds["fast"]) < 0.3


def test_a_given_block_is_kept():
    calls = []
    alternate([Contender("one", calls.append)], rounds=3, block=1)
    assert set(calls) == {1}


def test_the_ratio_is_taken_round_by_round():
    seconds = {"ours": [1.0, 2.0, 4.0], "theirs": [3.0, 2.0, 8.0]}
    assert ratio(seconds, "ours", "theirs") == (2.0, 1.0, 3.0)
    with pytest.raises(ValueError):
        ratio({"ours": [1.0], "theirs": []}, "ours", "theirs")


def test_the_yardstick_and_the_machine():
    assert matmul_rate("float32", rounds=1) > 1e8
    assert peak_host_memory() > 2**26
    assert machine()
