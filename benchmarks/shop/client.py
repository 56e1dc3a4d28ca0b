"""Uses each service of the server once, and prints a line of values for each metric: client.py SERVER [connects].

With ``connects`` it only opens many connections, and prints how long each took. It is run thousands of times, and so
imports little.
"""

from __future__ import annotations

import socket
import sys
import time

from faults import FAULTS

_PORT = 9100
_REQUESTS, _CHUNKS, _CHUNK_BYTES, _MESSAGES, _LONG_BYTES = 3, 10, 4_000, 50, 3_000
_PAUSE_S = 0.010
_CONNECTS, _AT_A_TIME = 48, 16


def _connected(letter: str, server: str, *, nodelay: bool = True) -> socket.socket:
    connection = socket.create_connection((server, _PORT), timeout=20)
    if nodelay:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(letter.encode())
    return connection


def _echo(server: str) -> list[float]:
    """Seconds per request."""
    times = []
    with _connected("e", server) as connection:
        for _ in range(_REQUESTS):
            began = time.monotonic()
            connection.sendall(b"x" * 100)
            connection.recv(10)
            times.append(time.monotonic() - began)
    return times


def _two_writes(server: str) -> list[float]:
    """Seconds per request that is written in two parts."""
    times = []
    with _connected("w", server, nodelay="Nagle" not in FAULTS) as connection:
        for _ in range(_REQUESTS):
            began = time.monotonic()
            connection.sendall(b"h" * 40)
            connection.sendall(b"b" * 60)
            connection.recv(10)
            times.append(time.monotonic() - began)
    return times


def _upload(server: str) -> tuple[float, int]:
    """Bits per second of what the server was sent, by its clock, and the bytes that left the host for it.

    A chunk goes out every so often by the clock, so that one sleep that is too long does not make all later.
    """
    chunk = b"u" * (_CHUNK_BYTES * 105 // 100 if "more bytes" in FAULTS else _CHUNK_BYTES)
    pause_s = _PAUSE_S / 0.9 if "slow sender" in FAULTS else _PAUSE_S
    before = _sent_bytes()
    with _connected("u", server) as connection:
        began = time.monotonic()
        for number in range(1, _CHUNKS + 1):
            connection.sendall(chunk)
            time.sleep(max(0.0, began + number * pause_s - time.monotonic()))
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as answer:
            took_s = float(answer.readline())
    return 8 * _CHUNKS * _CHUNK_BYTES / took_s, _sent_bytes() - before


def _sent_bytes() -> int:
    """By all devices of this host but its loopback."""
    with open("/proc/net/dev", encoding="ascii") as file:
        lines = file.read().splitlines()[2:]
    return sum(int(line.split(":")[1].split()[8]) for line in lines if line.split(":")[0].strip() != "lo")


def _acknowledged(server: str) -> float:
    """The share of messages that the server acknowledged."""
    with _connected("a", server) as connection:
        connection.sendall(b"".join(b"%d\n" % number for number in range(_MESSAGES)))
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as answers:
            return len(answers.readlines()) / _MESSAGES


def _received(server: str) -> float:
    """The share of a long message that the server says it received."""
    with _connected("m", server) as connection:
        connection.sendall(b"x" * (_LONG_BYTES - 1) + b"\n")
        with connection.makefile("rb") as answer:
            return int(answer.readline()) / _LONG_BYTES


def _connects(server: str) -> list[float]:
    """Seconds per connection; a lost SYN costs a second."""
    from concurrent.futures import ThreadPoolExecutor

    def connect(_number: int) -> float:
        began = time.monotonic()
        with _connected("u", server):
            return time.monotonic() - began

    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        return list(pool.map(connect, range(_CONNECTS)))


def main(server: str) -> None:
    """Measure, and print it."""
    rate_bps, sent_bytes = _upload(server)
    metrics: dict[str, list[float]] = {
        "response": _echo(server),
        "two writes": _two_writes(server),
        "goodput": [rate_bps],
        "bytes": [sent_bytes],
        "acknowledged": [_acknowledged(server)],
        "received": [_received(server)],
    }
    for name, values in metrics.items():
        print(f"{name}:", *values)


if __name__ == "__main__":
    if sys.argv[2:] == ["connects"]:
        print("connect:", *_connects(sys.argv[1]))
    else:
        main(sys.argv[1])
