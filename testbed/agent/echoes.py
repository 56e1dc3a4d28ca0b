"""How late carried kernels are, measured by a frame that circulates through each of them.

Each carried kernel has a tap (`CarriedKernel.open_clock`) whose frames it sends back through a netem of its own. While
`KernelPool.clocks` lets the clock run, the frame with its token is redirected into the tap again, so that it circulates
without this process. The process only reads, now and then, the time stamps of its passages, which this machine's kernel
makes (SO_TIMESTAMPNS, socket(7)). Needs CAP_NET_RAW.

That frame has a queue of its own. While many packets pass a port, other frames are sent through the port's queue. Each
bears its time of sending, and leaves at the clock's tap as late as packets had to wait.
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

from . import kernelcalls
from .carried import CLOCK_DELAY_S, CLOCK_ETHERTYPE, FRAME_BYTES, QUEUE_ETHERTYPE
from .protocol import Operation, Refused

# linux/if_packet.h, asm-generic/socket.h, linux/if_ether.h
_SO_TIMESTAMPNS, _SOL_PACKET, _IGNORE_OUTGOING = 35, 263, 23
_ETH_P_ALL = 0x0003
# To an address that no bridge forwards (IEEE 802.1Q, 8.6.3), from a locally administered one.
_ADDRESSES = bytes.fromhex("0180c200000f") + bytes.fromhex("027462726b00")
_HEAD, _QUEUE_HEAD = (_ADDRESSES + struct.pack("!H", kind) for kind in (CLOCK_ETHERTYPE, QUEUE_ETHERTYPE))
_TOKEN, _SENT = struct.Struct("!I"), struct.Struct("!HQ")
"""After the head: the clock's token; then, in a frame through a queue, the queue's number and the time of sending."""

_DUE_NS = round(CLOCK_DELAY_S * 1e9)
_READ_EVERY_S = 2.0
"""The socket's buffer holds the passages of some seven times as long."""
_SOCKET_BYTES = 1 << 20
"""The kernel limits it to net.core.rmem_max."""
_MOST = 200_000
"""How many of a kernel's latest passages are remembered: more than an hour's."""
_LOOK_EVERY_S = 0.1
_SIMULATED_MOST_S = 600.0
"""A simulated clock's timer is never late, and each look would cost as much as a packet: they become rare."""
_UNSURE_NS = 1_000_000
_BUSY_PER_S = 2000
"""With fewer packets per second a port's queue is practically empty."""


class _Queue:
    """The queue before a kernel at one tap."""

    def __init__(self, tap: str) -> None:
        self.tap = tap
        self._counter = os.open(f"/sys/class/net/{tap}/statistics/tx_packets", os.O_RDONLY)
        self._counted = self._count()
        self.late_ns = array("q")
        """How long each frame waited."""
        self.unsure: set[int] = set()
        """The stamps of frames that may have been sent later, because we were interrupted."""

    def _count(self) -> int:
        return int(os.pread(self._counter, 32, 0))

    def is_busy(self, since_s: float) -> bool:
        """Whether many packets passed since the last call, ``since_s`` seconds ago."""
        try:
            before, self._counted = self._counted, self._count()
        except OSError:  # the tap is gone
            return False
        return self._counted - before >= _BUSY_PER_S * since_s

    def close(self) -> None:
        """Close the counter's file."""
        os.close(self._counter)


@dataclass
class _Clock:
    """One watched kernel."""

    socket: socket.socket
    token: int
    since_ns: int = 0
    """When its frame last passed or was sent, or `begin` was called; by CLOCK_REALTIME."""
    whole: bool = False
    """Whether the current passage started at that time, rather than before."""
    passages_ns: array[int] = field(default_factory=lambda: array("q"))
    """The duration of each passage."""
    ended: str = ""
    queues: dict[tuple[str, str], _Queue] = field(default_factory=dict)
    """By port and direction."""

    def close(self) -> None:
        """Stop watching."""
        for queue in self.queues.values():
            queue.close()
        self.socket.close()

    def see(self, port: str, way: str, tap: str) -> None:
        """Watch the queue at this tap, too; it replaces another tap's, if the port was attached again."""
        known = self.queues.get((port, way))
        if known is None or known.tap != tap:
            self.queues[port, way] = _Queue(tap)
            if known is not None:
                known.close()

    def look(self, since_s: float) -> bool:
        """Send a frame through each busy queue; returns whether there was one."""
        busy = [(number, queue) for number, queue in enumerate(self.queues.values()) if queue.is_busy(since_s)]
        for number, queue in busy:
            before = time.time_ns()
            frame = _QUEUE_HEAD + _TOKEN.pack(self.token) + _SENT.pack(number, before)
            try:
                self.socket.sendto(frame.ljust(FRAME_BYTES, b"\0"), (queue.tap, 0))
            except OSError:
                continue  # the queue is full, as the tap's counter shows; or the tap is gone
            if time.time_ns() - before > _UNSURE_NS:
                queue.unsure.add(before)
        return bool(busy)

    @property
    def _prefix(self) -> bytes:
        return _HEAD + _TOKEN.pack(self.token)

    def send(self) -> None:
        """Send its frame for the first time."""
        try:
            self.socket.send(self._prefix.ljust(FRAME_BYTES, b"\0"))
        except OSError as error:
            self.ended = error.strerror or str(error)
        self.since_ns, self.whole = time.time_ns(), True

    def begin(self) -> None:
        """Forget all measurements; of the current passage only the time from now on counts."""
        self.take()
        self.since_ns, self.whole = time.time_ns(), False
        del self.passages_ns[:]
        for queue in self.queues.values():
            del queue.late_ns[:]

    def take(self) -> None:
        """Read the time stamps of the passages so far."""
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
            if frame.startswith(self._prefix):
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


class Echoes:
    """Every watched kernel, or this machine's timer, and the thread that reads."""

    def __init__(self) -> None:
        self._clocks: dict[str, _Clock] = {}
        self._lock = threading.Lock()
        self._watching, self._anew = threading.Event(), threading.Event()
        self._overslept_ns = array("q")
        self._thread: threading.Thread | None = None

    def operations(self) -> dict[str, Operation]:
        """The protocol's operations."""
        return {"watch_passages": self.watch, "passages": self.report, "rest": self.rest}

    def watch(self, *, clocks: Mapping[str, Mapping[str, Any]], anew: bool = True) -> None:
        """Watch the kernels with these clocks, by name (see `KernelPool.clocks`); if there are none, our own timer.

        ``anew``: forget earlier passages.
        """
        with self._lock:
            for name, clock in list(self._clocks.items()):
                if name not in clocks or clocks[name]["token"] != clock.token:
                    self._clocks.pop(name).close()
            if anew:
                self._anew.set()
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
        """Stop until the next `watch`."""
        with self._lock:
            self._watching.clear()
            for clock in self._clocks.values():
                clock.close()
            self._clocks.clear()

    def report(self) -> dict[str, Any]:
        """For each kernel, in ns: the duration of each passage of its frame, and that of the current one so far.

        ``queues``: how long frames waited in each queue. ``overslept_ns``: how late our own timer was each time, if no
        kernel is watched.
        """
        with self._lock:
            kernels = {}
            for name, clock in self._clocks.items():
                clock.take()
                kernels[name] = {
                    "passages_ns": list(clock.passages_ns),
                    "missing_ns": [time.time_ns() - clock.since_ns],
                    "ended": clock.ended,
                    "queues": [
                        {"port": port, "way": way, "late_ns": list(queue.late_ns)}
                        for (port, way), queue in clock.queues.items()
                    ],
                }
            return {"kernels": kernels, "due_ns": _DUE_NS, "overslept_ns": list(self._overslept_ns)}

    def _run(self) -> None:
        busy, read_at, timer_s = False, 0.0, CLOCK_DELAY_S
        while True:
            self._watching.wait()
            every_s = _LOOK_EVERY_S if self._clocks and not busy else timer_s
            if kernelcalls.clock_is_simulated():
                timer_s = min(2 * timer_s, _SIMULATED_MOST_S)
            began = time.monotonic()
            if self._anew.wait(every_s):
                self._anew.clear()
                timer_s = CLOCK_DELAY_S
                continue
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
        # For all protocols: a socket for one protocol gets frames only after the ingress filters.
        packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    except PermissionError as error:
        raise Refused(f"a packet socket needs CAP_NET_RAW: {error.strerror}") from None
    try:
        packets.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        packets.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BYTES)
        packets.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
        packets.bind((tap, _ETH_P_ALL))
    except OSError as error:
        packets.close()
        raise Refused(f"cannot watch {tap}: {error.strerror}") from None
    return packets
