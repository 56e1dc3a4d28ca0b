"""Inside a carried kernel, for the agent outside: operations that neither tc nor ip has.

Netlink messages arrive on stdin. Each goes to the kernel, whose replies, up to the acknowledgement, go to stdout
unchanged. A message of type NLMSG_NOOP is for this program: a path and the text to write there, separated by a zero
byte, or nothing; it is acknowledged as by the kernel.

`guest-init` runs this file as a program. It imports built-in modules only, so that Python starts in 50 ms in there.
"""

import _socket  # socket would make the start half as long again
import os
import sys

_HEADER_BYTES = 16
_NOOP, _ERROR = 1, 2  # linux/netlink.h; an acknowledgement is an error with code 0


def _exactly(count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = os.read(0, count - len(data))
        if not more:
            sys.exit()
        data += more
    return data


def _write_all(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def _number(data: bytes) -> int:
    return int.from_bytes(data, sys.byteorder)


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


def _serve() -> None:
    netlink = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW, 0)
    netlink.bind((0, 0))
    _write_all(b"ready\n")
    while True:
        header = _exactly(_HEADER_BYTES)
        body = _exactly(_number(header[:4]) - _HEADER_BYTES)
        if _number(header[4:6]) == _NOOP:
            code = _write(*body.split(b"\0", 1)).to_bytes(4, sys.byteorder, signed=True)
            length, kind = (_HEADER_BYTES + 4).to_bytes(4, sys.byteorder), _ERROR.to_bytes(2, sys.byteorder)
            _write_all(length + kind + header[6:] + code)
            continue
        netlink.send(header + body)
        while True:
            reply = netlink.recv(65536)
            _write_all(reply)
            if _number(reply[4:6]) == _ERROR:
                break


if __name__ == "__main__":
    _serve()
