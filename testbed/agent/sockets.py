"""The states of every TCP socket of this network namespace over time, by the kernel's TCP_INFO.

A dump of all sockets walks the kernel's hash table. So there is one only when the count of sockets has changed, and now
and then; in between the known sockets are requested one by one. The kernel reports the last state of each socket that
it destroys. A state is kept if it differs from the one before.
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

from . import sockdiag
from .parcel import piece
from .protocol import Operation, Refused

_SOCKSTAT = ("/proc/net/sockstat", "/proc/net/sockstat6")
# Fields that differ each time. Of struct inet_diag_msg: the timer's idiag_expires.
_EXPIRES, _AFTER_EXPIRES = 52, 56
# Of struct tcp_info: tcpi_last_data_sent to tcpi_last_ack_recv, and tcpi_busy_time to tcpi_sndbuf_limited.
_AGO, _AFTER_AGO = 44, 60
_BUSY, _AFTER_BUSY = 168, 192
# All of include/net/tcp_states.h but TIME_WAIT and CLOSE, whose sockets have no TCP_INFO.
_STATES = 0xFFF & ~(1 << 6 | 1 << 7 | 1)

RECORD = struct.Struct("<QBH")
"""The head of a state in the parcel, before the kernel's message (struct inet_diag_msg and attributes): time of
CLOCK_MONOTONIC in ns, whether it is the socket's last (1), and the message's length."""
_LISTEN = 10
_LISTENERS_EVERY = 5
_MOST_SINGLE = 12
_DUMP_EVERY_S = 0.5
_MOST_BYTES = 64 << 20
LAST_WORDS_S = 0.3
"""How long the end waits for the last states of sockets that are gone: the kernel reports them from a work queue. Those
that a program still holds, though they are closed, are reported later or never."""


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
        """The comparable part of each socket's last state, by its identity."""
        self._replies, self._requests = [0, 0], [b"", b""]
        """Between dumps: the number of replies and the requests, for all sockets but listeners, and for all sockets."""
        # Allocated once: an allocation of this size per reply would cost more than the request.
        self._buffer = memoryview(bytearray(sockdiag.BUFFER_BYTES))
        self._counts: list[bytes] = []
        self._dumped = 0.0
        self._gone = False
        """Whether a known socket no longer exists."""
        self._unreported: set[bytes] = set()
        """The identities of known sockets that no longer exist, and whose last state was not reported yet."""
        self._started = self._ended = time.monotonic()
        self._diag = sockdiag.connect(timeout_s=1.0)
        self._destroyed = sockdiag.connect(groups=sockdiag.DESTROYED, timeout_s=0.0)
        self._destroyed.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        try:
            self._sockstat = [os.open(path, os.O_RDONLY) for path in _SOCKSTAT if os.path.exists(path)]
        except OSError as error:
            raise Refused(f"cannot read the kernel's counts of sockets: {error.strerror}") from None
        self._wake, self._woken = os.pipe()
        self._thread = threading.Thread(target=self._run, name="sockets", daemon=True)
        self._sample()  # the sockets that exist already; and if this fails, it fails at once
        self._thread.start()

    def stop(self) -> None:
        """Take a last sample and end."""
        os.write(self._woken, b"x")
        self._thread.join(3 + LAST_WORDS_S)
        self._diag.close()
        self._destroyed.close()
        for descriptor in (self._woken, self._wake, *self._sockstat):
            os.close(descriptor)

    @property
    def ran_s(self) -> float:
        """Its duration in seconds."""
        return self._ended - self._started

    def records(self) -> bytes:
        """All records; see `RECORD`."""
        return b"".join(self._kept)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(self._destroyed, select.POLLIN)
        started_cpu = time.thread_time()
        try:
            while True:
                now = time.monotonic()
                self._sample()
                self.cpu_s = time.thread_time() - started_cpu
                # The cost of a sample depends on the kernel's table and the number of sockets: the cost so far
                # decides when the next one may be.
                next_s = max(now + self._every_s, self._started + self.cpu_s / self._most_cpu)
                while events := dict(poll.poll(max(next_s - time.monotonic(), 0.0) * 1000)):
                    if self._wake in events:
                        self._take_last()
                        return
                    self._take_destroyed()
        except Refused as refused:
            self.error = str(refused)
        except OSError as error:
            self.error = f"the kernel does not report its TCP sockets: {error}"
        finally:
            self.cpu_s = time.thread_time() - started_cpu
            self._ended = time.monotonic()

    def _take_last(self) -> None:
        """Keep the last state of every socket, also of those that have just gone."""
        self._gone = True
        self._sample()
        poll = select.poll()
        poll.register(self._destroyed, select.POLLIN)
        deadline = time.monotonic() + LAST_WORDS_S
        self._take_destroyed()
        while self._unreported and (left_s := deadline - time.monotonic()) > 0:
            poll.poll(left_s * 1000)
            self._take_destroyed()

    def _sample(self) -> None:
        """Request the state of every socket: of the known ones one by one, unless there may be others."""
        self.samples += 1
        now = time.monotonic()
        counts = [os.pread(file, 200, 0).split(b" orphan")[0] for file in self._sockstat]
        stale = counts != self._counts or self._gone or now - self._dumped >= _DUMP_EVERY_S
        if stale or self._replies[0] > _MOST_SINGLE:
            self._counts, self._dumped, self._gone = counts, now, False
            self._diag.send(sockdiag.dump(_STATES))
            identities = self._take_replies(None)
            self._unreported |= self.known.keys() - set(identities)
            self.known = {identity: self.known[identity] for identity in identities}
            others = [identity for identity in identities if self.known[identity][1] != _LISTEN]
            self._replies = [len(others), len(identities)]
            self._requests = [
                b"".join(sockdiag.get(identity, _STATES) for identity in group) for group in (others, identities)
            ]
        else:
            which = self.samples % _LISTENERS_EVERY == 0
            if self._replies[which]:
                self._diag.send(self._requests[which])
                self._take_replies(self._replies[which])

    def _take_replies(self, count: int | None) -> list[bytes]:
        """Keep the states in the next ``count`` messages, or (None) up to the end of a dump; returns the identities."""
        identities: list[bytes] = []
        left = -1 if count is None else count
        while left:
            data = self._buffer[: self._diag.recv_into(self._buffer)]
            now = time.monotonic_ns()
            for kind, body in sockdiag.messages(data):
                if kind == sockdiag.DONE:
                    return identities
                left -= 1
                if kind != sockdiag.ERROR:
                    identities.append(self._keep(now, body, last=False))
                elif count is None:
                    raise sockdiag.refusal(body)
                else:
                    self._gone = True
        return identities

    def _take_destroyed(self) -> None:
        """Keep the last states of sockets that the kernel has destroyed."""
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    data = self._buffer[: self._destroyed.recv_into(self._buffer)]
                except OSError as error:
                    if error.errno != errno.ENOBUFS:  # ENOBUFS: more ended at once than the buffer holds
                        raise
                    self.left_out += 1
                    continue
                self._gone = True
                for _, body in sockdiag.messages(data):
                    self._keep(time.monotonic_ns(), body, last=True)

    def _keep(self, now: int, message: bytes, *, last: bool) -> bytes:
        identity = sockdiag.identity_of(message)
        info = sockdiag.info_at(message)
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
        if last:
            self.known.pop(identity, None)
            self._unreported.discard(identity)
        else:
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
        """Start to watch every TCP socket, every ``every_s`` seconds, less often if that would take more CPU time.

        ``most_cpu``: the share of one core; 0.02 is 2 %. Returns the time by both clocks.
        """
        if self._watch is not None:
            raise Refused("the sockets are being watched already")
        self._watch = Watch(every_s=every_s, most_cpu=most_cpu)
        return _clocks()

    def end(self) -> dict[str, Any]:
        """Stop watching; returns the number of samples, their cost, and how many states did not fit."""
        watch = self._watch
        if watch is None:
            raise Refused("the sockets are not being watched")
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
        """A piece of the records, in the order of their time; see `parcel.piece`."""
        return piece(self._parcel, offset)


def _clocks() -> dict[str, int]:
    return {"monotonic_ns": time.monotonic_ns(), "realtime_ns": time.time_ns()}
