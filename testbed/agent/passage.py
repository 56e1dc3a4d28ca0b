"""How late carried kernels are: a frame that goes round through each of them, and the kernel's time stamps of it.

Each carried kernel has a tap (`CarriedKernel.open_clock`). It sends back what comes there through a netem of its own,
and while `KernelPool.clocks` has it run, the one frame that bears its token is redirected into the tap again. So a
frame that is put there goes round by itself, whoever is late here. We need only read, now and then, when it passed: the
kernel notes that (SO_TIMESTAMPNS, socket(7)). CAP_NET_RAW is needed.

That frame has a queue of its own. Through a port's queue we send others, while many packets pass there: each bears the
time at which it was sent, and comes out of the clock's tap as late as packets have waited.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .carried import CLOCK_DELAY_S, CLOCK_ETHERTYPE, FRAME_BYTES, QUEUE_ETHERTYPE
from .protocol import Operation, Refused

# linux/if_packet.h, asm-generic/socket.h, linux/if_ether.h
_SO_TIMESTAMPNS, _SOL_PACKET, _IGNORE_OUTGOING = 35, 263, 23
_ETH_P_ALL = 0x0003
# An address that no bridge passes on (IEEE 802.1Q, 8.6.3), and one that is local.
_ADDRESSES = bytes.fromhex("0180c200000f") + bytes.fromhex("027462726b00")
_HEAD, _QUEUE_HEAD = (_ADDRESSES + struct.pack("!H", kind) for kind in (CLOCK_ETHERTYPE, QUEUE_ETHERTYPE))
_TOKEN, _SENT = struct.Struct("!I"), struct.Struct("!HQ")
"""What each begins with; and of a frame through a queue, which queue it is, and when it was sent."""

_DUE_NS = round(CLOCK_DELAY_S * 1e9)
_READ_EVERY_S = 2.0
"""A socket holds what passes in some seven times as long."""
_SOCKET_BYTES = 1 << 20
"""The kernel gives as much of it as it lets anybody have (net.core.rmem_max)."""
_MOST = 200_000
"""So many passages of one kernel are remembered, the last of them: more than an hour's."""
_LOOK_EVERY_S = 0.1
_UNSURE_NS = 1_000_000
_BUSY_PER_S = 2000
"""A port with fewer packets a second has no queue to speak of."""


class _Queue:
    """The queue before a kernel at one tap."""

    def __init__(self, tap: str) -> None:
        self.tap = tap
        self._counter = os.open(f"/sys/class/net/{tap}/statistics/tx_packets", os.O_RDONLY)
        self._counted = self._count()
        self.late_ns = array("q")
        """How long each frame has waited."""
        self.unsure: set[int] = set()
        """The times of frames that were perhaps sent later: we were interrupted."""

    def _count(self) -> int:
        return int(os.pread(self._counter, 32, 0))

    def is_busy(self, since_s: float) -> bool:
        """Whether many packets passed in the time since this was asked last."""
        try:
            before, self._counted = self._counted, self._count()
        except OSError:  # the tap is gone
            return False
        return self._counted - before >= _BUSY_PER_S * since_s

    def close(self) -> None:
        """Look no more."""
        os.close(self._counter)


@dataclass
class _Clock:
    """One kernel that is watched."""

    socket: socket.socket
    token: int
    since_ns: int = 0
    """When its frame passed last, was sent, or `begin` was called; by CLOCK_REALTIME."""
    whole: bool = False
    """Whether the frame has been on its way since then."""
    passages_ns: array[int] = field(default_factory=lambda: array("q"))
    """How long it took each time."""
    ended: str = ""
    queues: dict[tuple[str, str], _Queue] = field(default_factory=dict)
    """By port and way."""

    def close(self) -> None:
        """Watch no more."""
        for queue in self.queues.values():
            queue.close()
        self.socket.close()

    def see(self, port: str, way: str, tap: str) -> None:
        """Watch the queue at this tap too: another one, once its port was attached anew."""
        known = self.queues.get((port, way))
        if known is None or known.tap != tap:
            self.queues[port, way] = _Queue(tap)
            if known is not None:
                known.close()

    def look(self, since_s: float) -> bool:
        """Send a frame through each busy queue; whether there was one."""
        busy = [(number, each) for number, each in enumerate(self.queues.values()) if each.is_busy(since_s)]
        for number, queue in busy:
            before = time.time_ns()
            frame = _QUEUE_HEAD + _TOKEN.pack(self.token) + _SENT.pack(number, before)
            try:
                self.socket.sendto(frame.ljust(FRAME_BYTES, b"\0"), (queue.tap, 0))
            except OSError:
                continue  # the queue is full, which its tap counts; or the tap is gone
            if time.time_ns() - before > _UNSURE_NS:
                queue.unsure.add(before)
        return bool(busy)

    @property
    def _begins(self) -> bytes:
        return _HEAD + _TOKEN.pack(self.token)

    def send(self) -> None:
        """Put its frame there."""
        try:
            self.socket.send(self._begins.ljust(FRAME_BYTES, b"\0"))
        except OSError as error:
            self.ended = error.strerror or str(error)
        self.since_ns, self.whole = time.time_ns(), True

    def begin(self) -> None:
        """Forget what was seen. Of the passage that is under way only what is yet to come counts."""
        self.take()
        self.since_ns, self.whole = time.time_ns(), False
        del self.passages_ns[:]
        for queue in self.queues.values():
            del queue.late_ns[:]

    def take(self) -> None:
        """Note the passages so far."""
        while not self.ended:
            try:
                frame, ancillary, _, _ = self.socket.recvmsg(FRAME_BYTES, 64)
            except BlockingIOError:
                return
            except OSError as error:
                self.ended = error.strerror or str(error)
                return
            stamps = [data for level, kind, data in ancillary if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS)]
            if not stamps:
                continue
            seconds, nanoseconds = struct.unpack("=qq", stamps[0])
            now_ns = seconds * 1_000_000_000 + nanoseconds
            if frame.startswith(self._begins):
                self._passed(now_ns)
            elif frame.startswith(_QUEUE_HEAD + _TOKEN.pack(self.token)):
                number, sent_ns = _SENT.unpack_from(frame, len(_QUEUE_HEAD) + _TOKEN.size)
                queue = list(self.queues.values())[number]
                if sent_ns not in queue.unsure:
                    queue.late_ns.append(now_ns - sent_ns - _DUE_NS)
                del queue.late_ns[: len(queue.late_ns) - _MOST]

    def _passed(self, now_ns: int) -> None:
        took_ns = now_ns - self.since_ns
        if self.whole or took_ns > _DUE_NS:
            self.passages_ns.append(took_ns)
            del self.passages_ns[: len(self.passages_ns) - _MOST]
        self.since_ns, self.whole = now_ns, True


class Passages:
    """Every kernel that is watched, or this machine's timer, and the thread that reads."""

    def __init__(self) -> None:
        self._clocks: dict[str, _Clock] = {}
        self._lock = threading.Lock()
        self._watching = threading.Event()
        self._overslept_ns = array("q")
        self._thread: threading.Thread | None = None

    def operations(self) -> dict[str, Operation]:
        """The protocol's operations."""
        return {"watch_passages": self.watch, "passages": self.told, "rest": self.rest}

    def watch(self, *, clocks: Mapping[str, Mapping[str, Any]], anew: bool = True) -> None:
        """Watch the kernels with these clocks, by name, as `KernelPool.clocks` tells of them; if none, our own timer.

        ``anew``: forget what was seen so far.
        """
        with self._lock:
            for name, clock in list(self._clocks.items()):
                if name not in clocks or clocks[name]["token"] != clock.token:
                    self._clocks.pop(name).close()
            if anew:
                del self._overslept_ns[:]
                for clock in self._clocks.values():
                    clock.begin()
            for name in clocks.keys() - self._clocks.keys():
                self._clocks[name] = _Clock(_open(clocks[name]["tap"]), clocks[name]["token"])
                self._clocks[name].send()
            for name, clock in self._clocks.items():
                for port, taps in clocks[name]["queues"].items():
                    for way, tap in taps.items():
                        clock.see(port, way, tap)
            self._watching.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="passages", daemon=True)
            self._thread.start()

    def rest(self) -> None:
        """Watch nothing until `watch` is asked."""
        with self._lock:
            self._watching.clear()
            for clock in self._clocks.values():
                clock.close()
            self._clocks.clear()

    def told(self) -> dict[str, Any]:
        """Of each kernel: how long its frame took each time, and how long it is under way by now; ns.

        And of its ``queues``, how long the frames waited that were sent through them.

        ``overslept_ns``: how late our own timer was, each time, where no kernel is watched.
        """
        with self._lock:
            found = {}
            for name, clock in self._clocks.items():
                clock.take()
                found[name] = {
                    "passages_ns": list(clock.passages_ns), "missing_ns": [time.time_ns() - clock.since_ns],
                    "ended": clock.ended,
                    "queues": [
                        {"port": port, "way": way, "late_ns": list(queue.late_ns)}
                        for (port, way), queue in clock.queues.items()
                    ],
                }  # fmt: skip
            return {"kernels": found, "due_ns": _DUE_NS, "overslept_ns": list(self._overslept_ns)}

    def _run(self) -> None:
        busy, read_at = False, 0.0
        while True:
            self._watching.wait()
            every_s = CLOCK_DELAY_S if busy or not self._clocks else _LOOK_EVERY_S
            began = time.monotonic()
            time.sleep(every_s)
            now = time.monotonic()
            with self._lock:
                if not self._clocks:
                    self._overslept_ns.append(round((now - began - every_s) * 1e9))
                    del self._overslept_ns[: len(self._overslept_ns) - _MOST]
                busy = sum(clock.look(now - began) for clock in self._clocks.values()) > 0
                if now >= read_at:
                    read_at = now + _READ_EVERY_S
                    for clock in self._clocks.values():
                        clock.take()


def _open(tap: str) -> socket.socket:
    try:
        # All types: those of one alone are handed out behind the ingress filters.
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    except PermissionError as error:
        raise Refused(f"a packet socket needs CAP_NET_RAW: {error.strerror}") from None
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BYTES)
        opened.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
        opened.bind((tap, _ETH_P_ALL))
    except OSError as error:
        opened.close()
        raise Refused(f"cannot watch {tap}: {error.strerror}") from None
    return opened
