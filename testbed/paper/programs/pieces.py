"""``pieces.py HOST PORT PIECE...``: send one piece after the other, trusting ``send``, and print what it returned.

A piece is sent once the one before is acknowledged, or the connection is reset.
"""

import json
import socket
import struct
import sys
import time

_TCP_INFO_UNACKED = 24  # offset of tcpi_unacked in struct tcp_info, linux/tcp.h
_DEADLINE_S = 30.0

peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))
results: list[object] = []


def settled() -> bool:
    """Whether nothing that was sent waits for an answer, and the other side has closed or reset."""
    info = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    (unacked,) = struct.unpack_from("=I", info, _TCP_INFO_UNACKED)
    return unacked == 0 and info[0] != 1  # TCP_ESTABLISHED


for piece in sys.argv[3:]:
    try:
        results.append(peer.send(piece.encode()))
    except OSError as error:
        results.append(type(error).__name__)
    deadline = time.monotonic() + _DEADLINE_S
    while not settled() and time.monotonic() < deadline:
        time.sleep(0.005)
print(json.dumps(results))
