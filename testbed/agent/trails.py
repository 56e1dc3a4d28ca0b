"""What passed at interfaces of this network namespace, as digests: two runs are the same if their digests are.

Each interface has a packet ring that stays open from test to test. A packet's time, length, direction and bytes go into
a digest that runs on; now and then its value is kept, so that two runs can be compared up to there. On request packets
are kept whole too. The rings are read while the kernel may still write to them, so this is for one processor only.
"""

from __future__ import annotations

import base64
import hashlib
import struct
import zlib
from collections.abc import Sequence
from typing import Any

from .capture import BLOCKS, PACKET, PACKETS, RECORD, Captures, PacketRing, device_of, filter_program, left
from .parcel import piece
from .protocol import Operation

_WHOLE = 0x40000
_RINGS_BLOCKS, _LEAST_BLOCKS = 512, 2
"""Blocks of all rings, and of each."""
_MOST_MARKS = 512
MARK = struct.Struct("<QI")
"""A value of the digest that was kept: the time of the packet that it includes last, since the beginning in ns, and
four bytes of the value."""


class FollowedPort(PacketRing):
    """One interface."""

    def __init__(self, device: str, *, blocks: int) -> None:
        super().__init__(device, program=filter_program((), snap_bytes=_WHOLE), limit_bytes=0, blocks=blocks)
        self._read = self._at = 0
        """Of the kernel's current block: how many packets were read, and where the next one begins."""
        self.begin(since_ns=0, keep_bytes=0, whole=[])

    def begin(self, *, since_ns: int, keep_bytes: int, whole: list[bytes]) -> None:
        """Begin anew: with packets from that time of CLOCK_REALTIME on, of which so much goes to ``whole``."""
        self.packets = self.size_bytes = 0
        self._whole = whole
        self.left_out = 0
        self._since_ns, self._keep_bytes = since_ns, keep_bytes
        self._digest = hashlib.blake2b(digest_size=16)
        self._every, self._marks = 1, list[bytes]()
        if not self.ended:
            self.take_now()

    def take_now(self) -> None:
        """Take all packets that have passed."""
        self.take()
        self._take_from(self.current_block())

    def _keep(self, block: bytes) -> None:
        self._take_from(block)
        self._read = self._at = 0

    def _take_from(self, block: bytes) -> None:
        count, first = struct.unpack_from("=II", block, PACKETS)
        at = self._at if self._read else first
        for _ in range(self._read, count):
            ahead, seconds, nanoseconds, kept, length, _, offset = PACKET.unpack_from(block, at)
            since_ns = seconds * 1_000_000_000 + nanoseconds - self._since_ns
            if since_ns >= 0:
                head = RECORD.pack(since_ns, length, kept, 0, left(block, at))
                self._add(since_ns, length, head + block[at + offset : at + offset + kept])
            at += ahead
        self._read, self._at = count, at

    def _add(self, since_ns: int, length: int, record: bytes) -> None:
        self._digest.update(record)
        self.packets += 1
        self.size_bytes += length
        if not self.packets % self._every:
            self._marks.append(MARK.pack(since_ns, int.from_bytes(self._digest.digest()[:4], "big")))
            if len(self._marks) == _MOST_MARKS:
                del self._marks[::2]
                self._every *= 2
        if self._keep_bytes >= len(record):
            self._keep_bytes -= len(record)
            self._whole.append(record)
        else:
            self.left_out += 1

    def result(self) -> dict[str, Any]:
        """What has passed: see `testbed.evidence.trail`."""
        return {
            "packets": self.packets,
            "bytes": self.size_bytes,
            "digest": self._digest.hexdigest(),
            "every": self._every,
            "marks": base64.b64encode(zlib.compress(b"".join(self._marks), 9)).decode(),
        }


class FollowedPorts:
    """The operations. The thread that reads the rings of captures reads these too."""

    def __init__(self, captures: Captures) -> None:
        self._captures = captures
        self._trails: dict[str, FollowedPort] = {}
        self._whole: dict[int, dict[str, list[bytes]]] = {}
        """By beginning and port."""

    def operations(self) -> dict[str, Operation]:
        """The protocol's operations."""
        return {"follow": self.follow, "trails": self.trails, "fetch_trail": self.fetch}

    def follow(self, *, interfaces: Sequence[dict[str, Any]], since_ns: int, keep_bytes: int) -> None:
        """Begin anew at these interfaces: with packets from that time of CLOCK_REALTIME on.

        ``interfaces``: each with ``device`` or ``ifindex``, and the ``port`` to call it by. ``keep_bytes``: how much
        of each interface's packets is kept whole, until the end.
        """
        blocks = max(min(_RINGS_BLOCKS // max(len(interfaces), 1), BLOCKS), _LEAST_BLOCKS)
        with self._captures.lock:
            trails = {}
            for interface in interfaces:
                device = device_of(interface)
                trail = self._trails.pop(interface["port"], None)
                if trail is not None and (trail.ended or trail.device != device):
                    self._captures.let_go(trail)
                    trail.close()
                    trail = None
                if trail is None:
                    trail = FollowedPort(device, blocks=blocks)
                    self._captures.read(trail)
                whole = self._whole.setdefault(since_ns, {}).setdefault(interface["port"], [])
                trail.begin(since_ns=since_ns, keep_bytes=keep_bytes, whole=whole)
                trails[interface["port"]] = trail
            for trail in self._trails.values():
                self._captures.let_go(trail)
                trail.close()
            self._trails = trails

    def trails(self) -> dict[str, dict[str, Any]]:
        """What has passed at each port since it was followed."""
        with self._captures.lock:
            for trail in self._trails.values():
                if not trail.ended:
                    trail.take_now()
            return {
                port: {**trail.result(), "lost": trail.count_lost(), "left_out": trail.left_out}
                for port, trail in self._trails.items()
            }

    def fetch(self, *, since_ns: int, port: str, offset: int) -> dict[str, Any]:
        """A piece of the packets that were kept whole from a beginning on, whose times count from there."""
        return piece(b"".join(self._whole[since_ns][port]), offset)
