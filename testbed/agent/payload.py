"""How much TCP payload this network namespace received, and from whom, by the kernel's own count.

A dump has the connections that there are (`bytes_received` of TCP_INFO). Of each that ends, the kernel reports the last
state a moment later. So the connections that are known at the end are compared with the kernel's count of those that
were opened: with fewer known, nothing is reported rather than too little. A refused attempt counts as opened, and may
be reported without its other end.
"""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path
from typing import Any

from . import connections, sockdiag
from .protocol import Refused

_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_BUFFER_BYTES = 32 << 20
"""For the last states of some 20,000 connections; it is not taken before they come."""
_TIMEOUT_S = 2.0
_REPORTED_WITHIN_S, _REFUSED_WITHIN_S = 2.0, 0.02  # a busy machine reports late
_BYTES_RECEIVED = 128  # tcpi_bytes_received of struct tcp_info
# include/net/tcp_states.h, without TIME_WAIT, CLOSE, LISTEN and NEW_SYN_RECV
_STATES = 0xFFF & ~(1 << 6 | 1 << 7 | 1 << 10 | 1)
_SNMP = Path("/proc/net/snmp")


class Payload:
    """What the namespace receives, from now to `end`."""

    def __init__(self) -> None:
        self._destroyed = sockdiag.connect(groups=sockdiag.DESTROYED, timeout_s=_REPORTED_WITHIN_S)
        try:
            try:
                self._destroyed.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            except PermissionError:  # an ordinary user gets what net.core.rmem_max allows
                self._destroyed.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            self._opened, self._refused = _opened()
            self._before = _dump()
        except OSError as error:
            self._destroyed.close()
            raise Refused(f"cannot count what TCP receives: {error}") from None

    def end(self) -> list[list[Any]] | None:
        """Own address, other address, and bytes; None if the kernel did not report every connection.

        A FIN counts as a byte.
        """
        with self._destroyed:
            known = self._before | _dump()
            opened, refused = _opened()
            opened, refused = opened - self._opened, refused - self._refused
            try:
                until = time.monotonic() + _REPORTED_WITHIN_S
                while (missing := opened - len(known.keys() - self._before.keys())) > 0 and time.monotonic() < until:
                    # Those that may never be reported are not waited for as long.
                    self._destroyed.settimeout(_REPORTED_WITHIN_S if missing > refused else _REFUSED_WITHIN_S)
                    known |= _received(self._destroyed.recv(sockdiag.BUFFER_BYTES))
                self._destroyed.setblocking(False)
                while True:  # of those that were there before
                    known |= _received(self._destroyed.recv(sockdiag.BUFFER_BYTES))
            except (TimeoutError, BlockingIOError):
                pass
            except OSError:  # ENOBUFS: more ended than the buffer holds
                return None
        if not opened - refused <= len(known.keys() - self._before.keys()) <= opened:
            return None
        return [
            [*_addresses(identity), received - self._before.get(identity, 0)] for identity, received in known.items()
        ]


def _dump() -> dict[bytes, int]:
    """What every connection has received so far, by its identity."""
    known: dict[bytes, int] = {}
    if connections.no_sockets():
        return known
    with sockdiag.connect(timeout_s=_TIMEOUT_S) as diag:
        diag.send(sockdiag.dump(_STATES))
        while True:
            data = diag.recv(sockdiag.BUFFER_BYTES)
            known |= _received(data)
            for kind, body in sockdiag.messages(data):
                if kind == sockdiag.ERROR:
                    raise sockdiag.refusal(body)
                if kind == sockdiag.DONE:
                    return known


def _received(data: bytes) -> dict[bytes, int]:
    """What the connections of these messages have received; not sockets that were never connected."""
    known = {}
    for kind, body in sockdiag.messages(data):
        if kind in (sockdiag.ERROR, sockdiag.DONE):
            continue
        at = sockdiag.info_at(body) + _BYTES_RECEIVED
        _, remote_port = struct.unpack_from("!HH", body, 4)
        if remote_port and at + 8 <= len(body):
            known[sockdiag.identity_of(body)] = int(struct.unpack_from("=Q", body, at)[0])
    return known


def _addresses(identity: bytes) -> tuple[str, str]:
    """The addresses in an identity: family, then struct inet_diag_sockid."""
    family, size = (socket.AF_INET, 4) if identity[0] == socket.AF_INET else (socket.AF_INET6, 16)
    return socket.inet_ntop(family, identity[5 : 5 + size]), socket.inet_ntop(family, identity[21 : 21 + size])


def _opened() -> tuple[int, int]:
    """How many connections this namespace has opened or accepted, ever; and how many attempts failed."""
    names, values = (line.split() for line in _SNMP.read_text().splitlines() if line.startswith("Tcp:"))
    counted = dict(zip(names, values, strict=True))
    return int(counted["ActiveOpens"]) + int(counted["PassiveOpens"]), int(counted["AttemptFails"])


class Payloads:
    """The operations of an agent in one namespace."""

    def __init__(self) -> None:
        self._counting: Payload | None = None

    def operations(self) -> dict[str, Any]:
        """The protocol's operations."""
        return {"count_payload": self.count, "payload": self.end}

    def count(self) -> None:
        """Count from now on."""
        self.end()
        self._counting = Payload()

    def end(self) -> list[list[Any]] | None:
        """See `Payload.end`; None if nothing was counted."""
        counting, self._counting = self._counting, None
        return None if counting is None else counting.end()
