"""Impairments over time: steps, ramps, outages and traces, as values.

A *timeline* says what a link is like at each moment since its start: a row of *segments*, each holding until the
next begins, with *outages* laid over them. It is written as a list of steps::

    forward:
      - {delay: 40ms, rate: 10mbit}                       # from the start: `at` is 0s where it is left out
      - {at: 2s, loss: 5%}                                # changes what it names; the rest stays
      - {at: 4s, ramp: 40ms -> 400ms over 10s}            # the unit tells what: delay, rate (mbit) or loss (%)
      - {at: 4s, outage: 2s}                              # every packet is lost, silently; what is beneath goes on
      - {at: 20s, ramp: {delay: 400ms -> 40ms, loss: 5% -> 0%, over: 5s}}
      - {at: 30s, rate: null}                             # no rate any more; `clean: true` takes everything off
      - repeat: 60s                                       # the whole of it, every 60 s

or as a trace, with words that hold beneath it: ``{trace: traces/tunnel.csv, jitter: 2ms, repeat: 60s}``. A file
whose name ends in ``.csv`` has a header with ``time`` and any of ``rate``, ``delay``, ``loss``; units stand in the
header (``delay_ms``, ``rate [kbit]``) or in each cell; an empty cell changes nothing; rate 0 holds packets back
until there is a rate again. Any other file is a Mahimahi packet-delivery trace (mm-link(1)): each line is a
millisecond at which 1500 bytes may leave, and the trace begins again at its last line.

Pure: files are read by whoever calls. Times are seconds since the timeline's start.
"""

from __future__ import annotations

import csv
import json
import math
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

from testbed import units
from testbed.errors import InvalidValueError
from testbed.spec.impairment import LONGEST_DELAY_S, WORDS, Impairment, unknown
from testbed.text import shown

LATE_S = 0.010
"""A step that was taken later than this is reported as late; seconds."""
OPPORTUNITY_BYTES = 1500
"""What may leave at each line of a Mahimahi trace (Netravali et al., "Mahimahi", USENIX ATC 2015)."""
WINDOW_S = 0.1
"""Over what the opportunities of a Mahimahi trace are averaged unless ``window`` says otherwise; seconds."""

_RAMPED = ("delay", "jitter", "correlation", "loss", "duplicate", "reorder", "corrupt", "rate")
_STEP_WORDS = ("at", "ramp", "outage", "clean", "repeat")
_TRACE_WORDS = ("trace", "repeat", "window")
_COLUMNS = ("time", "rate", "delay", "loss")
# What has no meaning any more once the word before it is gone or zero.
_DEPENDENTS = {
    "jitter": ("distribution", "correlation", "reorder_by_jitter"),
    "loss": ("burst", "ecn"),
    "reorder": ("gap",),
    "rate": ("overhead", "bucket", "queue"),
    "bucket": ("queue",),
    "slot": ("slot_packets", "slot_bytes"),
}
_LOSS_MODELS = ("loss", "gemodel", "loss_state")
_LONGEST_S = 86_400.0
_SHORTEST_S = 0.001
_MOST_ROWS = 100_000
_MOST_DIGITS = 12
_FINEST = 1e-9
_RAMP = re.compile(r"\s*(?P<range>.+?)\s+over\s+(?P<over>\S+)\s*")
_RANGE = re.compile(r"\s*(?P<first>\S+)\s*(?:->|→)\s*(?P<last>\S+)\s*")
_HEADING = re.compile(r"\s*(?P<name>[A-Za-z]+)(?:[\s_/(\[]+(?P<unit>[^\s\])]+)[\])]?)?\s*")
_LINE = re.compile(r"[^\n]*(?:\n|\Z)")
_ZERO = re.compile(r"\s*0*\.?0+\s*(?:[a-zA-Z/]*)\s*")


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
    ramped = {WORDS[name].field for name in _RAMPED}
    for each in fields(Impairment):
        a, b = getattr(first, each.name), getattr(last, each.name)
        if a == b:
            continue
        if each.name in ramped and a is not None and b is not None:
            values[each.name] = max(round(a + (b - a) * share, 10), _FINEST)
        else:
            values[each.name] = b if a == each.default else a
    return replace(first, **values)


# --- what the user writes -------------------------------------------------------------------------

ReadTrace = Callable[[str], str]
"""The text of a trace file, by the name that the user gave it. Raises InvalidValueError."""


def parse_side(said: object, *, read_trace: ReadTrace) -> Impairment | Timeline:
    """What a side of a profile, a marker or a call says: words, a list of steps, or a trace.

    Raises InvalidValueError with every problem; those of steps name the step, and its line where it is known.
    """
    if isinstance(said, list | tuple) and said:
        return parse_steps(said)
    if not isinstance(said, Mapping):
        raise InvalidValueError(f"must be a mapping such as {{delay: 40ms, loss: 2%}}; found {shown(said)}")
    if "trace" in said:
        return parse_trace(said, read_trace)
    if misplaced := [word for word in (*_STEP_WORDS, *_TRACE_WORDS) if word in said]:
        raise InvalidValueError(
            f"{', '.join(misplaced)}: belongs to a timeline, a list of steps; write "
            f"[{{delay: 40ms}}, {{at: 2s, outage: 1s}}]"
        )
    return Impairment.parse(said)


class _Steps:
    """Reads steps one after the other; each changes the words of those before it."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.segments: list[Segment] = []
        self.outages: list[Outage] = []
        self.repeat_s: float | None = None
        self.words: dict[str, object] = {}
        self._odd: set[str] = set()
        self._unread = False

    def complain(self, where: str, problems: Iterable[str]) -> None:
        self.problems += [f"{where}: {problem}" for problem in problems]

    def time(self, where: str, step: Mapping[Any, object], word: str, *, least_s: float) -> float | None:
        """A duration of a step, or None if it is none or cannot be."""
        try:
            value = units.parse_time(step[word], name=word)
        except InvalidValueError as error:
            self.complain(where, error.problems)
            return None
        if not least_s <= value <= _LONGEST_S:
            shortest = f" and at least {units.format_time(least_s)}" if least_s else ""
            self.complain(where, [f"{word}={shown(step[word])}: must be at most a day{shortest}"])
            return None
        return value

    def named(self, where: str, step: Mapping[Any, object]) -> dict[str, object]:
        """The impairment words of a step that can be read; what cannot is told."""
        known = (*WORDS, *_STEP_WORDS)
        named: dict[str, object] = {}
        for name, said in step.items():
            if name in _STEP_WORDS:
                continue
            word = WORDS.get(str(name))
            if word is None:
                self.complain(where, [f"{name}: {unknown(str(name), known)}"])
                continue
            try:
                if said is not None:
                    word.read(said)
                named[word.name] = said
            except InvalidValueError as error:
                self._unread = True
                self.complain(where, error.problems)
        return named

    def impairment(self, where: str, words: Mapping[str, object]) -> Impairment | None:
        """What the words make together; a problem that is inherited from an earlier step is told once."""
        try:
            return Impairment.parse(words)
        except InvalidValueError as error:
            if not self._unread:  # or what is missing may be what could not be read
                self.complain(where, [problem for problem in error.problems if problem not in self._odd])
            self._odd |= set(error.problems)
            return None


def merged(before: Mapping[str, object], named: Mapping[str, object]) -> dict[str, object]:
    """The words that hold after a step: those it names, and of those before it what still has a meaning."""
    words = {**before, **named}
    if any(named.get(model) is not None for model in _LOSS_MODELS):
        for model in _LOSS_MODELS:
            if model not in named:
                words.pop(model, None)
    for name, dependents in _DEPENDENTS.items():
        said = words.get(name)
        if said is not None and WORDS[name].read(said):
            continue
        if name == "loss" and any(words.get(model) is not None for model in ("gemodel", "loss_state")):
            dependents = ("burst",)
        for dependent in dependents:
            if dependent not in named:
                words.pop(dependent, None)
    return {name: said for name, said in words.items() if said is not None}


def parse_steps(steps: Sequence[object]) -> Timeline:
    """A timeline from its steps. Raises InvalidValueError with every problem of every step."""
    read = _Steps()
    for number, step in enumerate(steps, start=1):
        line = getattr(step, "line", None)
        where = f"step {number}" + (f" (line {line})" if line is not None else "")
        if not isinstance(step, Mapping):
            read.complain(where, [f"must be a mapping such as {{at: 2s, loss: 5%}}; found {shown(step)}"])
        elif "repeat" in step:
            _read_repeat(read, where, step, last=number == len(steps))
        else:
            _read_step(read, where, step)
    if not read.problems:
        read.problems += _at_odds(read)
    if read.problems:
        raise InvalidValueError(read.problems)
    segments = read.segments
    if not segments or segments[0].at_s > 0:
        segments = [Segment(at_s=0.0, impairment=Impairment()), *segments]
    return Timeline(
        segments=tuple(segments), outages=tuple(read.outages), repeat_s=read.repeat_s, words=_written(steps)
    )


def _read_repeat(read: _Steps, where: str, step: Mapping[Any, object], *, last: bool) -> None:
    if set(step) != {"repeat"}:
        read.complain(where, ["repeat stands alone, as the last step: {repeat: 60s}"])
    elif not last:
        read.complain(where, ["repeat must be the last step: it says after how long all of them begin again"])
    else:
        read.repeat_s = read.time(where, step, "repeat", least_s=_SHORTEST_S)


def _read_step(read: _Steps, where: str, step: Mapping[Any, object]) -> None:
    at_s: float | None = 0.0
    if "at" in step:
        at_s = read.time(where, step, "at", least_s=0.0)
    elif read.segments or read.outages:
        read.complain(where, ["without `at`: only the first step may leave it out; write {at: 2s, …}"])
        at_s = None
    named = read.named(where, step)
    if "outage" in step:
        if others := [str(name) for name in step if name not in ("at", "outage")]:
            read.complain(where, [f"outage with {', '.join(others)}: an outage loses everything; give them a step"])
        for_s = read.time(where, step, "outage", least_s=_SHORTEST_S)
        if at_s is not None and for_s is not None:
            read.outages.append(Outage(at_s=at_s, for_s=for_s))
        return
    clean = step.get("clean", False)
    if not isinstance(clean, bool):
        read.complain(where, [f"clean={shown(clean)}: must be true or false"])
    if not named and "ramp" not in step and not clean:
        if not any(name not in ("at", "clean") for name in step):
            read.complain(where, ["changes nothing; name a word such as delay, or ramp, outage, clean: true"])
        return
    read.words = merged({} if clean is True else read.words, named)
    first = last = None
    over_s: float | None = 0.0
    if "ramp" in step:
        first, last, over_s = _read_ramp(read, where, step["ramp"])
        if first is None or last is None:
            return
        begins = read.impairment(where, merged(read.words, first))
        # What depends on a word that begins at zero still belongs to the end, and the other way round.
        ends = read.impairment(where, merged(read.words, last))
        read.words = merged(read.words, last)
    else:
        begins, ends = read.impairment(where, read.words), None
    if at_s is not None and begins is not None and over_s is not None and (first is None or ends is not None):
        read.segments.append(Segment(at_s=at_s, impairment=begins, toward=ends, over_s=over_s))


def _read_ramp(
    read: _Steps, where: str, said: object
) -> tuple[dict[str, object] | None, dict[str, object] | None, float | None]:
    """The words at a ramp's beginning, those at its end, and its length in seconds."""
    form = "write ramp: {delay: 40ms -> 400ms, over: 10s} or ramp: 40ms -> 400ms over 10s"
    nothing = (None, None, None)
    if isinstance(said, str):
        match = _RAMP.fullmatch(said)
        inner = _RANGE.fullmatch(match["range"]) if match else None
        if match is None or inner is None:
            read.complain(where, [f"ramp={shown(said)}: cannot be read; {form}"])
            return nothing
        name = "loss" if "%" in inner["last"] else "rate" if "bit" in inner["last"].lower() else "delay"
        said = {name: match["range"], "over": match["over"]}
    if not isinstance(said, Mapping) or "over" not in said or len(said) < 2:
        read.complain(where, [f"ramp={shown(said)}: needs what changes, and over how long; {form}"])
        return nothing
    first: dict[str, object] = {}
    last: dict[str, object] = {}
    over_s = read.time(where, said, "over", least_s=_SHORTEST_S)
    failed = over_s is None
    for name, text in said.items():
        if name == "over":
            continue
        if name not in _RAMPED:
            read.complain(where, [f"ramp: {name}: {unknown(str(name), _RAMPED)}"])
            failed = True
            continue
        match = _RANGE.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            read.complain(where, [f"ramp: {name}={shown(text)}: needs a beginning and an end; {form}"])
            failed = True
            continue
        try:
            for words, end in ((first, "first"), (last, "last")):
                WORDS[name].read(match[end])
                words[name] = match[end]
        except InvalidValueError as error:
            read.complain(where, [f"ramp: {problem}" for problem in error.problems])
            failed = True
    return nothing if failed else (first, last, over_s)


def _at_odds(read: _Steps) -> Iterator[str]:
    """What is wrong with the steps' times."""
    write = units.format_time
    if not read.segments and not read.outages:
        yield "no step says what happens"
    for one, other in pairwise(read.segments):
        ends_s = one.ends_s
        if other.at_s <= one.at_s:
            yield f"the step at {write(other.at_s)} stands behind the one at {write(one.at_s)}: put them in order"
        elif other.at_s < ends_s:
            yield (
                f"the step at {write(other.at_s)} comes in the middle of the ramp from {write(one.at_s)} to "
                f"{write(ends_s)}; end the ramp before it"
            )
    for first, second in pairwise(read.outages):
        if second.at_s < first.ends_s:
            yield f"the outage at {write(second.at_s)} begins before the one at {write(first.at_s)} has ended"
    if read.repeat_s is not None:
        ends = [each.ends_s for each in read.segments] + [each.ends_s for each in read.outages]
        begins = [each.at_s for each in read.segments]
        if max(ends, default=0.0) > read.repeat_s or max(begins, default=0.0) >= read.repeat_s:
            yield f"repeat={write(read.repeat_s)}: too short for the steps, which last until {write(max(ends))}"
    if read.outages and any(each.impairment.ecn for each in read.segments):
        yield "ecn with an outage: netem would mark packets in place of losing them; leave one of them out"


# --- traces -----------------------------------------------------------------------------------------


def parse_trace(said: Mapping[Any, object], read_trace: ReadTrace) -> Timeline:
    """A timeline from a trace and the words that hold beneath it. Raises InvalidValueError with every problem."""
    read = _Steps()
    words = {name: value for name, value in said.items() if name not in _TRACE_WORDS}
    named = merged({}, read.named("trace", words))
    repeat_s = read.time("trace", said, "repeat", least_s=_SHORTEST_S) if "repeat" in said else None
    window_s: float | None = WINDOW_S
    if "window" in said:
        window_s = read.time("trace", said, "window", least_s=0.01)
    name = said["trace"]
    text = ""
    if isinstance(name, str):
        try:
            text = read_trace(name)
        except InvalidValueError as error:
            read.problems += error.problems
    else:
        read.problems.append(f"trace={shown(name)}: must be the name of a file, for example traces/tunnel.csv")
    if read.problems or window_s is None:
        raise InvalidValueError(read.problems)
    by_rows = is_csv(str(name))
    if by_rows and "window" in said:
        read.problems.append("window: belongs to a Mahimahi trace; a CSV has its own times")
    if not by_rows:
        read.problems += [f"{word}: a Mahimahi trace says it itself" for word in ("rate", "repeat") if word in said]
    try:
        rows = csv_rows(text) if by_rows else mahimahi_rows(text, window_s=window_s)
    except InvalidValueError as error:
        raise InvalidValueError([*read.problems, *(f"{name}: {problem}" for problem in error.problems)]) from None
    if not by_rows:
        repeat_s = rows[-1].at_s
        rows = rows[:-1]
    else:
        told = {column for row in rows for column in row.words} | {"rate" for row in rows if row.rate_bps is not None}
        read.problems += [
            f"{word}={shown(said[word])}: {name} has a column {word} and says it itself; leave one of them out"
            for word in _COLUMNS if word in said and word in told
        ]  # fmt: skip
    if by_rows and repeat_s is not None and repeat_s <= rows[-1].at_s:
        read.problems.append(
            f"repeat={shown(said['repeat'])}: the trace's last line is at {units.format_time(rows[-1].at_s)}; give more"
        )
    segments = _segments(read, str(name), rows, named, repeat_s)
    if read.problems:
        raise InvalidValueError(read.problems)
    return Timeline(segments=tuple(segments), repeat_s=repeat_s, trace=str(name), words=_written(said))


def is_csv(name: str) -> bool:
    """Whether a trace's name says that it is a CSV; any other is a Mahimahi trace."""
    return name.lower().endswith(".csv")


def _written(said: object) -> str:
    """In JSON, which is YAML too."""
    return json.dumps(said, default=str, ensure_ascii=False)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a trace says from a time on; None in ``rate_bps`` is no word of it, 0 is a hold."""

    line: int
    at_s: float
    words: Mapping[str, object]
    rate_bps: float | None = None
    """Bits a second; 0: nothing leaves, and what comes waits."""


def _segments(
    read: _Steps, name: str, rows: Sequence[Row], named: Mapping[str, object], repeat_s: float | None
) -> list[Segment]:
    segments = [] if rows[0].at_s == 0 else [Segment(at_s=0.0, impairment=Impairment.parse(named))]
    words = dict(named)
    for number, row in enumerate(rows):
        words = merged(words, row.words)
        hold_s, rate_bps = None, row.rate_bps
        if row.rate_bps == 0:
            later = next((each for each in rows[number + 1 :] if each.rate_bps), None)
            wrapped = next((each for each in rows if each.rate_bps), None) if repeat_s is not None else None
            if later is not None:
                hold_s, rate_bps = later.at_s - row.at_s, later.rate_bps
            elif wrapped is not None and repeat_s is not None:
                hold_s, rate_bps = repeat_s + wrapped.at_s - row.at_s, wrapped.rate_bps
            else:
                read.complain(
                    f"{name}: line {row.line}", ["rate 0 to the end: nothing would ever leave; say loss 100%"]
                )
                continue
            if hold_s > LONGEST_DELAY_S:
                read.complain(
                    f"{name}: line {row.line}",
                    [
                        f"rate 0 for {units.format_time(hold_s)}: packets are held for at most "
                        f"{units.format_time(LONGEST_DELAY_S)}; say loss 100%"
                    ],
                )
                continue
        impairment = read.impairment(f"{name}: line {row.line}", words)
        if impairment is None:
            continue
        if rate_bps is not None:
            try:
                impairment = replace(impairment, rate_bps=rate_bps)
            except InvalidValueError as error:
                read.complain(f"{name}: line {row.line}", error.problems)
                continue
        segments.append(Segment(at_s=row.at_s, impairment=impairment, hold_s=hold_s))
    return segments


def csv_rows(text: str) -> list[Row]:
    """The rows of a CSV trace. Lines that are empty or begin with ``#`` are passed over.

    Raises InvalidValueError with every problem, behind its line's number.
    """
    if text.count("\n") > 2 * _MOST_ROWS:
        raise InvalidValueError(f"has {text.count(chr(10))} lines; at most {_MOST_ROWS}")
    lines = [
        (number, line)
        for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not lines:
        raise InvalidValueError("is empty; its first line must name the columns: time, rate, delay, loss")
    if len(lines) > _MOST_ROWS:
        raise InvalidValueError(f"has {len(lines)} lines; at most {_MOST_ROWS}")
    cells = [_cells(number, line) for number, line in lines]
    columns = _headings(lines[0][0], cells[0])
    problems: list[str] = []
    rows: list[Row] = []
    rate_bps: float | None = None
    for (number, _), row in zip(lines[1:], cells[1:], strict=True):
        if len(row) != len(columns):
            problems.append(f"line {number}: {len(row)} cells where the header has {len(columns)} columns")
            continue
        said = {
            column: cell.strip() + (unit or "")
            for (column, unit), cell in zip(columns, row, strict=True)
            if cell.strip() or column == "time"
        }
        try:
            at_s = units.parse_time(said.pop("time"), name="time")
            if "rate" in said:
                text_ = said.pop("rate")
                rate_bps = 0.0 if _ZERO.fullmatch(text_) else units.parse_rate(text_, name="rate")
            for column, value in said.items():
                WORDS[column].read(value)
        except InvalidValueError as error:
            problems += [f"line {number}: {problem}" for problem in error.problems]
            continue
        if rows and at_s <= rows[-1].at_s:
            last = units.format_time(rows[-1].at_s)
            problems.append(f"line {number}: time={shown(row[0])}: not after {last}, the line before it")
            continue
        if at_s > _LONGEST_S:
            problems.append(f"line {number}: time={units.format_time(at_s)}: later than a day")
            continue
        rows.append(Row(line=number, at_s=at_s, words=said, rate_bps=rate_bps))
    if not rows and not problems:
        problems.append("has a header and no line behind it")
    if problems:
        raise InvalidValueError(problems)
    return rows


def _cells(number: int, line: str) -> list[str]:
    """The cells of a line. Raises InvalidValueError."""
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise InvalidValueError(f"line {number}: {error}: {shown(line)}") from None


def _headings(number: int, cells: Sequence[str]) -> list[tuple[str, str | None]]:
    """The columns of a header, each with the unit that stands there."""
    columns: list[tuple[str, str | None]] = []
    problems: list[str] = []
    for cell in cells:
        match = _HEADING.fullmatch(cell)
        name = match["name"].lower() if match else cell.strip()
        if match is None or name not in _COLUMNS:
            problems.append(f"line {number}: column {shown(cell.strip())}: {unknown(name, _COLUMNS)}")
            continue
        if name in [known for known, _ in columns]:
            problems.append(f"line {number}: column {shown(name)} stands twice")
        unit = match["unit"]
        if unit is not None:
            read = WORDS["delay" if name == "time" else name].read
            try:
                read(f"1{unit}")
            except InvalidValueError as error:
                problems += [f"line {number}: column {shown(cell.strip())}: {problem}" for problem in error.problems]
        columns.append((name, unit))
    names = [name for name, _ in columns]
    if not problems and ("time" not in names or len(names) < 2):
        problems.append(f"line {number}: needs a column time and at least one of rate, delay, loss")
    if problems:
        raise InvalidValueError(problems)
    return columns


def mahimahi_rows(text: str, *, window_s: float = WINDOW_S) -> list[Row]:
    """The rates of a Mahimahi trace, averaged over windows; the last row is the trace's end and says nothing.

    All that may leave in a window leaves at its mean rate, so that the bytes of each window, and of the whole, are
    the trace's; what was bunched within a window is not. A rest shorter than half a window belongs to the one
    before it. A window without opportunities is a hold.
    """
    times = array("q")
    problems: list[str] = []
    for number, line in enumerate(_LINE.finditer(text), start=1):
        word = line[0].strip()
        if not word:
            continue
        if not word.isdecimal() or len(word) > _MOST_DIGITS:
            problems.append(f"line {number}: {shown(word[:40])}: not a whole number of milliseconds")
            continue
        time_ms = int(word)
        if times and time_ms < times[-1]:
            problems.append(f"line {number}: {time_ms} comes before {times[-1]}, the line before it")
            continue
        times.append(time_ms)
    if not problems and (not times or times[-1] == 0):
        problems.append("has no opportunity after 0 ms, so it would begin again at once; is it a Mahimahi trace?")
    elif not problems and times[-1] / 1000 > _LONGEST_S:
        problems.append(f"lasts {times[-1]} ms; at most a day")
    if problems:
        raise InvalidValueError(problems)
    window_ms = round(window_s * 1000)
    windows = max(1, math.floor(times[-1] / window_ms + 0.5))
    counts = [0] * windows
    for time_ms in times:
        counts[min(max(time_ms - 1, 0) // window_ms, windows - 1)] += 1
    edges = [number * window_ms for number in range(windows)] + [times[-1]]
    rows: list[Row] = []
    for (begin, end), count in zip(pairwise(edges), counts, strict=True):
        rate_bps = count * OPPORTUNITY_BYTES * 8 * 1000 / (end - begin)
        if not rows or rows[-1].rate_bps != rate_bps:
            rows.append(Row(line=len(rows) + 1, at_s=begin / 1000, words={}, rate_bps=rate_bps))
    return [*rows, Row(line=0, at_s=times[-1] / 1000, words={})]
