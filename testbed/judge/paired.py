"""Verdicts on pairs of runs, by e-values: they may be looked at after each pair. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from testbed.judge import betting
from testbed.judge.cells import Cell, Kind
from testbed.judge.changes import Change, Judged


@dataclass(frozen=True, kw_only=True)
class _Bets:
    """The evidence on one cell. A difference for the worse is above 0 here."""

    oriented: list[float]
    margin: float
    signs_alone: bool
    at_worse: betting.Evidence
    """At the least effect for the worse."""
    at_better: betting.Evidence


def change_of(cell: Cell, log_threshold: float) -> Change:
    """What its pairs say, at the first moment when they say it."""
    return _change(_bets(cell), log_threshold)


def of_pairs(cell: Cell, log_threshold: float, *, brief: bool = False) -> Judged:
    """By e-values at the least effect, for the worse and for the better. ``brief``: without bounds, which take long."""
    bets = _bets(cell)
    change, oriented, margin = _change(bets, log_threshold), bets.oriented, bets.margin
    low, high = -math.inf, math.inf
    if not brief:
        low, high = betting.bounds(oriented, log_threshold, signs_alone=bets.signs_alone)
    middle = _middle(cell, oriented)
    findable = None if math.isinf(low) else cell.as_effect(margin + middle - low)
    if margin == 0 and oriented and not any(oriented):
        # A pair differs with this chance at the least, if it must not have stayed unseen in all of them.
        findable = -math.expm1(-log_threshold / len(oriented))
    ends = sorted((cell.worse * low, cell.worse * high))
    return Judged(
        cell=cell,
        change=change,
        effect=cell.as_effect(cell.worse * middle),
        low=cell.as_effect(ends[0]),
        high=cell.as_effect(ends[1]),
        findable=findable,
        more=_more(bets, log_threshold) if change is Change.UNDECIDED else None,
    )


def _bets(cell: Cell) -> _Bets:
    oriented = [cell.worse * difference for difference in cell.differences]
    margin, signs_alone = cell.margin, cell.kind is Kind.DIFFERENCE
    return _Bets(
        oriented=oriented,
        margin=margin,
        signs_alone=signs_alone,
        at_worse=betting.evidence(oriented, margin, signs_alone=signs_alone),
        at_better=betting.evidence(oriented, -margin, signs_alone=signs_alone),
    )


def _change(bets: _Bets, log_threshold: float) -> Change:
    moments = {
        Change.REGRESSED: _first(bets.at_worse.above, log_threshold),
        Change.IMPROVED: _first(bets.at_better.below, log_threshold),
        Change.SAME: max(_first(bets.at_worse.below, log_threshold), _first(bets.at_better.above, log_threshold)),
    }
    if bets.margin == 0:
        alike = not any(bets.oriented) and len(bets.oriented) >= betting.least_pairs(log_threshold)
        moments[Change.SAME] = len(bets.oriented) if alike else math.inf
    change = min(moments, key=moments.__getitem__)
    return Change.UNDECIDED if math.isinf(moments[change]) else change


def _middle(cell: Cell, differences: Sequence[float]) -> float:
    """The median; of counts and shares the mean, as most pairs are alike there."""
    if not differences:
        return 0.0
    return fmean(differences) if cell.kind is Kind.COUNT else median(differences)


def _first(logs: Iterable[float], log_threshold: float) -> float:
    """After how many pairs an e-value came to the threshold; infinity if it did not."""
    return next((n for n, log in enumerate(logs, start=1) if log >= log_threshold), math.inf)


def _more(bets: _Bets, log_threshold: float) -> int | None:
    """How many more pairs until one of the verdicts, if the e-values rise as they do now."""
    oriented, margin, worse, better = bets.oriented, bets.margin, bets.at_worse, bets.at_better
    if not oriented:
        return betting.least_pairs(log_threshold)
    if margin == 0 and not any(oriented):
        return max(betting.least_pairs(log_threshold) - len(oriented), 1)
    above_worse, below_worse = betting.growth(oriented, margin, signs_alone=bets.signs_alone)
    above_better, below_better = betting.growth(oriented, -margin, signs_alone=bets.signs_alone)

    def needed(log: float, rate: float) -> float:
        return math.inf if rate <= 0 else (log_threshold + math.log(len(betting.LAMBDAS)) - log) / rate

    ways = [needed(worse.above[-1], above_worse), needed(better.below[-1], below_better)]
    if margin > 0:
        ways.append(max(needed(worse.below[-1], below_worse), needed(better.above[-1], above_better)))
    least = min(ways)
    return None if math.isinf(least) else max(math.ceil(least), 1)
