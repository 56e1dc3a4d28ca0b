"""How late carried kernels are: frames that they send back a fixed time later, and the kernel's time stamps of them.

Each carried kernel has a tap (`CarriedKernel.open_clock`) whose frames it sends back through a netem of its own. A
thread sends one every so often. A frame bears the time at which it was sent, and the kernel here says when it came back
(SO_TIMESTAMPNS, socket(7)): that we are late to send or to read is no lateness of theirs. CAP_NET_RAW is needed.
"""

from __future__ import annotations

import errno
import socket
import struct
import threading
import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .carried import CLOCK_DELAY_S
from .protocol import Operation, Refused

# linux/if_packet.h, asm-generic/socket.h, linux/if_ether.h: for local experiments
_SO_TIMESTAMPNS, _SOL_PACKET, _IGNORE_OUTGOING = 35, 263, 23
_ETH_P_ALL, _ETHERTYPE = 0x0003, 0x88B5
# An address that no bridge passes on (IEEE 802.1Q, 8.6.3), and one that is local.
_HEAD = bytes.fromhex("0180c200000f") + bytes.fromhex("027462726b00") + struct.pack("!H", _ETHERTYPE)
_STAMP = struct.Struct("!QQ")
"""Of a frame: its number and when it was sent, by CLOCK_REALTIME in nanoseconds."""
_FRAME_BYTES = 60

_EVERY_S = 0.03
# The clock is read before and after a frame is sent; where this lies in between, we were interrupted, and when it was
# sent is not known.
_UNSURE_NS = 1_000_000
_MOST = 200_000
"""So many frames of one kernel are remembered, the last of them: more than an hour's."""


@dataclass
class _Clock:
    """One kernel that is watched."""

    socket: socket.socket
    number: int = 0
    waiting: dict[int, int] = field(default_factory=dict)
    """Frames that have not come back: number and time of sending."""
    passages_ns: array[int] = field(default_factory=lambda: array("q"))
    lost: int = 0
    """Frames that later ones have overtaken: none does on its way, so these were dropped."""
    ended: str = ""

    def send(self) -> None:
        """Send a frame, unless nobody takes them; one whose time is not sure is sent for nothing."""
        before = time.time_ns()
        self.socket.send((_HEAD + _STAMP.pack(self.number, before)).ljust(_FRAME_BYTES, b"\0"))
        if time.time_ns() - before < _UNSURE_NS:
            self.waiting[self.number] = before
        self.number += 1

    def take(self) -> None:
        """Take what has come back, until none is missing."""
        while self.waiting:
            try:
                frame, ancillary, _, _ = self.socket.recvmsg(_FRAME_BYTES, 64)
            except BlockingIOError:
                return
            if frame[12:14] != _HEAD[12:14]:
                continue
            number, _ = _STAMP.unpack_from(frame, len(_HEAD))
            stamps = [data for level, kind, data in ancillary if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS)]
            if number in self.waiting and stamps:
                seconds, nanoseconds = struct.unpack("=qq", stamps[0])
                self.passages_ns.append(seconds * 1_000_000_000 + nanoseconds - self.waiting.pop(number))
                self.lost += len(overtaken := [each for each in self.waiting if each < number])
                for each in overtaken:
                    del self.waiting[each]
                del self.passages_ns[: len(self.passages_ns) - _MOST]


class Passages:
    """Every kernel that is watched, and the thread that sends."""

    def __init__(self) -> None:
        self._clocks: dict[str, _Clock] = {}
        self._lock = threading.Lock()
        self._watching = threading.Event()
        self._overslept_ns = array("q")
        self._thread: threading.Thread | None = None

    def operations(self) -> dict[str, Operation]:
        """The protocol's operations."""
        return {"watch_passages": self.watch, "passages": self.told, "rest": self.rest}

    def watch(self, *, taps: Mapping[str, str], anew: bool = True) -> None:
        """Watch the kernels with these taps, by name, and our own timer; ``anew``: forget what was seen so far."""
        with self._lock:
            for name, clock in list(self._clocks.items()):
                if anew or name not in taps:
                    clock.socket.close()
                    del self._clocks[name]
            for name in taps.keys() - self._clocks.keys():
                self._clocks[name] = _Clock(_open(taps[name]))
            if anew:
                del self._overslept_ns[:]
            self._watching.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="passages", daemon=True)
            self._thread.start()

    def rest(self) -> None:
        """Watch nothing until `watch` is asked."""
        self._watching.clear()

    def told(self) -> dict[str, Any]:
        """Of each kernel: how long each frame took in all, and how long ago those were sent that are not back; ns.

        ``overslept_ns``: how late our own timer was, each time, which tells of the machine and not of a kernel.
        """
        with self._lock:
            found = {}
            for name, clock in self._clocks.items():
                self._attend(clock, send=False)
                now = time.time_ns()
                found[name] = {
                    "passages_ns": list(clock.passages_ns), "ended": clock.ended,
                    "missing_ns": [now - sent for sent in clock.waiting.values()], "lost": clock.lost,
                }  # fmt: skip
            return {"kernels": found, "due_ns": round(CLOCK_DELAY_S * 1e9), "overslept_ns": list(self._overslept_ns)}

    def _run(self) -> None:
        while True:
            self._watching.wait()
            due = time.monotonic() + _EVERY_S
            time.sleep(_EVERY_S)
            with self._lock:
                self._overslept_ns.append(round((time.monotonic() - due) * 1e9))
                del self._overslept_ns[: len(self._overslept_ns) - _MOST]
                for clock in self._clocks.values():
                    self._attend(clock, send=True)

    @staticmethod
    def _attend(clock: _Clock, *, send: bool) -> None:
        if clock.ended:
            return
        try:
            clock.take()
            if send:
                clock.send()
        except OSError as error:
            if error.errno in (errno.ENOBUFS, errno.EAGAIN):  # the tap is full: the frames in it say how late it is
                return
            clock.ended = error.strerror or str(error)


def _open(tap: str) -> socket.socket:
    try:
        # All types: those of one alone are handed out behind the ingress filters.
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    except PermissionError as error:
        raise Refused(f"a packet socket needs CAP_NET_RAW: {error.strerror}") from None
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        opened.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
        opened.bind((tap, _ETH_P_ALL))
    except OSError as error:
        opened.close()
        raise Refused(f"cannot watch {tap}: {error.strerror}") from None
    return opened
