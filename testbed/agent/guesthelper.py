"""Inside a carried kernel, for the agent outside: what neither tc nor ip can do there.

Netlink messages come in on stdin. Each goes to the kernel, and what that answers, up to its acknowledgement, goes out
on stdout as it is. One of type NLMSG_NOOP is for us: a path and what to write there, with a zero byte between, or
nothing; it is answered as the kernel would.

`guest-init` runs this file as a program, and nothing imports it; built-in modules alone, with which Python starts in
50 ms in there.
"""

import _socket  # socket itself takes half as long again
import os
import sys

_HEADER_BYTES = 16
_NOOP, _ERROR = 1, 2  # linux/netlink.h; an acknowledgement is an error, too


def _exactly(count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = os.read(0, count - len(data))
        if not more:
            sys.exit()
        data += more
    return data


def _say(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def _number(data: bytes) -> int:
    return int.from_bytes(data, sys.byteorder)


def _write(path: bytes, text: bytes = b"") -> int:
    """Write a file, if one is named; what went wrong as a negative error number, or 0."""
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


def _serve() -> None:
    netlink = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW, 0)
    netlink.bind((0, 0))
    _say(b"ready\n")
    while True:
        header = _exactly(_HEADER_BYTES)
        body = _exactly(_number(header[:4]) - _HEADER_BYTES)
        if _number(header[4:6]) == _NOOP:
            code = _write(*body.split(b"\0", 1)).to_bytes(4, sys.byteorder, signed=True)
            length, kind = (_HEADER_BYTES + 4).to_bytes(4, sys.byteorder), _ERROR.to_bytes(2, sys.byteorder)
            _say(length + kind + header[6:] + code)
            continue
        netlink.send(header + body)
        while True:
            answer = netlink.recv(65536)
            _say(answer)
            if _number(answer[4:6]) == _ERROR:
                break


if __name__ == "__main__":
    _serve()
