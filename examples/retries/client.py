"""Send twenty orders at once, each up to five times, and print how many were answered.

`constant` or `doubling`: the time-outs of the tries of an order.
"""

import socket
import sys
from concurrent.futures import ThreadPoolExecutor

ORDERS, TRIES, TIMEOUT_S = 20, 5, 0.5


def send(order: int) -> bool:
    """Send an order until it is answered; whether it was."""
    timeout_s = TIMEOUT_S
    for attempt in range(TRIES):
        request = f"{order}.{attempt}".encode()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:  # an answer to an earlier try is lost
            server.settimeout(timeout_s)
            server.connect(("server", 8000))
            server.send(request)
            try:
                while server.recv(100) != request:  # a late answer to another try that had this port before
                    continue
                return True
            except OSError:
                timeout_s *= 2 if sys.argv[1] == "doubling" else 1
    return False


with ThreadPoolExecutor(ORDERS) as pool:
    print(sum(pool.map(send, range(ORDERS))))
