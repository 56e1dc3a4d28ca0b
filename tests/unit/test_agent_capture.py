"""The capturing agent: its filter, and packets over this machine's loopback."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from itertools import cycle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.agent import capture, kernelcalls, parcel
from testbed.agent.protocol import Refused
from testbed.lab.observer import fetch
from testbed.observe.capture import Packet, packets
from tests.unit.frames import ethernet, ipv4, ipv6

_ADDRESSES = st.lists(st.ip_addresses().map(str), max_size=4)


def passes(program: bytes, frame: bytes) -> int:
    """How much of a frame a classic BPF program lets through: the four instructions that we use."""
    lines = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, value = lines[at]
        at += 1
        if code == 0x06:
            return int(value)
        if code in (0x28, 0x20):
            size = 2 if code == 0x28 else 4
            if value + size > len(frame):
                return 0
            accumulator = int.from_bytes(frame[value : value + size], "big")
        elif code == 0x15:
            at += if_true if accumulator == value else if_false
        else:
            raise AssertionError(f"instruction {code:#x}")


@given(_ADDRESSES, st.ip_addresses(v=4).map(str), st.ip_addresses(v=4).map(str))
def test_only_packets_from_or_to_one_of_the_addresses_pass(addresses: list[str], src: str, dst: str) -> None:
    program = capture.filter_program(addresses, snap_bytes=99)
    frame = ipv4(src, dst, 17, bytes(8))
    assert passes(program, frame) == (99 if not addresses or {src, dst} & set(addresses) else 0)
    for address in addresses:
        made = ipv4 if ":" not in address else ipv6
        other = "10.9.9.9" if made is ipv4 else "fd99::1"
        assert passes(program, made(address, other, 17, bytes(8))) == 99
        assert passes(program, made(other, address, 17, bytes(8))) == 99
        assert passes(program, ethernet(0x0806, bytes(28))) == 0


def test_a_filter_of_no_bytes_lets_nothing_in() -> None:
    assert passes(capture.filter_program(["10.0.0.1"], snap_bytes=0), ipv4("10.0.0.1", "10.0.0.2", 17, b"")) == 0


def test_a_filter_of_many_addresses_keeps_its_jumps_short() -> None:
    program = capture.filter_program([f"fd00::{number}" for number in range(100)], snap_bytes=9)
    assert passes(program, ipv6("fd00::99", "fd01::1", 17, b"")) == 9
    assert len(program) // 8 < 4096, "BPF_MAXINSNS"


@given(st.binary(max_size=2000))
def test_what_goes_over_in_pieces_arrives_whole(data: bytes) -> None:
    before, parcel.PIECE_BYTES = parcel.PIECE_BYTES, 100
    try:
        assert fetch(lambda offset: parcel.piece(data, offset)) == data
    finally:
        parcel.PIECE_BYTES = before


# --- on loopback -----------------------------------------------------------------------------------


_NUMBERS = cycle(range(1, 31))


@pytest.fixture
def running() -> Iterator[capture.Captures]:
    with capture.Captures() as captures:
        try:
            captures.capture(name="try", interfaces=[{"device": "lo"}], snap_bytes=10, limit_bytes=1000)
        except Refused as refused:
            pytest.skip(f"no packet sockets here: {refused}")
        captures.end(name="try")
        captures.drop(name="try")
        yield captures


@pytest.fixture
def port() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        # An address of its own for each process and test: what others send over loopback must not fill the capture.
        receiver.bind((str(IPv4Address("127.0.0.0") + (os.getpid() * 32 + next(_NUMBERS)) % 2**24), 0))
        yield receiver


def loopback(port: socket.socket) -> dict[str, Any]:
    """Where to capture what comes to a port, and nothing else."""
    return {"device": "lo", "addresses": [port.getsockname()[0]]}


def send(to: socket.socket, *datagrams: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for data in datagrams:
            sender.sendto(data, to.getsockname())
            with contextlib.suppress(BlockingIOError):
                to.recv(65536, socket.MSG_DONTWAIT)


def ended(captures: capture.Captures, name: str) -> tuple[dict[str, Any], list[Packet]]:
    account = captures.end(name=name)
    offset = min(account["realtime_minus_monotonic_ns"])
    records = fetch(lambda at: captures.fetch(name=name, offset=at))
    return account, list(packets(records, realtime_minus_monotonic_ns=offset))


def of(captured: list[Packet], port: socket.socket) -> list[Packet]:
    wanted = port.getsockname()[1].to_bytes(2, "big")
    return [
        packet for packet in captured if packet.data[23:24] == b"\x11" and packet.data[36:38] == wanted and packet.left
    ]


def test_with_a_simulated_clock_the_unfinished_block_is_taken_at_the_end(
    running: capture.Captures, port: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel finishes blocks after a minute there, and nothing waits for that."""
    monkeypatch.setattr(kernelcalls, "clock_is_simulated", lambda: True)
    running.capture(name="a", interfaces=[loopback(port)], snap_bytes=0x40000, limit_bytes=1 << 20)
    send(port, b"first", b"second")
    began = time.monotonic()
    _, captured = ended(running, "a")
    assert [packet.data[42:] for packet in of(captured, port)] == [b"first", b"second"]
    assert time.monotonic() - began < 2


def test_every_datagram_is_there_in_order_with_its_time(running: capture.Captures, port: socket.socket) -> None:
    began = time.monotonic_ns()
    running.capture(name="a", interfaces=[loopback(port)], snap_bytes=0x40000, limit_bytes=1 << 20)
    send(port, b"first", b"second" * 300, b"third")
    account, captured = ended(running, "a")
    mine = of(captured, port)
    assert [packet.data[42:] for packet in mine] == [b"first", b"second" * 300, b"third"]
    assert all(packet.whole for packet in mine)
    assert began <= mine[0].time_ns <= mine[1].time_ns <= mine[2].time_ns <= time.monotonic_ns()
    assert account["interfaces"] == [{"device": "lo", "lost": 0, "overwritten": 0, "ended": ""}]


def test_only_the_beginning_of_each_is_kept_if_so_asked(running: capture.Captures, port: socket.socket) -> None:
    running.capture(name="a", interfaces=[loopback(port)], snap_bytes=50, limit_bytes=1 << 20)
    send(port, b"x" * 700)
    (packet,) = of(ended(running, "a")[1], port)
    assert (len(packet.data), packet.length_bytes, packet.whole) == (50, 742, False)


def test_what_is_over_the_limit_gives_way_from_the_beginning(running: capture.Captures, port: socket.socket) -> None:
    running.capture(name="a", interfaces=[loopback(port)], snap_bytes=0x40000, limit_bytes=400_000)
    count = 1500
    send(port, *(number.to_bytes(4, "big") + bytes(1000) for number in range(count)))
    account, captured = ended(running, "a")
    numbers = [int.from_bytes(packet.data[42:46], "big") for packet in of(captured, port)]
    (interface,) = account["interfaces"]
    assert interface["lost"] == 0
    assert interface["overwritten"] > 0
    assert numbers == list(range(numbers[0], count)), "the last of them, without a gap"
    assert numbers[0] > 0


def test_two_captures_run_side_by_side_and_slow_traffic_takes_no_room(
    running: capture.Captures, port: socket.socket
) -> None:
    for name in ("a", "b"):
        running.capture(name=name, interfaces=[loopback(port)] * 2, snap_bytes=0x40000, limit_bytes=1 << 20)
    for number in range(20):  # more blocks than the kernel's ring has, each retired with little in it
        send(port, bytes([number]))
        time.sleep(0.05)
    for name in ("a", "b"):
        account, captured = ended(running, name)
        assert [packet.data[42] for packet in of(captured, port) if packet.place == 0] == list(range(20))
        assert len(of(captured, port)) == 40, "once at each of the two"
        assert [interface["lost"] for interface in account["interfaces"]] == [0, 0]


def test_a_capture_that_is_dropped_while_it_runs_is_gone_and_the_next_is_not_disturbed(
    running: capture.Captures, port: socket.socket
) -> None:
    for _ in range(5):
        running.capture(name="a", interfaces=[loopback(port)], snap_bytes=0x40000, limit_bytes=1 << 20)
        send(port, b"dropped")
        running.drop(name="a")
    running.capture(name="a", interfaces=[loopback(port)], snap_bytes=0x40000, limit_bytes=1 << 20)
    send(port, b"kept")
    assert [packet.data[42:] for packet in of(ended(running, "a")[1], port)] == [b"kept"]


def test_nothing_of_a_capture_that_cannot_begin_stays(running: capture.Captures) -> None:
    with pytest.raises(Refused, match="cannot capture on testbed-none: No such device"):
        running.capture(
            name="a", interfaces=[{"device": "lo"}, {"device": "testbed-none"}], snap_bytes=1, limit_bytes=1
        )
    with pytest.raises(Refused, match="no capture 'a'; there are: none"):
        running.end(name="a")
    with pytest.raises(Refused, match="no interface with index 999999 here"):
        running.capture(name="a", interfaces=[{"ifindex": 999999}], snap_bytes=1, limit_bytes=1)
