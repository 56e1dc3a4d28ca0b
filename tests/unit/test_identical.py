"""What the committed digests of tests/lab/identical take in, and what they leave out."""

from __future__ import annotations

from dataclasses import replace

from tests.lab.identical import Digests, OneWay, differences, ways
from tests.unit.frames import Wire, sack


def seen(*, isn: int = 1000, late_ns: int = 0, byte: bytes = b"b", last: bool = True) -> Digests:
    """The digests of a connection with a hole, which a SACK tells of."""
    wire = Wire(client_isn=isn, server_isn=2 * isn)
    wire.handshake()
    wire.client(0, b"a")
    wire.client(2, byte)
    wire.server(0, ack=1, options=sack(((isn + 3) % 2**32, (isn + 4) % 2**32)), at_ms=5 + late_ns / 1e6)
    if last:
        wire.client(1, b"c")
    return ways([replace(packet, left=packet.data[26:30] == bytes([10, 0, 0, 2])) for packet in wire.packets])


def test_random_numbers_of_the_kernel_change_nothing() -> None:
    """Also not ones that wrap around."""
    assert [*differences(seen(), seen(isn=2**31 - 2))] == []
    assert [*differences(seen(), seen(isn=2**32 - 2))] == []


def test_a_byte_a_time_and_a_packet_are_told() -> None:
    assert [*differences(seen(), seen(byte=b"x"))] == ["from the host: other bytes in 5 packets"]
    assert [*differences(seen(), seen(late_ns=10_000))] == []
    assert [*differences(seen(), seen(late_ns=11_000))] == [
        "toward the host: 1 packets at other times, the first at 5011 µs instead of 5000 µs"
    ]
    assert [*differences(seen(), seen(last=False))] == ["from the host: 4 packets, and committed are 5"]


def test_what_is_written_is_read_back() -> None:
    assert {way: OneWay.read(one_way.as_json()) for way, one_way in seen().items()} == seen()
