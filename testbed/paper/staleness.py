"""The age of information of a receiver. Pure.

S. Kaul, R. Yates, M. Gruteser, "Real-time status: how often should one update?" (INFOCOM 2012): the age is the time
since the sending of the newest update that has arrived. It grows by one second per second, and falls when a newer
update arrives. An update that was overtaken or duplicated changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Staleness:
    """The age of information from the first arrival to the end."""

    pieces: tuple[tuple[int, int], ...]
    """For each newer update, until the next: the age at its begin, and its duration; nanoseconds."""
    arrived: int
    """Updates that arrived, without copies."""
    late: int
    """Updates that arrived after a newer one."""

    @property
    def watched_s(self) -> float:
        """The time from the first arrival to the end."""
        return sum(lasted for _, lasted in self.pieces) / 1e9

    @property
    def least_s(self) -> float:
        """The smallest age, which is the shortest delay. Raises ValueError without arrivals."""
        return min(age for age, _ in self.pieces) / 1e9

    @property
    def mean_s(self) -> float | None:
        """The mean over time; None without time."""
        total = sum(lasted for _, lasted in self.pieces)
        return sum(lasted * (age + lasted / 2) for age, lasted in self.pieces) / total / 1e9 if total else None

    def quantile(self, q: float) -> float | None:
        """The age, in seconds, that was not exceeded in this share of the time; None without time.

        Raises ValueError outside 0 <= q <= 1.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"quantile {q}: a share of the time lies between 0 and 1")
        total = sum(lasted for _, lasted in self.pieces)
        if not total:
            return None
        # Each piece passes through its ages at the same pace, so the time at or below an age is a sum of ramps.
        edges = sorted(
            [(age, 1) for age, lasted in self.pieces if lasted]
            + [(age + lasted, -1) for age, lasted in self.pieces if lasted]
        )
        wanted, below, slope, at = q * total, 0.0, 0, edges[0][0]
        for edge, change in edges:
            if slope and below + slope * (edge - at) >= wanted:
                return (at + (wanted - below) / slope) / 1e9
            below += slope * (edge - at)
            at, slope = edge, slope + change
        return at / 1e9

    def freezes(self, longer_than_s: float) -> tuple[float, ...]:
        """Pauses longer than this without a newer update; seconds, in order."""
        return tuple(lasted / 1e9 for _, lasted in self.pieces if lasted / 1e9 > longer_than_s)

    @property
    def longest_pause_s(self) -> float:
        """The longest pause without a newer update; 0 without arrivals."""
        return max((lasted for _, lasted in self.pieces), default=0) / 1e9


def staleness(updates: Iterable[tuple[int, int, int]], until_ns: int) -> Staleness:
    """The age of updates (number, sent, arrived; nanoseconds) until ``until_ns`` or the last arrival.

    Raises ValueError if one arrived before it was sent: the clocks differ.
    """
    by_arrival = sorted((arrived_ns, number, sent_ns) for number, sent_ns, arrived_ns in updates)
    pieces: list[tuple[int, int]] = []
    seen: set[int] = set()
    newest_ns: int | None = None
    began_ns = late = 0
    for arrived_ns, number, sent_ns in by_arrival:
        if arrived_ns < sent_ns:
            raise ValueError(f"update {number} arrived {sent_ns - arrived_ns} ns before it was sent: other clocks?")
        if number in seen:
            continue
        seen.add(number)
        if newest_ns is not None and sent_ns <= newest_ns:
            late += 1
            continue
        if newest_ns is not None:
            pieces.append((began_ns - newest_ns, arrived_ns - began_ns))
        newest_ns, began_ns = sent_ns, arrived_ns
    if newest_ns is not None:
        end_ns = max(until_ns, *(arrived_ns for arrived_ns, _, _ in by_arrival))
        pieces.append((began_ns - newest_ns, end_ns - began_ns))
    return Staleness(pieces=tuple(pieces), arrived=len(seen), late=late)
