"""Descriptors for requests: they arrive at a separate socket, in messages with the ticket that a request names."""

from __future__ import annotations

import os
import socket

from .protocol import Refused

_MESSAGE_BYTES = 64
_MOST_DESCRIPTORS = 64


class Tickets:
    """The descriptors that have been passed, by ticket."""

    def __init__(self, passing: socket.socket) -> None:
        """``passing``: the socket where they arrive."""
        self._passing = passing
        self._passed: dict[str, list[int]] = {}

    def take(self, ticket: str) -> list[int]:
        """Take the descriptors of a ticket, which the caller must close. Raises Refused."""
        while ticket not in self._passed:
            message, descriptors, _flags, _address = socket.recv_fds(self._passing, _MESSAGE_BYTES, _MOST_DESCRIPTORS)
            if not message:
                raise Refused(f"no descriptors came with ticket {ticket!r}")
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
            self._passed[message.decode()] = descriptors
        return self._passed.pop(ticket)
