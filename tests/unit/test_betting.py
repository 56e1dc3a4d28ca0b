"""E-values: what a bettor can win on coins, and what not."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.judge import betting

SIZES = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=7)
DIFFERENCES = st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), min_size=1, max_size=40)


def by_hand(differences: Sequence[float], place: float = 0.0) -> float:
    """E_n above a place, as the formula has it, without numpy."""
    total = 0.0
    for rate in (0.05, 0.15, 0.5, 1.5):
        wealth, sizes = 1.0, []
        for difference in differences:
            x = difference - place
            if x:
                sizes.append(abs(x))
            sizes.sort()
            middle = len(sizes) // 2
            scale = 0.0 if not sizes else (sizes[middle] + sizes[~middle]) / 2
            stake = math.tanh(min(rate * abs(x) / scale, 1)) if x else 0.0
            wealth *= 1 + math.copysign(stake, x)
        total += wealth
    return total / 4


@given(DIFFERENCES, st.floats(-10, 10))
def test_it_is_the_formula(differences: list[float], place: float) -> None:
    evidence = betting.evidence(differences, place)
    assert evidence.above[-1] == pytest.approx(math.log(by_hand(differences, place)), abs=1e-6)
    assert evidence.below[-1] == pytest.approx(
        math.log(by_hand([-difference for difference in differences], -place)), abs=1e-6
    )


@pytest.mark.parametrize("signs_alone", [False, True])
def test_many_comparisons_at_once_are_as_one_after_the_other(signs_alone: bool) -> None:
    draw = np.random.default_rng(1)
    differences = draw.standard_cauchy((3, 4, 20)) * (draw.random((3, 4, 20)) < 0.9)
    places = draw.normal(size=(3, 4))
    together = betting.evidence(differences, places[..., None], signs_alone=signs_alone)
    for at in np.ndindex(3, 4):
        alone = betting.evidence(differences[at].tolist(), places[at], signs_alone=signs_alone)
        assert together.above[at].tolist() == pytest.approx(alone.above.tolist())
        assert together.below[at].tolist() == pytest.approx(alone.below.tolist())


@given(SIZES)
@settings(max_examples=50)
def test_over_all_ways_the_coins_can_fall_it_is_1_on_average(sizes: list[float]) -> None:
    """A martingale, exactly: whatever the sizes of the differences are."""
    ways = [[s * size for s, size in zip(signs, sizes, strict=True)] for signs in product((-1, 1), repeat=len(sizes))]
    mean = math.fsum(math.exp(betting.evidence(way).above[-1]) for way in ways) / len(ways)
    assert mean == pytest.approx(1)


@given(DIFFERENCES, st.floats(0.001, 1000))
def test_units_do_not_matter(differences: list[float], factor: float) -> None:
    some, scaled = (betting.evidence(sample).above[-1] for sample in (differences, [factor * d for d in differences]))
    assert scaled == pytest.approx(some, abs=1e-6)


@given(DIFFERENCES)
def test_above_and_below_are_each_other_turned_round(differences: list[float]) -> None:
    evidence, turned = betting.evidence(differences), betting.evidence([-difference for difference in differences])
    assert list(evidence.above) == list(turned.below)


def test_of_nothing_there_is_no_evidence() -> None:
    assert betting.evidence([]).highest_above == -math.inf
    assert betting.evidence([0.0] * 50).highest_above == pytest.approx(0)
    assert betting.bounds([], math.log(100)) == (-math.inf, math.inf)
    assert betting.growth([]) == (0.0, 0.0)


def test_zeros_do_not_make_the_others_large() -> None:
    """Of counts, most pairs are alike: the scale is that of those that differ."""
    assert betting.evidence([0.0] * 20 + [1.0]).above[-1] == pytest.approx(betting.evidence([1.0]).above[-1])


def test_one_second_once_is_not_more_than_a_millisecond_once() -> None:
    usual = [0.001, -0.001] * 10
    assert betting.evidence([*usual, 1.0]).above[-1] - betting.evidence(usual).above[-1] < math.log(1.77)


@pytest.mark.parametrize(("cells", "pairs"), [(1, 11), (6, 14), (50, 18), (300, 21)])
def test_so_many_pairs_are_needed_at_least(cells: int, pairs: int) -> None:
    threshold = math.log(cells / 0.01)
    assert betting.least_pairs(threshold) == pairs
    assert (
        betting.evidence([1.0] * (pairs - 1)).highest_above < threshold <= betting.evidence([1.0] * pairs).highest_above
    )


def test_it_is_remembered_that_an_e_value_was_high() -> None:
    evidence = betting.evidence([1.0] * 12 + [-1.0] * 12)
    assert evidence.highest_above == evidence.above[11] > math.log(100) > evidence.above[-1]


def test_growth_foretells_how_many_more_pairs() -> None:
    draw = random.Random(1)  # noqa: S311  # data for a test
    differences = [draw.gauss(0.1, 0.1) for _ in range(400)]
    logs = betting.evidence(differences).above
    rise, fall = betting.growth(differences[:40])
    assert fall == 0
    foretold = logs[39] + rise * 200
    assert logs[239] == pytest.approx(foretold, rel=0.3)


@given(st.floats(-100, 100), st.integers(0, 10))
@settings(max_examples=30)
def test_bounds_move_with_the_differences(shift: float, seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311  # data for a test
    differences = [draw.gauss(0, 1) for _ in range(30)]
    low, high = betting.bounds(differences, math.log(400))
    moved = betting.bounds([difference + shift for difference in differences], math.log(400))
    assert moved == pytest.approx((low + shift, high + shift), abs=0.01)
    assert low < 0.9
    assert high > -0.9
    assert low <= high


def test_bounds_hold_the_middle_nearly_always() -> None:
    draw = random.Random(7)  # noqa: S311  # data for a test
    missed = 0
    for _ in range(300):
        low, high = betting.bounds([draw.gauss(3, 1) for _ in range(24)], math.log(20))
        missed += not low <= 3 <= high
    assert missed <= 30  # 5 % a side at most; it is far less


def test_too_few_pairs_bound_nothing() -> None:
    assert betting.bounds([1.0] * 10, math.log(100)) == (-math.inf, math.inf)
    low, high = betting.bounds([1.0] * 12, math.log(100))
    assert low == pytest.approx(1, abs=1e-3)
    assert high == pytest.approx(1, abs=1e-3)


def test_signs_alone_know_no_sizes() -> None:
    some, others = [1.0, -0.001, 2.0, 3.0], [0.001, -5.0, 0.1, 0.2]
    assert list(betting.evidence(some, signs_alone=True).above) == list(
        betting.evidence(others, signs_alone=True).above
    )
    skewed = [-0.1] * 30 + [100.0] * 20  # more lie below, however far the others are above
    assert betting.evidence(skewed, signs_alone=True).highest_above < math.log(20)
