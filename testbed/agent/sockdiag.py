"""The kernel's TCP sockets by netlink (sock_diag(7)): requests, and the messages of its replies.

A message's body is a struct inet_diag_msg and attributes: linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

from .protocol import Refused

_NETLINK_SOCK_DIAG = 4
_TCPDIAG_GETSOCK, _BY_FAMILY, _DESTROY = 18, 20, 21
ERROR, DONE = 2, 3
"""Types of messages: a reply's error or acknowledgement, and the end of a dump."""
_REQUEST, _ACKNOWLEDGE, _DUMP = 0x001, 0x004, 0x300
_HEADER = struct.Struct("=IHHII")

DESTROYED = 1 << 0 | 1 << 2
"""The groups SKNLGRP_INET_TCP_DESTROY and SKNLGRP_INET6_TCP_DESTROY."""
MESSAGE_BYTES = 72
"""Of struct inet_diag_msg."""
_ID = slice(4, 52)  # struct inet_diag_sockid
_INFO = 2  # INET_DIAG_INFO
BUFFER_BYTES = 1 << 18
"""Enough for any reply."""


def connect(*, groups: int = 0, timeout_s: float) -> socket.socket:
    """A socket for requests, or for the messages of groups. Raises Refused."""
    try:
        diag = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG)
        if groups:
            diag.bind((0, groups))
    except OSError as error:
        raise Refused(f"cannot ask the kernel for its TCP sockets: {error.strerror}") from None
    diag.settimeout(timeout_s)
    return diag


def dump(states: int) -> bytes:
    """The request for all sockets in these states (a bit mask) with their TCP_INFO, of both families in one walk."""
    body = struct.pack("=BxxB48xII", 0, 1 << (_INFO - 1), states, 0)  # struct inet_diag_req
    return _request(_TCPDIAG_GETSOCK, _REQUEST | _DUMP, body)


def get(identity: bytes, states: int) -> bytes:
    """The request for a single socket with its TCP_INFO."""
    return _request(_BY_FAMILY, _REQUEST, _request_v2(identity, 1 << (_INFO - 1), states))


def destroy(identity: bytes, states: int) -> bytes:
    """The request to destroy a socket."""
    return _request(_DESTROY, _REQUEST | _ACKNOWLEDGE, _request_v2(identity, 0, states))


def _request_v2(identity: bytes, extensions: int, states: int) -> bytes:
    return struct.pack("=BBBxI", identity[0], socket.IPPROTO_TCP, extensions, states) + identity[1:]


def _request(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 0, 0) + body


def messages(data: bytes | memoryview) -> Iterator[tuple[int, bytes]]:
    """The type and body of each message in a reply."""
    at = 0
    while at < len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        yield kind, bytes(data[at + _HEADER.size : at + length])
        at += (length + 3) & ~3


def error_of(body: bytes) -> int:
    """The error number of a message of type `ERROR`; 0 for an acknowledgement."""
    return -int(struct.unpack_from("=i", body)[0])


def refusal(body: bytes) -> Refused:
    """The exception for an error message."""
    return Refused(f"the kernel does not report its TCP sockets: {os.strerror(error_of(body))}")


def identity_of(body: bytes) -> bytes:
    """Identifies a socket, also among later ones with the same ends: family and struct inet_diag_sockid."""
    return body[:1] + body[_ID]


def info_at(body: bytes) -> int:
    """The offset of struct tcp_info in a message's body; its length if it has none."""
    at = MESSAGE_BYTES
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        if kind == _INFO:
            return at + 4
        at += max((length + 3) & ~3, 4)
    return len(body)
