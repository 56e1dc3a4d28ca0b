"""Taps where rejected packets end, one for each sender; a thread answers what comes to them.

A filter at the switch redirects what is to be rejected to the tap of its sender, and what we write to the tap goes
straight to that sender: past the bridge, past every qdisc and every other cut, as what a firewall says itself does.
A tap is gone when its descriptor is, however we die.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path

from . import answers
from .protocol import Refused

TUN = Path("/dev/net/tun")

# linux/if_tun.h
_TUNSETIFF, _TUNSETPERSIST = 0x400454CA, 0x400454CB
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000

_FRAME_BYTES = 65_536 + 14
# Of one tap before the others get their turn.
_AT_ONCE = 256


def open_tap(name: str) -> int:
    """A tap of this name, which lives as long as its descriptor. Raises Refused."""
    try:
        descriptor = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(f"{TUN}: {error.strerror}") from None
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    except OSError as error:
        os.close(descriptor)
        raise Refused(f"tap {name}: {error.strerror}") from None
    return descriptor


def _address_of(device: str) -> bytes:
    return bytes.fromhex(Path(f"/sys/class/net/{device}/address").read_text().strip().replace(":", ""))


def make_tap(name: str) -> None:
    """A tap that stays when nobody has it open, as long as its network namespace. Raises Refused."""
    descriptor = open_tap(name)
    try:
        fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
    finally:
        os.close(descriptor)


@dataclass
class Tap:
    """Where one sender's rejected packets end."""

    name: str
    descriptor: int
    own: bytes
    """The device's own address: what comes from it was sent by this machine, which says who it is on every device."""
    counts: dict[str, int] = field(
        default_factory=lambda: {"read": 0, answers.RESET: 0, answers.ERROR: 0, "unanswered": 0, "failed": 0}
    )
    """Frames ``read``; ``reset`` and ``error``, how they were answered; ``unanswered``: those that no firewall may
    answer; ``failed``: answers that the kernel did not take."""

    def serve(self) -> None:
        """Answer what waits."""
        for _ in range(_AT_ONCE):
            try:
                frame = os.read(self.descriptor, _FRAME_BYTES)
            except BlockingIOError:
                return
            if frame[6:12] == self.own:
                continue
            self.counts["read"] += 1
            answer = answers.answer(frame)
            if answer is None:
                self.counts["unanswered"] += 1
                continue
            try:
                os.write(self.descriptor, answer.frame)
                self.counts[answer.kind] += 1
            except OSError:
                self.counts["failed"] += 1


class Rejecting:
    """Every tap, and the thread that answers."""

    def __init__(self) -> None:
        self._taps: dict[int, Tap] = {}
        self._changed = threading.Lock()
        self._poll = select.epoll()
        self._wake, self._woken = os.pipe()
        self._poll.register(self._wake, select.EPOLLIN)
        self._thread: threading.Thread | None = None

    def open(self, key: int, name: str) -> Tap:
        """The tap of a sender, made if there is none. Raises Refused."""
        with self._changed:
            if key not in self._taps:
                tap = Tap(name, open_tap(name), _address_of(name))
                self._taps[key] = tap
                self._poll.register(tap.descriptor, select.EPOLLIN)
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="rejecting", daemon=True)
                self._thread.start()
            return self._taps[key]

    def known(self, key: int) -> Tap | None:
        """The tap of a sender, if there is one."""
        return self._taps.get(key)

    @property
    def keys(self) -> list[int]:
        """Every sender that has a tap."""
        return list(self._taps)

    def shut(self, key: int) -> None:
        """Let go of a sender's tap; it vanishes."""
        with self._changed:
            tap = self._taps.pop(key, None)
            if tap is not None:
                with contextlib.suppress(FileNotFoundError):  # it was dead
                    self._poll.unregister(tap.descriptor)
                os.close(tap.descriptor)

    def close(self) -> None:
        """Let go of all, and end the thread."""
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
        """What became of a sender's rejected packets so far; None if there is no tap."""
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
            # EBADFD: the device was deleted behind our back. A dead tap would be ready for ever.
            if error.errno not in (errno.EBADFD, errno.ENODEV, errno.EIO):
                raise
            with contextlib.suppress(OSError):
                self._poll.unregister(tap.descriptor)
