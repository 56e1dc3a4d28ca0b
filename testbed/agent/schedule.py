"""Timelines: tc lines that the agent runs at their times, whether or not the lab is busy or stopped.

One thread takes every step of every timeline, and reads each back. A step is never early; its record has the time of
CLOCK_MONOTONIC at which tc had answered. If the next step is due as well, a step is skipped, which is recorded too.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .protocol import Refused
from .qdiscreader import BatchLine

_MOST_RECORDS = 100_000
_GIVE_WAY_S = 0.001


class RunLines(Protocol):
    """Runs tc lines on a port, or at its gate, as the operation ``tc`` does; raises Refused."""

    def __call__(
        self, port: str, lines: Sequence[BatchLine], needs: Sequence[int], /, *, at_gate: bool
    ) -> dict[str, Any]:
        """The reply of the operation ``tc``."""


@dataclass
class _RunningTimeline:
    """One timeline."""

    port: str
    at_s: list[float]
    """The time of each step; seconds since the start, in order, the first 0."""
    lines: list[list[str]]
    """The tc lines of each step."""
    show: BatchLine
    parent: str
    """The class whose qdisc the lines change and ``show`` reads back."""
    filters: frozenset[tuple[int, int]]
    """The filters that the lines install and remove and ``show`` reads back instead, by priority and handle."""
    repeat_s: float | None
    needs: list[int]
    in_force_before: bool
    """Whether the first step is in force before the start, and needs no line then."""
    at_gate: bool = False
    """Whether the lines are for the port's gate."""
    begun_s: float | None = None
    """By CLOCK_MONOTONIC; None before the start."""

    number: int = 0
    """The number of the next step, over all repetitions."""
    in_force: int | None = None
    """The index of the last step that was taken."""
    records: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_MOST_RECORDS))
    recorded: int = 0
    """The number of records, forgotten ones included."""
    seen: list[Any] = field(default_factory=list)
    """The distinct read-backs."""

    def due_s(self, number: int) -> float | None:
        """When the n-th step is due, in seconds since the start; None if there is none."""
        repetition, index = divmod(number, len(self.at_s))
        if repetition and self.repeat_s is None:
            return None
        return repetition * (self.repeat_s or 0.0) + self.at_s[index]


class Schedules:
    """Every timeline of this agent."""

    def __init__(self, run: RunLines) -> None:
        self._run = run
        self._timelines: dict[str, _RunningTimeline] = {}
        # Held while a step is taken, so that every look finds a step in force.
        self._changed = threading.Condition(threading.RLock())
        self._ending = False
        self._thread: threading.Thread | None = None

    def operations(self) -> dict[str, Callable[..., Any]]:
        """The protocol's operations."""
        return {"arm": self.arm, "play": self.play, "look": self.look, "halt": self.halt}

    def arm(
        self,
        *,
        name: str,
        port: str,
        at_s: list[float],
        lines: list[list[str]],
        show: BatchLine,
        repeat_s: float | None,
        needs: list[int],
        parent: str = "",
        filters: Sequence[tuple[int, int]] = (),
        in_force: bool = False,
        at_gate: bool = False,
    ) -> None:
        """Prepare a timeline, which replaces one of the same name; `play` starts it.

        ``show`` reads back the qdisc of the class ``parent``, or ``filters``, by priority and handle.
        ``in_force``: the first step is in force before the start. ``at_gate``: the lines are for the port's gate.
        """
        if not at_s or len(at_s) != len(lines) or at_s[0] != 0 or sorted(at_s) != at_s:
            raise Refused(f"timeline {name!r}: needs a time for each of {len(lines)} lines, in order, from 0 on")
        keys = frozenset((priority, handle) for priority, handle in filters)
        timeline = _RunningTimeline(port, at_s, lines, show, parent, keys, repeat_s, needs, in_force, at_gate)
        with self._changed:
            self._timelines[name] = timeline

    def play(self, *, names: list[str]) -> dict[str, float]:
        """Start timelines at the same moment; returns it by both clocks. A running timeline starts again."""
        with self._changed:
            if missing := [name for name in names if name not in self._timelines]:
                raise Refused(f"timeline {', '.join(missing)}: not armed")
            now_s, unix_s = time.monotonic(), time.time()
            for name in names:
                timeline = self._timelines[name]
                timeline.begun_s, timeline.number, timeline.in_force = now_s, 0, None
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="timelines", daemon=True)
                self._thread.start()
            self._changed.notify()
        return {"monotonic_s": now_s, "unix_s": unix_s}

    def look(self, *, name: str, since: int = 0) -> dict[str, Any]:
        """The records from the n-th on, the step in force, and what the kernel reports ``now``."""
        with self._changed:
            timeline = self._named(name)
            now = self._show(timeline) if timeline.in_force is not None else None
            return {**self._report(timeline, since), "now": now}

    def halt(self, *, name: str, since: int = 0) -> dict[str, Any] | None:
        """Stop a timeline for good; its last step stays in force. Returns its records; None if it does not exist."""
        with self._changed:
            if name not in self._timelines:
                return None
            return self._report(self._timelines.pop(name), since)

    def clear(self) -> None:
        """Stop every timeline."""
        with self._changed:
            self._timelines.clear()

    def close(self) -> None:
        """Stop every timeline, and the thread."""
        with self._changed:
            self._timelines.clear()
            self._ending = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(5.0)

    # --- how ---------------------------------------------------------------------------------------

    def _named(self, name: str) -> _RunningTimeline:
        if name not in self._timelines:
            raise Refused(f"timeline {name!r}: not here; running: {', '.join(self._timelines) or 'none'}")
        return self._timelines[name]

    @staticmethod
    def _report(timeline: _RunningTimeline, since: int) -> dict[str, Any]:
        first = timeline.recorded - len(timeline.records)
        return {
            "begun_s": timeline.begun_s,
            "in_force": timeline.in_force,
            "recorded": timeline.recorded,
            "forgotten": max(first - since, 0),
            "records": list(timeline.records)[max(since - first, 0) :],
            "seen": timeline.seen,
        }

    def _serve(self) -> None:
        with self._changed:
            while not self._ending:
                now_s = time.monotonic()
                next_s = min((due_s for _, due_s in self._due()), default=None)
                if next_s is None:
                    self._changed.wait()
                elif next_s > now_s:
                    self._changed.wait(next_s - now_s)
                else:
                    self._step([timeline for timeline, due_s in list(self._due()) if due_s <= now_s])
                    # If steps take longer than their intervals, one is always due: let other threads have the lock.
                    self._changed.wait(_GIVE_WAY_S)

    def _due(self) -> Iterator[tuple[_RunningTimeline, float]]:
        """Each running timeline with the time of its next step, by CLOCK_MONOTONIC."""
        for timeline in self._timelines.values():
            due_s = timeline.due_s(timeline.number)
            if timeline.begun_s is not None and due_s is not None:
                yield timeline, timeline.begun_s + due_s

    def _step(self, due: Sequence[_RunningTimeline]) -> None:
        """Take the last due step of each timeline; then read all of them back."""
        steps: list[tuple[_RunningTimeline, dict[str, Any]]] = []
        for timeline in due:
            begun_s = timeline.begun_s or 0.0
            while (next_s := timeline.due_s(timeline.number + 1)) is not None and begun_s + next_s <= time.monotonic():
                self._record(timeline, None, passed_over=True)
            index = timeline.number % len(timeline.lines)
            needs_no_line = timeline.in_force_before and timeline.number == 0
            complaint, _ = self._try(timeline, [] if needs_no_line else timeline.lines[index])
            timeline.in_force = index if complaint is None else timeline.in_force
            steps.append((timeline, self._record(timeline, complaint)))
        for timeline, record in steps:
            complaint, shown = self._try(timeline, [timeline.show])
            reading = _filters(shown, timeline.filters) if timeline.filters else _account(shown, timeline.parent)
            if reading not in timeline.seen:
                timeline.seen.append(reading)
            record["seen"] = timeline.seen.index(reading)
            record["complaint"] = record["complaint"] or complaint

    def _try(self, timeline: _RunningTimeline, lines: Sequence[BatchLine]) -> tuple[str | None, list[Any]]:
        """Run lines on a timeline's port: why they failed, or None, and their read-backs."""
        try:
            reply = self._run(timeline.port, lines, timeline.needs, at_gate=timeline.at_gate)
        except Refused as refused:
            return str(refused), []
        except Exception as error:  # noqa: BLE001  # the thread must live, and the lab must hear of it
            return f"crashed: {error!r}", []
        return "; ".join(complaint["text"] for complaint in reply["complaints"]) or None, reply["shown"]

    @staticmethod
    def _record(timeline: _RunningTimeline, complaint: str | None, *, passed_over: bool = False) -> dict[str, Any]:
        record = {
            "index": timeline.number % len(timeline.lines),
            "planned_s": timeline.due_s(timeline.number),
            "monotonic_s": time.monotonic(),
            "unix_s": time.time(),
            "complaint": complaint,
            "seen": None,
            "passed_over": passed_over,
        }
        timeline.records.append(record)
        timeline.recorded += 1
        timeline.number += 1
        return record

    def _show(self, timeline: _RunningTimeline) -> Any:
        """The qdisc on a timeline's class now, with its counters; None: there is none, or the port is gone."""
        shown = self._try(timeline, [timeline.show])[1]
        return _filters(shown, timeline.filters) if timeline.filters else _qdisc(shown, timeline.parent)


def _qdisc(shown: list[Any], parent: str) -> Any:
    return next((row for row in (shown[-1] if shown else ()) if row.get("parent") == parent), None)


def _account(shown: list[Any], parent: str) -> Any:
    """The kind and options of the qdisc on a class, without its counters; None if there is none."""
    qdisc = _qdisc(shown, parent)
    return qdisc and {"kind": qdisc.get("kind"), "parent": parent, "options": qdisc.get("options", {})}


def _filters(shown: list[Any], keys: frozenset[tuple[int, int]]) -> list[Any]:
    """The filters with these priorities and handles, with their actions, without their counters."""
    filters = []
    for row in shown[-1] if shown else ():
        options = row.get("options", {})
        handle = options.get("handle")
        number = int(handle, 16) if isinstance(handle, str) else handle
        if (row.get("pref"), number) in keys:
            actions = [{key: action[key] for key in _ACTION if key in action} for action in options.get("actions", ())]
            filters.append({**row, "options": {**options, **({"actions": actions} if actions else {})}})
    return filters


_ACTION = ("kind", "mirred_action", "direction", "to_dev", "control_action")
"""What an action does; its index and its times differ between instances."""
