"""Verdicts on two versions: regressed, improved, the same, or undecided. Pure.

The false-alarm rate α holds over all m cells of a comparison: each asks for an e-value of m/α (`judge.betting`), or for
a p-value of α/m where the runs are no pairs.

``regressed``  head is worse by more than the least effect of interest
``improved``   head is better by more than that
``same``       neither: both one-sided tests at the least effect pass (equivalence, TOST); of counts and shares: no pair
               differs, in as many pairs as could have decided
``undecided``  the runs do not tell; the smallest effect that they would have told, and how many more it would take
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from testbed.judge.cells import Cell, Run, TestRun, cells, matched
from testbed.judge.changes import Change, Judged
from testbed.judge.exact import Parting, of_seeds, parted
from testbed.judge.paired import of_pairs
from testbed.judge.unpaired import of_samples

ALPHA = 0.01
"""The false-alarm rate of a whole comparison."""
_FEWEST_IN_TURNS = 2


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A test that passed on base and failed on head."""

    test: str
    links: str
    base_failed: int
    base_runs: int
    head_failed: int
    head_runs: int
    reason: str
    replay: str | None
    change: Change


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that is said of two versions."""

    paired: bool
    base_runs: int
    head_runs: int
    """Runs that count; of pairs, both are the number of pairs."""
    one_after_other: bool = False
    """Whether all pairs' runs of one version are earlier than all of the other: no coin ordered them, and what the
    machine did meanwhile counts as a difference."""
    thrown_away: tuple[str, ...] = ()
    """Why pairs, or runs, do not count."""
    unmatched: int = 0
    """Runs whose seed the other version does not have."""
    alpha: float = ALPHA
    judged: tuple[Judged, ...] = ()
    broken: tuple[Broken, ...] = ()
    problems: tuple[str, ...] = ()
    """What could not be compared."""
    across: tuple[str, ...] = ()
    """In what the runs differ that should be alike, where that was allowed."""
    not_judged: tuple[str, ...] = ()
    only: dict[str, tuple[str, ...]] = field(default_factory=dict)
    exact: bool = False
    """Whether the runs were in virtual time, so that each difference is the version's."""
    parted: tuple[Parting, ...] = ()
    """In virtual time: where each test that differs does so first."""
    identical: tuple[str, ...] = ()
    """In virtual time: the tests that are identical under every seed."""

    def of(self, change: Change) -> list[Judged]:
        """The cells with this verdict."""
        return [judged for judged in self.judged if judged.change is change]

    @property
    def failing(self) -> list[str]:
        """Tests that failed in every run of both versions: nothing else of them could be compared."""
        outcomes = [judged.cell for judged in self.judged if judged.cell.of_outcome]
        return [cell.test for cell in outcomes if min(cell.base + cell.head)]

    @property
    def waiting(self) -> list[Judged]:
        """The undecided cells that a comparison waits for."""
        return [judged for judged in self.of(Change.UNDECIDED) if judged.cell.decides]

    @property
    def decided(self) -> bool:
        """Whether there is a cell, and none that a comparison waits for."""
        return bool(self.judged) and not self.waiting

    @property
    def change(self) -> Change:
        """The verdict on the whole: regressed if a cell is, undecided if one that is waited for is."""
        if self.of(Change.REGRESSED):
            return Change.REGRESSED
        if not self.decided:
            return Change.UNDECIDED
        return Change.IMPROVED if self.of(Change.IMPROVED) else Change.SAME


def compare(
    base: Sequence[Run],
    head: Sequence[Run],
    *,
    alpha: float = ALPHA,
    quantiles: Sequence[float] = (),
    across: Sequence[str] = (),
    problems: Sequence[str] = (),
    brief: bool = False,
) -> Comparison:
    """Judge head against base: by pairs where seeds agree, else as two independent samples.

    ``across``: in what the runs differ that should be alike; ``problems``: what else could not be compared; both are
    handed on. ``brief``: pairs without bounds, for many looks in a row. In virtual time each difference counts.
    """
    pairs = matched(base, head)
    exact = bool(pairs) and all(run.machine.get("virtual") for run in (*base, *head))
    if pairs:
        worthless = [(pair, test) for pair in pairs if (test := pair.invalid) is not None]
        thrown = tuple(f"seed {pair.base.seed}: {test.id}: {test.reason or ''}" for pair, test in worthless)
        counted = [pair for pair in pairs if pair.invalid is None]
        base_runs, head_runs = [pair.base for pair in counted], [pair.head for pair in counted]
    else:
        thrown = tuple(
            f"{run.source}: {test.id}: {test.reason or ''}" for run in (*base, *head) if (test := run.invalid)
        )
        base_runs, head_runs = ([run for run in runs if run.invalid is None] for runs in (base, head))
    collected = cells(base_runs, head_runs, paired=bool(pairs), quantiles=quantiles)
    judged = judge(collected.cells, paired=bool(pairs), alpha=alpha, brief=brief, exact=exact)
    partings, identical = parted(base_runs, head_runs) if exact else ((), ())
    return Comparison(
        paired=bool(pairs), base_runs=len(base_runs), head_runs=len(head_runs), thrown_away=thrown,
        exact=exact, parted=partings, identical=identical,
        one_after_other=bool(pairs) and not exact and _one_after_other(base_runs, head_runs),
        unmatched=len(base) + len(head) - 2 * len(pairs) if pairs else 0, alpha=alpha, judged=judged,
        broken=_broken(judged, head_runs), problems=(*problems, *collected.problems), across=tuple(across),
        not_judged=tuple(collected.not_judged), only=collected.only,
    )  # fmt: skip


def _one_after_other(base: Sequence[Run], head: Sequence[Run]) -> bool:
    """Whether the times at which sessions started do not interleave; of one pair that says nothing."""
    times = [sorted(run.started for run in runs) for runs in (base, head)]
    if any(len(starts) < _FEWEST_IN_TURNS or not starts[0] for starts in times):
        return False
    return times[0][-1] < times[1][0] or times[1][-1] < times[0][0]


def judge(
    compared: Sequence[Cell], *, paired: bool, alpha: float = ALPHA, brief: bool = False, exact: bool = False
) -> tuple[Judged, ...]:
    """A verdict on each cell, for a false-alarm rate of ``alpha`` over all of them."""
    if not compared:
        return ()
    if exact:
        return tuple(of_seeds(cell, alpha / len(compared)) for cell in compared)
    if paired:
        return tuple(of_pairs(cell, math.log(len(compared) / alpha), brief=brief) for cell in compared)
    return tuple(of_samples(cell, alpha / len(compared)) for cell in compared)


# --- tests that fail now -----------------------------------------------------------------------------


def _broken(judged: Sequence[Judged], head: Sequence[Run]) -> tuple[Broken, ...]:
    """Tests that failed more often on head than on base, the most often first."""
    broken = []
    for result in judged:
        cell = result.cell
        if not cell.of_outcome or sum(cell.head) <= sum(cell.base):
            continue
        failed = _failed(head, cell.test)
        broken.append(
            Broken(
                test=cell.test,
                links=cell.links,
                base_failed=round(sum(cell.base)),
                base_runs=len(cell.base),
                head_failed=round(sum(cell.head)),
                head_runs=len(cell.head),
                reason=failed.reason or "",
                replay=failed.replay,
                change=result.change,
            )
        )
    return tuple(sorted(broken, key=lambda test: test.base_failed - test.head_failed))


def _failed(runs: Sequence[Run], test: str) -> TestRun:
    return next(run.tests[test] for run in runs if test in run.tests and run.tests[test].failed)
