"""Runs a command that ends with its owner, together with all its descendants. A separate program.

``python3 -I -S tied.py FD COMMAND…``: FD is a pidfd of the owner. The kernel's PR_SET_PDEATHSIG is not enough: it
follows the thread that started a process, and does not reach grandchildren (`docker compose` is a child of `docker`).
SIGTERM ends the command, too. The exit status is the command's, or 128 plus the number of the signal that ended it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_CANNOT_START = 127


def main(owner: int, argv: Sequence[str]) -> int:
    """Run the command until it or its owner ends."""
    os.set_inheritable(owner, False)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Ctrl-C reaches the command by itself, which may take a while to end.
    interrupts = signal.signal(signal.SIGINT, signal.SIG_IGN)
    us = os.getpid()
    try:
        command = os.fork()
        if command == 0:
            _become(argv, us, ignoring_interrupts=interrupts == signal.SIG_IGN)
        ended = os.pidfd_open(command)
        poll = select.poll()
        for descriptor in (owner, ended):
            poll.register(descriptor, select.POLLIN)
        ready = [descriptor for descriptor, _ in poll.poll()]
        if ended in ready:
            status = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
            return status if status >= 0 else 128 - status
        return 128 + signal.SIGKILL
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _end_children()


def _become(argv: Sequence[str], parent: int, *, ignoring_interrupts: bool) -> NoReturn:
    """Become the command."""
    try:
        # The command would inherit the signals that Python ignores.
        interrupt = () if ignoring_interrupts else (signal.SIGINT,)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, *interrupt):
            signal.signal(number, signal.SIG_DFL)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            os.execvp(argv[0], list(argv))  # noqa: S606  # a shell would be one more process to end
    except OSError as error:
        sys.stderr.write(f"{argv[0]}: {error.strerror}\n")
        sys.stderr.flush()
    finally:
        os._exit(_CANNOT_START)


def _end_children() -> None:
    """Kill all descendants; orphans become our children."""
    while True:
        for pid in _descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _descendants(ancestor: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as stat:  # a process that has ended meanwhile
            children.setdefault(int(stat.read().rpartition(")")[2].split()[1]), []).append(int(name))
    descendants = list(children.get(ancestor, ()))
    for pid in descendants:  # the list grows meanwhile
        descendants += children.get(pid, ())
    return descendants


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl {option}")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
