"""Bytes in bulk, as programs send them that nobody prepared: whole writes, and the kernel cuts them.

``serve [BUFFER_BYTES]``: take what is announced on TCP port 9700 and say so, count what comes to UDP port 9700 and tell
on TCP; a receive buffer (SO_RCVBUF) bounds how many packets of a connection are under way. ``send ADDRESS BYTES``: over
TCP; prints how long it took, seconds. ``gso ADDRESS COUNT``: datagrams of 1,200 bytes, up to 50 in a write
(UDP_SEGMENT, udp(7)), each write once the one before has arrived; prints how many arrived.
"""

from __future__ import annotations

import socket
import sys
import threading
import time

PORT = 9700
_UDP_SEGMENT = 103
_DATAGRAM_BYTES, _AT_ONCE = 1200, 50
_counted: list[int] = []


def _take(peer: socket.socket) -> None:
    with peer, peer.makefile("rwb") as stream:
        want = int(stream.readline())
        if want == 0:  # how many datagrams came
            stream.write(b"%d\n" % len(_counted))
            return
        while want > 0 and (data := stream.read1(1 << 20)):
            want -= len(data)
        stream.write(b"%d\n" % want)


def _count(datagrams: socket.socket) -> None:
    while True:
        _counted.append(len(datagrams.recv(65535)))


def serve(buffer_bytes: int | None = None) -> None:
    datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    datagrams.bind(("", PORT))
    threading.Thread(target=_count, args=[datagrams], daemon=True).start()
    listener = socket.create_server(("", PORT), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
    if buffer_bytes is not None:  # what is accepted inherits it
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    print("ready", flush=True)
    while True:
        threading.Thread(target=_take, args=[listener.accept()[0]], daemon=True).start()


def send(address: str, count: int, port: int = PORT) -> float:
    data = bytes(count)
    began = time.perf_counter()
    with socket.create_connection((address, port), timeout=60) as peer, peer.makefile("rwb") as stream:
        stream.write(b"%d\n" % count)
        stream.flush()
        peer.sendall(data)
        if stream.readline() != b"0\n":
            sys.exit("the server did not take all")
    return time.perf_counter() - began


def _arrived(address: str) -> int:
    with socket.create_connection((address, PORT), timeout=60) as peer, peer.makefile("rwb") as stream:
        stream.write(b"0\n")
        stream.flush()
        return int(stream.readline())


def gso(address: str, count: int) -> int:
    before, arrived = _arrived(address), 0
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, _DATAGRAM_BYTES)
        datagrams.connect((address, PORT))
        for begin in range(0, count, _AT_ONCE):
            sent = min(begin + _AT_ONCE, count)
            datagrams.send(bytes(_DATAGRAM_BYTES * (sent - begin)))
            deadline = time.monotonic() + 10
            while (arrived := _arrived(address) - before) < sent and time.monotonic() < deadline:
                time.sleep(0.002)
            if arrived < sent:
                break
    return arrived


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", *buffer_bytes]:
            serve(*map(int, buffer_bytes))
        case ["send", address, count]:
            print(send(address, int(count)))
        case ["gso", address, count]:
            print(gso(address, int(count)))
        case _:
            sys.exit(__doc__)
