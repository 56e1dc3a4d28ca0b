"""Probes: numbered, time-stamped datagrams between two hosts, sent in one namespace and received in another.

Containers of one machine share the clock, so the difference of two stamps is a one-way delay (RFC 7679); with several
machines the client corrects it by ``probe_clock``. The receiver's
stamp is the kernel's (SO_TIMESTAMPNS, socket(7)), so that a late wake-up of this program does not count.
"""

from __future__ import annotations

import errno
import socket
import struct
import threading
import time
import zlib
from pathlib import Path
from typing import Any

from .protocol import Operation, Refused

# include/uapi/asm-generic/socket.h
_SO_NO_CHECK = 11
_SO_RCVBUFFORCE = 33
_SO_TIMESTAMPNS = 35

_HEADER = struct.Struct("!QII")
"""The numbers of the flight and of the probe in it, and the CRC-32 of the datagram with 0 in this field."""
_STAMP = struct.Struct("@ll")
_LARGEST = 65_507
_BUFFER_BYTES = 16 * 2**20
_POLL_S = 0.005
_STAMPS_WITHIN_S, _STAMPS_POLL_S = 2.0, 0.0002
# An upper bound of the memory that the kernel charges for a queued datagram (skb->truesize).
_HELD_TIMES, _HELD_BYTES = 4, 1024
_TABLES = (Path("/usr/lib/tc"), Path("/usr/share/tc"), Path("/usr/lib/x86_64-linux-gnu/tc"))


class Probes:
    """The probes of one namespace: at most one listener at a time."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._flight = 0
        self._arrivals: list[tuple[int, int]] = []
        self._numbers: set[int] = set()
        self._damaged = 0
        self._last = 0.0

    def operations(self) -> dict[str, Operation]:
        """The protocol's operations."""
        return {
            "probe_listen": self.listen,
            "probe_send": self.send,
            "probe_collect": self.collect,
            "probe_clock": time.time_ns,
            "delay_table": delay_table,
        }

    def listen(self, *, address: str, flight: int, hold: int = 0, size_bytes: int = 0, port: int = 0) -> dict[str, int]:
        """Receive the probes of a flight on this port of this address, 0 for a free one, from now on.

        ``hold``: how many probes of ``size_bytes`` the kernel should hold until they are collected, if its buffer is
        large enough. On few processors the receiver would take CPU time from the sender, which would shape a train.
        """
        self._close()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = receiver = socket.socket(family, socket.SOCK_DGRAM)
        receiver.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        try:
            receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        except PermissionError:  # the maximum for an ordinary user
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        try:
            receiver.bind((address, port))
        except OSError as error:
            self._close()
            raise Refused(f"cannot receive probes on {address}: {error.strerror}") from None
        receiver.settimeout(_POLL_S)
        _await_stamps()
        self._flight, self._arrivals, self._numbers, self._damaged = flight, [], set(), 0
        self._last = time.monotonic()
        held_bytes = hold * _HELD_TIMES * (size_bytes + _HELD_BYTES)
        if not 0 < held_bytes <= receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF):
            self._begin()
        return {"port": receiver.getsockname()[1]}

    def _begin(self) -> None:
        if self._thread is None and self._socket is not None:
            self._thread = threading.Thread(target=self._receive, args=(self._socket,), name="probes", daemon=True)
            self._thread.start()

    def _receive(self, receiver: socket.socket) -> None:
        while True:
            try:
                data, ancillary, _flags, _peer = receiver.recvmsg(_LARGEST, 64)
            except TimeoutError:
                if self._socket is not receiver:
                    return
                continue
            except OSError:  # it was closed
                return
            self._last = time.monotonic()
            flight, number, crc = _HEADER.unpack_from(data) if len(data) >= _HEADER.size else (0, 0, 0)
            if crc != _crc(flight, number, data[_HEADER.size :]):
                self._damaged += 1
            elif flight == self._flight:
                self._arrivals.append((number, _stamp(ancillary)))
                self._numbers.add(number)

    def send(
        self,
        *,
        source: str,
        address: str,
        port: int,
        flight: int,
        count: int,
        pace_s: float,
        size_bytes: int,
        checksum: bool = True,
        source_port: int = 0,
        rush: bool = False,
    ) -> dict[str, Any]:
        """Send ``count`` probes of ``size_bytes``, one every ``pace_s`` seconds; returns their times in nanoseconds.

        ``rush``: after a late probe send the next ones faster; otherwise the next is due half a pace later at the
        earliest. ``checksum``: without it a damaged probe arrives and can be counted. ``source_port``: for a link that
        is narrowed to a port; 0 for any.
        """
        if not _HEADER.size <= size_bytes <= _LARGEST:
            raise Refused(f"size_bytes={size_bytes}: must lie between {_HEADER.size} and {_LARGEST}")
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        filler = bytes(size_bytes - _HEADER.size)
        probes = [_HEADER.pack(flight, number, _crc(flight, number, filler)) + filler for number in range(count)]
        stamps: list[int] = []
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            if not checksum:
                sender.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, 1)
            try:
                sender.bind((source, source_port))
                sender.connect((address, port))
                due = time.monotonic()
                for probe in probes:
                    while (left_s := due - time.monotonic()) > 0:
                        time.sleep(left_s)
                    stamps.append(time.time_ns())
                    sender.send(probe)
                    due = due + pace_s if rush else max(due + pace_s, time.monotonic() + pace_s / 2)
            except OSError as error:
                reason = f"probe {len(stamps)} from {source} to {address} was not sent: {error.strerror}"
                raise Refused(reason, kind="in use" if error.errno == errno.EADDRINUSE else "refused") from None
        return {"sent_ns": stamps}

    def collect(self, *, expect: int, quiet_s: float, deadline_s: float) -> dict[str, Any]:
        """Wait for ``expect`` different probes, or ``quiet_s`` without any; stop receiving, and return the arrivals."""
        self._begin()
        begin = time.monotonic()
        while len(self._numbers) < expect and (now := time.monotonic()) - begin < deadline_s:
            if now - max(self._last, begin) > quiet_s:
                break
            time.sleep(_POLL_S)
        self._close()
        return {"arrivals": self._arrivals, "damaged": self._damaged}

    def _close(self) -> None:
        closing, self._socket = self._socket, None
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if closing is not None:
            closing.close()


def _await_stamps() -> None:
    """Wait until the kernel stamps datagrams as they arrive. Raises Refused if it does not in time.

    It starts to do so some time after SO_TIMESTAMPNS was set on the first socket of the machine (net/core/dev.c,
    net_enable_timestamp). Until then a datagram gets its stamp when it is read.
    """
    deadline = time.monotonic() + _STAMPS_WITHIN_S
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as loop:
            loop.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            loop.settimeout(_STAMPS_WITHIN_S)
            loop.bind(("127.0.0.1", 0))
            while True:
                loop.sendto(b"", loop.getsockname())
                sent_ns = time.time_ns()
                _data, ancillary, _flags, _peer = loop.recvmsg(1, 64)
                if (late_ns := _stamp(ancillary) - sent_ns) <= 0:
                    return
                if time.monotonic() >= deadline:
                    raise Refused(f"the kernel stamps datagrams only as they are read, {late_ns / 1e6:g} ms late")
                time.sleep(_STAMPS_POLL_S)
    except OSError as error:
        raise Refused(f"cannot try the kernel's time stamps over loopback: {error.strerror or error}") from None


def delay_table(*, name: str) -> list[int]:
    """A table of delays as tc gives it to netem, from iproute2's NAME.dist; in units of the jitter / 8192."""
    for folder in _TABLES:
        path = folder / f"{name}.dist"
        if path.is_file():
            lines = path.read_text().splitlines()
            return [int(word) for line in lines if not line.startswith("#") for word in line.split()]
    raise Refused(f"no table {name}.dist in {', '.join(map(str, _TABLES))}")


def _crc(flight: int, number: int, filler: bytes) -> int:
    return zlib.crc32(filler, zlib.crc32(_HEADER.pack(flight, number, 0)))


def _stamp(ancillary: list[tuple[int, int, bytes]]) -> int:
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(data) >= _STAMP.size:
            seconds, nanoseconds = _STAMP.unpack_from(data)
            return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return time.time_ns()
