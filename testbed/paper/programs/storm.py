"""``storm.py HOST PORT COUNT PATIENCE``: COUNT clients at once, a message each; the outcome of each, as it saw it."""

import json
import socket
import sys
import threading
import time

host, port, count, patience_s = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
outcomes: list[tuple[str, float]] = []


def one(number: int) -> None:
    """Connect and send, as the paper's client does."""
    began = time.monotonic()
    try:
        with socket.create_connection((host, port), timeout=patience_s) as peer:
            peer.send(b"storm %02d" % number)
        outcome = "sent"
    except OSError as error:
        outcome = type(error).__name__
    outcomes.append((outcome, time.monotonic() - began))


threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(outcomes))
