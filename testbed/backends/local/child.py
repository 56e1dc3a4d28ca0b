"""The local lab's agent as a child process: its protocol's stream, and the socket that passes descriptors to it."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import socket
import subprocess
import time
from collections.abc import Sequence

import testbed.agent
from testbed.errors import EnvironmentUnfitError

_UNFIT = 3  # testbed.agent.namespaces
_END_WITHIN_S = 5.0


class PipeStream:
    """A stream over two descriptors, which it owns. A `channel.Stream`."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        os.set_blocking(write, False)

    def send(self, data: bytes, deadline_s: float) -> None:
        """Write all of it. Raises OSError if the agent is gone, TimeoutError if it does not take it in time."""
        _write(self._write, data, deadline_s)

    def receive(self, deadline_s: float) -> bytes:
        """Whatever came. Empty at the end; raises TimeoutError."""
        if not _is_ready(self._read, select.POLLIN, deadline_s):
            raise TimeoutError
        return os.read(self._read, 1 << 20)

    def fileno(self) -> int:
        """The descriptor that is read."""
        return self._read

    def last_words(self) -> str:
        """It says nothing but answers."""
        return ""

    def close(self) -> None:
        """End the stream; the agent exits."""
        os.close(self._write)
        os.close(self._read)


class ChildAgent:
    """An agent in namespaces of its own, which ends with us in any case. A `channel.Stream`."""

    def __init__(self, *, tag: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._passing = ours
        self._stderr = os.memfd_create("testbed-agent-stderr")
        owner = os.pidfd_open(os.getpid())
        argv = testbed.agent.command("local", "--tag", tag, "--passing", str(theirs.fileno()), "--owner", str(owner))
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                bufsize=0,
                pass_fds=(theirs.fileno(), owner),
                start_new_session=True,
                cwd="/",
            )
        finally:
            os.close(owner)
            theirs.close()
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("PIPE was asked for")
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)

    def send(self, data: bytes, deadline_s: float) -> None:
        """Write all of it. Raises OSError if the agent is gone, TimeoutError if it does not take it in time."""
        _write(self._stdin.fileno(), data, deadline_s)

    def receive(self, deadline_s: float) -> bytes:
        """Whatever came. Empty at the end; raises TimeoutError, and EnvironmentUnfitError where there can be no lab."""
        if not _is_ready(self._stdout.fileno(), select.POLLIN, deadline_s):
            raise TimeoutError
        data = os.read(self._stdout.fileno(), 1 << 20)
        if not data:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
            if self._process.returncode == _UNFIT:
                raise EnvironmentUnfitError(
                    f"a local lab needs namespaces of its own, which this machine refuses: {self.last_words()}. "
                    f"`testbed doctor` says what prevents it"
                )
        return data

    def fileno(self) -> int:
        """The descriptor that is read."""
        return self._stdout.fileno()

    def last_words(self) -> str:
        """What it wrote to stderr."""
        size = os.fstat(self._stderr).st_size
        return os.pread(self._stderr, 4000, max(size - 4000, 0)).decode(errors="replace").strip()

    def passed(self, descriptors: Sequence[int]) -> str:
        """Pass copies of descriptors to it. Returns the ticket for the request that uses them."""
        ticket = secrets.token_hex(8)
        socket.send_fds(self._passing, [ticket.encode()], list(descriptors))
        return ticket

    @property
    def pid(self) -> int:
        """The keeper's process number."""
        return self._process.pid

    def close(self) -> None:
        """End the agent, and with it every process, mount and network that is its own; wait until they are gone."""
        started = time.monotonic()
        for stream in (self._stdin, self._passing):
            with contextlib.suppress(OSError):  # it may have closed its end first
                stream.close()
        try:
            self._process.wait(_END_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its first process goes with it
            self._process.wait()
        self.took_s = time.monotonic() - started
        self._stdout.close()
        os.close(self._stderr)


def _write(pipe: int, data: bytes, deadline_s: float) -> None:
    """Write all of it to a pipe that does not block. Raises TimeoutError."""
    view, deadline = memoryview(data), time.monotonic() + deadline_s
    while view:
        if not _is_ready(pipe, select.POLLOUT, max(deadline - time.monotonic(), 0.0)):
            raise TimeoutError
        view = view[os.write(pipe, view) :]


def _is_ready(descriptor: int, event: int, deadline_s: float) -> bool:
    """Whether it can be read from, or written to, in time. select(2) would not take descriptors above 1023."""
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(deadline_s * 1e3))
