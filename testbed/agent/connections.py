"""The TCP connections of this network namespace: their ends and owners, what they sent; and how to destroy one.

A dump walks the kernel's hash table, which takes some 1 ms. It is omitted if the counts of sockets show that there is
no connection.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import sockdiag
from .protocol import Operation

_MESSAGE = struct.Struct("=4B2s2s16s16sI8s5I")
_SEGMENTS_SENT = 136  # tcpi_segs_out of struct tcp_info
# include/net/tcp_states.h, without TIME_WAIT, CLOSE and LISTEN, which send nothing by themselves.
_STATES = {
    1: "ESTABLISHED",
    2: "SYN_SENT",
    3: "SYN_RECV",
    4: "FIN_WAIT1",
    5: "FIN_WAIT2",
    8: "CLOSE_WAIT",
    9: "LAST_ACK",
    11: "CLOSING",
    12: "SYN_RECV",
}
_WANTED = sum(1 << state for state in _STATES)
_TIME_WAIT = 6
_HALF_OPEN = (3, 12)
"""They are a listener's, and go with it."""
_TIMEOUT_S = 2.0
_ENOENT = 2


def operations() -> dict[str, Operation]:
    """The protocol's operations."""
    return {"tcp_connections": tcp_connections, "destroy_tcp": destroy_tcp}


def tcp_connections() -> dict[str, Any]:
    """Every TCP connection on which the kernel may still send, and whether this namespace ``routes`` packets.

    ``id`` distinguishes it from all others, also from a later one with the same ends. ``owned``: whether a program has
    it, or may get it from a listener. ``segments_sent`` is None if the kernel does not report it.
    """
    connections = [] if no_sockets() else list(_dump())
    return {"connections": connections, "routes": bool(connections) and _routes()}


def destroy_tcp(*, ids: Sequence[str]) -> dict[str, Any]:
    """Destroy connections; ``refused``: why the kernel cannot (CONFIG_INET_DIAG_DESTROY), None if it can.

    A connection that has ended already counts as destroyed.
    """
    with sockdiag.connect(timeout_s=_TIMEOUT_S) as diag:
        for identity in ids:
            diag.send(sockdiag.destroy(bytes.fromhex(identity), _WANTED))
            (_, body), *_ = sockdiag.messages(diag.recv(sockdiag.BUFFER_BYTES))
            if (code := sockdiag.error_of(body)) not in (0, _ENOENT):
                return {"refused": os.strerror(code)}
    return {"refused": None}


def forget_tcp() -> str | None:
    """Destroy every connection that no program has any more, TIME_WAIT included; why the kernel cannot, or None.

    A program could not listen on its port otherwise, unless it sets SO_REUSEADDR.
    """
    if no_sockets():
        return None
    ended = [
        sockdiag.identity_of(body).hex()
        for body in _bodies(_WANTED | 1 << _TIME_WAIT)
        if not _MESSAGE.unpack_from(body)[-1] and body[1] not in _HALF_OPEN
    ]
    refused: str | None = destroy_tcp(ids=ended)["refused"]
    return refused


def _dump() -> Iterator[dict[str, Any]]:
    return map(_connection, _bodies(_WANTED))


def _bodies(states: int) -> Iterator[bytes]:
    with sockdiag.connect(timeout_s=_TIMEOUT_S) as diag:
        diag.send(sockdiag.dump(states))
        while True:
            for kind, body in sockdiag.messages(diag.recv(sockdiag.BUFFER_BYTES)):
                if kind == sockdiag.DONE:
                    return
                if kind == sockdiag.ERROR:
                    raise sockdiag.refusal(body)
                yield body


def _connection(body: bytes) -> dict[str, Any]:
    family, state, _, _, sport, dport, source, target, _, _, _, _, unsent, _, inode = _MESSAGE.unpack_from(body)
    size = 4 if family == socket.AF_INET else 16
    return {
        "id": sockdiag.identity_of(body).hex(),
        "local": [socket.inet_ntop(family, source[:size]), int.from_bytes(sport, "big")],
        "remote": [socket.inet_ntop(family, target[:size]), int.from_bytes(dport, "big")],
        "state": _STATES.get(state, str(state)),
        "owned": bool(inode),
        "unacknowledged_bytes": unsent,
        "segments_sent": _segments_sent(body),
    }


def _segments_sent(body: bytes) -> int | None:
    at = sockdiag.info_at(body) + _SEGMENTS_SENT
    return int(struct.unpack_from("=I", body, at)[0]) if at + 4 <= len(body) else None


def no_sockets() -> bool:
    """Whether no TCP socket is in use, nor in TIME_WAIT."""
    numbers: dict[str, int] = {}
    for path in map(Path, ("/proc/net/sockstat", "/proc/net/sockstat6")):
        for line in path.read_text().splitlines() if path.exists() else ():
            group, _, rest = line.partition(":")
            words = rest.split()
            numbers.update({f"{group} {name}": int(value) for name, value in zip(words[::2], words[1::2], strict=True)})
    return not any(numbers.get(name, 1) for name in ("TCP inuse", "TCP tw")) and not numbers.get("TCP6 inuse", 0)


def _routes() -> bool:
    """Whether this namespace has forwarded packets: then a connection's end may be elsewhere."""
    names, values = (line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line.startswith("Ip:"))
    return int(dict(zip(names, values, strict=True)).get("ForwDatagrams", 0)) > 0
