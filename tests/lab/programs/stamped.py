"""Datagrams with the times at which they were sent and arrived, by CLOCK_MONOTONIC, which hosts share.

stamped.py receive PORT                    until SIGTERM; then print [[number, time], …] as JSON
stamped.py send HOST PORT COUNT PACE_S     send that many; print the time of each as JSON
"""

import json
import signal
import socket
import sys
import time


def receive(port: int) -> None:
    """Note when each number came."""
    arrived: list[tuple[int, float]] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        server.bind(("", port))
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(print(json.dumps(arrived), flush=True)))
        print("ready", flush=True)
        while True:
            data = server.recv(2048)
            arrived.append((int(data), time.monotonic()))


def send(host: str, port: int, count: int, pace_s: float) -> None:
    """Send at a steady pace; wait a second for the last ones to arrive."""
    sent = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect((host, port))
        begin = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, begin + number * pace_s - time.monotonic()))
            sent.append(time.monotonic())
            client.send(b"%d" % number)
        time.sleep(1.0)
    print(json.dumps(sent))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["receive", port]:
            receive(int(port))
        case ["send", host, port, count, pace_s]:
            send(host, int(port), int(count), float(pace_s))
        case _:
            sys.exit(__doc__)
