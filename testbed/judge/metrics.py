"""Measures of the IP Performance Metrics framework (RFC 2330), and goodput. Pure.

Each names its RFC section and how lost packets count. Times are integer nanoseconds on input, as in journals, and
seconds on output. Everything is streaming: state grows with open gaps, not with the number of packets.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

from testbed.judge.statistics import accepted

# --- quantiles -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Quantile:
    """A quantile with its confidence interval; seconds, or the samples' unit."""

    q: float
    value: float
    """Infinite where the quantile falls on packets that were lost (RFC 7679, 5.1)."""
    low: float
    high: float
    """Infinite where there are too few samples to bound that side with this confidence; so is ``high``."""
    confidence: float
    samples: int


def rank_bounds(samples: int, q: float, confidence: float = 0.95) -> tuple[int, int]:
    """Ranks, from 1, of the order statistics between which the q-quantile lies with at least this confidence.

    Distribution-free: the number of samples below the quantile is binomial (David and Nagaraja, Order Statistics,
    7.1), so P(X(l) <= x_q <= X(u)) = P(l <= B(n, q) < u); each side takes half of 1 - confidence. Rank 0 or n + 1:
    no sample bounds that side. Raises ValueError outside 0 < q < 1, 0 < confidence < 1.
    """
    if not (0 < q < 1 and 0 < confidence < 1 and samples >= 0):
        raise ValueError(f"quantile {q}, confidence {confidence}, {samples} samples: both shares lie between 0 and 1")
    low, high = accepted(samples, q, 1 - confidence)
    return low, high + 1


def quantile(samples: Sequence[float], q: float, *, lost: int = 0, confidence: float = 0.95) -> Quantile:
    """The q-quantile (RFC 2330, 11.3: the smallest x with F(x) >= q) of samples, with its interval.

    ``lost`` packets have no delay and count as infinitely late (RFC 7679, 5.1). Raises ValueError without samples.
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
        q=q,
        value=at(max(1, math.ceil(q * total - 1e-9))),
        low=at(low),
        high=at(high),
        confidence=confidence,
        samples=total,
    )


_SUB_BITS = 7


def bucket(value: int) -> int:
    """The number of the bucket of a value ≥ 0: exact below 256, then at most 1/128 wide."""
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
    """Times, counted in a bounded number of buckets of at most 0.8 % width."""

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
        """Count times. Raises ValueError, and counts none, if one is negative."""
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
        """Add the counts of another distribution."""
        for number, count in other.buckets.items():
            self.buckets[number] = self.buckets.get(number, 0) + count
        self.total_ns += other.total_ns
        self.smallest_ns = min((ns for ns in (self.smallest_ns, other.smallest_ns) if ns is not None), default=None)
        self.largest_ns = max((ns for ns in (self.largest_ns, other.largest_ns) if ns is not None), default=None)

    @property
    def count(self) -> int:
        """Number of times."""
        return sum(self.buckets.values())

    @property
    def mean_s(self) -> float | None:
        """The mean; None without times."""
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
        """Number of times above a limit, without its bucket: times up to 0.8 % above it may not count."""
        limit_ns = limit_s * 1e9
        return sum(count for number, count in self.buckets.items() if bucket_edges(number)[0] > limit_ns)

    def quantile(self, q: float, *, lost: int = 0, confidence: float = 0.95) -> Quantile | None:
        """As `quantile`, in seconds; the interval is widened to the edges of the buckets. None without times."""
        total = self.count + lost
        if not total:
            return None
        low, high = rank_bounds(total, q, confidence)
        value = self._edges(max(1, math.ceil(q * total - 1e-9)))
        return Quantile(
            q=q,
            value=sum(value) / 2,
            low=self._edges(low)[0],
            high=self._edges(high)[1],
            confidence=confidence,
            samples=total,
        )

    def _edges(self, rank: int) -> tuple[float, float]:
        """The bounds of the sample of a rank; seconds."""
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
    """Clusters of losses (RFC 3357)."""

    lost: int
    sent: int
    lengths: tuple[int, ...]
    """Of each run of consecutive losses, in order: the loss periods (RFC 3357, 5)."""
    distances: tuple[int, ...]
    """From each loss to the one before, in sequence numbers: the loss distance (RFC 3357, 5)."""

    @property
    def ratio(self) -> float | None:
        """Lost of sent (RFC 7680, 4.1); None if nothing was sent."""
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
"""Largest n of n-reordering that is counted separately; a larger n counts as this."""


class Arrival(IntEnum):
    """How an arrival relates to the earlier ones."""

    IN_ORDER = 0
    REORDERED = 1
    DUPLICATE = 2


class Reordering:
    """Reordering of packets numbered from 0 (RFC 4737); further copies count only as duplicates."""

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
        """Arrivals without duplicates."""
        self.duplicates = 0
        self.reordered = 0
        """Arrivals with a smaller number than the next expected one (RFC 4737, 3.3)."""
        self.extents: dict[int, int] = {}
        """Arrivals by reordering extent (4.2): the arrivals since the first one with a larger number."""
        self.degrees: dict[int, int] = {}
        """Arrivals by n-reordering (5): the number of larger numbers immediately before."""
        self.next_expected = 0
        # Missing numbers below the next expected one, as gaps [start, end) in order, each with the arrival that opened
        # it: for any number of the gap that arrives later, this is the first arrival with a larger number.
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
        """Count the arrival of the next expected number: a fast `arrive` for most arrivals."""
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
        left = [(first, last) for first, last in ((start, sequence), (sequence + 1, end)) if first < last]
        self._starts[at : at + 1] = [first for first, _ in left]
        self._gaps[at : at + 1] = [(last, opened) for _, last in left]
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
        """Reordered of arrived (4.1); None if nothing arrived."""
        return self.reordered / self.arrived if self.arrived else None

    @property
    def state(self) -> int:
        """Number of remembered items: open gaps, and a bounded window."""
        return len(self._gaps) + len(self._recent)


# --- goodput ---------------------------------------------------------------------------------------


def goodput_bps(received_bytes: int, duration_s: float) -> float | None:
    """Bits per second of bytes that arrived whole, each once; from the first sending to the last arrival."""
    return 8 * received_bytes / duration_s if duration_s > 0 else None
