"""What is read from packets, on connections written segment by segment."""

from __future__ import annotations

import itertools
import json
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import InvalidValueError, LabError
from testbed.observe import pcapng
from testbed.observe.capture import Capture, Packet, Place
from testbed.observe.packet import layers
from testbed.observe.passages import crossing, losses, passages
from testbed.observe.wire import Flow, flows, flows_at, segment
from tests.unit.frames import (
    ACK,
    CLIENT,
    CLIENT_PORT,
    FIN,
    PSH,
    RST,
    SERVER,
    SERVER_PORT,
    SYN,
    Wire,
    ethernet,
    ipv4,
    ipv6,
    sack,
    tcp,
)


def only(wire: Wire) -> Flow:
    (flow,) = flows(wire.packets)
    return flow


@pytest.fixture
def wire() -> Wire:
    begun = Wire()
    begun.handshake()
    return begun


# --- what a link lost ------------------------------------------------------------------------------


def lost_of(*arrived: int, **words: object) -> tuple[int, list[int]] | None:
    """Six packets from the client, one from another host and one back; those of these numbers arrive."""
    sent = [
        *(ipv4(CLIENT, SERVER, 17, struct.pack(">4HI", 40000, 53 + number % 2, 12, 0, number)) for number in range(5)),
        ipv4("10.0.0.9", SERVER, 17, bytes(12)),
        ipv4(SERVER, CLIENT, 17, bytes(12)),
        ipv4(CLIENT, SERVER, 6, tcp(40000, 80)),
    ]
    packets = [
        Packet(time_ns=number * 10**9, place=0, data=data, length_bytes=len(data)) for number, data in enumerate(sent)
    ]
    packets += [
        Packet(time_ns=9 * 10**9, place=1, data=sent[number], length_bytes=len(sent[number])) for number in arrived
    ]
    places = (Place(name="", side="before", overwritten=words.pop("overwritten", 0)), Place(name="", side="after"))  # type: ignore[arg-type]
    capture = Capture(places=places, packets=tuple(packets), ended_ns=words.pop("ended_ns", None))  # type: ignore[arg-type]
    return losses(capture, [str(words.pop("source", CLIENT))], **words)  # type: ignore[arg-type]


def test_what_a_link_lost_is_known_by_the_numbers_of_its_packets() -> None:
    assert lost_of(0, 2, 3, 6, 7) == (6, [2, 5])
    assert lost_of(0, 2, 3, protocol="udp") == (5, [2, 5])
    assert lost_of(0, 2, protocol="udp", port=53) == (3, [3])
    assert lost_of(protocol="tcp") == (1, [1])
    assert lost_of(protocol="icmp") == (0, [])
    assert lost_of(0, source="02:00:00:00:00:01") == (8, [2, 3, 4, 5, 6, 7, 8])  # all that one interface sent


def test_what_may_still_be_under_way_is_not_called_lost() -> None:
    # Seen last at 9 s: whatever came after 4 s may be on its way for 5 s.
    assert lost_of(0, 1, 2, longest_s=5.0) == (5, [4, 5])
    assert lost_of(0, 1, 2, longest_s=5.0, ended_ns=12 * 10**9) == (6, [4, 5, 6])


def test_of_packets_that_were_overwritten_no_number_is_known() -> None:
    assert lost_of(0, overwritten=1) is None


# --- one packet ------------------------------------------------------------------------------------


def test_a_message_comes_apart_into_the_layers_of_the_stack() -> None:
    frame = ipv4(CLIENT, SERVER, 6, tcp(CLIENT_PORT, SERVER_PORT, seq=7, flags=PSH | ACK, payload=b"Test message"))
    taken = layers(frame)
    assert [(step.name, len(step.data), step.offset) for step in taken] == [
        ("Ethernet", 14, 0),
        ("IPv4", 20, 14),
        ("TCP", 20, 34),
        ("payload", 12, 54),
    ]
    assert taken[3].data == b"Test message"
    assert dict(taken[0].fields)["type"] == "0x0800"
    assert {name: dict(taken[1].fields)[name] for name in ("source", "destination", "total length", "protocol")} == {
        "source": CLIENT,
        "destination": SERVER,
        "total length": "52",
        "protocol": "6",
    }
    assert {name: dict(taken[2].fields)[name] for name in ("sequence number", "flags", "data offset")} == {
        "sequence number": "7",
        "flags": "PSH, ACK",
        "data offset": "20",
    }


def test_padding_of_a_short_frame_is_not_payload() -> None:
    frame = ipv4(CLIENT, SERVER, 6, tcp(1, 2)) + bytes(6)
    assert [layer.name for layer in layers(frame)] == ["Ethernet", "IPv4", "TCP", "padding"]
    part = segment(Packet(time_ns=0, place=0, data=frame, length_bytes=len(frame)))
    assert part is not None
    assert part.payload == b""


def test_udp_ipv6_and_what_is_neither() -> None:
    datagram = b"\x00\x35\x00\x36\x00\x0a\x00\x00hi"
    assert [layer.name for layer in layers(ipv4(CLIENT, SERVER, 17, datagram))] == [
        "Ethernet",
        "IPv4",
        "UDP",
        "payload",
    ]
    assert [layer.name for layer in layers(ipv6("fe80::1", "fe80::2", 6, tcp(1, 2)))] == ["Ethernet", "IPv6", "TCP"]
    assert [layer.name for layer in layers(ethernet(0x0806, bytes(28)))] == ["Ethernet", "payload"]


@given(st.binary(max_size=120), st.booleans())
def test_the_layers_of_anything_are_its_bytes_again(data: bytes, framed: bool) -> None:
    frame = ipv4(CLIENT, SERVER, 6, data) if framed else data
    assert b"".join(layer.data for layer in layers(frame)) == frame
    segment(Packet(time_ns=0, place=0, data=frame, length_bytes=len(frame)))


@given(st.integers(0, 74))
def test_a_segment_of_which_the_beginning_was_kept_still_tells_its_length(kept: int) -> None:
    frame = ipv4(CLIENT, SERVER, 6, tcp(1, 2, payload=b"x" * 20))
    part = segment(Packet(time_ns=0, place=0, data=frame[:kept], length_bytes=len(frame)))
    assert (part is not None) == (kept >= 54)
    if part is not None:
        assert (part.payload_bytes, part.payload) == (20, b"x" * max(kept - 54, 0))


def test_a_fragment_that_is_not_the_first_has_no_tcp_header() -> None:
    frame = bytearray(ipv4(CLIENT, SERVER, 6, tcp(1, 2, payload=bytes(40))))
    frame[20:22] = b"\x00\x05"
    assert segment(Packet(time_ns=0, place=0, data=bytes(frame), length_bytes=len(frame))) is None


# --- how a connection begins and ends --------------------------------------------------------------


def test_a_handshake_is_syn_syn_ack_ack(wire: Wire) -> None:
    handshake = only(wire).handshake
    assert (handshake.syn_ns, handshake.syn_ack_ns, handshake.ack_ns) == (0, 1_000_000, 2_000_000)
    assert (handshake.complete, handshake.syns, handshake.round_trip_s) == (True, 1, 0.002)


def test_a_syn_that_was_sent_twice_is_a_retransmission_of_one_handshake() -> None:
    wire = Wire()
    wire.client(-1, flags=SYN)
    wire.client(-1, flags=SYN, at_ms=1000)
    wire.server(-1, flags=SYN | ACK, at_ms=1001)
    flow = only(wire)
    assert (flow.handshake.syns, flow.handshake.complete, flow.handshake.round_trip_s) == (2, False, None)
    assert [retransmission.time_ns for retransmission in flow.client.retransmissions] == [1_000_000_000]


def test_a_syn_with_another_number_begins_another_connection_between_the_same_ports(wire: Wire) -> None:
    again = Wire(client_isn=77777)
    again.handshake()
    first, second = flows([*wire.packets, *again.packets])
    assert (first.client.initial_seq, second.client.initial_seq) == (1000, 77777)


def test_a_connection_whose_begin_was_not_seen_counts_from_what_was() -> None:
    wire = Wire()
    wire.client(500, b"later")
    wire.server(0, ack=505)
    flow = only(wire)
    assert flow.client.initial_seq is None
    assert flow.client.payload() == b"later"
    assert not flow.handshake.complete


def test_who_answered_a_syn_is_the_server_though_the_syn_was_missed() -> None:
    wire = Wire()
    wire.server(-1, flags=SYN | ACK)
    wire.client(0)
    assert only(wire).client.src.address == CLIENT


def test_fin_and_rst_are_on_the_side_that_sent_them(wire: Wire) -> None:
    wire.client(0, flags=FIN | ACK)
    wire.server(0, ack=1, flags=RST | ACK, window=0)
    flow = only(wire)
    assert (len(flow.client.fins), len(flow.server.fins)) == (1, 0)
    assert (len(flow.client.resets), len(flow.server.resets)) == (0, 1)
    assert flow.server.zero_windows == [], "the window of a reset says nothing"


# --- loss and its repair ---------------------------------------------------------------------------


def test_a_segment_that_comes_again_is_a_retransmission(wire: Wire) -> None:
    wire.client(0, b"abc")
    wire.client(3, b"def")
    again = wire.client(0, b"abc")
    flow = only(wire)
    assert [retransmission.packet for retransmission in flow.client.retransmissions] == [again]
    assert flow.client.wire_order == [(0, 3), (3, 3), (0, 3)]
    assert (flow.client.payload(), flow.client.payload_bytes) == (b"abcdef", 6)
    assert flow.client.out_of_order == []


def test_a_retransmission_cut_differently_is_one_too_but_not_with_new_bytes_in_it(wire: Wire) -> None:
    wire.client(0, b"abcdef")
    wire.client(2, b"cd")
    wire.client(4, b"efgh")
    flow = only(wire)
    assert [retransmission.payload for retransmission in flow.client.retransmissions] == [b"cd"]
    assert flow.client.payload() == b"abcdefgh"


def test_what_fills_a_gap_is_out_of_order_and_not_a_retransmission(wire: Wire) -> None:
    """Behind a place that lost the first one, its repair is the first that is seen of it."""
    wire.client(3, b"def")
    late = wire.client(0, b"abc")
    flow = only(wire)
    assert flow.client.retransmissions == []
    assert [part.packet for part in flow.client.out_of_order] == [late]
    assert flow.client.payload() == b"abcdef"


def test_a_copy_made_by_the_network_has_its_originals_identification(wire: Wire) -> None:
    wire.client(0, b"abc", identification=900)
    wire.client(0, b"abc", identification=900)
    wire.client(0, b"abc", identification=901)
    flow = only(wire)
    assert (len(flow.client.copies), len(flow.client.retransmissions)) == (1, 1)


def test_without_an_identification_what_comes_again_is_held_to_be_sent_again(wire: Wire) -> None:
    """Linux leaves it zero in a SYN-ACK, and IPv6 has none."""
    wire.client(0, b"abc", identification=0)
    wire.client(0, b"abc", identification=0)
    flow = only(wire)
    assert (len(flow.client.copies), len(flow.client.retransmissions)) == (0, 1)


def test_a_gap_that_was_never_filled_ends_the_payload(wire: Wire) -> None:
    wire.client(0, b"abc")
    wire.client(6, b"ghi")
    flow = only(wire)
    assert (flow.client.payload(), flow.client.payload_bytes) == (b"abc", 6)


def test_a_duplicate_ack_is_one_of_the_same_number_and_window_while_data_is_outstanding(wire: Wire) -> None:
    wire.client(0, b"abc")
    wire.server(0, ack=3)
    wire.server(0, ack=3)  # nothing outstanding: not one
    wire.client(6, b"ghi")
    wire.server(0, ack=3, options=sack((1007, 1010)))
    wire.server(0, ack=3, window=2000)  # another window: an update
    wire.server(0, b"x", ack=3, window=2000)  # with payload: neither
    flow = only(wire)
    assert len(flow.server.duplicate_acks) == 1
    assert len(flow.server.window_updates) == 1
    assert flow.server.with_sack[0].sack_blocks == ((1007, 1010),)


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(1, 4), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
def test_any_order_on_the_wire_gives_the_payload_that_was_sent_and_numbers_may_wrap_around(
    isn: int, sizes: list[int], random: object
) -> None:
    wire = Wire(client_isn=isn)
    wire.handshake()
    whole = bytes(number % 251 for number in range(sum(sizes)))
    begins = [0, *itertools.accumulate(sizes)]
    pieces = [(begin, whole[begin : begin + size]) for begin, size in zip(begins, sizes, strict=False)]
    order = pieces + pieces[: len(pieces) // 2]
    random.shuffle(order)  # type: ignore[attr-defined]  # a random.Random
    for begin, piece in order:
        wire.client(begin, piece)
    flow = only(wire)
    assert flow.client.payload() == whole
    assert len(flow.client.retransmissions) == len(order) - len(pieces)


# --- windows ---------------------------------------------------------------------------------------


def test_a_window_that_closes_is_probed_and_opens_again(wire: Wire) -> None:
    wire.client(0, b"abc")
    wire.server(0, ack=3, window=0)
    probe = wire.client(2)
    wire.server(0, ack=3, window=0)
    opened = wire.server(0, ack=3, window=700)
    flow = only(wire)
    assert len(flow.server.zero_windows) == 2
    assert [window_probe.packet for window_probe in flow.client.window_probes] == [probe]
    assert [window_update.packet for window_update in flow.server.window_updates] == [opened]
    assert flow.client.retransmissions == []


def test_a_probe_with_the_next_byte_in_it_is_a_probe_and_its_byte_is_not_lost(wire: Wire) -> None:
    wire.client(0, b"abc")
    wire.server(0, ack=3, window=0)
    wire.client(3, b"d")
    wire.server(0, ack=3, window=700)
    wire.client(3, b"def")
    flow = only(wire)
    assert flow.client.payload() == b"abcdef"
    assert flow.client.retransmissions == []


# --- from one place to the other -------------------------------------------------------------------


def datagram(number: int, *, at_ns: int, checksum: int = 0) -> Packet:
    body = b"\x00\x35\x00\x36\x00\x09" + checksum.to_bytes(2, "big") + bytes([number])
    frame = ipv4(CLIENT, SERVER, 17, body, identification=0, checksum=checksum)
    return Packet(time_ns=at_ns, place=0, data=frame, length_bytes=len(frame))


def test_each_packet_arrives_is_lost_or_is_doubled() -> None:
    before = [datagram(number, at_ns=number) for number in range(3)]
    after = [datagram(2, at_ns=12), datagram(0, at_ns=20), datagram(2, at_ns=30)]
    assert [(passage.lost, len(passage.after), passage.delay_s) for passage in passages(before, after)] == [
        (False, 1, 20e-9),
        (True, 0, None),
        (False, 2, 10e-9),
    ]


def test_a_checksum_that_was_filled_in_on_the_way_makes_no_other_packet() -> None:
    (passage,) = passages([datagram(1, at_ns=0)], [datagram(1, at_ns=5, checksum=0xABCD)])
    assert not passage.lost


def test_equal_packets_are_paired_in_their_order() -> None:
    before = [datagram(1, at_ns=0), datagram(1, at_ns=10)]
    after = [datagram(1, at_ns=7), datagram(1, at_ns=17)]
    assert [passage.delay_s for passage in passages(before, after)] == [7e-9, 7e-9]


def test_only_packets_toward_the_host_cross_its_impairment() -> None:
    wire = Wire()
    wire.handshake()
    after = [
        Packet(time_ns=packet.time_ns + 5, place=1, data=packet.data, length_bytes=packet.length_bytes)
        for packet in wire.packets[:1]
    ]
    capture = Capture(
        places=(Place(name="b", side="before"), Place(name="a", side="after")), packets=(*wire.packets, *after)
    )
    assert [passage.lost for passage in crossing(capture, [SERVER])] == [False, True]


# --- what is not in the capture ---------------------------------------------------------------------


def cut(packet: Packet, kept: int) -> Packet:
    return replace(packet, data=packet.data[:kept])


def test_a_payload_that_was_not_kept_whole_is_refused_and_the_error_says_what_keeps_it(wire: Wire) -> None:
    wire.client(0, b"a" * 300)
    wire.client(300, b"b" * 300)
    headers = len(wire.packets[0].data)
    short = [cut(packet, headers + 100) for packet in wire.packets]
    (flow,) = flows(short)
    assert flow.client.payload_bytes == 600, "headers say it"
    with pytest.raises(LabError, match=r"600 bytes passed, and byte 100 was not kept.*snap_bytes=None"):
        flow.client.payload()
    # Sent again in pieces that were kept, all of it is there.
    again = Wire()
    for begin in range(0, 600, 100):
        again.client(begin, (b"a" if begin < 300 else b"b") * 100)
    (flow,) = flows([*short, *again.packets])
    assert flow.client.payload() == b"a" * 300 + b"b" * 300


@pytest.mark.parametrize("kept", [10, 30, 40, 60])
def test_a_packet_that_was_cut_within_its_headers_is_refused_and_not_passed_over(wire: Wire, kept: int) -> None:
    wire.client(0, b"abc", options=sack((1004, 1007)))
    whole = (Place(name="b", side="before"), Place(name="a", side="after"))
    packets = (*wire.packets[:-1], cut(wire.packets[-1], kept))
    with pytest.raises(LabError, match=rf"cut off at byte {kept}, within its headers.*snap_bytes=134"):
        flows(packets)
    with pytest.raises(LabError, match=r"within its headers"):
        crossing(Capture(places=whole, packets=packets), [SERVER])


@pytest.mark.parametrize(
    ("missing", "text"),
    [({"lost": 3}, r"3 came too fast to be kept \(b\)"), ({"overwritten": 7}, r"7 gave way to later ones \(b\)")],
)
def test_of_a_capture_that_has_not_all_packets_nothing_is_said_unless_that_is_allowed(
    wire: Wire, missing: dict[str, int], text: str
) -> None:
    places = (Place(name="b", side="before", **missing), Place(name="a", side="after"))  # type: ignore[arg-type]
    capture = Capture(places=places, packets=tuple(wire.packets))
    with pytest.raises(LabError, match=f"{text}.*limit_bytes.*partial=True"):
        flows_at(capture, "before")
    assert len(flows_at(capture, "before", partial=True)) == 1
    with pytest.raises(LabError, match=f"{text}.*limit_bytes") as refused:
        crossing(capture, [SERVER])
    assert "partial" not in str(refused.value), "what is missing would count as lost"


def test_a_port_that_was_not_impaired_has_no_passages_and_that_is_said(wire: Wire) -> None:
    """An empty list would pass every test of what was lost."""
    capture = Capture(places=(Place(name="server@lan"),), packets=tuple(wire.packets))
    with pytest.raises(LabError, match=r"only one capture point, server@lan: its port was not impaired"):
        crossing(capture, [SERVER])
    assert len(flows_at(capture, "before")) == 1, "of connections there are those of the one place"


def test_a_side_that_is_none_is_refused_and_one_without_packets_has_no_flows(wire: Wire) -> None:
    places = (Place(name="a"), Place(name="b", side="before"))
    capture = Capture(places=places, packets=tuple(wire.packets))
    with pytest.raises(InvalidValueError, match="side 'befor'"):
        flows_at(capture, "befor")
    assert (len(flows_at(capture, "before")), len(flows_at(capture, "after"))) == (0, 1)


# --- beside Wireshark's own reading ----------------------------------------------------------------


@pytest.mark.skipif(shutil.which("tshark") is None, reason="no tshark here to compare with")
def test_tshark_reads_our_file_and_sees_the_same_segments(wire: Wire, tmp_path: Path) -> None:
    wire.client(0, b"abc")
    wire.server(0, ack=0, options=sack((1004, 1007)))
    wire.client(0, b"abc")
    wire.server(0, ack=3, window=0)
    wire.client(3, flags=FIN | ACK)
    flow = only(wire)
    path = tmp_path / "ours.pcapng"
    path.write_bytes(
        pcapng.write(Capture(places=(Place(name="here", description="by hand"),), packets=tuple(wire.packets)))
    )
    fields = [
        "frame.interface_name",
        "tcp.seq_raw",
        "tcp.ack_raw",
        "tcp.len",
        "tcp.window_size_value",
        "frame.time_epoch",
        "tcp.analysis.zero_window",
    ]
    argv = ["tshark", "-r", str(path), "-T", "json", *(word for name in fields for word in ("-e", name))]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    seen = [row["_source"]["layers"] for row in json.loads(done.stdout)]
    assert [
        (
            int(row["tcp.seq_raw"][0]),
            int(row["tcp.ack_raw"][0]),
            int(row["tcp.len"][0]),
            int(row["tcp.window_size_value"][0]),
            round(float(row["frame.time_epoch"][0]) * 1e9),
        )
        for row in seen
    ] == [(part.seq, part.ack, part.payload_bytes, part.window, part.time_ns) for part in flow.segments]
    assert {row["frame.interface_name"][0] for row in seen} == {"here"}
    assert sum("tcp.analysis.zero_window" in row for row in seen) == len(flow.server.zero_windows)
