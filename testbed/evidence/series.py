"""What was observed over time during a test. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MOST_POINTS = 300
"""Of one series; more are thinned out evenly, and the last one stays."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One quantity over time; each value holds until the next one."""

    name: str
    unit: str
    times_s: Sequence[float]
    """Since the observation began, in order."""
    values: Sequence[float]

    @classmethod
    def of(cls, name: str, unit: str, points: Sequence[tuple[float, float]]) -> Series:
        """Of points in order of time, thinned out."""
        step = max(-(-len(points) // MOST_POINTS), 1)
        kept = [*points[::step], *(points[-1:] if (len(points) - 1) % step else ())]
        return cls(name=name, unit=unit, times_s=[round(time, 6) for time, _ in kept], values=[v for _, v in kept])

    def as_json(self) -> dict[str, Any]:
        """As the results file has it."""
        return {**vars(self), "times_s": list(self.times_s), "values": list(self.values)}
