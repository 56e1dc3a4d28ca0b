"""Impairments over time, as values.

A *timeline* says what impairs a link at each moment since its start: *phases*, each of which holds until the next one
begins, with *outages* over them. `testbed.spec.steps` reads the notation. Times are seconds since the timeline's start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from testbed import units
from testbed.spec.features import FEATURES, WORDS
from testbed.spec.impairment import Impairment

LATE_S = 0.010
"""A step taken later than this is reported as late; seconds."""
RAMPED = tuple(feature.name for feature in FEATURES if feature.kind.ramps)
"""The words whose values a ramp may change."""
_FINEST = 1e-9


def _sum_s(first_s: float, second_s: float) -> float:
    """The sum of two times, to the nanosecond: 0.1 and 0.2 are 0.3."""
    return round(first_s + second_s, 9)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What impairs the link from one moment on."""

    at_s: float
    """When it begins; seconds since the timeline's start."""
    impairment: Impairment
    """The impairment at its beginning."""
    toward: Impairment | None = None
    """The impairment at the end of a ramp, which is linear; None: no ramp."""
    over_s: float = 0.0
    """Length of the ramp; seconds."""
    hold_s: float | None = None
    """Packets are held until this long after the phase's beginning (rate 0 in a trace); None: they are not."""

    @property
    def ends_s(self) -> float:
        """When the ramp has ended; the beginning if there is none."""
        return _sum_s(self.at_s, self.over_s)


@dataclass(frozen=True, kw_only=True)
class Outage:
    """A time in which every packet is lost."""

    at_s: float
    for_s: float

    @property
    def ends_s(self) -> float:
        """When packets pass again."""
        return _sum_s(self.at_s, self.for_s)


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The impairments of a link over time. `testbed.spec.steps.parse_side` makes and checks them."""

    phases: tuple[Phase, ...]
    """In order of time; the first at 0."""
    outages: tuple[Outage, ...] = ()
    """In order of time, without overlap."""
    repeat_s: float | None = None
    """Period after which it begins again; None: it does not, and its end stays."""
    trace: str | None = None
    """The trace that it was read from."""
    words: str = field(default="", compare=False)
    """The text that it was read from; reading it again gives the same timeline."""

    @property
    def is_clean(self) -> bool:
        """Whether it does nothing at any time."""
        return not self.outages and all(impairment.is_clean for impairment in self._impairments())

    @property
    def is_random(self) -> bool:
        """Whether netem draws random numbers for any of it."""
        return any(impairment.is_random for impairment in self._impairments())

    @property
    def own_tables(self) -> list[str]:
        """The user's delay tables that it needs."""
        return list(dict.fromkeys(table for impairment in self._impairments() for table in impairment.own_tables))

    @property
    def seed(self) -> int | None:
        """The seed that the user gave, if any."""
        return next((impairment.seed for impairment in self._impairments() if impairment.seed is not None), None)

    @property
    def length_s(self) -> float:
        """Until the last change, or until it begins again; seconds."""
        if self.repeat_s is not None:
            return self.repeat_s
        return max([phase.ends_s for phase in self.phases] + [outage.ends_s for outage in self.outages])

    def _impairments(self) -> Iterator[Impairment]:
        for phase in self.phases:
            yield phase.impairment
            if phase.toward is not None:
                yield phase.toward

    def describe(self) -> str:
        """In short: ``timeline, 3 steps over 14s, 1 outage, repeated``."""
        count = len(self.phases)
        what = f"trace {self.trace}, {count} steps" if self.trace else f"timeline, {count} step{'s' * (count > 1)}"
        parts = [f"{what} over {units.format_time(self.length_s)}"]
        if self.outages:
            parts.append(f"{len(self.outages)} outage{'s' * (len(self.outages) > 1)}")
        if self.repeat_s is not None:
            parts.append("repeated")
        return ", ".join(parts)

    def at(self, time_s: float) -> Impairment | None:
        """The impairment at a time before the end; None in an outage. Ramps are continuous here."""
        if any(outage.at_s <= time_s < outage.ends_s for outage in self.outages):
            return None
        phase = next(phase for phase in reversed(self.phases) if phase.at_s <= time_s)
        if phase.toward is None:
            return phase.impairment
        return between(phase.impairment, phase.toward, min((time_s - phase.at_s) / phase.over_s, 1.0))


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A step that the agent has taken."""

    planned_s: float
    """When it was due; seconds since the timeline's start, over all repetitions."""
    actual_s: float
    """When tc had answered: an upper bound of when the kernel took it; the same clock."""
    monotonic_s: float
    """``actual_s`` by CLOCK_MONOTONIC of the agent's machine; seconds."""
    unix_s: float
    """``actual_s`` by CLOCK_REALTIME; seconds since 1970."""
    impairment: Impairment
    complaint: str | None = None
    """Why it was not in force: refused by the kernel, read back differently, or passed over although it matters."""
    passed_over: bool = False
    """Whether it was left out, as it was so late that the next step was due."""
    cut: bool | None = None
    """For a link that flaps: whether it is cut from here on, on top of its impairment. None: a step of a timeline."""

    def describe(self) -> str:
        """What is in force from here on."""
        return {None: self.impairment.describe(), True: "cut", False: "not cut"}[self.cut]

    def as_json(self) -> dict[str, Any]:
        """As the results file has it."""
        return {
            "planned_s": self.planned_s,
            "actual_s": round(self.actual_s, 6),
            "unix_s": round(self.unix_s, 6),
            "in_force": self.describe(),
            "passed_over": self.passed_over,
            "complaint": self.complaint,
        }

    @property
    def late_s(self) -> float:
        """How late it was; seconds."""
        return self.actual_s - self.planned_s

    @property
    def is_late(self) -> bool:
        """Whether it was later than `LATE_S`."""
        return self.late_s > LATE_S


class LateStepWarning(UserWarning):
    """A timeline's step was taken later than `LATE_S`."""


def late_in_words(steps: Sequence[Taken]) -> str | None:
    """How many steps were late or passed over, and how late at worst; None if none was."""
    late = [step for step in steps if step.is_late or step.passed_over]
    if not late:
        return None
    worst_s = max(step.late_s for step in late)
    passed = sum(step.passed_over for step in late)
    return (
        f"{len(late)} of {len(steps)} steps of the timeline came later than {LATE_S * 1e3:g} ms, at worst "
        f"{worst_s * 1e3:.0f} ms" + (f"; {passed} were passed over, as the next one was due" if passed else "")
    )


def steps_in_words(steps: Sequence[Taken], most: int = 50) -> str:
    """Every step with its planned time and how late it was: ``2 steps: 0 s (+0.6 ms) delay=40ms; …``."""
    texts = [
        f"{step.planned_s:.6g} s (+{step.late_s * 1e3:.1f} ms) {step.describe()}"
        + (" passed over" if step.passed_over else "")
        + (f" NOT IN FORCE: {step.complaint}" if step.complaint else "")
        for step in steps
    ]
    if len(texts) > most:
        texts[most // 2 : len(texts) - most // 2] = [f"… {len(texts) - most} more …"]
    worst_s = max((step.late_s for step in steps), default=0.0)
    return f"{len(steps)} steps, at worst {worst_s * 1e3:.1f} ms late: {'; '.join(texts)}"


def between(first: Impairment, last: Impairment, share: float) -> Impairment:
    """The impairment at a share of a ramp, 0 to 1. A field that is no number has the value of the end that sets it."""
    if share <= 0:
        return first
    if share >= 1:
        return last
    values: dict[str, Any] = {}
    ramped = {WORDS[name].field for name in RAMPED}
    for field_ in fields(Impairment):
        a, b = getattr(first, field_.name), getattr(last, field_.name)
        if a == b:
            continue
        if field_.name in ramped and a is not None and b is not None:
            values[field_.name] = max(round(a + (b - a) * share, 10), _FINEST)
        else:
            values[field_.name] = b if a == field_.default else a
    return replace(first, **values)
