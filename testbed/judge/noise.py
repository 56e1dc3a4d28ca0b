"""What a machine's own noise leaves to be trusted. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_PRECISION = 0.1
"""A delay or a jitter is trusted where the machine's own is no more than this part of it."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """A machine's own delays, from raw samples; seconds and shares."""

    overshoot_median_s: float
    overshoot_p99_s: float
    round_trip_median_s: float
    spread_s: float
    """From the 5th to the 95th percentile of how late timers fire, and of round trips, the larger."""
    steal_ratio: float
    idle_ratio: float

    @property
    def least_delay_s(self) -> float:
        """The smallest one-way delay that is right to a tenth: ten times what timer and path add at the median."""
        return (self.overshoot_median_s + self.round_trip_median_s / 2) / _PRECISION

    @property
    def least_jitter_s(self) -> float:
        """The smallest jitter that is not drowned: ten times the machine's own spread."""
        return self.spread_s / _PRECISION


def noise(measured: Mapping[str, Any]) -> Noise:
    """From what the agent measured."""
    overshoots, round_trips = sorted(measured["overshoots_s"]), sorted(measured["round_trips_s"])
    return Noise(
        overshoot_median_s=statistics.median(overshoots),
        overshoot_p99_s=_at(overshoots, 0.99),
        round_trip_median_s=statistics.median(round_trips),
        spread_s=max(_at(delays, 0.95) - _at(delays, 0.05) for delays in (overshoots, round_trips)),
        steal_ratio=measured["steal_ratio"],
        idle_ratio=measured["idle_ratio"],
    )


def _at(ordered: Sequence[float], q: float) -> float:
    return ordered[min(int(len(ordered) * q), len(ordered) - 1)]
