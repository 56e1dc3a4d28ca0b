"""``trickle.py HOST PORT FLAG``: connect, send a byte; another once the file FLAG is there; wait for the answer."""

import os
import socket
import sys
import time

peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))
peer.send(b"a")
print("connected", flush=True)
while not os.path.exists(sys.argv[3]):
    time.sleep(0.005)
peer.send(b"b")
peer.recv(1)
