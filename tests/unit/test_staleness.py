"""The age of a receiver's knowledge: by hand, and against sampling."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.paper.staleness import Staleness, staleness

S = 10**9


def test_an_update_a_second_with_a_delay_of_a_second_is_one_to_two_seconds_old() -> None:
    seen = staleness([(n, n * S, (n + 1) * S) for n in range(4)], until_ns=0)
    assert seen.pieces == ((S, S), (S, S), (S, S), (S, 0))
    assert (seen.least_s, seen.mean_s, seen.quantile(0), seen.quantile(0.5), seen.quantile(1)) == (1, 1.5, 1, 1.5, 2)
    assert seen.freezes(0.5) == (1, 1, 1)
    assert seen.freezes(1) == ()


def test_a_lost_update_lets_the_one_before_age() -> None:
    seen = staleness([(0, 0, 0), (2, 2 * S, 2 * S), (3, 3 * S, 3 * S)], until_ns=0)
    assert seen.freezes(1) == (2,)
    assert seen.quantile(1) == 2


def test_updates_that_come_together_end_a_freeze_and_begin_none() -> None:
    seen = staleness([(0, 0, 0), (1, S, 4 * S), (2, 2 * S, 4 * S), (3, 3 * S, 4 * S)], until_ns=5 * S)
    assert seen.freezes(0.5) == (4, 1)
    assert seen.mean_s == pytest.approx((4 * 2 + 1 * 1.5) / 5)


def test_an_overtaken_update_and_a_copy_change_nothing() -> None:
    plain = [(0, 0, 0), (2, 2 * S, 2 * S)]
    with_them = staleness([*plain, (1, S, 3 * S), (2, 2 * S, 3 * S)], until_ns=4 * S)
    assert with_them.pieces == staleness(plain, until_ns=4 * S).pieces
    assert (with_them.arrived, with_them.late) == (3, 1)


def test_what_is_lost_at_the_end_ages_until_the_end() -> None:
    assert staleness([(0, 0, 0)], until_ns=3 * S).freezes(1) == (3,)
    assert staleness([(0, 0, 0)], until_ns=0).mean_s is None


def test_of_nothing_that_arrived_there_is_no_age() -> None:
    nothing = staleness([], until_ns=S)
    assert (nothing.mean_s, nothing.quantile(0.5), nothing.longest_pause_s) == (None, None, 0)


def test_other_clocks_are_an_error() -> None:
    with pytest.raises(ValueError, match="update 7 arrived 5 ns before it was sent"):
        staleness([(7, 10, 5)], until_ns=0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        staleness([(0, 0, 0)], until_ns=1).quantile(1.1)


UPDATES = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 1000), st.integers(0, 1000)), max_size=20).map(
    lambda drawn: [(number, sent, sent + took) for number, sent, took in drawn]
)


@given(UPDATES, st.integers(0, 3000), st.floats(0, 1))
def test_the_age_is_that_of_the_newest_at_every_moment(
    updates: list[tuple[int, int, int]], until_ns: int, q: float
) -> None:
    first_of: dict[int, tuple[int, int, int]] = {}
    for update in sorted(updates, key=lambda update: update[2]):
        first_of.setdefault(update[0], update)
    begin = min((arrived for _, _, arrived in first_of.values()), default=0)
    end = max([until_ns, *(arrived for _, _, arrived in updates)]) if updates else begin
    ages = sorted(
        at + 0.5 - max(sent for _, sent, arrived in first_of.values() if arrived <= at) for at in range(begin, end)
    )  # each nanosecond at its middle
    seen: Staleness = staleness(updates, until_ns)
    assert round(seen.watched_s * S) == len(ages)
    if ages:
        assert seen.mean_s == pytest.approx(sum(ages) / len(ages) / S)
        # Up to the nanosecond that each sample stands for.
        sample = ages[min(int(q * len(ages)), len(ages) - 1)]
        quantile_s = seen.quantile(q)
        assert quantile_s is not None
        assert ages[max(math.ceil(q * len(ages)) - 1, 0)] - 1 <= quantile_s * S <= sample + 1
