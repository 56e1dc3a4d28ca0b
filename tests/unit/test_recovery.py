"""TCP's time-outs against the arithmetic of the RFCs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.paper.recovery import MIN_RTO_S, doubles, first_rto_s, probe_timeout_s

times = st.floats(0.001, 10, allow_nan=False)


def test_the_first_time_out_is_a_round_trip_and_four_times_its_half_or_linuxs_least() -> None:
    assert first_rto_s(0.04) == pytest.approx(0.24)  # 4 · 20 ms is below 200 ms
    assert first_rto_s(0.2) == pytest.approx(0.6)  # R + 4 · R/2


def test_a_probe_is_due_after_two_round_trips_and_allows_a_lone_segment_a_delayed_acknowledgment() -> None:
    assert probe_timeout_s(srtt_s=0.04, rto_s=1, segments_in_flight=2) == pytest.approx(0.08)
    assert probe_timeout_s(srtt_s=0.04, rto_s=1, segments_in_flight=1) == pytest.approx(0.28)


def test_a_probe_is_never_later_than_the_time_out() -> None:
    assert probe_timeout_s(srtt_s=0.04, rto_s=0.24, segments_in_flight=1) == 0.24


def test_there_is_no_probe_for_nothing() -> None:
    with pytest.raises(ValueError, match="segments_in_flight=0"):
        probe_timeout_s(srtt_s=1, rto_s=1, segments_in_flight=0)


def test_what_doubles_and_what_does_not() -> None:
    assert doubles([0.21, 0.41, 0.86, 1.73], 0.204)
    assert not doubles([0.2, 0.4, 0.6], 0.2), "grows by the same each time"
    assert not doubles([0.2, 0.2, 0.2], 0.2), "stays"
    assert not doubles([0.2, 0.6, 1.8], 0.2), "triples"
    assert not doubles([0.15, 0.4, 0.8], 0.2), "the first is early"
    assert doubles([0.195, 0.452, 0.860, 1.732], 0.216), "seen on a busy machine: the packet before was stamped late"
    assert doubles([0.28, 0.33, 0.80], 0.2), "the second packet was stamped 80 ms late"
    assert not doubles([0.2, 0.33, 0.87], 0.2), "the second wait is early"
    assert not doubles([0.2, 0.4, 0.72], 0.2), "the third is, and those before were on time"
    assert not doubles([0.2, 0.4], 0.2), "two waits are no series"
    assert not doubles([], 0.2)


def test_a_time_out_of_nothing_cannot_double() -> None:
    with pytest.raises(ValueError, match="first_s=0"):
        doubles([1, 2, 4], 0)


@given(times, st.lists(st.floats(1.0, 1.125), min_size=3, max_size=10))
def test_timers_that_are_late_by_up_to_an_eighth_still_double(first_s: float, late: list[float]) -> None:
    assert doubles([first_s * 2**number * factor for number, factor in enumerate(late)], first_s)


@given(st.floats(0.2, 10), st.integers(3, 10))
def test_waits_that_do_not_grow_never_double(first_s: float, count: int) -> None:
    assert not doubles([first_s] * count, first_s)


@given(times)
def test_no_time_out_is_below_linuxs_least(round_trip_s: float) -> None:
    assert first_rto_s(round_trip_s) >= round_trip_s + MIN_RTO_S
