"""``patience.py HOST PORT TIMEOUT_MS FLAG``: connect, send once the file FLAG is there, and wait to hear of it.

TIMEOUT_MS is TCP_USER_TIMEOUT (tcp(7)): how long sent data may stay unacknowledged; 0 is the kernel's own patience.
"""

import json
import os
import socket
import sys
import time

peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))
peer.setsockopt(socket.IPPROTO_TCP, 18, int(sys.argv[3]))  # TCP_USER_TIMEOUT: no constant in every Python
print("connected", flush=True)
while not os.path.exists(sys.argv[4]):
    time.sleep(0.005)
taken = peer.send(b"late")
error = ""
try:
    peer.recv(1)
except OSError as caught:
    error = type(caught).__name__
print(json.dumps({"taken": taken, "error": error}))
