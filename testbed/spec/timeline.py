"""Impairments over time, as values.

A *timeline* says what a link is like at each moment since its start: a row of *segments*, each holding until the
next begins, with *outages* laid over them. How one is written is in `testbed.spec.steps`. Times are seconds since the
timeline's start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from testbed import units
from testbed.spec.features import FEATURES, WORDS
from testbed.spec.impairment import Impairment

LATE_S = 0.010
"""A step that was taken later than this is reported as late; seconds."""
RAMPED = tuple(feature.name for feature in FEATURES if feature.kind.ramps)
"""The words whose values a ramp may lead from one to another."""
_FINEST = 1e-9


def _sum_s(first_s: float, second_s: float) -> float:
    """Two times added up, to the nanosecond: 0.1 and 0.2 are 0.3."""
    return round(first_s + second_s, 9)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """What holds from one moment on."""

    at_s: float
    """When it begins; seconds since the timeline's start."""
    impairment: Impairment
    """What holds at its beginning."""
    toward: Impairment | None = None
    """What it becomes, linearly, over ``over_s``; None: it stays."""
    over_s: float = 0.0
    """How long the ramp is; seconds."""
    hold_s: float | None = None
    """Packets that come wait until so long after the segment's beginning (rate 0 in a trace); None: they do not."""

    @property
    def ends_s(self) -> float:
        """When its ramp has ended; its beginning if it has none."""
        return _sum_s(self.at_s, self.over_s)


@dataclass(frozen=True, kw_only=True)
class Outage:
    """A time in which every packet is lost, silently."""

    at_s: float
    for_s: float

    @property
    def ends_s(self) -> float:
        """When packets pass again."""
        return _sum_s(self.at_s, self.for_s)


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """What a link is like over time. Construction is by `parse_side`, which checks it."""

    segments: tuple[Segment, ...]
    """In order of time; the first at 0."""
    outages: tuple[Outage, ...] = ()
    """In order of time; none overlaps another."""
    repeat_s: float | None = None
    """After how long it begins again; None: what holds at its end stays."""
    trace: str | None = None
    """The trace that it was read from."""
    words: str = field(default="", compare=False)
    """What it was read from, in words that are read as the same again."""

    @property
    def is_clean(self) -> bool:
        """Whether it never asks for anything."""
        return not self.outages and all(each.is_clean for each in self._impairments())

    @property
    def is_random(self) -> bool:
        """Whether netem draws random numbers for any of it."""
        return any(each.is_random for each in self._impairments())

    @property
    def own_tables(self) -> list[str]:
        """The tables of one's own that it needs."""
        return list(dict.fromkeys(table for each in self._impairments() for table in each.own_tables))

    @property
    def seed(self) -> int | None:
        """The seed that the user named, if any."""
        return next((each.seed for each in self._impairments() if each.seed is not None), None)

    @property
    def length_s(self) -> float:
        """Until the last change, or until it begins again; seconds."""
        if self.repeat_s is not None:
            return self.repeat_s
        return max([each.ends_s for each in self.segments] + [each.ends_s for each in self.outages])

    def _impairments(self) -> Iterator[Impairment]:
        for segment in self.segments:
            yield segment.impairment
            if segment.toward is not None:
                yield segment.toward

    def describe(self) -> str:
        """In short: ``timeline of 3 steps over 14s, 1 outage, again every 60s``."""
        what = f"trace {self.trace}, {len(self.segments)} steps" if self.trace else f"timeline, {_count(self.segments)}"
        parts = [f"{what} over {units.format_time(self.length_s)}"]
        if self.outages:
            parts.append(f"{len(self.outages)} outage{'s' * (len(self.outages) > 1)}")
        if self.repeat_s is not None:
            parts.append("repeated")
        return ", ".join(parts)

    def at(self, time_s: float) -> Impairment | None:
        """What holds at a time before its end; None in an outage. Ramps are not stairs here."""
        if any(each.at_s <= time_s < each.ends_s for each in self.outages):
            return None
        segment = next(each for each in reversed(self.segments) if each.at_s <= time_s)
        if segment.toward is None:
            return segment.impairment
        return between(segment.impairment, segment.toward, min((time_s - segment.at_s) / segment.over_s, 1.0))


def _count(segments: Sequence[Segment]) -> str:
    return f"{len(segments)} step{'s' * (len(segments) > 1)}"


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A step that the agent took."""

    planned_s: float
    """When it was due; seconds since the timeline's start, over all repetitions."""
    actual_s: float
    """When the kernel had taken it; the same clock. An upper bound: tc had answered."""
    monotonic_s: float
    """``actual_s`` by CLOCK_MONOTONIC of the agent's machine; seconds."""
    unix_s: float
    """``actual_s`` by CLOCK_REALTIME; seconds since 1970."""
    impairment: Impairment
    complaint: str | None = None
    """Why it was not in force: refused by the kernel, read back otherwise, or passed over though it matters."""
    passed_over: bool = False
    """Whether it came so late that the next step was due, and was left out."""
    cut: bool | None = None
    """Of a link that flaps: whether it is cut from here on, over whatever impairs it. None: a step of a timeline."""

    def describe(self) -> str:
        """What is in force from here on, in words."""
        return {None: self.impairment.describe(), True: "cut", False: "not cut"}[self.cut]

    def as_json(self) -> dict[str, Any]:
        """As the results file has it."""
        return {
            "planned_s": self.planned_s, "actual_s": round(self.actual_s, 6), "unix_s": round(self.unix_s, 6),
            "in_force": self.describe(), "passed_over": self.passed_over, "complaint": self.complaint,
        }  # fmt: skip

    @property
    def late_s(self) -> float:
        """How late it was; seconds."""
        return self.actual_s - self.planned_s

    @property
    def is_late(self) -> bool:
        """Whether it came later than `LATE_S`."""
        return self.late_s > LATE_S


class LateStepWarning(UserWarning):
    """A timeline's step was taken later than `LATE_S`."""


def late_in_words(steps: Sequence[Taken]) -> str | None:
    """How many steps were late or passed over, and how late at worst; None if none was."""
    late = [each for each in steps if each.is_late or each.passed_over]
    if not late:
        return None
    worst_s = max(each.late_s for each in late)
    passed = sum(each.passed_over for each in late)
    return (
        f"{len(late)} of {len(steps)} steps of the timeline came later than {LATE_S * 1e3:g} ms, at worst "
        f"{worst_s * 1e3:.0f} ms" + (f"; {passed} were passed over, the next one being due" if passed else "")
    )


def steps_in_words(steps: Sequence[Taken], most: int = 50) -> str:
    """Every step with its planned time and how late it was: ``2 steps: 0 s (+0.6 ms) delay=40ms; …``."""
    said = [
        f"{each.planned_s:.6g} s (+{each.late_s * 1e3:.1f} ms) {each.describe()}"
        + (" passed over" if each.passed_over else "")
        + (f" NOT IN FORCE: {each.complaint}" if each.complaint else "")
        for each in steps
    ]
    if len(said) > most:
        said[most // 2 : len(said) - most // 2] = [f"… {len(said) - most} more …"]
    worst_s = max((each.late_s for each in steps), default=0.0)
    return f"{len(steps)} steps, at worst {worst_s * 1e3:.1f} ms late: {'; '.join(said)}"


def between(first: Impairment, last: Impairment, share: float) -> Impairment:
    """The impairment part of the way along a ramp; ``share`` from 0 to 1. What is no number is whichever is set."""
    if share <= 0:
        return first
    if share >= 1:
        return last
    values: dict[str, Any] = {}
    ramped = {WORDS[name].field for name in RAMPED}
    for each in fields(Impairment):
        a, b = getattr(first, each.name), getattr(last, each.name)
        if a == b:
            continue
        if each.name in ramped and a is not None and b is not None:
            values[each.name] = max(round(a + (b - a) * share, 10), _FINEST)
        else:
            values[each.name] = b if a == each.default else a
    return replace(first, **values)
