"""Numbered datagrams at a steady pace, there and back: which of them were lost while something else went on.

``echo``: send each back, on UDP port 9710. ``ask ADDRESS``: one every 0.5 ms until SIGTERM; prints as JSON how many
were ``sent``, and the numbers of those ``lost`` and those that came ``twice``.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
import threading
import time
from collections import Counter

PORT = 9710
_PACE_S, _LAST_S = 0.0005, 1.0


def echo() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        datagrams.bind(("", PORT))
        print("ready", flush=True)
        while True:
            data, peer = datagrams.recvfrom(100)
            datagrams.sendto(data, peer)


def ask(address: str) -> None:
    came: list[int] = []
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: ending.set())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        datagrams.connect((address, PORT))
        datagrams.settimeout(_LAST_S)

        def collect() -> None:
            try:
                while True:
                    came.append(int(datagrams.recv(100)))
            except TimeoutError:
                return

        datagrams.send(b"0")
        came.append(int(datagrams.recv(100)))  # the way is known now: no datagram waits for ARP
        collecting = threading.Thread(target=collect)
        collecting.start()
        print("ready", flush=True)
        number = 0
        while not ending.is_set():
            number += 1
            datagrams.send(b"%d" % number)
            time.sleep(_PACE_S)
        collecting.join()
    lost = sorted(set(range(1, number + 1)) - set(came))
    twice = sorted(sequence for sequence, times in Counter(came).items() if times > 1)
    print(json.dumps({"sent": number, "lost": lost, "twice": twice}))


if __name__ == "__main__":
    echo() if sys.argv[1] == "echo" else ask(sys.argv[2])
