"""Clocks of two machines, and what their difference does to one-way delays."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from testbed.evidence.verdict import Verdict
from testbed.judge.case import Case
from testbed.judge.delay import delay
from testbed.judge.flight import Flight
from testbed.lab.clocks import ahead_of_us
from testbed.spec.impairment import Impairment

_TIMES = st.integers(0, 10**8)


@given(st.integers(-(10**12), 10**12), st.lists(st.tuples(_TIMES, _TIMES), min_size=8, max_size=8))
def test_the_true_offset_lies_within_the_error_which_is_half_of_the_shortest_round_trip(
    ahead_ns: int, ways: list[tuple[int, int]]
) -> None:
    now_ns = 0
    looks: Iterator[tuple[int, int]] = iter(ways)

    def look() -> int:
        nonlocal now_ns
        there_ns, back_ns = next(looks)
        stamp_ns = now_ns + there_ns + ahead_ns
        now_ns += there_ns + back_ns
        return stamp_ns

    offset = ahead_of_us(look, clock=lambda: now_ns)
    assert abs(offset.ns - ahead_ns) <= offset.error_ns
    assert offset.error_ns == min((sum(way) + 1) // 2 for way in ways)


def judged(*, late_ms: float, error_ms: float, delay_ms: float = 30.0) -> Verdict:
    """The verdict on a constant delay, of probes that are late by so much, with clocks known so well."""
    sent = list(range(0, 200 * 10**6, 10**6))

    def flight(took_ms: float) -> Flight:
        arrivals = [(number, when + int(took_ms * 1e6)) for number, when in enumerate(sent)]
        return Flight(sent_ns=sent, arrivals=arrivals, clock_error_ns=int(error_ms * 1e6))

    impairment = Impairment(delay_s=delay_ms / 1e3)
    (check,) = delay(Case(impairment, flight(delay_ms + late_ms), flight(0.0), None, None, (), 1e-6))
    return check.verdict


def test_the_error_of_the_clocks_is_carried_into_the_tolerance() -> None:
    assert judged(late_ms=0.4, error_ms=0.0) is Verdict.HOLDS
    assert judged(late_ms=1.4, error_ms=0.0) is Verdict.FAILS
    assert judged(late_ms=1.4, error_ms=0.5) is Verdict.HOLDS
    assert judged(late_ms=1.6, error_ms=0.5) is Verdict.FAILS
    assert judged(late_ms=-0.1, error_ms=0.5) is Verdict.FAILS, "arrivals are late by what is not known, never early"


def test_clocks_that_are_not_known_well_judge_no_delay() -> None:
    assert judged(late_ms=50.0, error_ms=3.1) is Verdict.SHOWN
    assert judged(late_ms=50.0, error_ms=2.9) is Verdict.FAILS
    assert judged(late_ms=50.0, error_ms=0.4, delay_ms=1.0) is Verdict.FAILS
