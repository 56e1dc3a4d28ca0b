"""The notation of timelines: a list of steps, or a trace.

A list of steps::

    forward:
      - {delay: 40ms, rate: 10mbit}                       # from the start: `at` is 0s where it is left out
      - {at: 2s, loss: 5%}                                # changes what it names; the rest stays
      - {at: 4s, ramp: 40ms -> 400ms over 10s}            # the unit tells which: delay, rate (mbit) or loss (%)
      - {at: 4s, outage: 2s}                              # every packet is lost; the steps beneath go on
      - {at: 20s, ramp: {delay: 400ms -> 40ms, loss: 5% -> 0%, over: 5s}}
      - {at: 30s, rate: null}                             # no rate any more; `clean: true` removes everything
      - repeat: 60s                                       # all of it, every 60 s

or a trace, with words that hold beneath it: ``{trace: traces/tunnel.csv, jitter: 2ms, repeat: 60s}``; the formats of
traces are in `testbed.spec.traces`. Pure: callers read the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from testbed import units
from testbed.errors import InvalidValueError
from testbed.spec.features import FEATURES, WORDS
from testbed.spec.impairment import LOSS_MODELS, AtOddsError, Impairment
from testbed.spec.timeline import RAMPED, Outage, Phase, Timeline
from testbed.spec.traces import COLUMNS, LONGEST_S, WINDOW_S, TraceRow, csv_rows, is_csv, mahimahi_rows
from testbed.spec.words import LONGEST_DELAY_S, SHAPE_WORD, unknown
from testbed.text import shown

_STEP_WORDS = ("at", "ramp", "outage", "clean", "repeat")
_TRACE_WORDS = ("trace", "repeat", "window")
_SHORTEST_S = 0.001
_RAMP = re.compile(r"\s*(?P<range>.+?)\s+over\s+(?P<over>\S+)\s*")
_RANGE = re.compile(r"\s*(?P<first>\S+)\s*(?:->|→)\s*(?P<last>\S+)\s*")

ReadTrace = Callable[[str], str]
"""The text of a trace file, by the user's name for it. Raises InvalidValueError."""


def parse_side(written: object, *, read_trace: ReadTrace, lines: Sequence[int] = ()) -> Impairment | Timeline:
    """An impairment from the words of a profile, a marker or a call; a timeline from a list of steps, or a trace.

    ``lines``: where the steps stand in their file, if they come from one. Raises InvalidValueError with every problem;
    those of steps name the step, and its line.
    """
    if isinstance(written, list | tuple) and written:
        return parse_steps(written, lines)
    if not isinstance(written, Mapping):
        raise InvalidValueError(f"must be a mapping such as {{delay: 40ms, loss: 2%}}; found {shown(written)}")
    if SHAPE_WORD in written:
        raise InvalidValueError(
            f"{SHAPE_WORD}: several links share it: write it in a profile, a marker, or for lab.impair"
        )
    if "trace" in written:
        return parse_trace(written, read_trace)
    if misplaced := [word for word in (*_STEP_WORDS, *_TRACE_WORDS) if word in written]:
        raise InvalidValueError(
            f"{', '.join(misplaced)}: belongs to a timeline, a list of steps; write "
            f"[{{delay: 40ms}}, {{at: 2s, outage: 1s}}]"
        )
    return Impairment.parse(written)


class _Steps:
    """Reads steps in their order; each step changes the words before it."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.phases: list[Phase] = []
        self.outages: list[Outage] = []
        self.repeat_s: float | None = None
        self.words: dict[str, object] = {}
        self._at_odds: set[frozenset[str]] = set()
        """Words whose values were reported to be at odds, and that no step has changed since."""
        self._unread = False

    def complain(self, where: str, problems: Iterable[str]) -> None:
        self.problems += [f"{where}: {problem}" for problem in problems]

    def time(self, where: str, step: Mapping[Any, object], word: str, *, least_s: float) -> float | None:
        """A duration of a step; None if it cannot be read."""
        try:
            value = units.parse_time(step[word], name=word)
        except InvalidValueError as error:
            self.complain(where, error.problems)
            return None
        if not least_s <= value <= LONGEST_S:
            shortest = f" and at least {units.format_time(least_s)}" if least_s else ""
            self.complain(where, [f"{word}={shown(step[word])}: must be at most a day{shortest}"])
            return None
        return value

    def named(self, where: str, step: Mapping[Any, object]) -> dict[str, object]:
        """The impairment words of a step that can be read; the others are reported."""
        known = (*WORDS, *_STEP_WORDS)
        named: dict[str, object] = {}
        for name, value in step.items():
            if name in _STEP_WORDS:
                continue
            if name == SHAPE_WORD:
                self.complain(where, [f"{SHAPE_WORD}: only the first step may have it, for all of the timeline"])
                continue
            feature = WORDS.get(str(name))
            if feature is None:
                self.complain(where, [f"{name}: {unknown(str(name), known)}"])
                continue
            try:
                if value is not None:
                    feature.read(value)
                named[feature.name] = value
            except InvalidValueError as error:
                self._unread = True
                self.complain(where, error.problems)
        return named

    def impairment(self, where: str, words: Mapping[str, object]) -> Impairment | None:
        """The impairment of these words; what an earlier step had at odds is reported there alone."""
        try:
            return Impairment.parse(words)
        except AtOddsError as error:
            if not self._unread:  # else the missing word may be the one that could not be read
                self.complain(where, [fault.text for fault in error.faults if fault.words not in self._at_odds])
            self._at_odds |= {fault.words for fault in error.faults}
            return None

    def changed(self, names: Iterable[str]) -> None:
        """A step names these words: what is wrong with them is its own."""
        self._at_odds = {words for words in self._at_odds if words.isdisjoint(names)}


def merged(before: Mapping[str, object], named: Mapping[str, object]) -> dict[str, object]:
    """The words that hold after a step: those that it names, and those before it that still mean something."""
    words = {**before, **named}
    if any(named.get(model) is not None for model in LOSS_MODELS):
        for model in LOSS_MODELS:
            if model not in named:
                words.pop(model, None)
    for feature in FEATURES:  # what is needed stands before what needs it
        if feature.needs and feature.fades and feature.name not in named:
            needed = [(name, value) for name in feature.needs if (value := words.get(name)) is not None]
            if not any(WORDS[name].read(value) for name, value in needed):
                words.pop(feature.name, None)
    return {name: value for name, value in words.items() if value is not None}


def parse_steps(steps: Sequence[object], lines: Sequence[int] = ()) -> Timeline:
    """A timeline from its steps. Raises InvalidValueError with every problem of every step."""
    read = _Steps()
    for number, step in enumerate(steps, start=1):
        where = f"step {number}" + (f" (line {lines[number - 1]})" if lines else "")
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
    phases = read.phases
    if not phases or phases[0].at_s > 0:
        phases = [Phase(at_s=0.0, impairment=Impairment()), *phases]
    return Timeline(phases=tuple(phases), outages=tuple(read.outages), repeat_s=read.repeat_s, words=_as_json(steps))


def _read_repeat(read: _Steps, where: str, step: Mapping[Any, object], *, last: bool) -> None:
    if set(step) != {"repeat"}:
        read.complain(where, ["repeat stands alone, as the last step: {repeat: 60s}"])
    elif not last:
        read.complain(where, ["repeat must be the last step: after this time, all steps begin again"])
    else:
        read.repeat_s = read.time(where, step, "repeat", least_s=_SHORTEST_S)


def _read_step(read: _Steps, where: str, step: Mapping[Any, object]) -> None:
    at_s: float | None = 0.0
    if "at" in step:
        at_s = read.time(where, step, "at", least_s=0.0)
    elif read.phases or read.outages:
        read.complain(where, ["without `at`: only the first step may omit it; write {at: 2s, …}"])
        at_s = None
    named = read.named(where, step)
    if "outage" in step:
        if others := [str(name) for name in step if name not in ("at", "outage")]:
            read.complain(
                where,
                [f"outage with {', '.join(others)}: an outage loses everything; write these in a step of their own"],
            )
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
    read.changed(named)
    read.words = merged({} if clean is True else read.words, named)
    first = last = None
    over_s: float | None = 0.0
    if "ramp" in step:
        first, last, over_s = _read_ramp(read, where, step["ramp"])
        if first is None or last is None:
            return
        read.changed(first)
        begins = read.impairment(where, merged(read.words, first))
        # What depends on a word that begins at zero still belongs to the end, and vice versa.
        ends = read.impairment(where, merged(read.words, last))
        read.words = merged(read.words, last)
    else:
        begins, ends = read.impairment(where, read.words), None
    if at_s is not None and begins is not None and over_s is not None and (first is None or ends is not None):
        read.phases.append(Phase(at_s=at_s, impairment=begins, toward=ends, over_s=over_s))


def _read_ramp(
    read: _Steps, where: str, ramp: object
) -> tuple[dict[str, object] | None, dict[str, object] | None, float | None]:
    """The words at the ramp's beginning and at its end, and its length in seconds."""
    form = "write ramp: {delay: 40ms -> 400ms, over: 10s} or ramp: 40ms -> 400ms over 10s"
    nothing = (None, None, None)
    if isinstance(ramp, str):
        match = _RAMP.fullmatch(ramp)
        inner = _RANGE.fullmatch(match["range"]) if match else None
        if match is None or inner is None:
            read.complain(where, [f"ramp={shown(ramp)}: cannot be read; {form}"])
            return nothing
        name = "loss" if "%" in inner["last"] else "rate" if "bit" in inner["last"].lower() else "delay"
        ramp = {name: match["range"], "over": match["over"]}
    if not isinstance(ramp, Mapping) or "over" not in ramp or len(ramp) < 2:
        read.complain(where, [f"ramp={shown(ramp)}: needs what changes, and over how long; {form}"])
        return nothing
    first: dict[str, object] = {}
    last: dict[str, object] = {}
    over_s = read.time(where, ramp, "over", least_s=_SHORTEST_S)
    failed = over_s is None
    for name, text in ramp.items():
        if name == "over":
            continue
        if name not in RAMPED:
            read.complain(where, [f"ramp: {name}: {unknown(str(name), RAMPED)}"])
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
    if not read.phases and not read.outages:
        yield "no step says what happens"
    for earlier, later in pairwise(read.phases):
        if later.at_s <= earlier.at_s:
            yield f"the step at {write(later.at_s)} stands behind the one at {write(earlier.at_s)}: put them in order"
        elif later.at_s < earlier.ends_s:
            yield (
                f"the step at {write(later.at_s)} comes in the middle of the ramp from {write(earlier.at_s)} to "
                f"{write(earlier.ends_s)}; end the ramp before it"
            )
    for first, second in pairwise(read.outages):
        if second.at_s < first.ends_s:
            yield f"the outage at {write(second.at_s)} begins before the one at {write(first.at_s)} has ended"
    if read.repeat_s is not None:
        ends = [phase.ends_s for phase in read.phases] + [outage.ends_s for outage in read.outages]
        begins = [phase.at_s for phase in read.phases]
        if max(ends, default=0.0) > read.repeat_s or max(begins, default=0.0) >= read.repeat_s:
            yield f"repeat={write(read.repeat_s)}: too short for the steps, which last until {write(max(ends))}"
    if read.outages and any(phase.impairment.ecn for phase in read.phases):
        yield "ecn with an outage: netem would mark packets instead of losing them; leave one of them out"


# --- traces -----------------------------------------------------------------------------------------


def parse_trace(written: Mapping[Any, object], read_trace: ReadTrace) -> Timeline:
    """A timeline from a trace and the words that hold beneath it. Raises InvalidValueError with every problem."""
    read = _Steps()
    words = {name: value for name, value in written.items() if name not in _TRACE_WORDS}
    named = merged({}, read.named("trace", words))
    repeat_s = read.time("trace", written, "repeat", least_s=_SHORTEST_S) if "repeat" in written else None
    window_s: float | None = WINDOW_S
    if "window" in written:
        window_s = read.time("trace", written, "window", least_s=0.01)
    name = written["trace"]
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
    if by_rows and "window" in written:
        read.problems.append("window: belongs to a Mahimahi trace; a CSV has its own times")
    if not by_rows:
        read.problems += [f"{word}: a Mahimahi trace has its own" for word in ("rate", "repeat") if word in written]
    try:
        rows = csv_rows(text) if by_rows else mahimahi_rows(text, window_s=window_s)
    except InvalidValueError as error:
        raise InvalidValueError([*read.problems, *(f"{name}: {problem}" for problem in error.problems)]) from None
    if not by_rows:
        repeat_s = rows[-1].at_s
        rows = rows[:-1]
    else:
        columns = {column for row in rows for column in row.words}
        columns |= {"rate" for row in rows if row.rate_bps is not None}
        read.problems += [
            f"{word}={shown(written[word])}: {name} has a column {word}, too; leave one of them out"
            for word in COLUMNS
            if word in written and word in columns
        ]
    if by_rows and repeat_s is not None and repeat_s <= rows[-1].at_s:
        read.problems.append(
            f"repeat={shown(written['repeat'])}: the trace's last line is at {units.format_time(rows[-1].at_s)}; give "
            "more"
        )
    phases = _phases(read, str(name), rows, named, repeat_s)
    if read.problems:
        raise InvalidValueError(read.problems)
    return Timeline(phases=tuple(phases), repeat_s=repeat_s, trace=str(name), words=_as_json(written))


def _as_json(written: object) -> str:
    """As JSON, which is YAML, too."""
    return json.dumps(written, default=str, ensure_ascii=False)


def _phases(
    read: _Steps, name: str, rows: Sequence[TraceRow], named: Mapping[str, object], repeat_s: float | None
) -> list[Phase]:
    phases = [] if rows[0].at_s == 0 else [Phase(at_s=0.0, impairment=Impairment.parse(named))]
    words = dict(named)
    for number, row in enumerate(rows):
        words = merged(words, row.words)
        hold_s, rate_bps = None, row.rate_bps
        if row.rate_bps == 0:
            later = next((row for row in rows[number + 1 :] if row.rate_bps), None)
            wrapped = next((row for row in rows if row.rate_bps), None) if repeat_s is not None else None
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
        phases.append(Phase(at_s=row.at_s, impairment=impairment, hold_s=hold_s))
    return phases


def write_steps(timeline: Timeline) -> list[dict[str, object]] | None:
    """The steps of a timeline, each with all its words; None of one that steps cannot say, as a trace that holds."""
    steps: list[dict[str, object]] = []
    for phase in timeline.phases:
        step: dict[str, object] = {"at": units.format_time(phase.at_s), "clean": True, **phase.impairment.words()}
        if phase.toward is not None:
            ends = (phase.impairment, phase.toward)
            ramp = {
                name: " -> ".join(str(WORDS[name].write(getattr(end, WORDS[name].field) or 0.0)) for end in ends)
                for name in RAMPED
                if len({getattr(end, WORDS[name].field) for end in ends}) > 1
            }
            step = {name: value for name, value in step.items() if name not in ramp}
            step["ramp"] = {**ramp, "over": units.format_time(phase.over_s)}
        steps.append(step)
    steps += [
        {"at": units.format_time(outage.at_s), "outage": units.format_time(outage.for_s)} for outage in timeline.outages
    ]
    steps += [{"repeat": units.format_time(timeline.repeat_s)}] if timeline.repeat_s is not None else []
    try:
        return steps if replace(parse_steps(steps), trace=timeline.trace) == timeline else None
    except InvalidValueError:
        return None
