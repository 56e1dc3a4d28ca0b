"""Captures as files and as the agent's records."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.agent import capture as agent
from testbed.observe import pcapng
from testbed.observe.capture import Capture, Packet, Place, packets

_PLACES = st.builds(
    Place,
    name=st.text(max_size=20),
    description=st.text(max_size=40),
    side=st.sampled_from(["before", "after"]),
    lost=st.integers(0, 2**40),
    overwritten=st.integers(0, 2**40),
)


@st.composite
def captures(draw: st.DrawFn) -> Capture:
    places = draw(st.lists(_PLACES, min_size=1, max_size=3))
    whole = st.builds(
        Packet,
        time_ns=st.integers(0, 2**62),
        place=st.integers(0, len(places) - 1),
        data=st.binary(max_size=70),
        length_bytes=st.integers(0, 70000),
        left=st.booleans(),
    )
    return Capture(
        places=tuple(places),
        packets=tuple(draw(st.lists(whole, max_size=6))),
        realtime_minus_monotonic_ns=draw(st.integers(0, 2**62)),
        comment=draw(st.text(max_size=30)),
    )


@given(captures())
def test_what_is_written_is_read_again(capture: Capture) -> None:
    assert pcapng.read(pcapng.write(capture)) == capture


@given(captures(), st.data())
def test_a_file_that_was_cut_off_is_refused_or_is_that_much_shorter(capture: Capture, data: st.DataObject) -> None:
    whole = pcapng.write(capture)
    cut = data.draw(st.integers(1, len(whole) - 1))
    try:
        left = pcapng.read(whole[:cut])
    except ValueError:
        return
    assert left.packets == capture.packets[: len(left.packets)]


@given(captures(), st.data())
def test_a_file_with_a_wrong_byte_is_read_or_refused_with_words(capture: Capture, data: st.DataObject) -> None:
    whole = bytearray(pcapng.write(capture))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        pcapng.read(bytes(whole))
    except ValueError as error:
        assert str(error)  # noqa: PT017  # that it is no other exception is the test


def test_errors_say_where() -> None:
    with pytest.raises(ValueError, match=r"^byte 0: not little-endian pcapng$"):
        pcapng.read(struct.pack(">IIIIqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1 << 16, -1, 28))
    with pytest.raises(ValueError, match=r"^byte 0: there must be one section header, at the beginning$"):
        pcapng.read(bytes(28))
    with pytest.raises(ValueError, match=r"^byte 28: the file ends within a block$"):
        pcapng.read(pcapng.write(Capture(places=(), packets=()))[:0] + _section() + b"123")


def _section() -> bytes:
    return struct.pack("<IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28)


def test_a_file_of_another_program_has_its_own_resolution_and_no_clock_of_ours() -> None:
    interface = struct.pack("<IIHHII", 1, 20, 1, 0, 0, 20)  # without options: microseconds
    packet = struct.pack("<IIIIIII", 6, 36, 0, 0, 5, 4, 4) + b"\1\2\3\4" + struct.pack("<I", 36)
    unknown = struct.pack("<III", 0xBAD, 12, 12)
    read = pcapng.read(_section() + interface + unknown + packet)
    assert (read.packets[0].time_ns, read.packets[0].data, read.realtime_minus_monotonic_ns) == (5000, b"\1\2\3\4", 0)


def test_a_capture_is_complete_if_nothing_was_lost_overwritten_or_cut_off() -> None:
    whole = Packet(time_ns=0, place=0, data=b"12", length_bytes=2)
    cut = Packet(time_ns=0, place=0, data=b"12", length_bytes=3)
    assert Capture(places=(Place(name=""),), packets=(whole,)).complete
    assert not Capture(places=(Place(name=""),), packets=(cut,)).complete
    assert not Capture(places=(Place(name="", lost=1),), packets=(whole,)).complete
    assert not Capture(places=(Place(name="", overwritten=1),), packets=(whole,)).complete


def test_the_agents_records_become_packets_on_the_monotonic_clock() -> None:
    records = agent.RECORD.pack(1_000_000_500, 60, 3, 1, 1) + b"abc" + agent.RECORD.pack(1_000_000_900, 2, 2, 0, 0)
    records += b"de"
    assert packets(records, realtime_minus_monotonic_ns=1_000_000_000) == (
        Packet(time_ns=500, place=1, data=b"abc", length_bytes=60, left=True),
        Packet(time_ns=900, place=0, data=b"de", length_bytes=2),
    )
    for cut in (1, len(records) - 1):
        with pytest.raises(ValueError, match="the records end within"):
            packets(records[:cut], realtime_minus_monotonic_ns=0)


@pytest.mark.skipif(shutil.which("capinfos") is None, reason="no capinfos here to ask")
def test_capinfos_finds_both_places_and_their_losses(tmp_path: Path) -> None:
    places = (
        Place(name="server@lan before the impairment", side="before", lost=3),
        Place(name="after", description="d"),
    )
    capture = Capture(places=places, packets=(Packet(time_ns=5, place=1, data=bytes(60), length_bytes=1500),))
    path = tmp_path / "two.pcapng"
    path.write_bytes(pcapng.write(capture))
    output = subprocess.run(
        ["capinfos", "-M", str(path)], capture_output=True, text=True, check=True, timeout=30
    ).stdout
    assert "Number of interfaces in file: 2" in output
    assert "Name = server@lan before the impairment" in output
    assert "Number of packets:   1" in output
