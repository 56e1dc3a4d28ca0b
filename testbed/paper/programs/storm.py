"""``storm.py HOST PORT COUNT PATIENCE``: so many clients at once, a message each; what became of each, as it saw it."""

import json
import socket
import sys
import threading
import time

host, port, count, patience_s = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
told: list[tuple[str, float]] = []


def one(number: int) -> None:
    """Connect and send, as the paper's client does."""
    began = time.monotonic()
    try:
        with socket.create_connection((host, port), timeout=patience_s) as peer:
            peer.send(b"storm %02d" % number)
        outcome = "sent"
    except OSError as error:
        outcome = type(error).__name__
    told.append((outcome, time.monotonic() - began))


threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
for each in threads:
    each.start()
for each in threads:
    each.join()
print(json.dumps(told))
