"""``sink.py PORT COUNT``: take so many bytes from one connection, answer with a byte, and say what they were."""

import hashlib
import json
import socket
import sys
import time

port, count = int(sys.argv[1]), int(sys.argv[2])
listener = socket.create_server(("", port))
print("ready", flush=True)
taken, _ = listener.accept()
digest = hashlib.sha256()
received, first_ns = 0, 0
while received < count and (data := taken.recv(65536)):
    first_ns = first_ns or time.monotonic_ns()
    received += len(data)
    digest.update(data)
last_ns = time.monotonic_ns()
taken.sendall(b"!")
taken.recv(1)  # the other side closes first
print(json.dumps({"count": received, "digest": digest.hexdigest(), "first_ns": first_ns, "last_ns": last_ns}))
