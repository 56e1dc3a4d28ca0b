"""Verdicts on runs in virtual time, where each difference is the version's. Pure.

Without noise nothing has to be told from chance for a seed: base and head are identical under it, or they are not. Open
is how often that is so over all seeds. A version that only sends its packets at other times loses others, and may be
worse under one seed and better under the next.

``same``       no seed is worse or better by more than the least effect; where all are identical, for certain
``regressed``  more seeds are worse than better, by a sign test at the false-alarm rate of the comparison
``improved``   the other way round
``undecided``  some are worse or better, and they are too few to say which there are more of
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from testbed.evidence.trail import Passed, PortParting, around, partings
from testbed.judge.cells import Cell, Kind, Run, TestRun
from testbed.judge.changes import Change, Judged, Seeds
from testbed.judge.differing import compared, differences
from testbed.judge.statistics import at_least
from testbed.text import shown

_MOST_MORE = 10_000
_CHARACTERS = 80


def of_seeds(cell: Cell, alpha: float) -> Judged:
    """The verdict on a cell; ``alpha``: the false-alarm rate of this cell."""
    oriented = [cell.worse * difference for difference in cell.differences]
    worse = sum(difference > cell.margin for difference in oriented)
    better = sum(difference < -cell.margin for difference in oriented)
    seeds = Seeds(
        of=len(oriented),
        identical=sum(base == head for base, head in zip(cell.base, cell.head, strict=True)),
        worse=worse,
        better=better,
    )
    change = _change(worse, better, alpha)
    effects = [cell.as_effect(difference) for difference in cell.differences] or [0.0]
    return Judged(
        cell=cell,
        change=change,
        effect=fmean(effects) if cell.kind is Kind.COUNT else median(effects),
        low=min(effects),
        high=max(effects),
        more=_more(seeds, alpha) if change is Change.UNDECIDED else None,
        seeds=seeds,
    )


def _change(worse: int, better: int, alpha: float) -> Change:
    if not worse and not better:
        return Change.SAME
    for count, change in ((worse, Change.REGRESSED), (better, Change.IMPROVED)):
        if at_least(count, worse + better, 0.5) <= alpha:
            return change
    return Change.UNDECIDED


def _more(seeds: Seeds, alpha: float) -> int | None:
    """How many more seeds decide it, if they are as these were; None if no number would."""
    for total in range(seeds.of + 1, _MOST_MORE):
        worse, better = (round(count * total / seeds.of) for count in (seeds.worse, seeds.better))
        if _change(worse, better, alpha) is not Change.UNDECIDED:
            return total - seeds.of
    return None


@dataclass(frozen=True, kw_only=True)
class Parting:
    """Where a test of head first is not what it was on base."""

    test: str
    seed: int
    """The first under which it is not."""
    what: str
    """The outcome, a metric, or another place in the results."""
    base: str
    head: str
    packets: tuple[str, ...]
    """Where packets part first under that seed, and those around it; empty if none does."""
    differing: int
    """Under how many seeds the test differs."""
    seeds: int


def parted(base: Sequence[Run], head: Sequence[Run]) -> tuple[tuple[Parting, ...], tuple[str, ...]]:
    """Of each test of both that differs, where first; and the tests that are identical under every seed."""
    partings, identical = [], []
    for test in dict.fromkeys(test for run in base for test in run.tests):
        pairs = [
            (one.seed, one.tests[test], other.tests[test])
            for one, other in zip(base, head, strict=True)
            if test in one.tests and test in other.tests
        ]
        differing = [pair for pair in pairs if first_difference(*pair[1:])]
        if differing:
            seed, *both = differing[0]
            what, ours, theirs = first_difference(*both) or ("", "", "")
            partings.append(
                Parting(
                    test=test, seed=seed, what=what, base=ours, head=theirs, packets=tuple(_packets(*both)),
                    differing=len(differing), seeds=len(pairs),
                )
            )  # fmt: skip
        elif pairs:
            identical.append(test)
    return tuple(partings), tuple(identical)


def first_difference(base: TestRun, head: TestRun) -> tuple[str, str, str] | None:
    """The first value in which two runs of a test differ: what it is, in base, in head. None: they are identical."""
    first = next(differences(_by_name(base), _by_name(head)), None)
    if first is None:
        return ("packets", _count(base), _count(head)) if _parted(base, head) else None
    words = [
        step if isinstance(step, str) else f"{step.number + 1}"
        for step in first.place
        if isinstance(step, str) or step.of > 1
    ]
    return " ".join(words), shown(first.one, _CHARACTERS), shown(first.other, _CHARACTERS)


def _passed(test: TestRun) -> Passed:
    """What passed at its ports; nothing where the results have no digests."""
    return Passed.read(test.content.get("packets") or {"since_ns": 0, "ports": {}})


def _count(test: TestRun) -> str:
    return f"{sum(trail.packets for trail in _passed(test).ports.values())} in all"


def _parted(base: TestRun, head: TestRun) -> list[PortParting]:
    return partings(_passed(base), _passed(head))


def _packets(base: TestRun, head: TestRun) -> Iterator[str]:
    """Where packets part first, and when those around it passed, a line each."""
    for parting in _parted(base, head)[:1]:
        yield f"{parting}"
        for number, differs, *times_ns in around(parting, _passed(base), _passed(head)):
            ours, theirs = ("none" if time_ns is None else f"{time_ns / 1e9:.9f} s" for time_ns in times_ns)
            yield f"{'>' if differs else ' '} {number}: {ours} in base, {theirs} in head"


def _by_name(test: TestRun) -> dict[str, Any]:
    """What the results say of a test; what matters most first."""
    metrics = {name: list(metric.values) for name, metric in test.metrics.items()}
    others = {key: value for key, value in compared(test.content).items() if key not in ("outcome", "metrics")}
    return {"outcome": str(test.outcome), "metric": metrics, **others}
