"""How late a carrier was, and whether the test counts. Pure.

The tolerance follows from the impairment: a tenth of the delay, at least 5 ms, for all but 1 % of the packets, and
never 100 ms. Frames stand for packets: one every 30 ms, sent back by the carried kernel a fixed time later. A single
late one of few frames is more than 1 %; so the ratio is exceeded only where the binomial bound at 1e-6 shows it.
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
"""From this lateness on a carrier stood still, however busy the machine is."""


@dataclass(frozen=True, kw_only=True)
class Lateness:
    """How late a carrier was while it was watched; seconds beyond the time that each frame was to take."""

    carrier: str
    """What was late: a carried kernel, or this machine's timer."""
    frames: int
    """Frames that came back, and frames that are late already and have not."""
    median_s: float
    worst_s: float
    late: int
    """Frames later than the tolerance."""
    tolerance_s: float

    @property
    def late_ratio(self) -> float:
        """The ratio of frames later than the tolerance."""
        return self.late / self.frames if self.frames else 0.0

    @property
    def problem(self) -> str | None:
        """Why the test does not count; None if it does."""
        allowed_s = max(AT_ONCE_S, self.tolerance_s)
        if self.worst_s > allowed_s:
            return f"{self.carrier} was {_time(self.worst_s)} late, more than the allowed {_time(allowed_s)}"
        if self.late and self.late > exact.accepted(self.frames, LATE_RATIO)[1]:
            return f"{self._often}: more than the allowed {units.format_ratio(LATE_RATIO)}"
        return None

    @property
    def remedy(self) -> str:
        """What to do about a problem."""
        less = "run fewer tests at once, send less, or give the machine more processors"
        if self.worst_s >= STOOD_STILL_S:
            return less
        return f"{less}; or accept it: --testbed-lateness=warn"

    @property
    def warning(self) -> str | None:
        """A lateness beyond the tolerance that is no problem; None of none."""
        return self._often if self.late and self.problem is None else None

    @property
    def _often(self) -> str:
        return (
            f"{self.carrier} was more than {_time(self.tolerance_s)} late {self.late} of {self.frames} times, at worst "
            f"{_time(self.worst_s)}"
        )

    def as_json(self) -> dict[str, Any]:
        """As the results file has it."""
        return {**asdict(self), "late_ratio": self.late_ratio}


def tolerance_s(impairment: Impairment | None) -> float:
    """How late a packet may be under an impairment; None is a cut."""
    delay_s = (impairment.delay_s if impairment is not None else None) or 0.0
    return max(delay_s / _PART_OF_DELAY, LEAST_TOLERANCE_S)


def lateness(
    took_s: Sequence[float], *, carrier: str, due_s: float, tolerance_s: float, missing_s: Sequence[float] = ()
) -> Lateness:
    """How late a carrier sent back frames that were due after ``due_s``.

    ``took_s``: the times of frames that came back. ``missing_s``: the ages of frames that did not yet; these may still
    be in time.
    """
    late_s = [time_s - due_s for time_s in took_s]
    late_s += [age_s - due_s for age_s in missing_s if age_s - due_s > tolerance_s]
    return Lateness(
        carrier=carrier,
        frames=len(late_s),
        median_s=statistics.median(late_s) if late_s else 0.0,
        worst_s=max(late_s, default=0.0),
        late=sum(time_s > tolerance_s for time_s in late_s),
        tolerance_s=tolerance_s,
    )


def queue_warning(late_s: Sequence[float], *, tolerance_s: float) -> str | None:
    """What to say of packets that waited in the queue before a carried kernel; None where none waited for long.

    ``late_s``: how long frames waited that were sent there while many packets passed.
    """
    waited = sum(time_s > tolerance_s for time_s in late_s)
    if not waited:
        return None
    return (
        f"packets waited in the queue before the carried kernel, which nobody asked for: {waited} of {len(late_s)} "
        f"frames more than {_time(tolerance_s)}, the longest {_time(max(late_s))}"
    )


def not_measured(*, carrier: str, tolerance_s: float, why: str) -> Check:
    """The check of a carrier whose lateness is unknown."""
    requested = f"≤ {_time(tolerance_s)} for 99%"
    return Check(
        field="lateness", asked=requested, kernel=carrier, seen="not measured", verdict=Verdict.UNKNOWN, how=why
    )


def check(lateness: Lateness, *, counts: bool = True) -> Check:
    """The check of a carrier; ``counts``: whether a problem fails it."""
    if not lateness.frames:
        why = "no frame came back while the test ran"
        return not_measured(carrier=lateness.carrier, tolerance_s=lateness.tolerance_s, why=why)
    problem = lateness.problem if counts else None
    times = f"median {_time(lateness.median_s)}, worst {_time(lateness.worst_s)}"
    return Check(
        field="lateness",
        asked=f"≤ {_time(lateness.tolerance_s)} for 99%",
        kernel=lateness.carrier,
        seen=f"{times}, {lateness.late} of {lateness.frames} beyond",
        verdict=Verdict.FAILS if problem else Verdict.HOLDS if counts else Verdict.SHOWN,
        how=problem or "",
    )


def _time(time_s: float) -> str:
    return units.format_time(round(time_s, 5))
