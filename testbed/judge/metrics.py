"""Measures of the IP Performance Metrics framework (RFC 2330) and of what applications feel. Pure.

Each names its RFC section and says how lost packets count. Times go in as integer nanoseconds, as in journals, and
come out as seconds. Everything is streaming: state grows with open gaps, not with the number of packets.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

# --- quantiles -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Quantile:
    """A quantile with its confidence interval; seconds, or the samples' unit."""

    q: float
    value: float
    """Infinite where the quantile falls on packets that were lost (RFC 7679, 5.1)."""
    low: float
    high: float
    """Minus infinity, or infinity, where so few samples bound that side at no confidence."""
    confidence: float
    samples: int


def rank_bounds(samples: int, q: float, confidence: float = 0.95) -> tuple[int, int]:
    """Ranks, from 1, of the order statistics between which the q-quantile lies with at least this confidence.

    Distribution-free: the number of samples below the quantile is binomial (David and Nagaraja, Order Statistics,
    7.1), so P(X(l) <= x_q <= X(u)) = P(l <= B(n, q) < u); each side takes half of what remains. Rank 0 and rank
    n + 1 say that no sample bounds that side. Raises ValueError outside 0 < q < 1, 0 < confidence < 1.
    """
    if not (0 < q < 1 and 0 < confidence < 1 and samples >= 0):
        raise ValueError(f"quantile {q}, confidence {confidence}, {samples} samples: both shares lie between 0 and 1")
    tail = (1 - confidence) / 2
    return _binomial_rank(samples, q, tail), samples + 1 - _binomial_rank(samples, 1 - q, tail)


def _binomial_rank(samples: int, q: float, tail: float) -> int:
    """The largest k with P(B(n, q) < k) <= tail."""
    mean, sigma = samples * q, math.sqrt(samples * q * (1 - q))
    k = max(0, math.floor(mean - 40 * sigma - 40))  # what lies below is less than a double can tell from 0
    logarithm = (
        math.lgamma(samples + 1) - math.lgamma(k + 1) - math.lgamma(samples - k + 1)
        + k * math.log(q) + (samples - k) * math.log1p(-q)
    )  # fmt: skip
    below = 0.0
    while k <= samples:
        below += math.exp(logarithm)
        if below > tail:
            return k
        logarithm += math.log(samples - k) - math.log(k + 1) + math.log(q) - math.log1p(-q) if k < samples else 0.0
        k += 1
    return samples


def quantile(samples: Sequence[float], q: float, *, lost: int = 0, confidence: float = 0.95) -> Quantile:
    """The q-quantile (RFC 2330, 11.3: the smallest x with F(x) >= q) of samples, with its interval.

    ``lost`` packets have no delay and count as infinitely late (RFC 7679, 5.1). Raises ValueError of nothing.
    """
    ordered = sorted(samples)
    total = len(ordered) + lost
    if not total:
        raise ValueError("a quantile of no samples")

    def at(rank: int) -> float:
        if rank < 1:
            return -math.inf
        return ordered[rank - 1] if rank <= len(ordered) else math.inf

    low, high = rank_bounds(total, q, confidence)
    return Quantile(
        q=q, value=at(max(1, math.ceil(q * total - 1e-9))), low=at(low), high=at(high),
        confidence=confidence, samples=total,
    )  # fmt: skip


_SUB_BITS = 7


def bucket(value: int) -> int:
    """The number of the bucket that a value of 0 or more falls into: exact below 256, then 1/128 wide at most."""
    shift = value.bit_length() - _SUB_BITS - 1
    return value if shift <= 0 else (shift << _SUB_BITS) + (value >> shift)


def bucket_edges(number: int) -> tuple[int, int]:
    """The smallest and the largest value of a bucket."""
    shift = (number >> _SUB_BITS) - 1
    if shift <= 0:
        return number, number
    low = (number - (shift << _SUB_BITS)) << shift
    return low, low + (1 << shift) - 1


class Distribution:
    """Times, counted in buckets of at most 0.8 % width: their number is bounded, however many times come in."""

    __slots__ = ("buckets", "largest_ns", "smallest_ns", "total_ns")

    def __init__(self, values_ns: Iterable[int] = ()) -> None:
        self.buckets: dict[int, int] = {}
        self.total_ns = 0
        self.smallest_ns: int | None = None
        self.largest_ns: int | None = None
        self.extend(list(values_ns))

    def add(self, value_ns: int) -> None:
        """Count a time; 0 or more."""
        self.extend([value_ns])

    def extend(self, values_ns: Sequence[int]) -> None:
        """Count times, each 0 or more. Raises ValueError, and counts none, if one is negative."""
        if not values_ns:
            return
        smallest, largest = min(values_ns), max(values_ns)
        if smallest < 0:
            raise ValueError(f"a time of {smallest} ns")
        counts = self.buckets
        for value in values_ns:  # `bucket`, written out: this runs for every packet
            shift = value.bit_length() - _SUB_BITS - 1
            number = value if shift <= 0 else (shift << _SUB_BITS) + (value >> shift)
            counts[number] = counts.get(number, 0) + 1
        self.total_ns += sum(values_ns)
        if self.smallest_ns is None or smallest < self.smallest_ns:
            self.smallest_ns = smallest
        if self.largest_ns is None or largest > self.largest_ns:
            self.largest_ns = largest

    def merge(self, other: Distribution) -> None:
        """Count all that another has counted."""
        for number, count in other.buckets.items():
            self.buckets[number] = self.buckets.get(number, 0) + count
        self.total_ns += other.total_ns
        ends = [each for each in (self.smallest_ns, other.smallest_ns) if each is not None]
        self.smallest_ns = min(ends, default=None)
        ends = [each for each in (self.largest_ns, other.largest_ns) if each is not None]
        self.largest_ns = max(ends, default=None)

    @property
    def count(self) -> int:
        """How many times there are."""
        return sum(self.buckets.values())

    @property
    def mean_s(self) -> float | None:
        """Their mean; None of nothing."""
        return self.total_ns / self.count / 1e9 if self.buckets else None

    @property
    def min_s(self) -> float | None:
        """The smallest, exactly."""
        return None if self.smallest_ns is None else self.smallest_ns / 1e9

    @property
    def max_s(self) -> float | None:
        """The largest, exactly."""
        return None if self.largest_ns is None else self.largest_ns / 1e9

    def above(self, limit_s: float) -> int:
        """How many are longer than this, the bucket that it falls into left out: up to 0.8 % longer may not count."""
        limit_ns = limit_s * 1e9
        return sum(count for number, count in self.buckets.items() if bucket_edges(number)[0] > limit_ns)

    def quantile(self, q: float, *, lost: int = 0, confidence: float = 0.95) -> Quantile | None:
        """As `quantile`, in seconds; the interval is widened to the edges of the buckets. None of nothing."""
        total = self.count + lost
        if not total:
            return None
        low, high = rank_bounds(total, q, confidence)
        value = self._edges(max(1, math.ceil(q * total - 1e-9)))
        return Quantile(
            q=q, value=(value[0] + value[1]) / 2, low=self._edges(low)[0], high=self._edges(high)[1],
            confidence=confidence, samples=total,
        )  # fmt: skip

    def _edges(self, rank: int) -> tuple[float, float]:
        """Between which two values the sample of a rank lies; seconds."""
        if rank < 1:
            return -math.inf, -math.inf
        seen = 0
        for number in sorted(self.buckets):
            seen += self.buckets[number]
            if seen >= rank:
                low, high = bucket_edges(number)
                return max(low, self.smallest_ns or 0) / 1e9, min(high, self.largest_ns or 0) / 1e9
        return math.inf, math.inf


# --- loss ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LossRuns:
    """How losses cluster (RFC 3357)."""

    lost: int
    sent: int
    lengths: tuple[int, ...]
    """Of each run of consecutive losses, in order: the loss periods (RFC 3357, 5)."""
    distances: tuple[int, ...]
    """From each loss to the one before, in sequence numbers: the loss distance (RFC 3357, 5)."""

    @property
    def ratio(self) -> float | None:
        """Lost of sent (RFC 7680, 4.1); None of nothing sent."""
        return self.lost / self.sent if self.sent else None

    @property
    def longest(self) -> int:
        """The longest run; packets."""
        return max(self.lengths, default=0)


def loss_runs(lost: Iterable[int], sent: int) -> LossRuns:
    """Runs among the sequence numbers of lost packets, of ``sent`` in all."""
    ordered = sorted(lost)
    distances = tuple(later - earlier for earlier, later in pairwise(ordered))
    lengths: list[int] = []
    for number, distance in enumerate((0, *distances) if ordered else ()):
        if number and distance == 1:
            lengths[-1] += 1
        else:
            lengths.append(1)
    return LossRuns(lost=len(ordered), sent=sent, lengths=tuple(lengths), distances=distances)


# --- reordering ------------------------------------------------------------------------------------

REMEMBERED = 64
"""n-reordering is told apart up to this n; more counts as this much."""


class Arrival(IntEnum):
    """What an arrival is to the order of those before it."""

    IN_ORDER = 0
    REORDERED = 1
    DUPLICATE = 2


class Reordering:
    """Reordering as RFC 4737 defines it, of packets numbered from 0; second copies are duplicates and no more."""

    __slots__ = (
        "_gaps",
        "_recent",
        "_starts",
        "arrived",
        "degrees",
        "duplicates",
        "extents",
        "next_expected",
        "reordered",
    )

    def __init__(self) -> None:
        self.arrived = 0
        """Without duplicates."""
        self.duplicates = 0
        self.reordered = 0
        """Arrivals with a smaller number than the next expected one (RFC 4737, 3.3)."""
        self.extents: dict[int, int] = {}
        """How often each reordering extent occurred (4.2): arrivals since the first one with a larger number."""
        self.degrees: dict[int, int] = {}
        """How often exactly n larger numbers came immediately before (5, n-reordering)."""
        self.next_expected = 0
        # What is missing below the next expected number, as gaps [start, end) in order, each with the arrival that
        # opened it: whatever of it comes later has that arrival as its first with a larger number.
        self._starts: list[int] = []
        self._gaps: list[tuple[int, int]] = []  # end, arrival
        self._recent: deque[int] = deque(maxlen=REMEMBERED)

    def arrive(self, sequence: int) -> Arrival:
        """Count an arrival."""
        expected = self.next_expected
        if sequence < expected:
            return self._late(sequence)
        self.arrived += 1
        self._recent.append(sequence)
        if sequence > expected:
            self._starts.append(expected)
            self._gaps.append((sequence, self.arrived))
        self.next_expected = sequence + 1
        return Arrival.IN_ORDER

    def next(self) -> None:
        """Count the arrival of the next expected number: `arrive`, for nearly all of them."""
        self.arrived += 1
        self._recent.append(self.next_expected)
        self.next_expected += 1

    def has(self, sequence: int) -> bool:
        """Whether a number has arrived."""
        if sequence >= self.next_expected:
            return False
        at = bisect_right(self._starts, sequence) - 1
        return at < 0 or sequence >= self._gaps[at][0]

    def _late(self, sequence: int) -> Arrival:
        at = bisect_right(self._starts, sequence) - 1
        if at < 0 or sequence >= self._gaps[at][0]:
            self.duplicates += 1
            return Arrival.DUPLICATE
        self.arrived += 1
        self.reordered += 1
        start, (end, opened) = self._starts[at], self._gaps[at]
        extent = self.arrived - opened
        self.extents[extent] = self.extents.get(extent, 0) + 1
        left = [each for each in ((start, sequence), (sequence + 1, end)) if each[0] < each[1]]
        self._starts[at : at + 1] = [each[0] for each in left]
        self._gaps[at : at + 1] = [(each[1], opened) for each in left]
        degree = 0
        for earlier in reversed(self._recent):
            if earlier < sequence:
                break
            degree += 1
        self.degrees[degree] = self.degrees.get(degree, 0) + 1
        self._recent.append(sequence)
        return Arrival.REORDERED

    @property
    def ratio(self) -> float | None:
        """Reordered of arrived (4.1); None of nothing."""
        return self.reordered / self.arrived if self.arrived else None

    @property
    def state(self) -> int:
        """How much is remembered: open gaps, and a bounded window."""
        return len(self._gaps) + len(self._recent)


# --- what applications feel ------------------------------------------------------------------------


def goodput_bps(received_bytes: int, duration_s: float) -> float | None:
    """Bytes that arrived whole and once, over the time from the first sending to the last arrival; bits a second."""
    return 8 * received_bytes / duration_s if duration_s > 0 else None
