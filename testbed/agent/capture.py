"""Capture packets at interfaces of this network namespace; of each interface the latest are kept.

Each interface has a packet socket with a ring that the kernel fills (packet(7), TPACKET_V3). The kernel hands over
whole blocks, so a single packet costs this process nothing. Needs CAP_NET_RAW only. No interface is set promiscuous:
ports of a switch carry other hosts' frames anyway.
"""

from __future__ import annotations

import ctypes
import ipaddress
import mmap
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

from . import kernelcalls
from .parcel import piece
from .protocol import Operation, Refused

# linux/if_packet.h, linux/if_ether.h, asm-generic/socket.h
_SOL_PACKET, _RX_RING, _STATISTICS, _VERSION, _TPACKET_V3 = 263, 5, 6, 10, 2
_ETH_P_ALL, _ETH_P_IP, _ETH_P_IPV6 = 0x0003, 0x0800, 0x86DD
_SO_ATTACH_FILTER = 26
_PACKET_OUTGOING = 4
_STATUS, PACKETS, _LENGTH = 8, 12, 20  # offsets in struct tpacket_block_desc
_STATUS_USER = 1
PACKET = struct.Struct("=IIIIIIH")
"""The head of struct tpacket3_hdr, up to tp_mac."""
_PACKET_TYPE = 48 + 10  # struct sockaddr_ll follows the header; its sll_pkttype

_BLOCK_BYTES, BLOCKS = 1 << 18, 16
_FRAME_BYTES = 1 << 11  # without effect in version 3, which packs packets densely
_RETIRE_MS, _SIMULATED_RETIRE_MS = 40, 60_000
"""When the kernel finishes a block that is not full. With a simulated clock each time would cost as much as packets."""

RECORD = struct.Struct("<QIIBB")
"""The head of a packet in the parcel, before its bytes: time of CLOCK_REALTIME in ns, its length on the wire, how many
bytes follow, the number of its interface in the capture, from 0, and whether it left this kernel (1) or came in (0)."""


class PacketRing:
    """One captured interface."""

    def __init__(self, device: str, *, program: bytes, limit_bytes: int, blocks: int = BLOCKS) -> None:
        self.device = device
        self._blocks = blocks
        self._limit_bytes = limit_bytes
        self._kept: deque[bytes] = deque()
        self._kept_bytes = 0
        self.overwritten = 0
        self.lost = 0
        self.ended = ""
        self._next = 0
        try:
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        except PermissionError as error:
            raise Refused(f"a packet socket needs CAP_NET_RAW: {error.strerror}") from None
        try:
            _attach(self.socket, program)
            self.socket.setsockopt(_SOL_PACKET, _VERSION, _TPACKET_V3)
            size = _BLOCK_BYTES * blocks
            retire_ms = _SIMULATED_RETIRE_MS if kernelcalls.clock_is_simulated() else _RETIRE_MS
            request = (_BLOCK_BYTES, blocks, _FRAME_BYTES, size // _FRAME_BYTES, retire_ms, 0, 0)
            self.socket.setsockopt(_SOL_PACKET, _RX_RING, struct.pack("=7I", *request))
            self._ring = mmap.mmap(self.socket.fileno(), size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            self.socket.bind((device, _ETH_P_ALL))
        except OSError as error:
            self.socket.close()
            raise Refused(f"cannot capture on {device}: {error.strerror or error}") from None

    def take(self) -> bool:
        """Take the blocks that the kernel has finished; returns whether there were any."""
        taken = False
        while True:
            at = self._next * _BLOCK_BYTES
            (status,) = struct.unpack_from("=I", self._ring, at + _STATUS)
            if not status & _STATUS_USER:
                return taken
            (length,) = struct.unpack_from("=I", self._ring, at + _LENGTH)
            self._keep(self._ring[at : at + length])
            struct.pack_into("=I", self._ring, at + PACKETS, 0)  # until the kernel starts the block again
            struct.pack_into("=I", self._ring, at + _STATUS, 0)
            self._next = (self._next + 1) % self._blocks
            taken = True

    def take_unfinished(self) -> None:
        """Take the kernel's current block as it is: after `refuse`, on one processor, which then writes no more."""
        self.take()
        self._keep(self.current_block())

    def current_block(self) -> bytes:
        """The block that the kernel fills, as it is."""
        at = self._next * _BLOCK_BYTES
        (length,) = struct.unpack_from("=I", self._ring, at + _LENGTH)
        return self._ring[at : at + length]

    def _keep(self, block: bytes) -> None:
        self._kept.append(block)
        self._kept_bytes += len(block)
        while self._kept_bytes > self._limit_bytes and len(self._kept) > 1:
            oldest = self._kept.popleft()
            self._kept_bytes -= len(oldest)
            self.overwritten += struct.unpack_from("=I", oldest, PACKETS)[0]

    def settled(self) -> bool:
        """Whether the kernel's current block is empty."""
        return not struct.unpack_from("=I", self._ring, self._next * _BLOCK_BYTES + PACKETS)[0]

    def refuse(self) -> None:
        """Take no further packets."""
        _attach(self.socket, filter_program((), snap_bytes=0))

    def close(self) -> None:
        """Release the ring; the blocks taken so far remain."""
        if self.socket.fileno() >= 0:
            self.lost = self.count_lost()
            self._ring.close()
            self.socket.close()

    def count_lost(self) -> int:
        """How many packets the kernel had no room for, since this was last asked: reading resets it."""
        _, lost, _ = struct.unpack("=3I", self.socket.getsockopt(_SOL_PACKET, _STATISTICS, 12))
        return int(lost)

    def records(self, number: int) -> list[tuple[int, bytes]]:
        """Every packet: its time in ns, and its record (`RECORD` and bytes)."""
        packets = []
        for block in self._kept:
            count, at = struct.unpack_from("=II", block, PACKETS)
            for _ in range(count):
                ahead, seconds, nanoseconds, kept, length, _, offset = PACKET.unpack_from(block, at)
                moment = seconds * 1_000_000_000 + nanoseconds
                head = RECORD.pack(moment, length, kept, number, left(block, at))
                packets.append((moment, head + block[at + offset : at + offset + kept]))
                at += ahead
        return packets


def left(block: bytes, at: int) -> bool:
    """Whether the packet at that place of a block left this kernel; else it came in."""
    return block[at + _PACKET_TYPE] == _PACKET_OUTGOING


class Captures:
    """Every capture that runs, or has ended and was not dropped yet."""

    def __init__(self) -> None:
        self._rings: dict[str, list[PacketRing]] = {}
        self._running: dict[int, PacketRing] = {}
        self._clock: dict[str, list[int]] = {}
        self._parcels: dict[str, bytes] = {}
        self.lock = threading.Lock()
        """Held while rings are read."""
        self._closing = ThreadPoolExecutor(1, "closing")
        self._poll = select.epoll()  # it includes descriptors that are added while it waits
        self._wake, self._woken = os.pipe()
        self._poll.register(self._wake, select.EPOLLIN)
        self._thread = threading.Thread(target=self._collect, name="capture", daemon=True)
        self._thread.start()

    def operations(self) -> dict[str, Operation]:
        """The protocol's operations."""
        return {
            "capture": self.capture,
            "end": self.end,
            "fetch": self.fetch,
            "drop": self.drop,
            "clock": time.monotonic_ns,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        with self.lock:
            rings = list(self._running.values())
            self._running.clear()
        os.write(self._woken, b"x")
        self._thread.join(2)
        for ring in rings:
            ring.close()
        self._closing.shutdown()

    # --- operations --------------------------------------------------------------------------------

    def capture(
        self, *, name: str, interfaces: Sequence[dict[str, Any]], snap_bytes: int, limit_bytes: int
    ) -> dict[str, list[str]]:
        """Start a capture; returns the interfaces' names.

        ``interfaces``: each with ``device`` or ``ifindex``, and ``addresses``: only packets from or to one of these
        are kept; all if there are none. ``snap_bytes``: how much of each packet. ``limit_bytes``: how much per
        interface; then the oldest packets are overwritten.
        """
        if name in self._rings:
            raise Refused(f"capture {name!r} runs already")
        filters = [
            (device_of(interface), filter_program(interface.get("addresses", ()), snap_bytes=snap_bytes))
            for interface in interfaces
        ]
        # In parallel: each waits until the kernel has synchronised its processors, and all can wait at once.
        with ThreadPoolExecutor(max(len(filters), 1)) as pool:
            starts = [
                pool.submit(PacketRing, device, program=program, limit_bytes=limit_bytes) for device, program in filters
            ]
        errors = [error for start in starts if (error := start.exception()) is not None]
        if errors:
            for start in starts:
                if start.exception() is None:
                    start.result().close()
            raise errors[0]
        rings = [start.result() for start in starts]
        self._rings[name] = rings
        self._clock[name] = [time.time_ns() - time.monotonic_ns()]
        with self.lock:
            for ring in rings:
                self.read(ring)
        return {"devices": [ring.device for ring in rings]}

    def end(self, *, name: str) -> dict[str, Any]:
        """End a capture; returns how many packets were lost or overwritten on each interface.

        ``realtime_minus_monotonic_ns``: the difference of the clocks, at its start and at its end; ``ended_ns``: its
        end by CLOCK_MONOTONIC.
        """
        rings = self._known(name)
        for ring in rings:
            ring.refuse()
        ended_ns = time.monotonic_ns()
        self._clock[name].append(time.time_ns() - ended_ns)
        deadline = time.monotonic() + 2.0
        if kernelcalls.clock_is_simulated():
            with self.lock:
                for ring in rings:
                    ring.take_unfinished()
            deadline = 0.0
        while any(not ring.ended and not self._done(ring) for ring in rings) and time.monotonic() < deadline:
            time.sleep(0.005)
        with self.lock:
            for ring in rings:
                self.let_go(ring)
                ring.take()
                ring.close()
        return {
            "interfaces": [
                {"device": ring.device, "lost": ring.lost, "overwritten": ring.overwritten, "ended": ring.ended}
                for ring in rings
            ],
            "realtime_minus_monotonic_ns": self._clock[name],
            "ended_ns": ended_ns,
        }

    def fetch(self, *, name: str, offset: int) -> dict[str, Any]:
        """A piece of an ended capture: records, in the order of their time."""
        if name not in self._parcels:
            rings = self._known(name)
            records = sorted(
                (record for number, ring in enumerate(rings) for record in ring.records(number)),
                key=lambda record: record[0],
            )
            self._parcels[name] = b"".join(record for _, record in records)
        return piece(self._parcels[name], offset)

    def drop(self, *, name: str) -> None:
        """Forget a capture with its packets; a running one ends."""
        rings = self._known(name)
        del self._rings[name], self._clock[name]
        self._parcels.pop(name, None)
        with self.lock:
            for ring in rings:
                self.let_go(ring)
        # Releasing rings takes the kernel some ten milliseconds each: nobody needs to wait for that.
        for ring in rings:
            self._closing.submit(ring.close)

    # --- how ---------------------------------------------------------------------------------------

    def _known(self, name: str) -> list[PacketRing]:
        if name not in self._rings:
            raise Refused(f"no capture {name!r}; there are: {', '.join(self._rings) or 'none'}")
        return self._rings[name]

    def read(self, ring: PacketRing) -> None:
        """Have its blocks taken as they are finished; with the lock held."""
        self._running[ring.socket.fileno()] = ring
        self._poll.register(ring.socket.fileno(), select.EPOLLIN)

    def let_go(self, ring: PacketRing) -> None:
        """Stop polling it, unless it has ended; with the lock held."""
        if self._running.pop(ring.socket.fileno(), None) and not ring.ended:
            self._poll.unregister(ring.socket.fileno())

    def _done(self, ring: PacketRing) -> bool:
        with self.lock:
            ring.take()
            return ring.settled()

    def _collect(self) -> None:
        """Take blocks as they come, until the pipe is written to."""
        while True:
            for descriptor, events in self._poll.poll():
                if descriptor == self._wake:
                    return
                with self.lock:
                    ring = self._running.get(descriptor)
                    if ring is None:
                        continue
                    ring.take()
                    if events & (select.EPOLLERR | select.EPOLLHUP):
                        code = ring.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                        ring.ended = os.strerror(code) if code else "the interface is gone"
                        self._poll.unregister(descriptor)


def filter_program(addresses: Sequence[str], *, snap_bytes: int) -> bytes:
    """A classic BPF program that accepts packets from or to one of the addresses, cut to ``snap_bytes`` (0: none).

    Without addresses it accepts every packet. Linux: networking/filter.rst.
    """
    accept = (0x06, 0, 0, snap_bytes)
    if not addresses or not snap_bytes:
        return _packed([accept])
    blocks: list[list[tuple[int, int, int, int]]] = []
    for address in map(ipaddress.ip_address, addresses):
        words = [int.from_bytes(address.packed[at : at + 4], "big") for at in range(0, len(address.packed), 4)]
        protocol, offsets = (_ETH_P_IP, (26, 30)) if address.version == 4 else (_ETH_P_IPV6, (22, 38))
        for offset in offsets:
            block = [(0x28, 0, 0, 12), (0x15, 0, 2 * len(words) + 1, protocol)]  # ldh [12]; jne protocol, next block
            for number, word in enumerate(words):
                rest = 2 * (len(words) - number - 1) + 1
                block += [(0x20, 0, 0, offset + 4 * number), (0x15, 0, rest, word)]  # ld [..]; jne word, next block
            blocks.append([*block, accept])
    return _packed([line for block in blocks for line in block] + [(0x06, 0, 0, 0)])


def _packed(lines: Sequence[tuple[int, int, int, int]]) -> bytes:
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def _attach(packets: socket.socket, program: bytes) -> None:
    lines = ctypes.create_string_buffer(program)
    sock_fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(lines))
    packets.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, sock_fprog)


def device_of(interface: dict[str, Any]) -> str:
    """The name of an interface that is given by ``device`` or ``ifindex``. Raises Refused."""
    if "device" in interface:
        return str(interface["device"])
    try:
        return socket.if_indextoname(interface["ifindex"])
    except OSError:
        raise Refused(f"no interface with index {interface['ifindex']} here", kind="gone") from None
