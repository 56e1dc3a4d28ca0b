"""The worst link under which a test still passes with a probability: a noisy bisection. Pure.

A link gets worse over *levels*, 0 the mildest; a run at a level passes or not, and the probability that it passes does
not grow with the level. The *boundary* is the number of levels, from the mildest on, at which it is at least the asked
one. So the levels below the boundary hold, and those from it on fail.

What is certain, and what is guessed, are apart. **Certain**: against each boundary b runs a bet. If b is the true one,
a run at a level below b passes with at least the asked probability p, and one from b on with less. A likelihood ratio
of a guessed probability q against p, with q ≤ p below b and q ≥ p from b on, then has a mean of at most 1, whichever
level was chosen and however q was guessed from earlier runs. The product of these ratios is a supermartingale, so it
ever reaches 1/α with a probability of at most α (Ville 1939; Waudby-Smith and Ramdas, "Estimating means of bounded
random variables by betting", 2023). The boundaries whose bets did not reach it are a confidence set at any time, and
their first and last the interval: no correction for the number of levels, as only one boundary is the true one.

**Guessed**: where to run next, and q, by Bayes over logistic pass curves (midpoint, slope, and a share of runs that
fails on any link). As in probabilistic bisection (Waeber, Frazier and Henderson, "Bisection search with noisy
responses", 2013) the runs go where the boundary seems to be. Curves of another form cost runs, not certainty.

Simulated 100 times each, 31 levels, 95 % asked, an interval of 3 levels at α = 5 %: in the median a step from 99.9 % to
20 % takes 107 runs, a slope over five levels 189, a test that passes on any link 99, one that never passes 4. No
interval missed the boundary; 3 did where the test passes with the asked probability to a hair: no such search ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

_SLOPES = (1 / 120, 1 / 60, 1 / 30, 1 / 10, 3 / 10)
"""In shares of the levels: how many it takes from about 73 % to 50 %."""
_LAPSES = (0.0, 0.03, 0.15)
"""Shares of runs that fail whatever the link."""
_BEYOND = 0.25
"""How far beyond the ends a midpoint may lie, as a share of the levels."""
_STRONGEST = 1e-4
"""No guess is nearer to 0 or 1: one run that tells otherwise must not cost everything."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Where the boundary is: at the least ``first`` levels hold, at the most ``last``."""

    first: int
    last: int

    def narrow(self, levels: int, width: int) -> bool:
        """Whether it is at most ``width`` levels wide and says of both ends on which side of the boundary they are."""
        ends = (self.first > 0 or self.last == 0) and (self.last < levels or self.first == levels)
        return ends and self.last - self.first <= width


@dataclass(frozen=True, kw_only=True)
class _PassCurves:
    """Pass curves over the levels, alike for all searches of the same form."""

    logs: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]
    """By level: of each curve the logarithms of the probability to fail, and to pass."""
    passes: tuple[tuple[float, ...], ...]
    """By level: of each curve the probability to pass."""
    boundaries: tuple[int, ...]
    """Of each curve."""


@cache
def _curves(levels: int, probability: float) -> _PassCurves:
    beyond = max(round(levels * _BEYOND), 1)
    forms = [
        (middle - 0.5, slope * levels, lapse)
        for middle in range(-beyond, levels + beyond + 1)
        for slope in _SLOPES
        for lapse in _LAPSES
    ]
    passes = tuple(
        tuple(
            min(max((1 - lapse) / (1 + math.exp(min((level - middle) / slope, 700.0))), _STRONGEST), 1 - _STRONGEST)
            for middle, slope, lapse in forms
        )
        for level in range(levels)
    )
    return _PassCurves(
        logs=tuple((tuple(math.log1p(-p) for p in row), tuple(math.log(p) for p in row)) for row in passes),
        passes=passes,
        boundaries=tuple(sum(row[curve] >= probability for row in passes) for curve in range(len(forms))),
    )


class Search:
    """One search: it takes runs, and says where the next is best, and the interval so far.

    ``probability``: the asked one, between 0 and 1. ``alpha``: how often the interval may miss the boundary. ``width``:
    how many levels wide the interval may be at the end.
    """

    def __init__(self, *, levels: int, probability: float, alpha: float, width: int) -> None:
        if levels < 2 or not 0 < probability < 1 or not 0 < alpha < 1 or width < 0:
            raise ValueError(f"{levels} levels, probability {probability}, alpha {alpha}, width {width}")
        self.levels = levels
        self.width = min(width, max(levels - 2, 0))
        self._probability = probability
        self._threshold = -math.log(alpha)
        self._curves = _curves(levels, probability)
        likely = self._curves.boundaries
        counts = [likely.count(boundary) for boundary in range(levels + 1)]
        self._logs = [-math.log(counts[boundary]) for boundary in likely]  # every boundary alike at first
        self._below, self._above = [0.0] * levels, [0.0] * levels
        self._most = [0.0] * (levels + 1)
        """The most that the bet against each boundary ever was, as a logarithm."""
        self.passed, self.failed = [0] * levels, [0] * levels
        self._turn = False

    def take(self, level: int, *, passed: bool) -> None:
        """Take a run at a level."""
        weights = self._weights()
        guess = math.fsum(weight * p for weight, p in zip(weights, self._curves.passes[level], strict=True))
        for sums, q in ((self._below, min(guess, self._probability)), (self._above, max(guess, self._probability))):
            p = self._probability
            sums[level] += math.log(q / p) if passed else math.log((1 - q) / (1 - p))
        self._most = [max(pair) for pair in zip(self._most, self.bets(), strict=True)]
        row = self._curves.logs[level][passed]
        self._logs = [log + more for log, more in zip(self._logs, row, strict=True)]
        (self.passed if passed else self.failed)[level] += 1

    @property
    def interval(self) -> Interval:
        """The first and the last boundary that no bet has excluded; where all are, that with the least against it."""
        left = [boundary for boundary, most in enumerate(self._most) if most < self._threshold]
        if not left:
            left = [min(range(self.levels + 1), key=self._most.__getitem__)]
        return Interval(first=left[0], last=left[-1])

    def next_level(self) -> int:
        """Where to run next: each end once, then beside the narrow interval that the boundary is likely in."""
        for end in (0, self.levels - 1):
            if not self.passed[end] + self.failed[end]:
                return end
        interval = self.interval
        first, last = self._likely(interval)
        sides = []
        if interval.first < first:
            sides.append(first - 1)  # that it holds is to be shown
        if interval.last > last:
            sides.append(last)  # that it fails
        self._turn = not self._turn
        return sides[-1 if self._turn else 0] if sides else min(max(first, 0), self.levels - 1)

    def _likely(self, interval: Interval) -> tuple[int, int]:
        """The narrow interval in which the boundary is the likeliest, of those that are left."""
        masses = [0.0] * (self.levels + 1)
        for weight, boundary in zip(self._weights(), self._curves.boundaries, strict=True):
            if interval.first <= boundary <= interval.last:
                masses[boundary] += weight
        sums = [0.0, *accumulate(masses)]
        inner = range(1, self.levels - self.width)
        windows = [(0, 0), (self.levels, self.levels), *((first, first + self.width) for first in inner)]
        return max(windows, key=lambda window: sums[window[1] + 1] - sums[window[0]])

    def bets(self) -> Iterator[float]:
        """Against each boundary, what the capital of 1 has become; its logarithm."""
        above = math.fsum(self._above)
        below = 0.0
        yield above
        for more, less in zip(self._below, self._above, strict=True):
            below += more
            above -= less
            yield below + above

    def _weights(self) -> list[float]:
        """How likely each curve is, from the runs so far."""
        top = max(self._logs)
        weights = [math.exp(log - top) for log in self._logs]
        total = math.fsum(weights)
        return [weight / total for weight in weights]


def staircase(intervals: Sequence[Interval]) -> list[Interval]:
    """The intervals of links that get worse from one to the next in another way: each holds no further than the last.

    What one holds, all milder ones hold; what one fails, all worse ones fail.
    """
    firsts = list(accumulate((interval.first for interval in reversed(intervals)), max))[::-1]
    lasts = list(accumulate((interval.last for interval in intervals), min))
    return [Interval(first=min(first, last), last=max(first, last)) for first, last in zip(firsts, lasts, strict=True)]
