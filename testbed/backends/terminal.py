"""The user's terminal, joined to a program in a host: ``testbed shell``."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import termios
import tty
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol


class Attachment(Protocol):
    """A program on descriptors of ours."""

    def fileno(self) -> int:
        """For select(2): readable once the program has ended."""

    def wait(self) -> int:
        """Wait for its end; its exit status."""


def run(argv: Sequence[str]) -> int:
    """Run a command of this machine on our own stdin, stdout and stderr; its exit status."""
    return subprocess.run(argv, check=False).returncode


def join(terminal: tuple[int, int], start: Callable[[int], Attachment]) -> int:
    """Join our terminal to a program's; its exit status.

    ``terminal``: the end that shows what the program prints, and the program's end; closed here. ``start``: starts the
    program on its end.
    """
    ours, theirs = terminal
    try:
        try:
            _copy_size(ours)
            program = start(theirs)
        finally:
            os.close(theirs)
        with _raw(), _following_size(ours):
            _copy(ours, program.fileno())
        return program.wait()
    finally:
        os.close(ours)


def _copy(master: int, ended: int) -> None:
    """Copy input and output until the program has ended; its own children may go on.

    ``ended``: becomes readable then. A terminal whose leader has ended accepts no more output, so the rest is complete.
    """
    watched = [0, master, ended]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if master in ready:
            try:
                printed = os.read(master, 65536)
            except OSError:  # EIO: the program and all it started have closed their terminal
                watched.remove(master)
            else:
                os.write(1, printed)
        elif ended in ready:
            return
        if 0 in ready:
            typed = os.read(0, 4096)
            if typed:
                os.write(master, typed)
            else:
                watched.remove(0)


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSADRAIN)  # what was typed already counts
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _following_size(master: int) -> Iterator[None]:
    before = signal.signal(signal.SIGWINCH, lambda _number, _frame: _copy_size(master))
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


def _copy_size(master: int) -> None:
    with contextlib.suppress(OSError):  # a terminal without a size leaves ours as it is
        size = fcntl.ioctl(0, termios.TIOCGWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
        fcntl.ioctl(master, termios.TIOCSWINSZ, size)
