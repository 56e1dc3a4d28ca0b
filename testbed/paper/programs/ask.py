"""``ask.py HOST PORT COUNT DEADLINE``: so many clients at once with one request each; how long each answer took."""

import json
import socket
import sys
import threading
import time

import wire

host, port, count, deadline_s = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
done: list[float] = []
began = time.monotonic()


def one(number: int) -> None:
    """Ask once."""
    try:
        with socket.create_connection((host, port), timeout=deadline_s) as peer:
            peer.settimeout(deadline_s)
            peer.sendall(wire.frame(wire.REQUEST, number, 0, time.monotonic_ns(), 100))
            got = b""
            while len(got) < wire.HEADER_BYTES:
                data = peer.recv(4096)
                if not data:
                    return
                got += data
            done.append(time.monotonic() - began)
    except OSError:
        return  # not answered: it is missing in the list


threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
for each in threads:
    each.start()
for each in threads:
    each.join()
print(json.dumps(done))
