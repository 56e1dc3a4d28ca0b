"""``send.py HOST PORT COUNT [CONGESTION-CONTROL]``: send so many bytes at once, and wait for the answer."""

import json
import random
import socket
import sys
import time

host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
peer = socket.create_connection((host, port))
if len(sys.argv) > 4:
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, sys.argv[4].encode())
data = random.Random(7).randbytes(count)  # noqa: S311  # the same bytes each time, not a secret
began_ns = time.monotonic_ns()
peer.sendall(data)
taken_ns = time.monotonic_ns()
answer = peer.recv(1)
peer.close()
print(json.dumps({"began_ns": began_ns, "taken_ns": taken_ns, "answered": bool(answer)}))
