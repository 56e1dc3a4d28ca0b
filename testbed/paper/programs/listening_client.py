"""``listening_client.py HOST PORT COUNT``: send COUNT bytes at once as one message, then read until the end."""

import json
import socket
import sys

peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))
taken = peer.send(b"y" * int(sys.argv[3]))
try:
    received = "end of file" if not peer.recv(1) else "data"
except OSError as error:
    received = type(error).__name__
print(json.dumps({"taken": taken, "received": received}))
