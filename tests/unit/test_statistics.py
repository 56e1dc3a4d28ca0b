"""Exact tests against exact fractions, published tables, and their own definition."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.judge import statistics as exact
from tests.exact import quantile_interval, two_sided


def seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311  # a simulation


def binomial(k: int, n: int, p: Fraction) -> Fraction:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


@given(n=st.integers(1, 60), k=st.integers(-1, 61), thousandths=st.integers(0, 1000))
def test_tails_are_the_sums_of_exact_fractions(n: int, k: int, thousandths: int) -> None:
    p = Fraction(thousandths, 1000)
    below = sum((binomial(i, n, p) for i in range(min(k, n) + 1)), Fraction(0))
    above = sum((binomial(i, n, p) for i in range(max(k, 0), n + 1)), Fraction(0))
    assert exact.at_most(k, n, float(p)) == pytest.approx(float(below), rel=1e-9, abs=1e-14)
    assert exact.at_least(k, n, float(p)) == pytest.approx(float(above), rel=1e-9, abs=1e-14)


def test_a_tail_of_a_large_sample_keeps_its_digits() -> None:
    n, k = 3_000, 150
    ways = sum(math.comb(n, i) * 3**i * 97 ** (n - i) for i in range(k, k + 100))
    above = Fraction(ways, 100**n)
    assert 0 < above < Fraction(1, 10**8)
    assert exact.at_least(k, n, 0.03) == pytest.approx(float(above), rel=1e-8)


def test_clopper_pearson_of_published_examples() -> None:
    # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17 (1998), table I:
    # 81 of 263, 15 of 148, 0 of 20, 1 of 29, method 5 ("exact").
    for k, n, low, high in (
        (81, 263, 0.2527, 0.3676),
        (15, 148, 0.0578, 0.1617),
        (0, 20, 0.0, 0.1684),
        (1, 29, 0.0009, 0.1776),
    ):
        assert exact.interval(k, n, 0.05) == pytest.approx((low, high), abs=5e-5)


def test_an_interval_of_nothing_is_everything() -> None:
    assert exact.interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5)])
def test_a_part_larger_than_the_whole_is_refused(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="a part of the whole"):
        exact.interval(k, n)


@given(n=st.integers(1, 1000), thousandths=st.integers(1, 999), alpha=st.sampled_from([1e-6, 1e-3, 0.05]))
@settings(deadline=None)
def test_what_is_accepted_is_what_the_two_sided_test_does_not_condemn(n: int, thousandths: int, alpha: float) -> None:
    p = thousandths / 1000
    first, last = exact.accepted(n, p, alpha)
    assert 0 <= first <= n * p + 1
    assert n * p - 1 <= last <= n
    assert two_sided(first, n, p) > alpha
    assert two_sided(last, n, p) > alpha
    assert first == 0 or two_sided(first - 1, n, p) <= alpha
    assert last == n or two_sided(last + 1, n, p) <= alpha


@given(k=st.integers(0, 200), n=st.integers(200, 400), alpha=st.sampled_from([1e-6, 0.01]))
@settings(deadline=None)
def test_the_interval_and_the_test_agree(k: int, n: int, alpha: float) -> None:
    low, high = exact.interval(k, n, alpha)
    assert low <= k / n <= high
    for inside in (low + (high - low) * part for part in (0.001, 0.5, 0.999)):
        assert two_sided(k, n, inside) >= alpha
    if low > 0:
        assert two_sided(k, n, low * 0.99) < alpha


@pytest.mark.parametrize(
    ("p", "low", "high"),
    [(0.02, 0.01, 0.03), (0.3, 0.2, 0.4), (0.001, 0.0, 0.002), (0.5, 0.25, 0.5), (0.9, 0.45, 0.9), (0.5, 0.5, 1.0)],
)
def test_a_sample_of_that_size_finds_what_is_off_and_a_smaller_one_does_not(p: float, low: float, high: float) -> None:
    def power(n: int) -> float:
        """By the counts themselves: how likely the less visible of the two is to lie outside."""
        first, last = exact.accepted(n, p)
        below = exact.at_most(first - 1, n, low) if low < p else 1.0
        return min(below, exact.at_least(last + 1, n, high) if high > p else 1.0)

    n = exact.sample_size(p, low, high)
    assert power(n) >= exact.POWER
    assert power(int(n * 0.9)) < exact.POWER
    # The normal approximation gives its order of magnitude: ((z √(p q) + y √(p' q')) / off)², z = 4.89, y = 1.28.
    worse = high if high > p else low
    terms = 4.89 * math.sqrt(p * (1 - p)) + 1.28 * math.sqrt(worse * (1 - worse))
    assert 0.5 <= n / (terms / abs(worse - p)) ** 2 <= 2.5


def test_the_sample_size_never_exceeds_what_there_is_time_for() -> None:
    assert exact.sample_size(0.001, 0.00099, 0.00101, most=4000) == 4000
    assert exact.sample_size(0.5, 0.5, 0.5, most=4000) == 1, "where nothing is to be found, nothing is needed"


@pytest.mark.parametrize(("n", "p"), [(1000, 0.1), (4000, 0.5), (300, 0.95)])
def test_the_nearest_shares_that_are_found_are_found_so_surely_and_nearer_ones_are_not(n: int, p: float) -> None:
    first, last = exact.accepted(n, p)
    low, high = exact.found_shares(first, last, n)
    assert low < p < high
    assert exact.at_most(first - 1, n, low) == pytest.approx(exact.POWER)
    assert high == 1.0 or exact.at_least(last + 1, n, high) == pytest.approx(exact.POWER)
    assert exact.found_shares(0, n, n) == (0.0, 1.0), "where every count passes, nothing is found"


def test_a_median_lies_between_the_order_statistics_of_the_tables() -> None:
    # 95 % for the median of 10: the 2nd and the 9th (David and Nagaraja, table 7.1: coverage 0.9785).
    assert quantile_interval(list(range(1, 11)), 0.5, 0.05) == (2, 9)
    assert quantile_interval([3.0, 1.0, 2.0], 0.5) == (-math.inf, math.inf)


def test_a_quantile_interval_holds_as_often_as_it_says() -> None:
    draw = seeded(1)
    alpha, rounds, q = 0.2, 600, 0.9
    missed = 0
    for _ in range(rounds):
        low, high = quantile_interval([draw.random() for _ in range(60)], q, alpha)
        missed += not low <= q <= high
    assert missed <= exact.accepted(rounds, alpha, 1e-6)[1]
    assert missed > rounds * alpha / 4, "and it is not needlessly wide"


def test_transitions_and_bursts_of_a_row() -> None:
    lost = [bool(int(digit)) for digit in "0011101000011"]
    assert exact.bursts(lost) == [3, 1, 2]
    # Steps: from 0 to 0 four times and to 1 three times; from 1 to 1 three times and to 0 twice.
    assert exact.transitions(lost) == exact.Transitions(from_good=7, to_bad=3, from_bad=5, to_good=2)
    assert exact.bursts([]) == []
    assert exact.transitions([True]) == exact.Transitions(from_good=0, to_bad=0, from_bad=0, to_good=0)


def test_gilberts_model_is_two_binomials() -> None:
    """Simulated: a step's outcome is tested at p and at r, and an independent loss of the same mean is condemned."""
    draw = seeded(7)
    p, r = 0.02, 1 / 3
    lost, bad = [], False
    for _ in range(20_000):
        bad = draw.random() >= r if bad else draw.random() < p
        lost.append(bad)
    seen = exact.transitions(lost)
    assert two_sided(seen.to_bad, seen.from_good, p) > 1e-6
    assert two_sided(seen.to_good, seen.from_bad, r) > 1e-6
    mean = p / (p + r)
    independent = exact.transitions([draw.random() < mean for _ in range(20_000)])
    assert two_sided(independent.to_good, independent.from_bad, r) < 1e-12


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_no_probability_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        two_sided(1, 2, p)
