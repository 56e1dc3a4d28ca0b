"""In one host's process namespace: signal a program that was started there, and all it started.

A program that the engine started in a running container leads a session of its own and has no parent inside (its
parent process number is 0, as that of the container's first process). The engine knows it by its number on the
machine outside, we by its number in here; what both see alike is its command line and when it began. So it is found
as the n-th oldest of those with this command line. (The one it was started with would not do: an ``exec`` or a
``#!`` line changes it.)
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from .protocol import Operation, Refused

_PROC = Path("/proc")
# What ps does not change: printable ASCII without the blanks between words and the marks it puts itself.
_PLAIN = re.compile(r"[^!-~]|\?")


def operations() -> dict[str, Operation]:
    """The protocol's operations."""
    return {"signal": send}


def send(*, args: str, rank: int, of: int, name: str) -> dict[str, list[int] | None]:
    """Send the signal (``"SIGTERM"``) to the ``rank``-th oldest leader with this command line, and to its session.

    ``of`` is how many of them the other side counted; if there are more or fewer here, something has just begun or
    ended, nobody is signalled, and the answer is None: count again. The first process is never signalled.
    """
    if name not in signal.Signals.__members__:
        raise Refused(f"unknown signal {name!r}; write it as SIGTERM or SIGINT")
    found = processes()
    leaders = sorted((start, pid) for pid, parent, _, start in found if parent == 0 and same(command_of(pid), args))
    if len(leaders) != of or not 0 <= rank < of or leaders[rank][1] == 1:
        return {"signalled": None}
    leader = leaders[rank][1]
    reached = []
    for pid in (pid for pid, _, session, _ in found if leader in (session, pid)):
        try:
            os.kill(pid, signal.Signals[name])
        except ProcessLookupError:
            continue  # it ended first, which is what is wanted
        reached.append(pid)
    return {"signalled": reached}


def same(ours: str, theirs: str) -> bool:
    """Whether ps would print ours as theirs: it puts ``?`` in place of what is not printable."""
    return _PLAIN.sub("", ours) == _PLAIN.sub("", theirs)


def command_of(pid: int) -> str:
    """The command line of a process, as ps prints it; empty if there is none."""
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def processes() -> list[tuple[int, int, int, int]]:
    """Process, parent and session numbers, and the tick of its start, of every process here but this one."""
    found = []
    for path in _PROC.iterdir():
        if not path.name.isdigit() or int(path.name) == os.getpid():
            continue
        try:
            # proc(5): the command stands in parentheses and may hold any character.
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        found.append((int(path.name), int(fields[1]), int(fields[3]), int(fields[19])))
    return found


def exit_status(how: int) -> int:
    """What wait(2) tells, as a shell has it: 128 and the signal's number for a program that was killed."""
    code = os.waitstatus_to_exitcode(how)
    return code if code >= 0 else 128 - code


def reap_until(pid: int) -> int:
    """Reap whatever child ends, as a first process must, until it is this one; its exit status as a shell has it."""
    while True:
        ended, how = os.wait()
        if ended == pid:
            return exit_status(how)
