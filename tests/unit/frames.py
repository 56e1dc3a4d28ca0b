"""Frames written by hand, for tests that parse them."""

from __future__ import annotations

import ipaddress
import struct

from testbed.observe.capture import Packet

CLIENT, SERVER = "10.0.0.1", "10.0.0.2"
CLIENT_PORT, SERVER_PORT = 40000, 80
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


def ethernet(kind: int, payload: bytes) -> bytes:
    return bytes.fromhex("020000000002020000000001") + struct.pack(">H", kind) + payload


def ipv4(src: str, dst: str, protocol: int, payload: bytes, *, identification: int = 1, checksum: int = 0) -> bytes:
    header = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), identification, 0x4000, 64, protocol, checksum,
        ipaddress.ip_address(src).packed, ipaddress.ip_address(dst).packed,
    )  # fmt: skip
    return ethernet(0x0800, header + payload)


def ipv6(src: str, dst: str, protocol: int, payload: bytes) -> bytes:
    header = struct.pack(
        ">IHBB16s16s",
        0x60000000,
        len(payload),
        protocol,
        64,
        ipaddress.ip_address(src).packed,
        ipaddress.ip_address(dst).packed,
    )
    return ethernet(0x86DD, header + payload)


def tcp(
    sport: int, dport: int, *, seq: int = 0, ack: int = 0, flags: int = ACK, window: int = 1000, payload: bytes = b"",
    options: bytes = b"", checksum: int = 0,
) -> bytes:  # fmt: skip
    options += bytes(-len(options) % 4)
    offset = (20 + len(options)) // 4 << 4
    head = struct.pack(">HHIIBBHHH", sport, dport, seq % 2**32, ack % 2**32, offset, flags, window, checksum, 0)
    return head + options + payload


def sack(*blocks: tuple[int, int]) -> bytes:
    return bytes([1, 1, 5, 2 + 8 * len(blocks)]) + b"".join(struct.pack(">II", *block) for block in blocks)


class Wire:
    """A connection whose segments are written down one a millisecond."""

    def __init__(self, *, client_isn: int = 1000, server_isn: int = 5000) -> None:
        self.packets: list[Packet] = []
        self.client_isn, self.server_isn = client_isn, server_isn
        self._identification = 0

    def _add(self, frame: bytes, at_ms: float | None) -> Packet:
        time_ns = len(self.packets) * 1_000_000 if at_ms is None else int(at_ms * 1e6)
        self.packets.append(Packet(time_ns=time_ns, place=0, data=frame, length_bytes=len(frame)))
        return self.packets[-1]

    def client(
        self, at: int, payload: bytes = b"", *, ack: int = 0, flags: int = ACK, window: int = 1000,
        options: bytes = b"", at_ms: float | None = None, identification: int | None = None,
    ) -> Packet:  # fmt: skip
        """From the client: its ``at``-th byte on; acknowledges ``ack`` bytes of the server's."""
        self._identification += 1
        body = tcp(
            CLIENT_PORT,
            SERVER_PORT,
            seq=self.client_isn + 1 + at,
            ack=self.server_isn + 1 + ack,
            flags=flags,
            window=window,
            payload=payload,
            options=options,
        )
        identity = self._identification if identification is None else identification
        return self._add(ipv4(CLIENT, SERVER, 6, body, identification=identity), at_ms)

    def server(
        self,
        at: int,
        payload: bytes = b"",
        *,
        ack: int = 0,
        flags: int = ACK,
        window: int = 1000,
        options: bytes = b"",
        at_ms: float | None = None,
    ) -> Packet:
        """From the server, likewise."""
        self._identification += 1
        body = tcp(
            SERVER_PORT,
            CLIENT_PORT,
            seq=self.server_isn + 1 + at,
            ack=self.client_isn + 1 + ack,
            flags=flags,
            window=window,
            payload=payload,
            options=options,
        )
        return self._add(ipv4(SERVER, CLIENT, 6, body, identification=self._identification), at_ms)

    def handshake(self) -> None:
        """SYN at 0 ms, SYN-ACK at 1 ms, ACK at 2 ms."""
        self.client(-1, flags=SYN)
        self.server(-1, flags=SYN | ACK)
        self.client(0)
