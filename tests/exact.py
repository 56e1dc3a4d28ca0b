"""Exact statistics that tests judge with."""

from __future__ import annotations

import math
from collections.abc import Sequence

from testbed.judge.statistics import ALPHA, at_least, at_most, first_count


def two_sided(k: int, n: int, p: float) -> float:
    """The two-sided p-value of k in n at probability p: twice the smaller tail, at most 1 (it never understates)."""
    return min(1.0, 2 * min(at_most(k, n, p), at_least(k, n, p)))


def quantile_interval(sample: Sequence[float], q: float, alpha: float = ALPHA) -> tuple[float, float]:
    """An interval for the q-quantile of whatever distribution the sample is from; infinite where it is too small.

    The order statistics whose ranks enclose a Binomial(n, q) count (David and Nagaraja, "Order Statistics", 7.1).
    """
    ordered = sorted(sample)
    n = len(ordered)
    # x(j) > Q only if fewer than j of n lie at or below Q; x(k) < Q only if at least k do.
    low = first_count(lambda k: at_most(k, n, q) > alpha / 2, n)
    high = first_count(lambda k: at_least(k + 1, n, q) <= alpha / 2, n) + 1
    return (ordered[low - 1] if low >= 1 else -math.inf, ordered[high - 1] if high <= n else math.inf)
