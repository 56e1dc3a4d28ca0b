"""Metrics: what a test may record, and what of it is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from testbed.errors import InvalidValueError
from testbed.evidence.metric import Metric, recorded
from tests.unit.fakes import FakeLab


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "fast", None, True, {"a": 1}, [1, "x", None]])
def test_a_sample_is_a_finite_number(value: Any) -> None:
    lab = FakeLab()
    with pytest.raises(InvalidValueError, match="must be a finite number"):
        lab.record("speed", value, unit="s", better="lower")
    assert lab.ledger.metrics == {}


@pytest.mark.parametrize(
    ("values", "kept"), [(1, (1.0,)), ([1, 2.5], (1.0, 2.5)), ((x / 2 for x in range(3)), (0.0, 0.5, 1.0))]
)
def test_one_value_or_several(values: Any, kept: tuple[float, ...]) -> None:
    lab = FakeLab()
    lab.record("speed", values, unit="s", better="lower")
    lab.record("speed", 7, unit="s", better="lower")
    assert lab.ledger.metrics["speed"].values == (*kept, 7.0)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(InvalidValueError) as raised:
        recorded("", [], unit=3, better="fast", least_effect=0.05)
    assert list(raised.value.problems) == [
        "name='': must be text", "unit=3: must be text", "better='fast': must be 'lower' or 'higher'",
        'least_effect=0.05: a percentage needs its sign; write least_effect="0.05%" or, if that is a share of 1, "5%"',
        "record('', []): no value",
    ]  # fmt: skip
    with pytest.raises(InvalidValueError, match=r"least_effect='0%': must be more than 0"):
        recorded("a", 1, unit="s", better="lower", least_effect="0%")
    with pytest.raises(InvalidValueError, match=r"'wire: ' begins the names of metrics that come by themselves"):
        recorded("wire: mine", 1, unit="s", better="lower", least_effect="5%")


def test_the_same_name_means_the_same_metric() -> None:
    lab = FakeLab()
    lab.record("speed", 1, unit="s", better="lower")
    with pytest.raises(InvalidValueError) as raised:
        lab.record("speed", 2, unit="ms", better="higher", least_effect="1%")
    assert list(raised.value.problems) == [
        "record('speed'): unit='ms', and before 's'", "record('speed'): better='higher', and before 'lower'",
        "record('speed'): least_effect=0.01, and before 0.05",
    ]  # fmt: skip
    assert lab.ledger.metrics["speed"].values == (1.0,)


@pytest.mark.parametrize(
    ("unit", "values", "described"),
    [
        ("s", (0.0125,), "12.5 ms (lower is better)"), ("s", (0.0,), "0 ns (lower is better)"),
        ("B", (1234567.0,), "1.235 MB (lower is better)"),
        ("", (1.0, 2.0, 30000.0), "2 (median of 3, 1 to 30000) (lower is better)"),
        ("s", (4000.0, 2e-7), "2000 s (median of 2, 200 ns to 4000 s) (lower is better)"),
    ],
)  # fmt: skip
def test_a_metric_is_described_in_a_unit_that_reads_well(unit: str, values: tuple[float, ...], described: str) -> None:
    assert Metric(name="n", values=values, unit=unit, better="lower").describe() == described
