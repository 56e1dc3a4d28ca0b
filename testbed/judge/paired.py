"""Verdicts on pairs of runs, by e-values: they may be looked at after each pair. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, median

from testbed.judge import betting
from testbed.judge.cells import Cell, Kind
from testbed.judge.changes import Change, Judged


def of_pairs(cell: Cell, log_threshold: float) -> Judged:
    """By e-values at the least effect, for the worse and for the better. A difference for the worse is above 0 here."""
    oriented = [cell.worse * each for each in cell.differences]
    margin, signs_alone = cell.margin, cell.kind is Kind.DIFFERENCE
    at_worse = betting.evidence(oriented, margin, signs_alone=signs_alone)
    at_better = betting.evidence(oriented, -margin, signs_alone=signs_alone)
    moments = {
        Change.REGRESSED: _first(at_worse.above, log_threshold),
        Change.IMPROVED: _first(at_better.below, log_threshold),
        Change.SAME: max(_first(at_worse.below, log_threshold), _first(at_better.above, log_threshold)),
    }
    if margin == 0:
        alike = not any(oriented) and len(oriented) >= betting.least_pairs(log_threshold)
        moments[Change.SAME] = len(oriented) if alike else math.inf
    change = min(moments, key=moments.__getitem__)
    if math.isinf(moments[change]):
        change = Change.UNDECIDED
    low, high = betting.bounds(oriented, log_threshold, signs_alone=signs_alone)
    middle = _middle(cell, oriented)
    findable = None if math.isinf(low) else cell.as_effect(margin + middle - low)
    if margin == 0 and not any(oriented):
        # A pair differs with this chance at the least, if it must not have stayed unseen in all of them.
        findable = -math.expm1(-log_threshold / len(oriented)) if oriented else None
    more = None
    if change is Change.UNDECIDED:
        more = _more(oriented, at_worse, at_better, margin, log_threshold, signs_alone=signs_alone)
    ends = sorted((cell.worse * low, cell.worse * high))
    return Judged(
        cell=cell, change=change, effect=cell.as_effect(cell.worse * middle), low=cell.as_effect(ends[0]),
        high=cell.as_effect(ends[1]), findable=findable, more=more,
    )  # fmt: skip


def _middle(cell: Cell, differences: Sequence[float]) -> float:
    """The median; of counts and shares the mean, as most pairs are alike there."""
    if not differences:
        return 0.0
    return fmean(differences) if cell.kind is Kind.COUNT else median(differences)


def _first(logs: Iterable[float], log_threshold: float) -> float:
    """After how many pairs an e-value came to the threshold; infinity if it did not."""
    return next((n for n, log in enumerate(logs, start=1) if log >= log_threshold), math.inf)


def _more(
    oriented: Sequence[float], at_worse: betting.Evidence, at_better: betting.Evidence, margin: float,
    log_threshold: float, *, signs_alone: bool,
) -> int | None:  # fmt: skip
    """How many more pairs until one of the verdicts, if the e-values rise as they do now."""
    if not oriented:
        return betting.least_pairs(log_threshold)
    if margin == 0 and not any(oriented):
        return max(betting.least_pairs(log_threshold) - len(oriented), 1)
    above_worse, below_worse = betting.growth(oriented, margin, signs_alone=signs_alone)
    above_better, below_better = betting.growth(oriented, -margin, signs_alone=signs_alone)

    def needed(log: float, rate: float) -> float:
        return math.inf if rate <= 0 else (log_threshold + math.log(len(betting.LAMBDAS)) - log) / rate

    ways = [needed(at_worse.above[-1], above_worse), needed(at_better.below[-1], below_better)]
    if margin > 0:
        ways.append(max(needed(at_worse.below[-1], below_worse), needed(at_better.above[-1], above_better)))
    least = min(ways)
    return None if math.isinf(least) else max(math.ceil(least), 1)
