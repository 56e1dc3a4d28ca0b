"""``busy.py PORT COUNT BUFFER FLAG``: accept, read nothing until the file FLAG is there, then all COUNT bytes."""

import hashlib
import json
import os
import socket
import sys
import time

port, count, buffer, flag = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
listener.bind(("", port))
listener.listen()
print("ready", flush=True)
taken, _ = listener.accept()
while not os.path.exists(flag):
    time.sleep(0.005)
digest = hashlib.sha256()
received = 0
while received < count and (data := taken.recv(4096)):
    received += len(data)
    digest.update(data)
taken.sendall(b"!")
taken.recv(1)
print(json.dumps({"count": received, "digest": digest.hexdigest()}))
