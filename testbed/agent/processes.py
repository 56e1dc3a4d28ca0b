"""In one host's process namespace: signal a program that the engine started there, with its whole session.

Such a program leads a session of its own, and its parent process number is 0, as that of the container's first process.
The engine reports its number on the machine outside, which differs from its number in here. Both sides see the same
command line and the same order of starting. So the program is identified as the n-th oldest with its current command
line. (Not with the original one, which an ``exec`` or a ``#!`` line changes.)
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path

from .protocol import Operation, Refused

_PROC = Path("/proc")
# All but the characters that ps prints unchanged: it replaces unprintable ones by "?", and blanks separate arguments.
_NOT_PLAIN = re.compile(r"[^!-~]|\?")


def operations() -> dict[str, Operation]:
    """The protocol's operations."""
    return {"signal": send}


def send(*, args: str, rank: int, of: int, name: str) -> dict[str, list[int] | None]:
    """Send a signal (``"SIGTERM"``) to the ``rank``-th oldest leader with this command line, and to its session.

    ``of``: how many such leaders the engine reports. If there are more or fewer here, one has just started or ended:
    then nothing is signalled, and ``signalled`` is None, so that the caller counts again. The first process is never
    signalled.
    """
    if name not in signal.Signals.__members__:
        raise Refused(f"unknown signal {name!r}; write it as SIGTERM or SIGINT")
    present = processes()
    leaders = sorted((start, pid) for pid, parent, _, start in present if parent == 0 and same(command_of(pid), args))
    if len(leaders) != of or not 0 <= rank < of or leaders[rank][1] == 1:
        return {"signalled": None}
    leader = leaders[rank][1]
    signalled = []
    for pid in (pid for pid, _, session, _ in present if leader in (session, pid)):
        with contextlib.suppress(ProcessLookupError):  # it has ended already, as wanted
            os.kill(pid, signal.Signals[name])
            signalled.append(pid)
    return {"signalled": signalled}


def same(ours: str, theirs: str) -> bool:
    """Whether two command lines are equal except for characters that ps changes."""
    return _NOT_PLAIN.sub("", ours) == _NOT_PLAIN.sub("", theirs)


def command_of(pid: int) -> str:
    """The command line of a process; empty if the process does not exist."""
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def processes() -> list[tuple[int, int, int, int]]:
    """Process, parent and session numbers, and the tick of its start, of every other process here."""
    rows = []
    for path in _PROC.iterdir():
        if not path.name.isdigit() or int(path.name) == os.getpid():
            continue
        try:
            # proc(5): the command is in parentheses and may contain any character.
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        rows.append((int(path.name), int(fields[1]), int(fields[3]), int(fields[19])))
    return rows


def exit_status(wait_status: int) -> int:
    """A shell's exit status for a status of wait(2): 128 plus the signal's number for a program that was killed."""
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code


def reap_until(pid: int) -> int:
    """Reap every child that ends, as a first process must, until this one does; returns its `exit_status`."""
    while True:
        ended, wait_status = os.wait()
        if ended == pid:
            return exit_status(wait_status)
