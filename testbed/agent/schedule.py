"""Timelines: tc lines run at their times beside the kernel, whoever else is busy, stopped or gone.

One thread takes every step of every timeline, and reads each back. A step is never early; how late it was is
recorded, by CLOCK_MONOTONIC once tc has answered. A step that is due together with the one after it was not taken
in time, and is passed over, which is recorded too.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .protocol import Refused
from .qdiscs import Line

_MOST_RECORDS = 100_000
_GIVE_WAY_S = 0.001


class Run(Protocol):
    """Run tc lines on a port, or at its gate, as the operation ``tc`` does; raises Refused."""

    def __call__(self, port: str, lines: Sequence[Line], needs: Sequence[int], /, *, at_gate: bool) -> dict[str, Any]:
        """What they showed, and what tc complained of."""


@dataclass
class _Playing:
    """One timeline."""

    port: str
    at_s: list[float]
    """Of each step; seconds since the beginning, in order, the first 0."""
    lines: list[list[str]]
    """The tc lines of each step."""
    show: Line
    parent: str
    """The class whose qdisc the lines change; it is read back."""
    filters: frozenset[tuple[int, int]]
    """Or the filters that they put and take off, by priority and handle; these are read back if there are any."""
    repeat_s: float | None
    needs: list[int]
    in_force_before: bool
    """Whether its first step needs no line the first time."""
    at_gate: bool = False
    """Whether its lines are for the port's gate."""
    begun_s: float | None = None
    """By CLOCK_MONOTONIC; None: armed."""
    begun_unix_s: float = 0.0
    number: int = 0
    """Of the next step, over all repetitions."""
    in_force: int | None = None
    """The index of the step that was taken last."""
    records: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_MOST_RECORDS))
    recorded: int = 0
    """How many records there were, the forgotten ones included."""
    seen: list[Any] = field(default_factory=list)
    """What was read back, each different account once."""

    def due_s(self, number: int) -> float | None:
        """When the n-th step is due, since the beginning; None if there is none."""
        repetition, index = divmod(number, len(self.at_s))
        if repetition and self.repeat_s is None:
            return None
        return repetition * (self.repeat_s or 0.0) + self.at_s[index]


class Schedules:
    """Every timeline of this agent; a context manager, whose end stops them all."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._playing: dict[str, _Playing] = {}
        # Held while a step is taken: what is looked at in between is in force.
        self._changed = threading.Condition(threading.RLock())
        self._ending = False
        self._thread: threading.Thread | None = None

    def operations(self) -> dict[str, Callable[..., Any]]:
        """The protocol's operations."""
        return {"arm": self.arm, "play": self.play, "look": self.look, "halt": self.halt}

    def arm(
        self, *, name: str, port: str, at_s: list[float], lines: list[list[str]], show: Line, repeat_s: float | None,
        needs: list[int], parent: str = "", filters: Sequence[tuple[int, int]] = (),
        in_force: bool = False, at_gate: bool = False,
    ) -> None:  # fmt: skip
        """Have a timeline ready; it takes the place of one of that name, and begins with `play`.

        ``show`` reads back the qdisc of the class ``parent``, or ``filters``, by priority and handle.
        ``in_force``: the first step is in force as it begins. ``at_gate``: its lines are for the port's gate.
        """
        if not at_s or len(at_s) != len(lines) or at_s[0] != 0 or sorted(at_s) != at_s:
            raise Refused(f"timeline {name!r}: needs a time for each of {len(lines)} lines, in order, from 0 on")
        with self._changed:
            chosen = frozenset((priority, handle) for priority, handle in filters)
            self._playing[name] = _Playing(port, at_s, lines, show, parent, chosen, repeat_s, needs, in_force, at_gate)

    def play(self, *, names: list[str]) -> dict[str, float]:
        """Begin timelines, all at the same moment; returns it by both clocks. One that runs begins again."""
        with self._changed:
            if missing := [name for name in names if name not in self._playing]:
                raise Refused(f"timeline {', '.join(missing)}: not armed")
            now_s, unix_s = time.monotonic(), time.time()
            for name in names:
                each = self._playing[name]
                each.begun_s, each.begun_unix_s, each.number, each.in_force = now_s, unix_s, 0, None
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="timelines", daemon=True)
                self._thread.start()
            self._changed.notify()
        return {"monotonic_s": now_s, "unix_s": unix_s}

    def look(self, *, name: str, since: int = 0) -> dict[str, Any]:
        """The steps taken from the n-th record on; which is in force, and the kernel's account of it now."""
        with self._changed:
            each = self._named(name)
            now = self._show(each) if each.in_force is not None else None
            return {**self._taken(each, since), "now": now}

    def halt(self, *, name: str, since: int = 0) -> dict[str, Any] | None:
        """Stop a timeline for good, leaving what is in force; the steps taken. None if there is none."""
        with self._changed:
            if name not in self._playing:
                return None
            taken = self._taken(self._named(name), since)
            del self._playing[name]
            return taken

    def clear(self) -> None:
        """Stop every timeline."""
        with self._changed:
            self._playing.clear()

    def close(self) -> None:
        """Stop every timeline, and the thread."""
        with self._changed:
            self._playing.clear()
            self._ending = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(5.0)

    # --- how ---------------------------------------------------------------------------------------

    def _named(self, name: str) -> _Playing:
        if name not in self._playing:
            raise Refused(f"timeline {name!r}: not here; running: {', '.join(self._playing) or 'none'}")
        return self._playing[name]

    def _taken(self, each: _Playing, since: int) -> dict[str, Any]:
        first = each.recorded - len(each.records)
        return {
            "begun_s": each.begun_s,
            "in_force": each.in_force,
            "recorded": each.recorded,
            "forgotten": max(first - since, 0),
            "records": list(each.records)[max(since - first, 0) :],
            "seen": each.seen,
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
                    self._step([each for each, due_s in list(self._due()) if due_s <= now_s])
                    # Where steps take longer than the time between them, one is always due: let others in all the same.
                    self._changed.wait(_GIVE_WAY_S)

    def _due(self) -> Iterator[tuple[_Playing, float]]:
        """Each timeline with the time of its next step, by CLOCK_MONOTONIC."""
        for each in self._playing.values():
            due_s = each.due_s(each.number)
            if each.begun_s is not None and due_s is not None:
                yield each, each.begun_s + due_s

    def _step(self, due: Sequence[_Playing]) -> None:
        """Take the step of each that is due; of several steps of one, the last. Then read all back."""
        taken: list[tuple[_Playing, dict[str, Any]]] = []
        for each in due:
            begun_s = each.begun_s or 0.0
            while (later_s := each.due_s(each.number + 1)) is not None and begun_s + later_s <= time.monotonic():
                self._record(each, None, passed_over=True)
            index = each.number % len(each.lines)
            is_there = each.in_force_before and each.number == 0
            complaint, _ = self._try(each, [] if is_there else each.lines[index])
            each.in_force = index if complaint is None else each.in_force
            taken.append((each, self._record(each, complaint)))
        for each, record in taken:
            complaint, shown = self._try(each, [each.show])
            seen = _filters(shown, each.filters) if each.filters else _account(shown, each.parent)
            if seen not in each.seen:
                each.seen.append(seen)
            record["seen"] = each.seen.index(seen)
            record["complaint"] = record["complaint"] or complaint

    def _try(self, each: _Playing, lines: Sequence[Line]) -> tuple[str | None, list[Any]]:
        """Run lines on a timeline's port: why they failed, or None, and what they showed."""
        try:
            outcome = self._run(each.port, lines, each.needs, at_gate=each.at_gate)
        except Refused as refused:
            return str(refused), []
        except Exception as error:  # noqa: BLE001  # the thread must live, and the lab must hear of it
            return f"crashed: {error!r}", []
        return "; ".join(said["text"] for said in outcome["complaints"]) or None, outcome["shown"]

    def _record(self, each: _Playing, complaint: str | None, *, passed_over: bool = False) -> dict[str, Any]:
        record = {
            "index": each.number % len(each.lines), "planned_s": each.due_s(each.number),
            "monotonic_s": time.monotonic(), "unix_s": time.time(), "complaint": complaint, "seen": None,
            "passed_over": passed_over,
        }  # fmt: skip
        each.records.append(record)
        each.recorded += 1
        each.number += 1
        return record

    def _show(self, each: _Playing) -> Any:
        """The qdisc on a timeline's class as it is now, with its counters; None: none, or the port is gone."""
        shown = self._try(each, [each.show])[1]
        if each.filters:
            return _filters(shown, each.filters)
        return next((qdisc for qdisc in (shown[-1] if shown else ()) if qdisc.get("parent") == each.parent), None)


def _account(shown: list[Any], parent: str) -> Any:
    """What of a ``qdisc show`` says what is in force on a class: kind and options, not the counters; None: nothing."""
    for qdisc in shown[-1] if shown else ():
        if qdisc.get("parent") == parent:
            return {"kind": qdisc.get("kind"), "parent": parent, "options": qdisc.get("options", {})}
    return None


def _filters(shown: list[Any], chosen: frozenset[tuple[int, int]]) -> list[Any]:
    """The filters of these priorities and handles that are there, and what each does; not what it has counted."""
    found = []
    for each in shown[-1] if shown else ():
        options = each.get("options", {})
        handle = options.get("handle")
        number = int(handle, 16) if isinstance(handle, str) else handle
        if (each.get("pref"), number) in chosen:
            does = [{name: action[name] for name in _ACTION if name in action} for action in options.get("actions", ())]
            found.append({**each, "options": {**options, **({"actions": does} if does else {})}})
    return found


_ACTION = ("kind", "mirred_action", "direction", "to_dev", "control_action")
"""What an action does; another instance of it has another index, and other times."""
