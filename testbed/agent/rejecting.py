"""Taps where rejected packets end, one for each sender, and a thread that replies to them as a firewall would.

A filter at the switch redirects the packets to reject to the tap of their sender. What we write to the tap goes
straight to that sender, past the bridge, every qdisc and every other cut, as a firewall's own replies do. A tap
vanishes with its descriptor, however the agent ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field

from . import answers, devices, splice
from .batch import Batch
from .taps import open_tap

_FRAME_BYTES = 65_536 + 14
_MTU = 1500
_FRAMES_PER_TURN = 256
"""Of one tap, before the others get their turn."""


@dataclass
class Tap:
    """Where one sender's rejected packets end."""

    name: str
    descriptor: int
    own_address: bytes
    """The device's own MAC address: frames from it were sent by this machine, which announces itself everywhere."""
    to_this_machine: bool = False
    """Whether the replies are for the machine itself, or for who is beyond it."""
    counts: dict[str, int] = field(
        default_factory=lambda: {"read": 0, answers.RESET: 0, answers.ERROR: 0, "unanswered": 0, "failed": 0}
    )
    """Frames ``read``; replies by kind, ``reset`` and ``error``; ``unanswered``: frames that no firewall may reply to;
    ``failed``: replies that the kernel did not take."""

    def serve(self) -> None:
        """Reply to the frames that wait."""
        for _ in range(_FRAMES_PER_TURN):
            try:
                frame = os.read(self.descriptor, _FRAME_BYTES)
            except BlockingIOError:
                return
            if frame[6:12] == self.own_address:
                continue
            self.counts["read"] += 1
            reply = answers.answer(frame)
            if reply is None:
                self.counts["unanswered"] += 1
                continue
            try:
                # To the kernel, a frame to another address than the device's own is another host's.
                os.write(self.descriptor, self.own_address + reply.frame[6:] if self.to_this_machine else reply.frame)
                self.counts[reply.kind] += 1
            except OSError:
                self.counts["failed"] += 1


class Rejecting:
    """Every tap, by the ifindex of its sender's veth, and the thread that replies."""

    def __init__(self, *, tag: str = "0", mark: int = 1) -> None:
        """``tag``: part of device names. ``mark``: of replies that pass a gate, whose filters must let them through."""
        self._tag, self.mark = tag, mark
        self._made = 0
        self._taps: dict[int, Tap] = {}
        self._changed = threading.Lock()
        self._poll = select.epoll()
        self._wake, self._woken = os.pipe()
        self._poll.register(self._wake, select.EPOLLIN)
        self._thread: threading.Thread | None = None

    def tap_of(self, sender: int, *, marked: bool, tc: Batch) -> Tap:
        """The tap of a sender, whose replies go to its veth; made if there is none. Raises Refused.

        ``marked``: whether its replies bear our mark. ``tc``: of this machine's kernel.
        """
        for key in self.keys:
            # The sender was started again; or someone deleted the tap.
            if not devices.is_interface(key) or devices.index_of(self._taps[key].name) is None:
                self.shut(key)
        if (known := self._taps.get(sender)) is not None:
            return known
        tap = self.open(sender, f"tb{self._tag}r{self._made}")
        self._made += 1
        with ExitStack() as on_failure:
            on_failure.callback(self.shut, sender)
            devices.have_up(tap.name, mtu=_MTU, queue_packets=devices.QUEUE_PACKETS)
            target = devices.name_of(sender)
            if devices.is_bridge(target):  # the machine itself, or who is beyond it: what the bridge gets goes there
                tap.to_this_machine = True
                redirect = splice.Redirect(source=tap.name, target=target, into="ingress")
            else:
                first = f"{splice.mark(self.mark)} pipe " if marked else ""
                redirect = splice.Redirect(source=tap.name, target=target, first=first)
            tc.checked(list(splice.lines([redirect])))
            on_failure.pop_all()
        return tap

    def open(self, key: int, name: str) -> Tap:
        """The tap of a sender, created if there is none. Raises Refused."""
        with self._changed:
            if key not in self._taps:
                tap = Tap(name, open_tap(name), devices.mac(name))
                self._taps[key] = tap
                self._poll.register(tap.descriptor, select.EPOLLIN)
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="rejecting", daemon=True)
                self._thread.start()
            return self._taps[key]

    @property
    def keys(self) -> list[int]:
        """Every sender that has a tap."""
        return list(self._taps)

    def shut(self, key: int) -> None:
        """Close a sender's tap; it vanishes."""
        with self._changed:
            tap = self._taps.pop(key, None)
            if tap is not None:
                with contextlib.suppress(FileNotFoundError):  # it was dead
                    self._poll.unregister(tap.descriptor)
                os.close(tap.descriptor)

    def close(self) -> None:
        """Close all taps, and end the thread."""
        if self._thread is not None:
            os.write(self._woken, b"!")
            self._thread.join(5.0)
            self._thread = None
        for key in self.keys:
            self.shut(key)
        self._poll.close()
        os.close(self._wake)
        os.close(self._woken)

    def counts(self, key: int) -> dict[str, int] | None:
        """What became of a sender's rejected packets so far; None if it has no tap."""
        with self._changed:  # a reply that has arrived, and is not counted yet, holds it
            tap = self._taps.get(key)
            return None if tap is None else dict(tap.counts)

    def _serve(self) -> None:
        while True:
            ready = {descriptor for descriptor, _ in self._poll.poll()}
            if self._wake in ready:
                return
            with self._changed:
                for tap in self._taps.values():
                    if tap.descriptor in ready:
                        self._serve_one(tap)

    def _serve_one(self, tap: Tap) -> None:
        try:
            tap.serve()
        except OSError as error:
            # EBADFD: someone deleted the device. A dead tap would be ready for ever.
            if error.errno not in (errno.EBADFD, errno.ENODEV, errno.EIO):
                raise
            with contextlib.suppress(OSError):
                self._poll.unregister(tap.descriptor)
