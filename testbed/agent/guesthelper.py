"""Inside a carried kernel, for the agent outside: operations that neither tc nor ip has.

Netlink messages arrive on stdin, each with at most one reply. They go to the kernel, whose replies go to stdout
unchanged. A message that asks for an acknowledgement (NLM_F_ACK) goes to the kernel with those before it, and is
acknowledged by this program, after all replies. A message of type NLMSG_NOOP is for this program: a path and the text
to write there, separated by a zero byte, or nothing; it is acknowledged, too.

`guest-init` runs this file as a program. It imports built-in modules only, so that Python starts in 50 ms in there.
System calls are slow there, so it makes as few as it can.
"""

import _socket  # socket would make the start half as long again
import os
import sys

_HEADER_BYTES = 16
_NOOP, _ERROR, _ACK = 1, 2, 0x4  # linux/netlink.h; an acknowledgement is an error with code 0
_MOST_BYTES = 65536


def _number(data: bytes) -> int:
    return int.from_bytes(data, sys.byteorder)


def _write_all(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def _write(path: bytes, text: bytes = b"") -> int:
    """Write a file, if one is named; returns 0 or a negative error number."""
    if not path:
        return 0
    try:
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.write(descriptor, text)
        finally:
            os.close(descriptor)
    except OSError as error:
        return -(error.errno or 1)
    return 0


def _acknowledgement(message: bytes, code: int = 0) -> bytes:
    length, kind = (_HEADER_BYTES + 4).to_bytes(4, sys.byteorder), _ERROR.to_bytes(2, sys.byteorder)
    return length + kind + message[6:_HEADER_BYTES] + code.to_bytes(4, sys.byteorder, signed=True)


def _replies(netlink: _socket.socket, messages: list[bytes]) -> bytes:
    """Send these to the kernel; its replies have arrived when the call returns (net/netlink/af_netlink.c)."""
    netlink.send(b"".join(messages))
    replies = b""
    for _ in messages:
        try:
            replies += netlink.recv(_MOST_BYTES)
        except BlockingIOError:  # not each is replied to
            break
    return replies


def _serve() -> None:
    netlink = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_NONBLOCK, 0)
    netlink.bind((0, 0))
    _write_all(b"ready\n")
    pending, waiting = b"", list[bytes]()
    while data := os.read(0, _MOST_BYTES):
        pending += data
        output = b""
        while len(pending) >= _HEADER_BYTES and len(pending) >= (length := _number(pending[:4])):
            message, pending = pending[:length], pending[length:]
            kind, flags = _number(message[4:6]), _number(message[6:8])
            if kind == _NOOP:
                output += _acknowledgement(message, _write(*message[_HEADER_BYTES:].split(b"\0", 1)))
                continue
            waiting.append(message[:6] + (flags & ~_ACK).to_bytes(2, sys.byteorder) + message[8:])
            if flags & _ACK:
                output += _replies(netlink, waiting) + _acknowledgement(message)
                waiting = []
        _write_all(output)


if __name__ == "__main__":
    _serve()
