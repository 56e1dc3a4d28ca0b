"""The effects that a plan promises to detect are detected; smaller ones are not."""

from __future__ import annotations

import math
import random

import pytest

from testbed.judge import betting
from testbed.judge.cells import Cell, Kind
from testbed.judge.foresight import findable


def cell(spread: float, pairs: int = 20, *, better: str = "lower") -> Cell:
    draw = random.Random(5)  # noqa: S311  # data for a test
    base, head = ([math.exp(draw.gauss(0, spread)) for _ in range(pairs)] for _ in range(2))
    return Cell(
        test="t", metric="m", links="a -> b", unit="s", kind=Kind.RATIO, better=better, least_effect=0.05, decides=True,
        base=tuple(base), head=tuple(head),
    )  # fmt: skip


def power(spread: float, pairs: int, effect: float) -> float:
    draw = random.Random(6)  # noqa: S311  # data for a test
    detected = 0
    for _ in range(100):
        differences = [draw.gauss(math.log1p(effect), spread * math.sqrt(2)) for _ in range(pairs)]
        detected += betting.evidence(differences, math.log1p(0.05)).highest_above >= math.log(400)
    return detected / 100


@pytest.mark.parametrize("spread", [0.02, 0.1])
def test_an_effect_that_is_foreseen_is_found_and_a_much_smaller_one_is_not(spread: float) -> None:
    effect = findable(cell(spread), 30, alpha=0.01, cells=4)
    assert effect is not None
    assert power(spread, 30, effect * 1.2) >= 0.8
    assert power(spread, 30, 0.05 + (effect - 0.05) * 0.4) <= 0.5


def test_more_pairs_find_less_and_more_noise_hides_more() -> None:
    few, many = (findable(cell(0.1), pairs, alpha=0.01, cells=4) for pairs in (20, 120))
    calm = findable(cell(0.02), 20, alpha=0.01, cells=4)
    assert few is not None
    assert many is not None
    assert calm is not None
    assert few > many > 0.05
    assert few > calm > 0.05


def test_so_few_pairs_find_nothing() -> None:
    assert findable(cell(0.02), 12, alpha=0.01, cells=4) is None
    assert findable(cell(0.02), 13, alpha=0.01, cells=4) is not None
    assert findable(cell(0.02, pairs=2), 50, alpha=0.01, cells=4) is None


def test_without_any_noise_it_is_the_least_effect() -> None:
    still = Cell(
        test="t", metric="m", links="", unit="B", kind=Kind.RATIO, better="lower", least_effect=0.05, decides=True,
        base=(5.0,) * 10, head=(5.0,) * 10,
    )  # fmt: skip
    assert findable(still, 20, alpha=0.01, cells=4) == pytest.approx(0.05, abs=0.001)
