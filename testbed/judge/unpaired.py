"""Verdicts where runs are no pairs: two independent samples of runs, by exact or rank tests. Pure.

A run is the unit: samples within one share its machine, its stack and its losses. The tests are of a fixed size, so
they are for results that are complete, and not to be looked at again after each run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median
from typing import Literal

from testbed.judge.cells import Cell, Kind
from testbed.judge.changes import Change, Judged

_HALVINGS = 16
_MOST_RUNS = 10_000
"""Beyond which no number of runs is told."""


def of_samples(cell: Cell, alpha: float) -> Judged:
    """Judge one cell at a false-alarm rate of ``alpha``, by one-sided tests at the least effect."""
    if cell.of_outcome:
        return _of_failures(cell, alpha)
    base = [cell.worse * value for value in cell.scaled(cell.base)]
    head = [cell.worse * value for value in cell.scaled(cell.head)]
    margin = cell.margin
    change = _change(base, head, margin, alpha)
    of = fmean if cell.kind is Kind.COUNT else median
    middle = of(head) - of(base)
    low = _bound(base, head, alpha)
    high = -_bound(head, base, alpha)
    ends = sorted((cell.worse * low, cell.worse * high))
    more = None
    if change is Change.UNDECIDED:
        lacking = least_runs(alpha) - min(len(base), len(head))
        more = lacking if lacking > 0 else None
    return Judged(
        cell=cell,
        change=change,
        effect=cell.as_effect(cell.worse * middle),
        low=cell.as_effect(ends[0]),
        high=cell.as_effect(ends[1]),
        findable=None if math.isinf(low) else cell.as_effect(margin + middle - low),
        more=more,
    )


def _change(base: Sequence[float], head: Sequence[float], margin: float, alpha: float) -> Change:
    if _larger(head, base, margin) <= alpha:
        return Change.REGRESSED
    if _larger(base, head, margin) <= alpha:
        return Change.IMPROVED
    if margin > 0:
        same = _larger(base, head, -margin) <= alpha and _larger(head, base, -margin) <= alpha
    else:
        same = len({*base, *head}) == 1 and min(len(base), len(head)) >= least_runs(alpha)
    return Change.SAME if same else Change.UNDECIDED


def least_runs(alpha: float) -> int:
    """How many runs of each version the rank test needs to come to ``alpha`` at all: 1 of C(2n, n) orders."""
    return next(n for n in range(1, _MOST_RUNS) if 1 / math.comb(2 * n, n) <= alpha)


def _larger(some: Sequence[float], others: Sequence[float], by: float) -> float:
    """The p-value that ``some`` are not larger than ``others`` by more than ``by``: Mann and Whitney's test.

    Exact for small samples without ties; else by the normal approximation with its corrections.
    """
    from scipy.stats import mannwhitneyu

    shifted = [value - by for value in some]
    if len({*shifted, *others}) == 1:
        return 1.0
    method: Literal["exact", "asymptotic"] = (
        "exact" if len({*shifted, *others}) == len(some) + len(others) else "asymptotic"
    )
    return float(mannwhitneyu(shifted, others, alternative="greater", method=method).pvalue)


def _bound(base: Sequence[float], head: Sequence[float], alpha: float) -> float:
    """The largest shift by more than which head is found to be larger; minus infinity if there is none."""
    least = min(head) - max(base)
    low, high = least - max(abs(least), 1.0), max(head) - min(base)
    if _larger(head, base, low) > alpha:
        return -math.inf
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _larger(head, base, middle) <= alpha else (low, middle)
    return low


def _of_failures(cell: Cell, alpha: float) -> Judged:
    """How often a test failed in each, by Fisher's exact test ("Statistical Methods for Research Workers", 21.02)."""
    from scipy.stats import fisher_exact

    failed = [round(sum(runs)) for runs in (cell.base, cell.head)]
    passed = [len(runs) - bad for runs, bad in zip((cell.base, cell.head), failed, strict=True)]

    def p_value(alternative: Literal["less", "greater"]) -> float:
        return float(fisher_exact([[failed[1], passed[1]], [failed[0], passed[0]]], alternative=alternative).pvalue)

    change = Change.UNDECIDED
    if p_value("greater") <= alpha:
        change = Change.REGRESSED
    elif p_value("less") <= alpha:
        change = Change.IMPROVED
    elif not any(failed) and min(passed) >= least_runs(alpha):
        change = Change.SAME
    lacking = least_runs(alpha) - min(len(cell.base), len(cell.head))
    return Judged(
        cell=cell,
        change=change,
        effect=fmean(cell.head) - fmean(cell.base),
        low=-math.inf,
        high=math.inf,
        more=lacking if change is Change.UNDECIDED and lacking > 0 else None,
    )
