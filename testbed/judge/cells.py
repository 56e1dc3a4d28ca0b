"""Cells: what is compared of two versions, a metric of a test under its links. Pure.

A *run* is one results file: the tests of a session under one seed. Runs become *pairs* where base and head had the same
seed. Of each pair a cell has one difference, base to head:

``ratio``       ln(head / base), for values above 0
``difference``  head − base, for whole numbers that may be 0
``count``       head − base of what has the unit ``count`` or ``share``: failed tests, samples beyond a limit; any
                difference that is found matters, however small

A metric with several values in a run is two cells: its body, each run's median, and its tail, the share of samples
beyond a limit that the first pair sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from statistics import fmean, median
from typing import Any

from testbed.errors import InvalidValueError
from testbed.evidence.metric import RECORDED, TIMED, Metric
from testbed.evidence.verdict import Verdict
from testbed.text import shown

_ROOM_BITS = 64

_COUNTED_UNITS = ("count", "share")
_TAIL_FROM = 20
"""Samples a run, from which on a tail is looked at."""
_TAIL_FACTOR = 3
"""A sample is in the tail beyond so many medians of the first pair: 200 ms of a repeated segment are, and a second."""
_QUANTILE_NEEDS = 5
_LARGEST_LOGARITHM = 700
"""Beyond it a ratio is more than a float can hold."""
_OWN, _PROGRAMS = (RECORDED, TIMED), "programs"


class Kind(StrEnum):
    """How base and head are compared."""

    RATIO = "ratio"
    DIFFERENCE = "difference"
    COUNT = "count"


@dataclass(frozen=True, kw_only=True)
class TestRun:
    """One test in one run."""

    __test__ = False  # pytest must not collect it

    id: str
    profile: str | None = None
    links: tuple[tuple[str, str], ...] = ()
    """Each impaired or cut link, and what was asked of it, without seeds."""
    outcome: Verdict = Verdict.HOLDS
    reason: str | None = None
    replay: str | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    content: Mapping[str, Any] = field(default_factory=dict)
    """All that the results file says of it; empty where that is not known."""

    @property
    def failed(self) -> bool:
        """Whether it failed."""
        return self.outcome is Verdict.FAILS


@dataclass(frozen=True, kw_only=True)
class Run:
    """One results file."""

    source: str
    seed: int
    tests: Mapping[str, TestRun]
    machine: Mapping[str, Any] = field(default_factory=dict)
    started: str = ""

    @property
    def invalid(self) -> TestRun | None:
        """A test whose result does not count, if there is one."""
        return next((test for test in self.tests.values() if test.outcome is Verdict.INVALID), None)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A run of base and one of head under the same seed."""

    base: Run
    head: Run

    @property
    def invalid(self) -> TestRun | None:
        """A test of either that makes the pair worthless, if there is one."""
        return self.base.invalid or self.head.invalid


def matched(base: Sequence[Run], head: Sequence[Run]) -> list[Pair]:
    """Pairs of runs of the same seed, in the order of base's; the first with the first where a seed is there twice."""
    waiting: dict[int, list[Run]] = {}
    for run in head:
        waiting.setdefault(run.seed, []).append(run)
    return [Pair(base=run, head=waiting[run.seed].pop(0)) for run in base if waiting.get(run.seed)]


# --- one cell ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A metric of a test under its links, and what it was in each run."""

    test: str
    metric: str
    part: str = ""
    """Which part of the samples: ``median``, ``beyond 120 ms``, ``quantile 0.9``; empty for single values."""
    links: str
    unit: str
    kind: Kind
    better: str
    least_effect: float
    """A share of base's value; 0 of counts and shares."""
    decides: bool
    """Whether a comparison waits for it; of the others it only says if they are found to be worse."""
    of_outcome: bool = False
    """Whether it is not a metric but how often the test failed."""
    base: tuple[float, ...]
    head: tuple[float, ...]
    """One value a run; paired ones at the same place."""

    @property
    def name(self) -> str:
        """Metric and part."""
        return f"{self.metric}, {self.part}" if self.part else self.metric

    @property
    def worse(self) -> int:
        """The sign of a difference for the worse."""
        return 1 if self.better == "lower" else -1

    @property
    def margin(self) -> float:
        """The least effect of interest on the scale of the differences.

        Of whole numbers, of the mean of all runs of both: which run of a pair is base's does not change it.
        """
        if self.kind is Kind.RATIO:
            return math.log1p(self.least_effect)
        # Whole numbers may be so large that their sum is none; smaller by a power of two they are as exact.
        mean = fmean(math.ldexp(value, -_ROOM_BITS) for value in (*self.base, *self.head))
        return self.least_effect * math.ldexp(mean, _ROOM_BITS)

    @property
    def spread(self) -> float:
        """The median size of the differences from pair to pair, as an effect."""
        sizes = [abs(difference) for difference in self.differences]
        return self.as_effect(median(sizes)) if sizes else 0.0

    def scaled(self, values: Iterable[float]) -> list[float]:
        """Values on the scale on which differences are taken."""
        return [math.log(value) for value in values] if self.kind is Kind.RATIO else list(values)

    def as_effect(self, difference: float) -> float:
        """From the scale of differences to shares of base's value; of counts and shares, as it is."""
        if self.kind is not Kind.RATIO:
            return difference
        if math.isinf(difference):
            return difference
        return math.expm1(difference) if difference < _LARGEST_LOGARITHM else math.inf

    @property
    def differences(self) -> list[float]:
        """Head's to base's, pair by pair."""
        return [head - base for base, head in zip(self.scaled(self.base), self.scaled(self.head), strict=True)]


def run_quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile of a run's samples. Raises InvalidValueError below 5 / (1 − q) samples: too few lie beyond it."""
    if not 0 < q < 1:
        raise InvalidValueError(f"quantile {shown(q)}: lies between 0 and 1")
    needed = math.ceil(_QUANTILE_NEEDS / (1 - q) - 1e-9)
    if len(values) < needed:
        raise InvalidValueError(
            f"the {q:g}-quantile of {len(values)} samples: needs {needed} a run, so that 5 lie beyond it"
        )
    return sorted(values)[math.ceil(q * len(values)) - 1]


@dataclass(kw_only=True)
class Cells:
    """The cells of two versions, and what is wrong with the others."""

    cells: list[Cell] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    not_judged: dict[str, None] = field(default_factory=dict)
    """Metrics of which neither more nor less is worse."""
    only: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Tests of one version alone, by ``base`` and ``head``."""


def cells(base: Sequence[Run], head: Sequence[Run], *, paired: bool, quantiles: Sequence[float] = ()) -> Cells:
    """Every cell that both versions have. ``paired``: runs at the same place are of one pair, and stay together."""
    collected = Cells()
    tests = {
        name: list(dict.fromkeys(test for run in runs for test in run.tests))
        for name, runs in (("base", base), ("head", head))
    }
    for name, other in (("base", "head"), ("head", "base")):
        if alone := tuple(test for test in tests[name] if test not in tests[other]):
            collected.only[name] = alone
    for test in tests["base"]:
        if test in tests["head"]:
            sides = _of_test(test, base, head, paired=paired)
            if failures := _failures(test, *sides):
                collected.cells.append(failures)
            _metrics(collected, test, *_passed(*sides, paired=paired), paired=paired, quantiles=quantiles)
    return collected


def _of_test(
    test: str, base: Sequence[Run], head: Sequence[Run], *, paired: bool
) -> tuple[list[TestRun], list[TestRun]]:
    """A test's runs that passed or failed."""

    def ran(run: Run) -> bool:
        return test in run.tests and run.tests[test].outcome in (Verdict.HOLDS, Verdict.FAILS)

    if paired:
        both = [pair for pair in zip(base, head, strict=True) if all(map(ran, pair))]
        base, head = [one for one, _ in both], [other for _, other in both]
    return [run.tests[test] for run in base if ran(run)], [run.tests[test] for run in head if ran(run)]


def _passed(base: Sequence[TestRun], head: Sequence[TestRun], *, paired: bool) -> tuple[list[TestRun], list[TestRun]]:
    """Those whose metrics count: what a test measured before it failed is not comparable."""
    if paired:
        both = [pair for pair in zip(base, head, strict=True) if not any(run.failed for run in pair)]
        return [one for one, _ in both], [other for _, other in both]
    return [run for run in base if not run.failed], [run for run in head if not run.failed]


def in_words(test: TestRun) -> str:
    """The links of a test."""
    return "; ".join(" ".join((link, words)).strip() for link, words in test.links) or "no impaired link"


def _failures(test: str, base: Sequence[TestRun], head: Sequence[TestRun]) -> Cell | None:
    if not base or not head:
        return None
    return Cell(
        test=test,
        metric="failed",
        links=in_words(head[0]),
        unit="share of runs",
        kind=Kind.COUNT,
        better="lower",
        least_effect=0.0,
        decides=True,
        of_outcome=True,
        base=tuple(float(run.failed) for run in base),
        head=tuple(float(run.failed) for run in head),
    )


def _metrics(
    collected: Cells,
    test: str,
    base: Sequence[TestRun],
    head: Sequence[TestRun],
    *,
    paired: bool,
    quantiles: Sequence[float],
) -> None:
    has_own = any(metric.group in _OWN for run in (*base, *head) for metric in run.metrics.values())
    in_base = dict.fromkeys(name for run in base for name in run.metrics)
    in_head = {name for run in head for name in run.metrics}
    for name in (name for name in in_base if name in in_head):
        if paired:
            both = [pair for pair in zip(base, head, strict=True) if all(name in run.metrics for run in pair)]
            sides = [[run.metrics[name] for run in side] for side in zip(*both, strict=True)]
        else:
            sides = [[run.metrics[name] for run in side if name in run.metrics] for side in (base, head)]
        if not sides:
            continue
        first = sides[0][0]
        where = f"{test}: metric {shown(name)}"
        if contradiction := _contradiction(sides):
            collected.problems.append(f"{where}: {contradiction}")
        elif first.better is None:
            collected.not_judged[name] = None
        else:
            made = partial(
                Cell,
                test=test,
                metric=name,
                links=in_words(head[0]),
                unit=first.unit,
                better=first.better,
                decides=first.group in _OWN or (first.group == _PROGRAMS and not has_own),
            )
            collected.cells += _parts(collected, where, made, sides[0], sides[1], quantiles)


def _contradiction(sides: Sequence[Sequence[Metric]]) -> str:
    """What a metric is not the same in, in all runs; empty if nothing."""
    for attribute in ("unit", "better"):
        base, head = (dict.fromkeys(getattr(metric, attribute) for metric in side) for side in sides)
        if len({*base, *head}) > 1:
            ours, theirs = (" and ".join(map(shown, values)) for values in (base, head))
            return f"{attribute} {ours} in base, {theirs} in head: they cannot be compared; record the same in both"
    return ""


def _parts(
    collected: Cells,
    where: str,
    made: Callable[..., Cell],
    base: Sequence[Metric],
    head: Sequence[Metric],
    quantiles: Sequence[float],
) -> Iterator[Cell]:
    """The cells of one metric: one, or body, tail and quantiles."""
    several = any(len(metric.values) > 1 for metric in (*base, *head))
    body = [tuple(metric.median for metric in side) for side in (base, head)]
    try:
        kind = _kind(base[0], *body)
    except InvalidValueError as error:
        collected.problems.append(f"{where}: {error}")
        return
    effect = 0.0 if kind is Kind.COUNT else head[0].least_effect
    yield made(part="median" if several else "", kind=kind, least_effect=effect, base=body[0], head=body[1])
    if all(len(metric.values) >= _TAIL_FROM for metric in (*base, *head)) and kind is Kind.RATIO:
        yield _tail(made, base, head)
    for q in quantiles if several else ():
        try:
            values = [tuple(run_quantile(metric.values, q) for metric in side) for side in (base, head)]
            kind = _kind(base[0], *values)
        except InvalidValueError as error:
            collected.problems.append(f"{where}: {error}")
            continue
        yield made(part=f"quantile {q:g}", kind=kind, least_effect=effect, base=values[0], head=values[1])


def _kind(metric: Metric, base: Sequence[float], head: Sequence[float]) -> Kind:
    """How these values are compared. Raises InvalidValueError where one must be above 0, and is not.

    A metric that comes by itself may be 0 whatever it is: a program needs less processor time than the kernel counts.
    """
    values = [*base, *head]
    if metric.unit in _COUNTED_UNITS:
        return Kind.COUNT
    if all(value > 0 for value in values):
        return Kind.RATIO
    if all(value >= 0 and (metric.group not in _OWN or value == int(value)) for value in values):
        return Kind.DIFFERENCE
    side, wrong = next((side, value) for side, run in (("base", base), ("head", head)) for value in run if value <= 0)
    raise InvalidValueError(
        f"{wrong:g} {metric.unit} in {side}: a ratio needs values above 0, and a count whole numbers from 0 on; record "
        f"what is never 0, or a count"
    )


def _tail(made: Callable[..., Cell], base: Sequence[Metric], head: Sequence[Metric]) -> Cell:
    """The share of samples on the worse side of a limit, which both runs of the first pair set alike."""
    middle = median((*base[0].values, *head[0].values))
    lower = base[0].better == "lower"
    limit = middle * _TAIL_FACTOR if lower else middle / _TAIL_FACTOR
    beyond = [
        tuple(fmean((value > limit) if lower else (value < limit) for value in metric.values) for metric in side)
        for side in (base, head)
    ]
    part = f"{'beyond' if lower else 'below'} {limit:.3g} {base[0].unit}"
    cell = made(part=part, kind=Kind.COUNT, least_effect=0.0, base=beyond[0], head=beyond[1])
    return replace(cell, unit="share of samples", better="lower", decides=False)
