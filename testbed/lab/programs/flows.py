"""Competing traffic: ``flows.py receive …`` takes it, ``flows.py send …`` sends it until it gets SIGTERM.

Standard library only: it runs in a host of the user's. It prints one line of JSON when it is ready, and one with its
account when it ends. A TCP flow begins with its number; a datagram has its flow's number and its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import selectors
import signal
import socket
import struct
import time

_NUMBER = struct.Struct("!I")
_HEAD = struct.Struct("!IQ")
_CHUNK = bytes(1 << 16)
_MOST_BYTES = 1 << 18
_BUFFER_BYTES = 1 << 21
_AT_ONCE = 32
"""Datagrams that a sender which is late sends in a row."""


class FlowCount:
    """What was sent, or has arrived, of one flow."""

    def __init__(self) -> None:
        self.bytes = self.packets = 0
        self.first_s = self.last_s = 0.0
        self.failed: str | None = None

    def add(self, size_bytes: int) -> None:
        """Add so many bytes, in one packet or one piece of a stream."""
        self.last_s = time.monotonic()
        self.first_s = self.first_s or self.last_s
        self.bytes += size_bytes
        self.packets += 1


CountsByFlow = dict[int, FlowCount]


def _say_counts(counts: CountsByFlow) -> None:
    print(
        json.dumps(
            {
                number: {
                    "bytes": count.bytes,
                    "packets": count.packets,
                    "duration_s": count.last_s - count.first_s,
                    "failed": count.failed,
                }
                for number, count in counts.items()
            }
        ),
        flush=True,
    )


class Ending:
    """Whether SIGTERM has come; the signal wakes a selector."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self.come = False
        self._woken, self._wakes = socket.socketpair()
        self._wakes.setblocking(False)
        signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "come", True))
        selector.register(self._woken, selectors.EVENT_READ, None)


class ArrivingFlow:
    """A TCP flow that arrives."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        self._head = b""
        peer.setblocking(False)

    def take(self, counts: CountsByFlow) -> bool:
        """FlowCount what has arrived; False at its end."""
        try:
            data = self.peer.recv(_MOST_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        missing = _NUMBER.size - len(self._head)
        self._head += data[:missing]
        if payload := data[missing:]:
            counts.setdefault(_NUMBER.unpack(self._head)[0], FlowCount()).add(len(payload))
        return bool(data)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _receive(address: str) -> None:
    selector, counts = selectors.DefaultSelector(), CountsByFlow()
    ending = Ending(selector)
    listener = socket.create_server((address, 0), family=_family(address), backlog=1024)
    datagrams = socket.socket(_family(address), socket.SOCK_DGRAM)
    datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    datagrams.bind((address, 0))
    for end in (listener, datagrams):
        end.setblocking(False)
        selector.register(end, selectors.EVENT_READ, None)
    print(json.dumps({"tcp": listener.getsockname()[1], "udp": datagrams.getsockname()[1]}), flush=True)
    while not ending.come:
        for key, _ in selector.select():
            with contextlib.suppress(BlockingIOError):
                if key.fileobj is listener:
                    connection = ArrivingFlow(listener.accept()[0])
                    selector.register(connection.peer, selectors.EVENT_READ, connection)
                elif key.fileobj is datagrams:
                    data = datagrams.recv(_MOST_BYTES)
                    counts.setdefault(_HEAD.unpack_from(data)[0], FlowCount()).add(len(data))
                elif key.data is not None and not key.data.take(counts):
                    selector.unregister(key.fileobj)
                    key.data.peer.close()
    _say_counts(counts)


def _open(address: str, port: int, number: int) -> socket.socket:
    peer = socket.create_connection((address, port))
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))  # nothing lingers at the end
    peer.sendall(_NUMBER.pack(number))
    peer.setblocking(False)
    return peer


def _send(address: str, options: argparse.Namespace) -> None:
    selector = selectors.DefaultSelector()
    ending = Ending(selector)
    counts = CountsByFlow({number: FlowCount() for number in (*options.tcp, *options.udp)})
    for number in options.tcp:
        selector.register(_open(address, options.tcp_port, number), selectors.EVENT_WRITE, number)
    datagrams = socket.socket(_family(address), socket.SOCK_DGRAM)
    datagrams.connect((address, options.udp_port))
    payload, gap_s = bytes(options.size - _HEAD.size), options.size * 8 / options.rate
    print(json.dumps({"ready": True}), flush=True)
    began_s, packets, wait_s = time.monotonic(), 0, None
    while not ending.come:
        for number in options.udp:
            due = int((time.monotonic() - began_s) / gap_s) + 1
            for packet in range(packets, min(due, packets + _AT_ONCE)):
                with contextlib.suppress(OSError):  # nobody takes it, or the sender's own queue is full: lost
                    datagrams.send(_HEAD.pack(number, packet) + payload)
                    counts[number].add(options.size)
                packets = packet + 1
            wait_s = max(0.0, began_s + packets * gap_s - time.monotonic())
        for key, _ in selector.select(wait_s):
            if isinstance(key.fileobj, socket.socket) and key.data is not None:
                try:
                    counts[key.data].add(key.fileobj.send(_CHUNK))
                except BlockingIOError:
                    continue
                except OSError as error:
                    selector.unregister(key.fileobj)
                    counts[key.data].failed = error.strerror
    for key in list(selector.get_map().values()):
        if isinstance(key.fileobj, socket.socket):
            key.fileobj.close()
    _say_counts(counts)


def main() -> None:
    """Run one end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("end", choices=("receive", "send"))
    parser.add_argument("address", help="of the receiver")
    parser.add_argument("--tcp-port", type=int)
    parser.add_argument("--udp-port", type=int)
    parser.add_argument("--tcp", type=int, nargs="*", default=(), help="the number of each TCP flow")
    parser.add_argument("--udp", type=int, nargs="*", default=(), help="the number of the UDP flow")
    parser.add_argument("--rate", type=float, default=1.0, help="of its payload; bits per second")
    parser.add_argument("--size", type=int, default=_HEAD.size, help="of a datagram's payload; bytes")
    options = parser.parse_args()
    if options.end == "receive":
        _receive(options.address)
    else:
        _send(options.address, options)


if __name__ == "__main__":
    main()
