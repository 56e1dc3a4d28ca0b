"""The user's terminal, joined to a program in a host: ``testbed shell``."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import tty
from collections.abc import Iterator, Sequence

from testbed.backends.docker.hosts import ComposeHost
from testbed.backends.local.hosts import LocalHost
from testbed.errors import EnvironmentUnfitError
from testbed.lab.host import Host

SHELL = ("/bin/sh", "-c", "exec $(command -v bash || echo sh)")


def interact(host: Host, argv: Sequence[str]) -> int:
    """Run a program in a host on our own stdin, stdout and stderr, a terminal if they are one; its exit status."""
    if isinstance(host, LocalHost):
        return on_a_terminal(host, argv) if sys.stdin.isatty() else host.attached(argv, (0, 1, 2)).wait()
    if isinstance(host, ComposeHost):
        docker = shutil.which("docker")
        if docker is None:
            raise EnvironmentUnfitError("the docker command is not here, and it alone joins a container to a terminal")
        options = ["-it"] if sys.stdin.isatty() else ["-i"]
        return subprocess.run([docker, "exec", *options, str(host.container.id), *argv], check=False).returncode
    raise EnvironmentUnfitError(f"{host!r} has no terminal to offer")


def on_a_terminal(host: LocalHost, argv: Sequence[str]) -> int:
    """Run a program on a terminal of the host, joined to ours; its exit status."""
    ours, theirs = host.terminal()
    try:
        try:
            _copy_size(ours)
            program = host.attached(argv, (theirs, theirs, theirs), tty=True)
        finally:
            os.close(theirs)
        with _raw(), _following_size(ours):
            _copy(ours, program.fileno())
        return program.wait()
    finally:
        os.close(ours)


def _copy(master: int, ended: int) -> None:
    """What is typed goes there, what is printed comes here, until the program has ended; what it started may go on.

    ``ended`` can be read then. The terminal of a leader that has ended takes no more, so what is in it is all.
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
