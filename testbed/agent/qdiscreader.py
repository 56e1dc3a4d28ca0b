"""Read a single qdisc back by netlink.

``tc qdisc show`` dumps every qdisc of every device, which takes milliseconds for some hundred of them. The kernel
reports a single one at once (RTM_GETQDISC without NLM_F_DUMP; net/sched/sch_api.c, tc_get_qdisc). The result has the
names and units of ``tc -s -j``. Formats: linux/pkt_sched.h and linux/gen_stats.h; iproute2's q_netem.c and q_tbf.c.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from .protocol import Refused

_NETLINK_ROUTE = 0
_HEADER, _TCMSG = struct.Struct("=IHHII"), struct.Struct("=BxxxiIII")
_NOOP, _ERROR, _RTM_NEWQDISC, _RTM_GETQDISC = 1, 2, 36, 38
_REQUEST, _ACK, _ECHO = 0x1, 0x4, 0x8
_ATTRIBUTE = struct.Struct("=HH")
_KIND_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_TCA_KIND, _TCA_OPTIONS, _TCA_STATS2 = 1, 2, 7
_STATS_BASIC, _STATS_QUEUE = 1, 3

_TICK_S = 64e-9  # PSCHED_SHIFT 6
_WHOLE = 2**32 - 1  # a share of 1

NUDGE_AFTER_S = 0.1
"""A carried kernel under load sometimes does not notice input on its console until more input arrives."""
_NUDGE = _HEADER.pack(_HEADER.size, _NOOP, _REQUEST, 0, 0)

_REQUESTS_AT_ONCE = 50
"""A carried kernel's console holds 4096 unread bytes and drops the rest."""

QdiscAccount = dict[str, Any]
"""A qdisc, as in ``tc -s -j qdisc show``."""
BatchLine = str | Mapping[str, Any]
"""A line for tc; or ``{"read_qdisc": {"device": …, "parent": …}}``, which reads back the qdisc below one parent.

The parent is the kernel's number: 0x10010 where tc writes 1:10.
"""


class NetlinkChannel(Protocol):
    """Carries netlink messages to a kernel and back."""

    def send(self, data: bytes) -> None:
        """Write all bytes."""

    def receive(self, deadline: float) -> bytes:
        """Whatever has arrived, at least one byte. Raises Refused at the deadline (of time.monotonic)."""


class OwnKernel:
    """The kernel of this machine, in the network namespace where the object was created."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE)
        self._socket.bind((0, 0))

    def send(self, data: bytes) -> None:
        """Write all bytes."""
        self._socket.send(data)

    def receive(self, deadline: float) -> bytes:
        """See `NetlinkChannel`."""
        self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            return self._socket.recv(65536)
        except TimeoutError:
            raise Refused("the kernel did not answer a request by netlink in time") from None


class RelayedKernel:
    """A kernel in which `guesthelper` runs, at the other end of two descriptors."""

    def __init__(self, write_fd: int, read_fd: int, *, alive: Callable[[], str | None]) -> None:
        """``alive``: why the kernel has ended, or None while it has not."""
        self._write_fd, self._read_fd, self._alive = write_fd, read_fd, alive

    def await_ready(self, *, deadline_s: float) -> None:
        """Wait for the line ``ready``: from then on the console can be written to."""
        data, deadline = b"", time.monotonic() + deadline_s
        while not data.endswith(b"ready\n"):
            # No nudge: its acknowledgement might come together with the line.
            data += self._receive(deadline, nudge=False)

    def send(self, data: bytes) -> None:
        """Write all bytes."""
        try:
            while data:
                data = data[os.write(self._write_fd, data) :]
        except BrokenPipeError:
            raise Refused(f"netlink of the carried kernel ended: {self._alive() or 'it closed its end'}") from None

    def receive(self, deadline: float) -> bytes:
        """See `NetlinkChannel`."""
        return self._receive(deadline, nudge=True)

    def _receive(self, deadline: float, *, nudge: bool) -> bytes:
        while True:
            left = deadline - time.monotonic()
            # Not select(2), which takes no descriptor above 1023: a lab of many hosts has such.
            waiting = select.poll()
            waiting.register(self._read_fd, select.POLLIN)
            ready = waiting.poll(1000 * max(0.0, min(left, NUDGE_AFTER_S)))
            if nudge and not ready:
                self.send(_NUDGE)
            if ready and (data := os.read(self._read_fd, 65536)):
                return data
            if ready or self._alive():
                raise Refused(f"netlink of the carried kernel ended: {self._alive() or 'it closed its end'}")
            if left <= 0:
                raise Refused("the carried kernel did not answer a request by netlink in time")


class QdiscReader:
    """Reads single qdiscs of one kernel; thread-safe."""

    def __init__(self, channel: NetlinkChannel) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._sequence = 0
        self._pending = b""

    def get(self, places: Sequence[tuple[int, int]], *, deadline_s: float = 5.0) -> list[QdiscAccount | str | None]:
        """For each place (ifindex, parent): the qdisc there, None if there is none, or the reason of an error.

        Raises Refused if the kernel does not answer.
        """
        with self._lock:
            results: list[QdiscAccount | str | None] = []
            for start in range(0, len(places), _REQUESTS_AT_ONCE):
                results += self._get(places[start : start + _REQUESTS_AT_ONCE], time.monotonic() + deadline_s)
            return results

    def write(self, path: str, text: str, *, deadline_s: float = 5.0) -> str | None:
        """Have a carried kernel's `guesthelper` write a file in that kernel; the reason if it fails, or None."""
        with self._lock:
            self._sequence += 1
            body = f"{path}\0{text}".encode()
            self._channel.send(_HEADER.pack(_HEADER.size + len(body), _NOOP, _REQUEST, self._sequence, 0) + body)
            deadline = time.monotonic() + deadline_s
            while True:
                kind, number, answer = self._message(deadline)
                if (kind, number) == (_ERROR, self._sequence):
                    (code,) = struct.unpack_from("=i", answer)
                    return os.strerror(-code) if code else None

    def _get(self, places: Sequence[tuple[int, int]], deadline: float) -> Iterator[QdiscAccount | str | None]:
        first = self._sequence + 1
        self._sequence += len(places)
        last = self._sequence
        requests = (_request(number, *place, last=number == last) for number, place in enumerate(places, first))
        self._channel.send(b"".join(requests))
        results: dict[int, QdiscAccount | str | None] = {}
        ended = False
        while not ended:
            kind, number, body = self._message(deadline)
            if number < first:
                continue  # the reply to a nudge, or a late one
            if kind == _RTM_NEWQDISC:
                results[number] = account(body)
            elif kind == _ERROR:
                ended = number == last
                (code,) = struct.unpack_from("=i", body)
                if code and -code != errno.ENOENT:  # ENOENT: no such class, so no qdisc
                    results[number] = os.strerror(-code)
        return (results.get(number) for number in range(first, first + len(places)))

    def _message(self, deadline: float) -> tuple[int, int, bytes]:
        """Type, sequence number and body of the next message."""
        while len(self._pending) < _HEADER.size or len(self._pending) < self._length():
            self._pending += self._channel.receive(deadline)
        length = self._length()
        _, kind, _, number, _ = _HEADER.unpack_from(self._pending)
        body, self._pending = self._pending[_HEADER.size : length], self._pending[(length + 3) & ~3 :]
        return kind, number, body

    def _length(self) -> int:
        (length,) = struct.unpack_from("=I", self._pending)
        return int(length)


def _request(number: int, ifindex: int, parent: int, *, last: bool) -> bytes:
    # A class's default queue is not reported, and only an acknowledgement would show that there is none. The kernel
    # takes requests in order, so that of the last one is enough: in a carried kernel each message costs a system call.
    # Older kernels reply to listeners (RTNLGRP_TC), and to the requester only with NLM_F_ECHO.
    flags = _REQUEST | _ECHO | (_ACK if last else 0)
    header = (_HEADER.size + _TCMSG.size, _RTM_GETQDISC, flags, number, 0)
    return _HEADER.pack(*header) + _TCMSG.pack(socket.AF_UNSPEC, ifindex, 0, parent, 0)


def account(body: bytes) -> QdiscAccount:
    """A qdisc as in ``tc -s -j qdisc show``, from a message's body: struct tcmsg and attributes."""
    _, _, handle, parent, _ = _TCMSG.unpack_from(body)
    attributes = _attributes(body[_TCMSG.size :])
    kind = attributes[_TCA_KIND].rstrip(b"\0").decode()
    options, parse = attributes.get(_TCA_OPTIONS, b""), _PARSERS.get(kind)
    return {
        "kind": kind,
        "handle": f"{handle >> 16:x}:",
        "parent": f"{parent >> 16:x}:{parent & 0xFFFF:x}",
        "options": parse(options) if parse and options else {},
        **_statistics(_attributes(attributes.get(_TCA_STATS2, b""))),
    }


def _attributes(data: bytes) -> dict[int, bytes]:
    attributes, at = {}, 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            break
        attributes[kind & _KIND_MASK] = data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return attributes


def _statistics(groups: Mapping[int, bytes]) -> dict[str, int]:
    sent = struct.unpack_from("=QI", groups.get(_STATS_BASIC, bytes(16)))
    queue = struct.unpack_from("=5I", groups.get(_STATS_QUEUE, bytes(20)))
    names = ("bytes", "packets", "qlen", "backlog", "drops", "requeues", "overlimits")
    return dict(zip(names, (*sent, *queue), strict=True))


# --- netem -----------------------------------------------------------------------------------------

_QOPT = struct.Struct("=6I")  # struct tc_netem_qopt: latency, limit, loss, gap, duplicate, jitter
_CORRELATIONS, _REORDER, _CORRUPT, _LOSS, _RATE, _ECN, _RATE64 = 1, 3, 4, 5, 6, 7, 8
_LATENCY64, _JITTER64, _SLOT, _SEED = 10, 11, 12, 14
_LOSS_STATE, _LOSS_GILBERT = 1, 2


def _netem(data: bytes) -> dict[str, Any]:
    latency, limit, loss, gap, duplicate, jitter = _QOPT.unpack_from(data)
    more = _attributes(data[_QOPT.size :])
    of_delay, of_loss, of_duplicates = struct.unpack_from("=3I", more.get(_CORRELATIONS, bytes(12)))
    options: dict[str, Any] = {"limit": limit, "gap": gap, "ecn": any(more.get(_ECN, b""))}
    delay_s, jitter_s = (
        struct.unpack("=q", more[kind])[0] / 1e9 if kind in more else ticks * _TICK_S
        for kind, ticks in ((_LATENCY64, latency), (_JITTER64, jitter))
    )
    if delay_s or jitter_s:
        options["delay"] = {"delay": delay_s, "jitter": jitter_s, "correlation": of_delay / _WHOLE}
    if loss:
        options["loss-random"] = {"loss": loss / _WHOLE, "correlation": of_loss / _WHOLE}
    options |= _model(_attributes(more.get(_LOSS, b"")))
    if duplicate:
        options["duplicate"] = {"duplicate": duplicate / _WHOLE, "correlation": of_duplicates / _WHOLE}
    for name, kind in (("reorder", _REORDER), ("corrupt", _CORRUPT)):
        share, correlation = struct.unpack_from("=2I", more.get(kind, bytes(8)))
        if share:
            options[name] = {name: share / _WHOLE, "correlation": correlation / _WHOLE}
    options |= _rate(more)
    if _SLOT in more:
        options["slot"] = _slot(more[_SLOT])
    if _SEED in more:
        options["seed"] = struct.unpack("=Q", more[_SEED])[0]
    return options


def _model(models: Mapping[int, bytes]) -> dict[str, Any]:
    """Loss by the four-state model, or by Gilbert and Elliott's."""
    if _LOSS_STATE in models:  # struct tc_netem_gimodel
        shares = struct.unpack_from("=5I", models[_LOSS_STATE])
        names = ("p13", "p31", "p32", "p14", "p23")
        return {"loss-state": {name: share / _WHOLE for name, share in zip(names, shares, strict=True)}}
    if _LOSS_GILBERT in models:  # struct tc_netem_gemodel; it has h where tc shows 1-h
        p, r, h, k1 = struct.unpack_from("=4I", models[_LOSS_GILBERT])
        return {"loss-gemodel": {"p": p / _WHOLE, "r": r / _WHOLE, "1-h": 1 - h / _WHOLE, "1-k": k1 / _WHOLE}}
    return {}


def _rate(more: Mapping[int, bytes]) -> dict[str, Any]:
    """Bytes per second, and the overhead per packet (struct tc_netem_rate)."""
    rate, overhead, cell, cell_overhead = struct.unpack_from("=IiIi", more.get(_RATE, bytes(16)))
    if _RATE64 in more:
        (rate,) = struct.unpack("=Q", more[_RATE64])
    if not rate:
        return {}
    return {"rate": {"rate": rate, "packetoverhead": overhead, "cellsize": cell, "celloverhead": cell_overhead}}


def _slot(data: bytes) -> dict[str, Any]:
    """Struct tc_netem_slot: between two delays, or around a mean."""
    least_ns, most_ns, packets, count, mean_ns, jitter_ns = struct.unpack_from("=qqiiqq", data)
    if jitter_ns:
        times = {"distribution": mean_ns / 1e9, "jitter": jitter_ns / 1e9}
    else:
        times = {"min-delay": least_ns / 1e9, "max-delay": most_ns / 1e9}
    return {**times, "packets": packets, "bytes": count}


# --- tbf -------------------------------------------------------------------------------------------

_TBF_PARMS, _TBF_RATE64 = 1, 4
_RATESPEC_BYTES = 12
_RATE_AT = 8  # in struct tc_ratespec


def _tbf(data: bytes) -> dict[str, Any]:
    """As tc reports: the bucket in bytes, computed from its time at the rate; ``lat``, in µs, of a full queue."""
    attributes = _attributes(data)
    parameters = attributes[_TBF_PARMS]
    (rate,) = struct.unpack_from("=I", parameters, _RATE_AT)
    if _TBF_RATE64 in attributes:
        (rate,) = struct.unpack("=Q", attributes[_TBF_RATE64])
    limit, bucket_ticks = struct.unpack_from("=II", parameters, 2 * _RATESPEC_BYTES)
    bucket_s = bucket_ticks * _TICK_S
    return {"rate": rate, "burst": round(rate * bucket_s), "lat": (limit / rate - bucket_s) * 1e6 if rate else 0.0}


_PARSERS: Mapping[str, Callable[[bytes], dict[str, Any]]] = {"netem": _netem, "tbf": _tbf}
