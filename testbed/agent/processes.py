"""In one host's process namespace: signal a program that was started there, and all it started.

A program that the engine started in a running container leads a session of its own and has no parent inside (its
parent process number is 0, as that of the container's first process). The engine knows it by its number on the
machine outside, we by its number in here; both are given out in order, so its rank among its like is the same.
Its command line would not do: an ``exec`` or a ``#!`` line changes it.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from .protocol import Operation, Refused

_PROC = Path("/proc")


def operations() -> dict[str, Operation]:
    """The protocol's operations."""
    return {"signal": send}


def send(*, rank: int, of: int, name: str) -> dict[str, list[int] | None]:
    """Send the signal (``"SIGTERM"``) to the ``rank``-th oldest leader, and to its session.

    ``of`` is how many leaders the other side counted; if there are more or fewer here, something has just begun or
    ended, nobody is signalled, and the answer is None: count again.
    """
    if name not in signal.Signals.__members__:
        raise Refused(f"unknown signal {name!r}; write it as SIGTERM or SIGINT")
    processes = _processes()
    leaders = sorted(pid for pid, parent, _ in processes if parent == 0)
    if len(leaders) != of or not 0 <= rank < of:
        return {"signalled": None}
    leader = leaders[rank]
    reached = []
    for pid in (pid for pid, _, session in processes if leader in (session, pid)):
        try:
            os.kill(pid, signal.Signals[name])
        except ProcessLookupError:
            continue  # it ended first, which is what is wanted
        reached.append(pid)
    return {"signalled": reached}


def _processes() -> list[tuple[int, int, int]]:
    """Process, parent and session numbers of every process here but this one."""
    found = []
    for path in _PROC.iterdir():
        if not path.name.isdigit() or int(path.name) == os.getpid():
            continue
        try:
            # proc(5): the command stands in parentheses and may hold any character.
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        found.append((int(path.name), int(fields[1]), int(fields[3])))
    return found
