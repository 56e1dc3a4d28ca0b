"""Compile timelines to impairments and their times. Pure.

netem decides when a packet leaves at the moment it arrives. So a step holds for the packets that arrive after it.
Queued packets keep their times, and none is lost, because every step changes the netem in place. For that:

* a ramp becomes stairs of `RESOLUTION_S`, each with the ramp's value at its middle (longer stairs where there would be
  more than `MOST_STAIRS`), and the exact value at the ramp's end;
* a hold (a trace's rate 0) becomes a delay until the hold's end, which shrinks every `RESOLUTION_S`: a packet waits at
  most that much too long, and then leaves at the rate that follows;
* an outage is 100 % loss, without duplicates and marks;
* netem keeps a rate that a change does not mention. So a step without a rate among steps with one gets `NO_RATE_BPS`,
  which adds 12 ns per packet. Any other field that netem would keep must be in every step, or the timeline is refused;
* the queue has the length that the most demanding step needs, or a step would drop what another admitted;
* netem restarts its random numbers at every change. So each step has its own seed, derived from the timeline's. The
  state of a loss model with memory (``burst``, ``gemodel``) restarts as well.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from testbed import units
from testbed.errors import InvalidValueError
from testbed.netem import qdisc
from testbed.spec.impairment import Impairment
from testbed.spec.timeline import Outage, Phase, Timeline, between

RESOLUTION_S = 0.1
"""Length of the stairs of ramps and holds; seconds."""
MOST_STAIRS = 1000
"""Of one ramp."""
NO_RATE_BPS = 1e12
"""Stands for no rate where netem needs one; bits per second."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The impairment that is in force from a time on."""

    at_s: float
    """Seconds since the timeline's start."""
    impairment: Impairment


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A timeline as the agent runs it."""

    moments: tuple[Moment, ...]
    """In order of time, the first at 0; each can follow any other in place."""
    repeat_s: float | None = None

    def at(self, time_s: float) -> Moment:
        """The moment that is in force at a time; seconds since the start, over all repetitions."""
        if self.repeat_s is not None:
            time_s = math.fmod(time_s, self.repeat_s)
        return _in_force(self.moments, time_s)


def _in_force(moments: Sequence[Moment], time_s: float) -> Moment:
    return next(moment for moment in reversed(moments) if moment.at_s <= time_s)


def compile_timeline(timeline: Timeline, *, seed: int | None = None) -> Schedule:
    """The impairments of a timeline and their times; ``seed`` for random impairments, if the timeline names none.

    Raises InvalidValueError if the steps cannot follow each other without losing queued packets.
    """
    moments = [moment for phase in timeline.phases for moment in _of_phase(phase, timeline)]
    for outage in timeline.outages:
        moments = _laid_over(moments, outage, timeline.repeat_s)
    moments = _seeded(
        _compatible(_merged(_lasting(moments, timeline.repeat_s))), timeline.seed if timeline.seed is not None else seed
    )
    return Schedule(moments=tuple(moments), repeat_s=timeline.repeat_s)


def _of_phase(phase: Phase, timeline: Timeline) -> Iterator[Moment]:
    if phase.toward is not None:
        stairs = min(max(1, math.ceil(round(phase.over_s / RESOLUTION_S, 6))), MOST_STAIRS)
        for number in range(stairs):
            at_s = round(phase.at_s + phase.over_s * number / stairs, 9)
            share = (number + 0.5) / stairs
            yield Moment(at_s=at_s, impairment=between(phase.impairment, phase.toward, share))
        yield Moment(at_s=phase.ends_s, impairment=phase.toward)
    elif phase.hold_s is not None:
        position = timeline.phases.index(phase)
        later = timeline.phases[position + 1 :]
        until_s = later[0].at_s if later else timeline.length_s
        for number in range(max(1, math.ceil(round((until_s - phase.at_s) / RESOLUTION_S, 6)))):
            passed_s = number * RESOLUTION_S
            delay_s = (phase.impairment.delay_s or 0.0) + phase.hold_s - passed_s
            yield Moment(
                at_s=round(phase.at_s + passed_s, 9),
                impairment=replace(phase.impairment, delay_s=round(delay_s, 9)),
            )
    else:
        yield Moment(at_s=phase.at_s, impairment=phase.impairment)


def lost(impairment: Impairment) -> Impairment:
    """The impairment of an outage: every packet is lost, and the fields that netem would keep are as before."""
    no_model: dict[str, Any] = dict.fromkeys(("loss_burst_packets", "loss_gemodel", "loss_state"))
    return replace(impairment, **no_model, loss_ratio=1.0, ecn=False, duplicate_ratio=None)


def _laid_over(moments: Sequence[Moment], outage: Outage, repeat_s: float | None) -> list[Moment]:
    end_s = outage.ends_s
    before = [moment for moment in moments if moment.at_s < outage.at_s]
    after = [moment for moment in moments if moment.at_s > end_s]
    begins = Moment(at_s=outage.at_s, impairment=lost(_in_force(moments, outage.at_s).impairment))
    # If an outage ends with the period, the next period's start ends it.
    ends = [] if repeat_s is not None and end_s >= repeat_s else [replace(_in_force(moments, end_s), at_s=end_s)]
    return [*before, begins, *ends, *after]


def _lasting(moments: Sequence[Moment], repeat_s: float | None) -> list[Moment]:
    """Without moments of no duration: the end of a ramp at which the next step, or the next period, starts."""
    ends = [*(moment.at_s for moment in moments[1:]), math.inf if repeat_s is None else repeat_s]
    return [moment for moment, end_s in zip(moments, ends, strict=True) if moment.at_s < end_s]


def _merged(moments: Sequence[Moment]) -> list[Moment]:
    """Without moments that change nothing: each change restarts netem's random numbers."""
    changes = (moment for before, moment in pairwise(moments) if moment.impairment != before.impairment)
    return [moments[0], *changes]


def _compatible(moments: Sequence[Moment]) -> list[Moment]:
    """With a rate in all if in one, and the same queue length. Raises InvalidValueError if that is not enough."""
    if any(moment.impairment.bucket_bytes is not None or moment.impairment.by_number for moment in moments):
        raise InvalidValueError(
            "bucket, drop_packets and drop_every cannot be part of a timeline, because its steps change netem only: "
            "use rate without bucket, or loss"
        )
    if len(moments) == 1:
        return list(moments)
    if any(qdisc.effective_rate_bps(moment.impairment) is not None for moment in moments):
        moments = [_with_rate(moment) for moment in moments]
    limit_packets = max(qdisc.sized_limit(moment.impairment) for moment in moments)
    moments = [_changed(moment, limit_packets=limit_packets) for moment in moments]
    # A table has no effect without the jitter that it shapes.
    matters = {"distribution": lambda impairment: impairment.jitter_s, "slot table": lambda impairment: impairment.slot}
    problems: list[str] = []
    for name in sorted(set().union(*(qdisc.sticky(moment.impairment) for moment in moments))):
        concerned = [moment for moment in moments if name not in matters or matters[name](moment.impairment)]
        problems += _not_in_all(name, concerned)
    if problems:
        raise InvalidValueError(problems)
    return list(moments)


def _with_rate(moment: Moment) -> Moment:
    if qdisc.effective_rate_bps(moment.impairment) is not None or moment.impairment.reorder_by_jitter:
        return moment
    return _changed(moment, rate_bps=NO_RATE_BPS)


def _changed(moment: Moment, **fields: Any) -> Moment:
    return replace(moment, impairment=replace(moment.impairment, **fields))


def _not_in_all(name: str, moments: Sequence[Moment]) -> Iterator[str]:
    """The problem of a field that some moments have and others lack, though netem would keep it."""
    first, *others = moments
    has_it = name in qdisc.sticky(first.impairment)
    other = next((moment for moment in others if (name in qdisc.sticky(moment.impairment)) != has_it), None)
    if other is None:
        return
    if name == "rate":
        yield (
            "reorder_by_jitter with a rate, or without it in another step: netem keeps order once it has a rate, and "
            "cannot drop the rate without losing queued packets; use reorder_by_jitter in every step, and no rate"
        )
        return
    remedy = (
        "use a distribution other than uniform in every step with jitter"
        if name == "distribution"
        else f"use {name} in every step or in none"
    )
    yield (
        f"{name} is not the same at {units.format_time(first.at_s)} and at {units.format_time(other.at_s)}: netem "
        f"cannot remove it without losing queued packets; {remedy}"
    )


def _seeded(moments: Sequence[Moment], seed: int | None) -> list[Moment]:
    if seed is None:
        return list(moments)
    return [
        _changed(moment, seed=step_seed(seed, number) if moment.impairment.is_random else None)
        for number, moment in enumerate(moments)
    ]


def step_seed(seed: int, number: int) -> int:
    """The seed of the n-th step; that of the first is the timeline's own."""
    if number == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}\0{number}".encode()).digest()[:8]) >> 1
