"""A flight of probes: when each was sent, and what arrived. Pure values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HEADERS_BYTES = 14 + 20 + 8
"""Ethernet, IPv4 and UDP, before the payload of each probe; netem counts all of it."""

SMALL_BYTES, LARGE_BYTES, TRAIN_BYTES = 64, 1000, 1400
"""Payloads: of most probes, of those that may be corrupted, and of those in a train."""


@dataclass(frozen=True, kw_only=True)
class Flight:
    """Probes of one direction."""

    sent_ns: Sequence[int]
    arrivals: Sequence[tuple[int, int]]
    """Number and time of each arrival, in order of arrival; nanoseconds."""
    damaged: int = 0
    """Arrivals whose CRC was wrong."""
    size_bytes: int = SMALL_BYTES
    clock_error_ns: int = 0
    """Of two machines: the arrivals are late by up to twice this, and never early, by what is known of their clocks."""

    @property
    def count(self) -> int:
        """Number of probes sent."""
        return len(self.sent_ns)

    @property
    def first(self) -> dict[int, int]:
        """First arrival of each probe; nanoseconds."""
        first: dict[int, int] = {}
        for number, arrived_ns in self.arrivals:
            first.setdefault(number, arrived_ns)
        return first

    @property
    def delays_s(self) -> dict[int, float]:
        """One-way delay of each probe that arrived (RFC 7679)."""
        return {number: (arrived_ns - self.sent_ns[number]) / 1e9 for number, arrived_ns in self.first.items()}

    @property
    def reordered(self) -> int:
        """Arrivals with a smaller number than an earlier one (RFC 4737, 3.3), without duplicates."""
        count, highest = 0, -1
        for number in self.first:
            count += number < highest
            highest = max(highest, number)
        return count
