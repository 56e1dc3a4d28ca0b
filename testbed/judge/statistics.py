"""Exact tests and intervals. Pure, and without tables: any false-alarm rate can be asked for.

The false-alarm rate ``alpha`` of a test is how often it may condemn an honest link. A proof makes several tests;
`share` divides its alpha among them (Bonferroni), so that it holds for all of them together.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

ALPHA = 1e-6
"""The false-alarm rate of one proof, unless another is asked for."""

POWER = 0.9
"""How surely a test finds what it is said to find."""

_TINY = 1e-300
_PRECISION = 1e-15
_STEPS = 200


def share(alpha: float, tests: int) -> float:
    """The false-alarm rate of each of so many tests, for ``alpha`` over all of them (Bonferroni's inequality)."""
    return alpha / max(tests, 1)


# --- the binomial distribution ---------------------------------------------------------------------


def at_most(k: int, n: int, p: float) -> float:
    """P(X ≤ k) of X ~ Binomial(n, p), by the incomplete beta function (NIST DLMF 8.17.5)."""
    _check_share(p)
    if k < 0:
        return 0.0
    if k >= n or p == 0:
        return 1.0
    if p == 1:
        return 0.0
    return _beta_cdf(1 - p, n - k, k + 1)


def at_least(k: int, n: int, p: float) -> float:
    """P(X ≥ k) of X ~ Binomial(n, p)."""
    _check_share(p)
    if k <= 0:
        return 1.0
    if k > n or p == 0:
        return 0.0
    if p == 1:
        return 1.0
    return _beta_cdf(p, k, n - k + 1)


def two_sided(k: int, n: int, p: float) -> float:
    """The two-sided p-value of k in n at probability p: twice the smaller tail, at most 1 (it never understates)."""
    return min(1.0, 2 * min(at_most(k, n, p), at_least(k, n, p)))


def interval(k: int, n: int, alpha: float = ALPHA) -> tuple[float, float]:
    """The Clopper-Pearson interval of a probability from k in n: it misses the true one at most alpha of the time.

    Clopper and Pearson, "The use of confidence or fiducial limits", Biometrika 26 (1934). Of 0 in 0: (0, 1).
    """
    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n}: a part of the whole is needed")
    low = 0.0 if k == 0 else _solve(lambda p: at_least(k, n, p) - alpha / 2)
    high = 1.0 if k == n else _solve(lambda p: alpha / 2 - at_most(k, n, p))
    return low, high


def accepted(n: int, p: float, alpha: float = ALPHA) -> tuple[int, int]:
    """The counts in n that `two_sided` does not condemn at alpha: from the first to the last, both included."""
    return (
        first_count(lambda k: at_most(k, n, p) > alpha / 2, n),
        first_count(lambda k: at_least(k + 1, n, p) <= alpha / 2, n),
    )


def sample_size(
    p: float, low: float, high: float, alpha: float = ALPHA, *, power: float = POWER, most: int = 1_000_000
) -> int:
    """How many draws find, with probability ``power``, that a true share of ``low`` or ``high`` is not ``p``.

    Exact: of each of the two, the chance to lie outside of the `accepted` counts of ``p``. One that is not below, or
    not above, ``p`` is left out. Never more than ``most``.
    """
    _check_share(p)

    def enough(n: int) -> bool:
        first, last = accepted(n, p, alpha)
        found_low = low >= p or (first > 0 and at_most(first - 1, n, low) >= power)
        found_high = high <= p or (last < n and at_least(last + 1, n, high) >= power)
        return found_low and found_high

    least, enoughs = 0, 64
    while enoughs < most and not enough(enoughs):
        least, enoughs = enoughs, enoughs * 2
    enoughs = min(enoughs, most)
    while enoughs - least > 1:
        middle = (least + enoughs) // 2
        least, enoughs = (least, middle) if enough(middle) else (middle, enoughs)
    return enoughs


def found_shares(first: int, last: int, n: int, power: float = POWER) -> tuple[float, float]:
    """The nearest true shares that n draws find with probability ``power``, where counts from first to last pass.

    The one below is 0, the one above 1, where none is found.
    """
    low = 0.0 if first <= 0 else _solve(lambda p: power - at_most(first - 1, n, p))
    high = 1.0 if last >= n else _solve(lambda p: at_least(last + 1, n, p) - power)
    return low, high


# --- order statistics --------------------------------------------------------------------------------


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


# --- bursts ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Transitions:
    """How a row of packets went from delivered to lost and back, each step between neighbours counted once."""

    from_good: int
    to_bad: int
    """Of ``from_good`` steps that begin at a delivered packet, how many end at a lost one."""
    from_bad: int
    to_good: int
    """Of ``from_bad`` steps that begin at a lost packet, how many end at a delivered one."""


def transitions(lost: Sequence[bool]) -> Transitions:
    """Count them. In Gilbert's model each step is a draw of its own: ``to_bad`` of p, ``to_good`` of r."""
    steps = list(pairwise(lost))
    return Transitions(
        from_good=sum(not before for before, _ in steps),
        to_bad=sum(not before and after for before, after in steps),
        from_bad=sum(before for before, _ in steps),
        to_good=sum(before and not after for before, after in steps),
    )


def bursts(lost: Sequence[bool]) -> list[int]:
    """The lengths of the runs of lost packets."""
    lengths: list[int] = []
    before = False
    for each in lost:
        if each and before:
            lengths[-1] += 1
        elif each:
            lengths.append(1)
        before = each
    return lengths


# --- two samples -------------------------------------------------------------------------------------


def mann_whitney(a: Sequence[float], b: Sequence[float]) -> float:
    """The two-sided p-value that two samples are of one distribution; exact for up to 20 values without ties.

    Mann and Whitney, "On a test of whether one of two random variables is stochastically larger", 1947; for larger
    samples and ties by the normal approximation with the tie correction and the continuity correction.
    """
    if not a or not b:
        return 1.0
    n, m = len(a), len(b)
    u = sum((x > y) + 0.5 * (x == y) for x in a for y in b)
    pooled = sorted([*a, *b])
    ties = [pooled.count(value) for value in dict.fromkeys(pooled)]
    if n + m <= 20 and max(ties) == 1:
        counts = _u_counts(n, m)
        extreme = min(u, n * m - u)
        return min(1.0, 2 * sum(counts[: int(extreme) + 1]) / math.comb(n + m, n))
    total = n + m
    spread = n * m / 12 * (total + 1 - sum(t**3 - t for t in ties) / (total * (total - 1)))
    if spread <= 0:
        return 1.0
    z = max(abs(u - n * m / 2) - 0.5, 0.0) / math.sqrt(spread)
    return math.erfc(z / math.sqrt(2))


def bootstrap_ratio(
    a: Sequence[float], b: Sequence[float], *, alpha: float = 0.05, rounds: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """A percentile bootstrap interval for median(b) / median(a); the same seed gives the same interval."""
    draw = random.Random(seed)  # noqa: S311  # a simulation, not a secret
    ratios = sorted(
        statistics.median(draw.choices(b, k=len(b))) / statistics.median(draw.choices(a, k=len(a)))
        for _ in range(rounds)
    )
    cut = int(rounds * alpha / 2)
    return ratios[cut], ratios[-1 - cut]


def _u_counts(n: int, m: int) -> list[int]:
    """How many of the arrangements of n and m values have U = 0, 1, …: coefficients of a Gaussian binomial."""
    counts = [1] + [0] * (n * m)
    for i in range(1, n + 1):
        for power in range(n * m, m + i - 1, -1):
            counts[power] -= counts[power - m - i]
        for power in range(i, n * m + 1):
            counts[power] += counts[power - i]
    return counts


# --- how -----------------------------------------------------------------------------------------------


def _check_share(p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"{p!r}: a probability lies between 0 and 1")


def first_count(holds: Callable[[int], bool], n: int) -> int:
    """The least k from 0 to n for which it ``holds``, as it then does for every greater one; n if there is none."""
    low, high = 0, n
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _solve(rising: Callable[[float], float]) -> float:
    """Where a rising function crosses 0 between 0 and 1, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2


def _beta_cdf(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b)."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    front = a * math.log(x) + b * math.log1p(-x) - (math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b))
    # The continued fraction converges fast on the side of the mean where x is small (DLMF 8.17.22).
    if x < (a + 1) / (a + b + 2):
        return math.exp(front) * _fraction(x, a, b) / a
    return 1 - math.exp(front) * _fraction(1 - x, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method."""
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > _TINY else _TINY)
    value = d
    for m in range(1, 100_000):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + step * d
            d = 1 / (d if abs(d) > _TINY else _TINY)
            c = 1 + step / c
            c = c if abs(c) > _TINY else _TINY
            value *= d * c
        if abs(d * c - 1) < _PRECISION:
            break
    return value
