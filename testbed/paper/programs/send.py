"""``send.py HOST PORT COUNT [--congestion NAME] [--buffer BYTES]``: send so many bytes, and wait for the answer."""

import argparse
import json
import random
import socket
import time

parser = argparse.ArgumentParser()
parser.add_argument("host")
parser.add_argument("port", type=int)
parser.add_argument("count", type=int)
parser.add_argument("--congestion")
parser.add_argument("--buffer", type=int)
options = parser.parse_args()
peer = socket.socket()
if options.congestion:
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, options.congestion.encode())
if options.buffer:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options.buffer)
peer.connect((options.host, options.port))
data = random.Random(7).randbytes(options.count)  # noqa: S311  # the same bytes each time, not a secret
began_ns = time.monotonic_ns()
peer.sendall(data)
taken_ns = time.monotonic_ns()
answer = peer.recv(1)
peer.close()
print(json.dumps({"began_ns": began_ns, "taken_ns": taken_ns, "answered": bool(answer)}))
