"""Numbered UDP datagrams, for counting what a link does to them. Runs in the stack's containers.

datagrams.py receive PORT [LINGER_S]            count until a datagram "end", and on until none came for LINGER_S;
                                                then print numbers and times as JSON
datagrams.py send HOST PORT COUNT               send COUNT numbered datagrams, 2 ms apart, then "end" until answered
datagrams.py echo PORT                          answer every datagram
datagrams.py round-trips HOST PORT COUNT        print the round-trip times in seconds as JSON
"""

import json
import socket
import sys
import time


def listening(port: int) -> socket.socket:
    """A socket for both families, or for IPv4 where there is no other."""
    if not socket.has_dualstack_ipv6():
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("", port))
        return server
    server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.bind(("::", port))
    return server


def connected(host: str, port: int) -> socket.socket:
    """A socket that sends there; a link-local address has its interface behind a percent sign."""
    ((family, kind, _protocol, _name, address), *_) = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    client = socket.socket(family, kind)
    client.connect(address)
    return client


def receive(port: int, linger_s: float) -> None:
    """Print the numbers in order of arrival, and when each came, once "end" came; answer it.

    ``linger_s``: for how long nothing more must come then, where "end" may overtake others; 0: it is the last.
    """
    with listening(port) as server:
        print("ready", flush=True)
        numbers, times = [], []
        while True:
            try:
                data, peer = server.recvfrom(2048)
            except TimeoutError:
                break
            if data == b"end":
                server.sendto(b"end", peer)
                if not linger_s:
                    break
                server.settimeout(linger_s)
                continue
            numbers.append(int(data))
            times.append(time.monotonic())
        print(json.dumps(numbers), flush=True)
        print(json.dumps(times), flush=True)


def send(host: str, port: int, count: int, attempts: int, pace_s: float) -> None:
    """Send the numbers 0 to count-1 at a steady pace, then say that this was all, until it is heard."""
    with connected(host, port) as client:
        due = time.monotonic()
        for number in range(count):
            while time.monotonic() < due:
                time.sleep(pace_s / 4)
            client.send(b"%d" % number)
            due = time.monotonic() + pace_s  # no catching up: a burst would overflow the receiver's socket
        client.settimeout(1.0)
        for _attempt in range(attempts):
            client.send(b"end")
            try:
                client.recv(16)
            except (TimeoutError, ConnectionRefusedError):
                continue
            return
    sys.exit("nobody heard the end")


def echo(port: int) -> None:
    """Answer every datagram, until one says that this was all."""
    with listening(port) as server:
        print("ready", flush=True)
        while True:
            data, peer = server.recvfrom(2048)
            server.sendto(data, peer)
            if data == b"end":
                return


def round_trips(host: str, port: int, count: int) -> None:
    """Print the times of count exchanges, one after the other."""
    times = []
    with connected(host, port) as client:
        client.settimeout(10.0)
        for number in range(count + 1):
            began = time.perf_counter()
            client.send(b"%d" % number)
            client.recv(16)
            times.append(time.perf_counter() - began)
        client.send(b"end")
    print(json.dumps(times[1:]))  # the first one also resolved the address (ARP)


if __name__ == "__main__":
    role, *rest = sys.argv[1:]
    match role:
        case "receive":
            receive(int(rest[0]), float(rest[1]) if rest[1:] else 0.0)
        case "send":
            send(rest[0], int(rest[1]), int(rest[2]), int(rest[3]), float(rest[4]))
        case "echo":
            echo(int(rest[0]))
        case "round-trips":
            round_trips(rest[0], int(rest[1]), int(rest[2]))
        case _:
            sys.exit(__doc__)
