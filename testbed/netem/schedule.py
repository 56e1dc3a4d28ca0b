"""Compile timelines to what the kernel is told, and when. Pure.

netem fixes when a packet leaves as it arrives, so a step holds for the packets that arrive after it; those that
wait keep their time, and none is lost: every step changes the netem in place. What that needs is seen to here:

* a ramp becomes stairs of `RESOLUTION_S`, each at the ramp's value in its middle (longer stairs where there would
  be more than `MOST_STAIRS`), and the ramp's end exactly;
* a hold (a trace's rate 0) becomes a delay until the hold's end, made shorter every `RESOLUTION_S`: a packet waits
  at most that much too long, and then leaves at the rate that follows;
* an outage is 100 % loss, and neither duplicates nor marks;
* netem keeps a rate that a change does not mention, so a step without one among steps with one is given
  `NO_RATE_BPS`, which adds 12 ns a packet; whatever else it would keep must stand in every step, or is refused;
* the queue is as long as the longest that any step needs, or a step would drop what another let in;
* netem draws its random numbers afresh at every change, so each step has a seed of its own, derived from one. The
  states of a loss model with a memory (``burst``, ``gemodel``) begin anew at each step.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from testbed import units
from testbed.errors import InvalidValueError
from testbed.netem import qdisc
from testbed.spec.impairment import Impairment
from testbed.spec.timeline import Outage, Segment, Timeline, between

RESOLUTION_S = 0.1
"""Length of a ramp's stairs and of a hold's; seconds."""
MOST_STAIRS = 1000
"""Of one ramp."""
NO_RATE_BPS = 1e12
"""What stands for no rate where netem must be told one; bits per second."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What the kernel holds from a time on."""

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
        """What is in force at a time; seconds since the start, over all repetitions."""
        if self.repeat_s is not None:
            time_s = math.fmod(time_s, self.repeat_s)
        return next(each for each in reversed(self.moments) if each.at_s <= time_s)


def compile_timeline(timeline: Timeline, *, seed: int | None = None) -> Schedule:
    """What the kernel is told, and when; ``seed`` for random impairments, where none is named.

    Raises InvalidValueError if the steps cannot follow each other without losing what is queued.
    """
    moments = [each for segment in timeline.segments for each in _of_segment(segment, timeline)]
    for outage in timeline.outages:
        moments = _laid_over(moments, outage, timeline.repeat_s)
    moments = _seeded(
        _compatible(_merged(_lasting(moments, timeline.repeat_s))), timeline.seed if timeline.seed is not None else seed
    )
    return Schedule(moments=tuple(moments), repeat_s=timeline.repeat_s)


def _of_segment(segment: Segment, timeline: Timeline) -> Iterator[Moment]:
    if segment.toward is not None:
        stairs = min(max(1, math.ceil(round(segment.over_s / RESOLUTION_S, 6))), MOST_STAIRS)
        for number in range(stairs):
            at_s = round(segment.at_s + segment.over_s * number / stairs, 9)
            share = (number + 0.5) / stairs
            yield Moment(at_s=at_s, impairment=between(segment.impairment, segment.toward, share))
        yield Moment(at_s=segment.ends_s, impairment=segment.toward)
    elif segment.hold_s is not None:
        position = timeline.segments.index(segment)
        later = timeline.segments[position + 1 :]
        until_s = later[0].at_s if later else timeline.length_s
        for number in range(max(1, math.ceil(round((until_s - segment.at_s) / RESOLUTION_S, 6)))):
            passed_s = number * RESOLUTION_S
            delay_s = (segment.impairment.delay_s or 0.0) + segment.hold_s - passed_s
            yield Moment(
                at_s=round(segment.at_s + passed_s, 9),
                impairment=replace(segment.impairment, delay_s=round(delay_s, 9)),
            )
    else:
        yield Moment(at_s=segment.at_s, impairment=segment.impairment)


def lost(impairment: Impairment) -> Impairment:
    """The impairment with everything lost that comes: an outage, which keeps what netem keeps."""
    return replace(
        impairment, loss_ratio=1.0, loss_burst_packets=None, loss_gemodel=None, loss_state=None, ecn=False,
        duplicate_ratio=None,
    )  # fmt: skip


def _laid_over(moments: Sequence[Moment], outage: Outage, repeat_s: float | None) -> list[Moment]:
    end_s = outage.ends_s
    at_begin = next(each for each in reversed(moments) if each.at_s <= outage.at_s)
    at_end = next(each for each in reversed(moments) if each.at_s <= end_s)
    before = [each for each in moments if each.at_s < outage.at_s]
    after = [each for each in moments if each.at_s > end_s]
    begins = Moment(at_s=outage.at_s, impairment=lost(at_begin.impairment))
    # An outage that ends with the period: the period's beginning is its end.
    ends = [] if repeat_s is not None and end_s >= repeat_s else [replace(at_end, at_s=end_s)]
    return [*before, begins, *ends, *after]


def _lasting(moments: Sequence[Moment], repeat_s: float | None) -> list[Moment]:
    """Without those that last no time: the end of a ramp where the next step begins, or the whole begins again."""
    ends = [*(each.at_s for each in moments[1:]), math.inf if repeat_s is None else repeat_s]
    return [each for each, end_s in zip(moments, ends, strict=True) if each.at_s < end_s]


def _merged(moments: Sequence[Moment]) -> list[Moment]:
    """Without those that change nothing: each change begins netem's random numbers anew."""
    return [each for number, each in enumerate(moments)
            if number == 0 or each.impairment != moments[number - 1].impairment]  # fmt: skip


def _compatible(moments: Sequence[Moment]) -> list[Moment]:
    """With a rate in all if in one, and one length of the queue. Raises InvalidValueError if that does not do."""
    if any(each.impairment.bucket_bytes is not None or each.impairment.by_number for each in moments):
        raise InvalidValueError(
            "bucket, drop_packets and drop_every cannot be part of a timeline: its steps change netem, and these are "
            "beside it; say rate without bucket, or loss"
        )
    if len(moments) == 1:
        return list(moments)
    if any(qdisc.effective_rate_bps(each.impairment) is not None for each in moments):
        moments = [
            each if qdisc.effective_rate_bps(each.impairment) is not None or each.impairment.reorder_by_jitter
            else replace(each, impairment=replace(each.impairment, rate_bps=NO_RATE_BPS))
            for each in moments
        ]  # fmt: skip
    limit_packets = max(qdisc.sized_limit(each.impairment) for each in moments)
    moments = [replace(each, impairment=replace(each.impairment, limit_packets=limit_packets)) for each in moments]
    # Nothing looks at a table without the jitter that it shapes.
    matter = {"distribution": lambda each: each.jitter_s, "slot table": lambda each: each.slot}
    problems: list[str] = []
    for name in sorted(set().union(*(qdisc.sticky(each.impairment) for each in moments))):
        concerned = [each for each in moments if name not in matter or matter[name](each.impairment)]
        problems += _odd_word(name, concerned)
    if problems:
        raise InvalidValueError(problems)
    return list(moments)


def _odd_word(name: str, moments: Sequence[Moment]) -> Iterator[str]:
    """Where a word is asked and elsewhere not, though netem would keep it there."""
    one, *others = moments
    asked = name in qdisc.sticky(one.impairment)
    other = next((each for each in others if (name in qdisc.sticky(each.impairment)) != asked), None)
    if other is None:
        return
    if name == "rate":
        yield (
            "reorder_by_jitter with a rate, or without it in another step: netem keeps order once it has a rate, and "
            "cannot forget it without losing what is queued; say reorder_by_jitter in every step, and no rate"
        )
        return
    yield (
        f"{name} is not the same at {units.format_time(one.at_s)} and at {units.format_time(other.at_s)}: netem cannot "
        f"take it off without losing what is queued; "
        + (
            "say another than uniform in every step with jitter"
            if name == "distribution"
            else f"have {name} in every step or none"
        )
    )


def _seeded(moments: Sequence[Moment], seed: int | None) -> list[Moment]:
    if seed is None:
        return list(moments)
    return [
        replace(each, impairment=replace(each.impairment, seed=step_seed(seed, number)))
        if each.impairment.is_random else replace(each, impairment=replace(each.impairment, seed=None))
        for number, each in enumerate(moments)
    ]  # fmt: skip


def step_seed(seed: int, number: int) -> int:
    """The seed of the n-th step; the first one's is the timeline's own."""
    if number == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}\0{number}".encode()).digest()[:8]) >> 1
