"""Each measure against its definition, and against a slow way to compute it."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.judge import metrics
from testbed.judge.metrics import Arrival, Distribution, Reordering, loss_runs, quantile, rank_bounds

TIMES = st.integers(0, 10**12)


# --- quantiles -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "q", "bounds"),
    [
        # Published tables of ranks (Conover; David and Nagaraja, 7.1): the median at 95 %.
        (5, 0.5, (0, 6)),
        (6, 0.5, (1, 6)),
        (10, 0.5, (2, 9)),
        (25, 0.5, (8, 18)),
        (100, 0.5, (40, 61)),
        (0, 0.5, (0, 1)),
    ],
)
def test_the_ranks_around_a_quantile_are_those_of_the_tables(samples: int, q: float, bounds: tuple[int, int]) -> None:
    assert rank_bounds(samples, q) == bounds


@given(st.integers(1, 60), st.floats(0.01, 0.99), st.floats(0.5, 0.999))
def test_the_ranks_cover_at_least_the_confidence_and_no_closer_pair_does(
    samples: int, q: float, confidence: float
) -> None:
    chance = [math.comb(samples, k) * q**k * (1 - q) ** (samples - k) for k in range(samples + 1)]
    low, high = rank_bounds(samples, q, confidence)
    tail = (1 - confidence) / 2 + 1e-9
    assert sum(chance[:low]) <= tail
    assert sum(chance[high:]) <= tail
    assert sum(chance[: low + 1]) > tail - 2e-9
    assert sum(chance[high - 1 :]) > tail - 2e-9


def test_an_interval_holds_the_true_quantile_as_often_as_it_says() -> None:
    chance = random.Random(3)  # noqa: S311  # repeatable samples, no secret
    held = 0
    for _ in range(400):
        estimate = quantile([chance.random() for _ in range(50)], 0.9, confidence=0.9)
        held += estimate.low <= 0.9 <= estimate.high
    # At least 90 % of 400, less 4σ of a binomial: 360 - 4·6.
    assert held >= 336


def test_a_quantile_among_the_lost_is_infinite() -> None:
    assert quantile([1.0, 2.0, 3.0], 0.5, lost=1).value == 2.0
    assert quantile([1.0, 2.0, 3.0], 0.9, lost=1).value == math.inf
    with pytest.raises(ValueError, match="no samples"):
        quantile([], 0.5)


@pytest.mark.parametrize(("q", "confidence"), [(0, 0.9), (1, 0.9), (0.5, 0), (0.5, 1)])
def test_shares_outside_of_0_to_1_are_refused(q: float, confidence: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        rank_bounds(10, q, confidence)


@given(TIMES)
def test_a_bucket_holds_its_value_and_is_narrow(value: int) -> None:
    low, high = metrics.bucket_edges(metrics.bucket(value))
    assert low <= value <= high
    assert high - low <= low / 128


@given(st.lists(TIMES, min_size=1, max_size=80), st.lists(TIMES, max_size=20), st.floats(0.05, 0.95), st.integers(0, 9))
def test_a_distribution_knows_quantiles_within_a_bucket(
    first: list[int], second: list[int], q: float, lost: int
) -> None:
    whole, other = Distribution(first), Distribution(second)
    whole.merge(other)
    exact = quantile([value / 1e9 for value in first + second], q, lost=lost)
    estimate = whole.quantile(q, lost=lost)
    assert estimate is not None
    assert estimate.samples == exact.samples
    if math.isinf(exact.value):
        assert estimate.value == exact.value
    else:
        assert estimate.value == pytest.approx(exact.value, rel=0.008, abs=1e-9)
    assert estimate.low <= exact.low
    assert estimate.high >= exact.high
    assert (whole.min_s, whole.max_s) == (min(first + second) / 1e9, max(first + second) / 1e9)
    assert whole.mean_s == pytest.approx(sum(first + second) / len(first + second) / 1e9)


def test_a_negative_time_is_refused_and_nothing_is_counted() -> None:
    times = Distribution()
    with pytest.raises(ValueError, match="-1 ns"):
        times.extend([5, -1])
    assert times.count == 0
    assert times.quantile(0.5) is None


# --- loss ------------------------------------------------------------------------------------------


def test_losses_3_4_5_and_9_are_a_run_of_three_and_a_run_of_one() -> None:
    runs = loss_runs([9, 4, 3, 5], 10)
    assert (runs.lengths, runs.distances, runs.longest, runs.ratio) == ((3, 1), (1, 1, 4), 3, 0.4)


def test_no_loss_has_no_run_and_nothing_sent_has_no_ratio() -> None:
    assert (loss_runs([], 5).lengths, loss_runs([], 5).ratio, loss_runs([], 0).ratio) == ((), 0.0, None)


# --- reordering ------------------------------------------------------------------------------------


def test_packets_1_2_4_3_are_one_reordered_singleton() -> None:
    order = Reordering()
    assert [order.arrive(number) for number in (0, 1, 3, 2)][-1] is Arrival.REORDERED
    assert (order.reordered, order.ratio, order.extents, order.degrees) == (1, 0.25, {1: 1}, {1: 1})


def test_three_packets_overtaken_by_four_have_extents_4_5_6_and_only_the_first_comes_right_behind_them() -> None:
    order = Reordering()
    for number in (1, 2, 3, 7, 8, 9, 10, 4, 5, 6):
        order.arrive(number - 1)
    assert order.extents == {4: 1, 5: 1, 6: 1}
    assert order.degrees == {4: 1, 0: 2}


def test_the_same_packet_twice_is_duplication_and_not_reordering() -> None:
    order = Reordering()
    assert [order.arrive(number) for number in (0, 1, 0, 1)][2:] == [Arrival.DUPLICATE, Arrival.DUPLICATE]
    assert (order.reordered, order.duplicates, order.arrived) == (0, 2, 2)


@given(st.lists(st.integers(0, 25), max_size=40))
def test_reordering_is_what_its_definition_says_of_every_arrival(arrivals: list[int]) -> None:
    order, seen = Reordering(), list[int]()
    extents, degrees, duplicates = dict[int, int](), dict[int, int](), 0
    for sequence in arrivals:
        answer = order.arrive(sequence)
        if sequence in seen:
            duplicates += 1
            assert answer is Arrival.DUPLICATE
            continue
        larger = [at for at, earlier in enumerate(seen) if earlier > sequence]
        assert answer is (Arrival.REORDERED if larger else Arrival.IN_ORDER)
        if larger:
            extents[len(seen) - larger[0]] = extents.get(len(seen) - larger[0], 0) + 1
            n = next((n for n, earlier in enumerate(reversed(seen)) if earlier < sequence), len(seen))
            degrees[n] = degrees.get(n, 0) + 1
        seen.append(sequence)
    assert (order.extents, order.degrees, order.duplicates) == (extents, degrees, duplicates)
    assert all(order.has(number) == (number in seen) for number in range(27))


# --- what applications feel ------------------------------------------------------------------------


def test_goodput_is_bits_over_time() -> None:
    assert metrics.goodput_bps(1000, 0.5) == 16_000
    assert metrics.goodput_bps(1000, 0.0) is None
