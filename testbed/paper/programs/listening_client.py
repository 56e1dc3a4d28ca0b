"""``listening_client.py HOST PORT COUNT``: send so many bytes at once as one message, then listen for the end."""

import json
import socket
import sys

peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))
taken = peer.send(b"y" * int(sys.argv[3]))
try:
    heard = "end of file" if not peer.recv(1) else "data"
except OSError as error:
    heard = type(error).__name__
print(json.dumps({"taken": taken, "heard": heard}))
