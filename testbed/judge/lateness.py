"""How late a carrier was, and whether what it carried counts. Pure.

What is asked of it follows from the impairment: to be no later than a tenth of the delay, at least 5 ms, for all but
1 % of the packets, and never 100 ms. Frames stand for packets: one every 30 ms, sent back by the carried kernel a fixed
time later. Of few frames a single late one is more than 1 %; so a share counts as larger where the binomial's bound at
1e-6 says so.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from testbed import units
from testbed.evidence.proof import Check
from testbed.evidence.verdict import Verdict
from testbed.judge import statistics as exact
from testbed.spec.impairment import Impairment

LEAST_TOLERANCE_S = 0.005
_PART_OF_DELAY = 10
LATE_RATIO = 0.01
AT_ONCE_S = 0.1
STOOD_STILL_S = 1.0
"""A carrier that was so late stood still, however busy the machine is."""


@dataclass(frozen=True, kw_only=True)
class Lateness:
    """How late a carrier was while it was watched; seconds beyond the time that each frame was to take."""

    carrier: str
    """What was late, in words: a carried kernel, or this machine's timer."""
    frames: int
    """How many came back, or are that late and have not."""
    median_s: float
    worst_s: float
    late: int
    """Frames later than the tolerance."""
    tolerance_s: float

    @property
    def late_ratio(self) -> float:
        """The share of frames later than the tolerance."""
        return self.late / self.frames if self.frames else 0.0

    @property
    def problem(self) -> str | None:
        """Why what was carried does not count; None if it does."""
        allowed_s = max(AT_ONCE_S, self.tolerance_s)
        if self.worst_s > allowed_s:
            return f"{self.carrier} was {_time(self.worst_s)} late at once, and {_time(allowed_s)} are the most"
        if self.frames and self.late > exact.accepted(self.frames, LATE_RATIO)[1]:
            return f"{self._often}, and {units.format_ratio(LATE_RATIO)} are allowed"
        return None

    @property
    def warning(self) -> str | None:
        """What to say of a lateness that is beyond the tolerance, and allowed."""
        if not self.late or self.problem is not None:
            return None
        return self._often

    @property
    def _often(self) -> str:
        return (
            f"{self.carrier} was more than {_time(self.tolerance_s)} late {self.late} of {self.frames} times, at the "
            f"worst {_time(self.worst_s)}"
        )

    def as_json(self) -> dict[str, Any]:
        """As the results file has it."""
        return {**asdict(self), "late_ratio": self.late_ratio}


def tolerance_s(asked: Impairment | None) -> float:
    """How late a packet may be under an impairment; None is a cut."""
    delay_s = (asked.delay_s if asked is not None else None) or 0.0
    return max(delay_s / _PART_OF_DELAY, LEAST_TOLERANCE_S)


def lateness(
    took_s: Sequence[float], *, carrier: str, missing_s: Sequence[float] = (), due_s: float, tolerance_s: float
) -> Lateness:  # fmt: skip
    """How late a carrier sent frames back that were due after ``due_s``.

    ``took_s``: the times of those that came back; ``missing_s``: how long ago those were sent that did not yet, which
    may be on time still.
    """
    late_s = [each - due_s for each in took_s]
    late_s += [each - due_s for each in missing_s if each - due_s > tolerance_s]
    return Lateness(
        carrier=carrier, frames=len(late_s), median_s=statistics.median(late_s) if late_s else 0.0,
        worst_s=max(late_s, default=0.0), late=sum(each > tolerance_s for each in late_s), tolerance_s=tolerance_s,
    )  # fmt: skip


def not_measured(*, carrier: str, tolerance_s: float, why: str) -> Check:
    """The row of a link's evidence where nobody knows how late its carrier was."""
    asked = f"≤ {_time(tolerance_s)} for 99%"
    return Check(field="lateness", asked=asked, kernel=carrier, seen="not measured", verdict=Verdict.UNKNOWN, how=why)


def check(found: Lateness, *, counts: bool = True) -> Check:
    """The row of a link's evidence; ``counts``: whether it condemns the test."""
    if not found.frames:
        why = "no frame came back while the test ran"
        return not_measured(carrier=found.carrier, tolerance_s=found.tolerance_s, why=why)
    problem = found.problem if counts else None
    seen = f"median {_time(found.median_s)}, worst {_time(found.worst_s)}, {found.late} of {found.frames} beyond"
    return Check(
        field="lateness", asked=f"≤ {_time(found.tolerance_s)} for 99%", kernel=found.carrier, seen=seen,
        verdict=Verdict.FAILS if problem else Verdict.HOLDS if counts else Verdict.SHOWN, how=problem or "",
    )  # fmt: skip


def _time(time_s: float) -> str:
    return units.format_time(round(time_s, 5))
