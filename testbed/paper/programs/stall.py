"""``stall.py HOST PORT``: connect, and say nothing."""

import socket
import sys

peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))
print("connected", flush=True)
peer.recv(1)
