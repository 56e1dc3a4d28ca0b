"""The agent of a local lab: requests, the descriptors passed with them, and the programs that it starts."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from testbed.backends.local.child import ChildAgent, PipeStream
from testbed.backends.local.programs import AttachedProgram, LocalProgram, OutputReader, start
from testbed.errors import LabError
from testbed.lab.channel import Channel

_MESSAGE_BYTES = 64


class LocalAgent:
    """The process that holds all namespaces of a lab, from `start` to `end`."""

    def __init__(self) -> None:
        self._reader = OutputReader()
        self._child: ChildAgent | None = None
        self._channel: Channel | None = None

    def start(self, tag: str) -> Channel:
        """Start it. ``tag``: the beginning of its interfaces' names. Raises EnvironmentUnfitError."""
        self._child = ChildAgent(tag=tag)
        self._channel = Channel(self._child, name="local agent")
        self._reader.start()
        return self._channel

    def end(self) -> None:
        """End it, and everything in its namespaces."""
        if self._child is not None:
            self._reader.stop()
            self._child.close()
            self._child = self._channel = None

    @property
    def child(self) -> ChildAgent:
        """Its process. Raises LabError if the lab is not up."""
        if self._child is None:
            raise LabError("the lab is not up")
        return self._child

    @property
    def channel(self) -> Channel:
        """The way to it. Raises LabError if the lab is not up."""
        if self._channel is None:
            raise LabError("the lab is not up")
        return self._channel

    def program(
        self,
        argv: Sequence[str],
        circumstances: Mapping[str, Any],
        *,
        on_end: Callable[[int], None] = lambda _code: None,
    ) -> LocalProgram:
        """A program in a host, for `launch`, whose output is read; ``on_end``: see `LocalProgram`."""
        return LocalProgram(self.child, self.channel, self._reader, argv, circumstances, on_end=on_end)

    def launch(self, programs: Sequence[LocalProgram]) -> None:
        """Start programs, all at once. Raises LabError."""
        start(self.channel, programs)

    def attached(
        self, argv: Sequence[str], streams: Sequence[int], circumstances: Mapping[str, Any], *, tty: bool
    ) -> AttachedProgram:
        """Start a program on descriptors of ours; see `LocalHost.attached`."""
        read, write = os.pipe()
        try:
            try:
                ticket = self.child.passed([*streams, write])
            finally:
                os.close(write)
            self.channel.call("start", programs=[{"argv": list(argv), "ticket": ticket, "tty": tty, **circumstances}])
        except BaseException:
            os.close(read)
            raise
        return AttachedProgram(read)

    def terminal(self, host: str) -> tuple[int, int]:
        """A terminal in a host; see `LocalHost.terminal`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                ticket = self.child.passed([theirs.fileno()])
            self.channel.call("terminal", host=host, ticket=ticket)
            _, (shown, given), _, _ = socket.recv_fds(ours, _MESSAGE_BYTES, 2)
        return shown, given

    def helper(self, name: str, operation: str, **arguments: Any) -> Channel:
        """An agent that this one starts beside itself."""
        child = self.child
        requests, ask = os.pipe()
        hear, answers = os.pipe()
        ticket = child.passed([requests, answers])
        os.close(requests)
        os.close(answers)
        pid = self.channel.call(operation, ticket=ticket, **arguments)
        return Channel(PipeStream(ask, hear), name=name, kill=partial(self._end_helper, pid))

    def _end_helper(self, pid: int) -> None:
        if self._channel is not None and self._channel.answers:  # else they go together
            self._channel.call("end_helper", pid=pid)
