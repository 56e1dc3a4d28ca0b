"""The noise of a machine, and the smallest delays that are reliable on it."""

from __future__ import annotations

import pytest

from testbed.agent.noise import noise as measure
from testbed.judge.noise import noise


def test_a_tenth_is_what_the_machine_may_add() -> None:
    # Timers 0.1 ms late and round trips of 0.2 ms: one way adds 0.2 ms, so 2 ms are right to a tenth.
    measured = noise(
        {"overshoots_s": [0.0001] * 99 + [0.005], "round_trips_s": [0.0002] * 100, "steal_ratio": 0, "idle_ratio": 1}
    )
    assert measured.least_delay_s == pytest.approx(0.002)
    assert measured.least_jitter_s == pytest.approx(0.0), "one outlier in a hundred is no spread"
    assert measured.overshoot_p99_s == 0.005


def test_what_spreads_more_counts() -> None:
    wide = [number * 1e-5 for number in range(100)]  # 5 % to 95 %: 0.9 ms
    measured = noise({"overshoots_s": [0.0] * 100, "round_trips_s": wide, "steal_ratio": 0.1, "idle_ratio": 0.5})
    assert measured.spread_s == pytest.approx(0.0009)
    assert measured.least_jitter_s == pytest.approx(0.009)


def test_the_agent_measures_this_machine() -> None:
    measured = noise(measure())
    assert 0 < measured.overshoot_median_s <= measured.overshoot_p99_s
    assert measured.round_trip_median_s > 0
    assert 0 <= measured.steal_ratio <= 1
    assert 0 <= measured.idle_ratio <= 1
