"""Exchange messages: ``peer.py serve`` answers; ``peer.py tcp PORT COUNT SIZE`` sends from a port, and so does ``udp``.

A message goes out at each fifth of a second of the clock, from a whole one on, so that no packet's time depends on what
an interpreter did before. Of what is lost nobody hears; of TCP the end of the last message is awaited.
"""

import ctypes
import select
import socket
import struct
import sys
import time

_PORT, _EVERY_NS, _BESIDE_NS = 7000, 201_370_000, 3_456_000
_PR_SET_TIMERSLACK = 29
_MTU_DISCOVER = (socket.IPPROTO_IP, 10, 2)  # always: then datagrams have no identification, which would be random


def _wait_until(time_ns: int) -> None:
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1))
    libc.clock_nanosleep(time.CLOCK_REALTIME, 1, struct.pack("=qq", *divmod(time_ns, 10**9)), None)


def _serve() -> None:
    listener = socket.create_server(("", _PORT))
    datagrams = socket.socket(type=socket.SOCK_DGRAM)
    datagrams.setsockopt(*_MTU_DISCOVER)
    datagrams.bind(("", _PORT))
    print("listening", flush=True)
    readers = [listener, datagrams]
    while True:
        for reader in select.select(readers, [], [])[0]:
            if reader is listener:
                readers.append(listener.accept()[0])
            elif reader is datagrams:
                data, peer = datagrams.recvfrom(65536)
                datagrams.sendto(data, peer)
            elif data := reader.recv(65536):
                reader.sendall(data)
            else:
                readers.remove(reader)
                reader.close()


def _send(kind: int, port: int, count: int, size: int) -> None:
    begin_ns = (time.time_ns() // 10**9 + 2) * 10**9 + _BESIDE_NS
    server = socket.gethostbyname("server"), _PORT
    peer = socket.socket(type=kind)
    peer.setsockopt(*_MTU_DISCOVER)
    peer.bind(("", port))
    _wait_until(begin_ns)
    if kind == socket.SOCK_STREAM:
        peer.connect(server)
    for number in range(count):
        _wait_until(begin_ns + (number + 5) * _EVERY_NS)
        message = bytes([number % 256]) * size
        peer.sendall(message) if kind == socket.SOCK_STREAM else peer.sendto(message, server)
    left = count * size
    while kind == socket.SOCK_STREAM and left:
        left -= len(peer.recv(65536))
    _wait_until(begin_ns + (count + 10) * _EVERY_NS)
    peer.close()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        _serve()
    else:
        _send({"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[sys.argv[1]], *map(int, sys.argv[2:]))
