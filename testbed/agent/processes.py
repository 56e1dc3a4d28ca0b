"""In one host's process namespace: signal a program that was started there, and all it started.

A program that the engine started in a running container has no parent inside it (its parent process number
is 0) and leads a session of its own. It is found by that and by its command line, which every process may
read; its environment only one with all its capabilities may.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from .protocol import Operation

_PROC = Path("/proc")


def operations() -> dict[str, Operation]:
    """The protocol's operations."""
    return {"signal": send}


def send(*, argv: list[str], rank: int, name: str) -> dict[str, list[int]]:
    """Send the signal (``"SIGTERM"``) to the ``rank``-th oldest program started as ``argv``, and to its session."""
    leaders = sorted(pid for pid, parent, _ in _processes() if parent == 0 and pid != 1 and _argv(pid) == argv)
    if rank >= len(leaders):
        return {"signalled": []}
    leader = leaders[rank]
    number = signal.Signals[name]
    members = [pid for pid, _, session in _processes() if session == leader or pid == leader]
    reached = []
    for pid in members:
        try:
            os.kill(pid, number)
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


def _argv(pid: int) -> list[str]:
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []
