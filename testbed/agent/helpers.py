"""Helper agents of a local lab: child processes for work that must not wait for the agent, or that needs threads."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from typing import BinaryIO

from . import connections, echoes, inside, kernelcalls, payload, protocol, relay, sockets
from .children import fork, unreaped
from .hosts import Hosts
from .protocol import Operation, Refused
from .tickets import Tickets


class Helpers:
    """The helper agents."""

    def __init__(self, hosts: Hosts, tickets: Tickets) -> None:
        self._hosts = hosts
        self._tickets = tickets
        self._helpers: set[int] = set()

    def operations(self) -> dict[str, Operation]:
        """The protocol's operations."""
        return {
            "capturing": self.capturing,
            "inside": self.inside,
            "end_helper": self.end_helper,
            "publish": self.publish,
        }

    def publish(self, *, ticket: str, targets: list[tuple[str, int]]) -> None:
        """Relay connections to a ticket's listening sockets; ``targets``: address and port for each socket."""
        listeners = self._tickets.take(ticket)
        if len(listeners) != len(targets):
            raise Refused(f"{len(listeners)} sockets for {len(targets)} published ports")

        def serve() -> None:
            listening = [socket.socket(fileno=listener) for listener in listeners]
            relay.serve(list(zip(listening, targets, strict=True)))

        self._help(serve)
        for listener in listeners:
            os.close(listener)

    def inside(self, *, ticket: str, host: str = "") -> int:
        """Start an agent in a host's network namespace; the ticket's descriptors are its stdin and stdout.

        ``host``: none for the switch's own namespace. Returns its process number, for `end_helper`.
        """
        target = self._hosts.named(host) if host else None

        def serve(requests: BinaryIO, replies: BinaryIO) -> None:
            if target is not None:
                kernelcalls.setns(target.net, kernelcalls.NEWNET)
            watched = sockets.Sockets()
            received = payload.Payloads()
            operations = {
                **inside.operations(),
                **connections.operations(),
                **watched.operations(),
                **received.operations(),
            }
            protocol.serve(operations, requests, replies)

        return self._serve_beside(ticket, serve)

    def capturing(self, *, ticket: str) -> int:
        """Start an agent that captures at the switch's ports; see `inside`."""

        def serve(requests: BinaryIO, replies: BinaryIO) -> None:
            from . import capture, trails  # importing thread pools takes a tenth of an agent's start

            with capture.Captures() as captures:
                followed = trails.FollowedPorts(captures)
                operations = {**captures.operations(), **followed.operations(), **echoes.Echoes().operations()}
                protocol.serve(operations, requests, replies)

        return self._serve_beside(ticket, serve)

    def end_helper(self, *, pid: int) -> None:
        """Kill a helper agent, if it still runs."""
        with unreaped():
            if pid in self._helpers:
                os.kill(pid, signal.SIGKILL)

    def _serve_beside(self, ticket: str, work: Callable[[BinaryIO, BinaryIO], None]) -> int:
        """Start a helper that serves requests; returns its process number."""
        descriptors = self._tickets.take(ticket)

        def serve() -> None:
            for number, descriptor in enumerate(descriptors):
                os.dup2(descriptor, number)
            with os.fdopen(0, "rb") as requests, os.fdopen(1, "wb") as replies:
                work(requests, replies)

        pid = self._help(serve)
        for descriptor in descriptors:
            os.close(descriptor)
        return pid

    def _help(self, work: Callable[[], None]) -> int:
        """Fork a helper; returns its process number."""

        def begin() -> None:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, set())
            kernelcalls.die_with_parent()
            work()

        with unreaped():
            pid = fork(begin)
            self._helpers.add(pid)
        return pid

    def reap(self) -> None:
        """Reap helpers that have ended."""
        for pid in list(self._helpers):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    self._helpers.discard(pid)
