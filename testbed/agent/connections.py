"""The TCP connections of this network namespace: both ends, whose they are, what they sent; and how to destroy one.

By netlink (sock_diag(7)). A dump is a walk over the kernel's hash table, some 1 ms, and so left out where the count of
sockets says that there is nothing to be found.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .protocol import Operation, Refused

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
_NETLINK_SOCK_DIAG = 4
_TCPDIAG_GETSOCK, _DESTROY = 18, 21
_ERROR, _DONE = 2, 3
_REQUEST, _ACKNOWLEDGE, _DUMP = 0x001, 0x004, 0x300
_HEADER = struct.Struct("=IHHII")
_MESSAGE = struct.Struct("=4B2s2s16s16sI8s5I")
_ID = slice(4, 52)
_INFO = 2  # INET_DIAG_INFO
_SEGMENTS_SENT = 136  # tcpi_segs_out of struct tcp_info
# include/net/tcp_states.h, without TIME_WAIT, CLOSE and LISTEN, which send nothing by themselves.
_STATES = {
    1: "ESTABLISHED", 2: "SYN_SENT", 3: "SYN_RECV", 4: "FIN_WAIT1", 5: "FIN_WAIT2", 8: "CLOSE_WAIT", 9: "LAST_ACK",
    11: "CLOSING", 12: "SYN_RECV",
}  # fmt: skip
_WANTED = sum(1 << state for state in _STATES)
_BUFFER_BYTES = 1 << 18


def operations() -> dict[str, Operation]:
    """The protocol's operations."""
    return {"tcp_connections": tcp_connections, "destroy_tcp": destroy_tcp}


def tcp_connections() -> dict[str, Any]:
    """Every TCP connection that the kernel may still send something on, and whether this namespace routes packets.

    ``id`` tells it from every other, also from a later one of the same ends; ``owned``: whether a program has it, or
    may have it yet; ``segments_sent`` is None where the kernel does not say.
    """
    found = [] if _quiet() else list(_dump())
    return {"connections": found, "routes": bool(found) and _routes()}


def destroy_tcp(*, ids: Sequence[str]) -> dict[str, Any]:
    """Destroy connections; ``refused`` says why the kernel cannot (CONFIG_INET_DIAG_DESTROY), None if it can.

    One that is gone already is as good.
    """
    with _diag() as diag:
        for each in ids:
            raw = bytes.fromhex(each)
            body = struct.pack("=BBBxI", raw[0], socket.IPPROTO_TCP, 0, _WANTED) + raw[1:]
            diag.send(_HEADER.pack(16 + len(body), _DESTROY, _REQUEST | _ACKNOWLEDGE, 0, 0) + body)
            answer = diag.recv(_BUFFER_BYTES)
            (code,) = struct.unpack_from("=i", answer, 16)
            if -code not in (0, 2):  # ENOENT: it has ended
                return {"refused": os.strerror(-code)}
    return {"refused": None}


def _diag() -> socket.socket:
    try:
        diag = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG)
    except OSError as error:
        raise Refused(f"cannot ask the kernel for its connections: {error.strerror}") from None
    diag.settimeout(2.0)
    return diag


def _dump() -> Iterator[dict[str, Any]]:
    body = struct.pack("=BxxB48xII", 0, 1 << (_INFO - 1), _WANTED, 0)
    with _diag() as diag:
        diag.send(_HEADER.pack(16 + len(body), _TCPDIAG_GETSOCK, _REQUEST | _DUMP, 0, 0) + body)
        while True:
            data, at = diag.recv(_BUFFER_BYTES), 0
            while at < len(data):
                length, kind, *_ = _HEADER.unpack_from(data, at)
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    (code,) = struct.unpack_from("=i", data, at + 16)
                    raise Refused(f"the kernel does not tell its connections: {os.strerror(-code)}")
                yield _connection(data[at + 16 : at + length])
                at += (length + 3) & ~3


def _connection(message: bytes) -> dict[str, Any]:
    family, state, _, _, sport, dport, source, target, _, _, _, _, unsent, _, inode = _MESSAGE.unpack_from(message)
    size = 4 if family == socket.AF_INET else 16
    return {
        "id": (message[:1] + message[_ID]).hex(),
        "local": [socket.inet_ntop(family, source[:size]), int.from_bytes(sport, "big")],
        "remote": [socket.inet_ntop(family, target[:size]), int.from_bytes(dport, "big")],
        "state": _STATES.get(state, str(state)),
        "owned": bool(inode),
        "unacknowledged_bytes": unsent,
        "segments_sent": _segments_sent(message),
    }


def _segments_sent(message: bytes) -> int | None:
    at = _MESSAGE.size
    while at + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        if kind == _INFO and length >= 4 + _SEGMENTS_SENT + 4:
            return int(struct.unpack_from("=I", message, at + 4 + _SEGMENTS_SENT)[0])
        at += max((length + 3) & ~3, 4)
    return None


def _quiet() -> bool:
    """Whether no socket is in use, nor what is left of one."""
    numbers: dict[str, int] = {}
    for path in map(Path, ("/proc/net/sockstat", "/proc/net/sockstat6")):
        for line in path.read_text().splitlines() if path.exists() else ():
            group, _, rest = line.partition(":")
            words = rest.split()
            numbers.update({f"{group} {name}": int(value) for name, value in zip(words[::2], words[1::2], strict=True)})
    return not any(numbers.get(each, 1) for each in ("TCP inuse", "TCP tw")) and not numbers.get("TCP6 inuse", 0)


def _routes() -> bool:
    """Whether packets of others were passed on here: then an end of a connection may be somewhere else."""
    names, values = (line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line.startswith("Ip:"))
    return int(dict(zip(names, values, strict=True)).get("ForwDatagrams", 0)) > 0
