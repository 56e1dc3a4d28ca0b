"""Every TCP socket of this network namespace over time: what the kernel says of it in TCP_INFO.

By netlink (sock_diag(7)). A dump of all sockets costs a walk over the kernel's hash table, so there is one only when
the count of sockets has changed, and now and then; in between the known ones are asked for one by one. The kernel
tells the last state of each socket that it destroys. A state is kept where it differs from the one before.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import threading
import time
from typing import Any

from .parcel import piece
from .protocol import Operation, Refused

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
_NETLINK_SOCK_DIAG = 4
_TCPDIAG_GETSOCK, _BY_FAMILY = 18, 20
_ERROR, _DONE = 2, 3
_REQUEST, _DUMP = 0x001, 0x300
_SOCKSTAT = ("/proc/net/sockstat", "/proc/net/sockstat6")
_GROUPS = 1 << 0 | 1 << 2  # SKNLGRP_INET_TCP_DESTROY, SKNLGRP_INET6_TCP_DESTROY
_INFO = 2  # INET_DIAG_INFO
_HEADER = struct.Struct("=IHHII")
_MESSAGE_BYTES = 72  # struct inet_diag_msg, behind the netlink header
_ID = slice(4, 52)  # struct inet_diag_sockid in it
_EXPIRES, _AFTER_EXPIRES = 52, 56  # its timer's: another each time
_AGO, _AFTER_AGO = 44, 60  # of struct tcp_info, tcpi_last_data_sent to tcpi_last_ack_recv: likewise
_BUSY, _AFTER_BUSY = 168, 192  # and tcpi_busy_time to tcpi_sndbuf_limited, which go on while it has something to send
# All of include/net/tcp_states.h but TIME_WAIT and CLOSE, whose sockets have no TCP_INFO.
_STATES = 0xFFF & ~(1 << 6 | 1 << 7 | 1)

RECORD = struct.Struct("<QBH")
"""A state as it is handed over, before the kernel's message (struct inet_diag_msg and its attributes): time of
CLOCK_MONOTONIC in ns, whether it is the socket's last (1), and the message's length."""
_LISTEN = 10
_LISTENERS_EVERY = 5
_MOST_SINGLE = 12
_DUMP_EVERY_S = 0.5
_MOST_BYTES = 64 << 20


class Watch:
    """One run of the sampler, in a thread of its own."""

    def __init__(self, *, every_s: float, most_cpu: float) -> None:
        self._every_s = every_s
        self._most_cpu = most_cpu
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self.left_out = 0
        self.samples = 0
        self.cpu_s = 0.0
        self.error = ""
        self.known: dict[bytes, bytes] = {}
        """The comparable part of the last state of each socket, by its sockid."""
        self._asked, self._requests = [0, 0], [b"", b""]
        """What to ask in between: of all but the listeners, and of all; how many answers come, and the messages."""
        # Kept, as an allocation of this size for each answer costs more than the question.
        self._buffer = memoryview(bytearray(1 << 18))
        self._counted: list[bytes] = []
        self._dumped = 0.0
        self._gone = False
        """Whether one of them was seen to be gone."""
        self._started = self._ended = time.monotonic()
        try:
            self._ask = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG)
            self._told = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG)
            self._told.bind((0, _GROUPS))
            self._sockstat = [os.open(path, os.O_RDONLY) for path in _SOCKSTAT if os.path.exists(path)]
        except OSError as error:
            raise Refused(f"cannot ask the kernel for its sockets: {error.strerror}") from None
        self._told.setblocking(False)
        self._ask.settimeout(1.0)
        self._told.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._wake, self._woken = os.pipe()
        self._thread = threading.Thread(target=self._run, name="sockets", daemon=True)
        self._sample()  # what is there from before; and if this fails, it is said at once
        self._thread.start()

    def stop(self) -> None:
        """Take a last sample and end."""
        os.write(self._woken, b"x")
        self._thread.join(3)
        for each in (self._ask, self._told):
            each.close()
        for descriptor in (self._woken, self._wake, *self._sockstat):
            os.close(descriptor)

    @property
    def ran_s(self) -> float:
        """For how long it ran; seconds."""
        return self._ended - self._started

    def records(self) -> bytes:
        """What was kept."""
        return b"".join(self._kept)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(self._told, select.POLLIN)
        started_cpu = time.thread_time()
        try:
            while True:
                now = time.monotonic()
                self._sample()
                self.cpu_s = time.thread_time() - started_cpu
                # What a look costs depends on the machine's table and the number of sockets: what it took so far
                # says when the next one may be.
                next_s = max(now + self._every_s, self._started + self.cpu_s / self._most_cpu)
                while events := dict(poll.poll(max(next_s - time.monotonic(), 0.0) * 1000)):
                    if self._wake in events:
                        self._sample()
                        self._last_words()
                        return
                    self._last_words()
        except OSError as error:
            self.error = f"the kernel did not tell: {error}"
        finally:
            self.cpu_s = time.thread_time() - started_cpu
            self._ended = time.monotonic()

    def _sample(self) -> None:
        """Look at every socket: at those that are known one by one, unless there may be others."""
        self.samples += 1
        now = time.monotonic()
        counted = [os.pread(each, 200, 0).split(b" orphan")[0] for each in self._sockstat]
        stale = counted != self._counted or self._gone or now - self._dumped >= _DUMP_EVERY_S
        if stale or self._asked[0] > _MOST_SINGLE:
            self._counted, self._dumped, self._gone = counted, now, False
            self._ask.send(_request(_TCPDIAG_GETSOCK, _REQUEST | _DUMP, bytes(4)))
            seen = self._answers(None)
            self.known = {identity: self.known[identity] for identity in seen}
            others = [each for each in seen if self.known[each][1] != _LISTEN]
            self._asked = [len(others), len(seen)]
            self._requests = [
                b"".join(_request(_BY_FAMILY, _REQUEST, each) for each in some) for some in (others, seen)
            ]
        else:
            which = self.samples % _LISTENERS_EVERY == 0
            if self._asked[which]:
                self._ask.send(self._requests[which])
                self._answers(self._asked[which])

    def _answers(self, count: int | None) -> list[bytes]:
        """Keep what the kernel answers: so many messages, or (None) until it says that this was all."""
        seen: list[bytes] = []
        left = -1 if count is None else count
        while left:
            size = self._ask.recv_into(self._buffer)
            data = self._buffer[:size]
            now = time.monotonic_ns()
            at = 0
            while at < size:
                length, kind, _, _, _ = _HEADER.unpack_from(data, at)
                if kind == _DONE:
                    return seen
                left -= 1
                if kind == _ERROR:
                    (code,) = struct.unpack_from("=i", data, at + 16)
                    if count is None:
                        raise OSError(-code, os.strerror(-code))
                    self._gone = True
                else:
                    seen.append(self._keep(now, bytes(data[at + 16 : at + length]), last=False))
                at += (length + 3) & ~3
        return seen

    def _last_words(self) -> None:
        """What the kernel tells of sockets that it has destroyed."""
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    data = bytes(self._buffer[: self._told.recv_into(self._buffer)])
                except OSError as error:
                    if error.errno != errno.ENOBUFS:  # more ended at once than the buffer holds
                        raise
                    self.left_out += 1
                    continue
                self._gone = True
                self._keep(time.monotonic_ns(), data[16 : _HEADER.unpack_from(data)[0]], last=True)

    def _keep(self, now: int, message: bytes, *, last: bool) -> bytes:
        identity = message[:1] + message[_ID]
        info = _info_at(message)
        comparable = (
            message[:_EXPIRES]
            + message[_AFTER_EXPIRES : info + _AGO]
            + message[info + _AFTER_AGO : info + _BUSY]
            + message[info + _AFTER_BUSY :]
        )
        if last or self.known.get(identity) != comparable:
            if self._kept_bytes + len(message) > _MOST_BYTES:
                self.left_out += 1
            else:
                self._kept.append(RECORD.pack(now, last, len(message)) + message)
                self._kept_bytes += len(message) + RECORD.size
        self.known[identity] = comparable
        return identity


class Sockets:
    """The operations; one watch at a time."""

    def __init__(self) -> None:
        self._watch: Watch | None = None
        self._parcel = b""

    def operations(self) -> dict[str, Operation]:
        """The protocol's operations."""
        return {"watch_tcp": self.watch, "end_watch_tcp": self.end, "fetch_tcp": self.fetch}

    def watch(self, *, every_s: float, most_cpu: float) -> dict[str, int]:
        """Begin to watch every TCP socket, each ``every_s`` seconds, more rarely if that takes more CPU.

        ``most_cpu``: of one core, 0.02 being 2 %. Returns what the clocks show.
        """
        if self._watch is not None:
            raise Refused("the sockets are watched already")
        self._watch = Watch(every_s=every_s, most_cpu=most_cpu)
        return _clocks()

    def end(self) -> dict[str, Any]:
        """End it; how often it looked, what that cost, and how many states were left out for want of room."""
        watch = self._watch
        if watch is None:
            raise Refused("the sockets are not watched")
        self._watch = None
        watch.stop()
        if watch.error:
            raise Refused(watch.error)
        self._parcel = watch.records()
        return {
            "samples": watch.samples,
            "ran_s": watch.ran_s,
            "cpu_s": watch.cpu_s,
            "left_out": watch.left_out,
            **_clocks(),
        }

    def fetch(self, *, offset: int) -> dict[str, Any]:
        """A piece of what was kept: records, in the order of their time."""
        return piece(self._parcel, offset)


def _clocks() -> dict[str, int]:
    return {"monotonic_ns": time.monotonic_ns(), "realtime_ns": time.time_ns()}


def _request(kind: int, flags: int, identity: bytes) -> bytes:
    """A netlink message: struct inet_diag_req of the older kind, which dumps both families in one walk, or _v2."""
    if kind == _TCPDIAG_GETSOCK:
        body = struct.pack("=BxxB48xII", 0, 1 << (_INFO - 1), _STATES, 0)
    else:
        body = struct.pack("=BBBxI", identity[0], socket.IPPROTO_TCP, 1 << (_INFO - 1), _STATES) + identity[1:]
    return _HEADER.pack(16 + len(body), kind, flags, 0, 0) + body


def _info_at(message: bytes) -> int:
    """Where struct tcp_info begins in a message; its end if it has none."""
    at = _MESSAGE_BYTES
    while at + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        if kind == _INFO:
            return at + 4
        at += (length + 3) & ~3
    return len(message)
