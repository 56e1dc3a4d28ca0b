"""Answers to rejected packets: frames by hand, checksums by the textbook, expectations from the RFCs."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from testbed.agent.answers import ANSWERER, ERROR, RESET, answer, checksum
from testbed.observe.capture import Packet
from testbed.observe.wire import Segment, segment
from tests.unit.frames import ACK, FIN, PSH, RST, SYN, ethernet, ipv4, ipv6, tcp

A4, B4, A6, B6 = "10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"
MAC_B, MAC_A = bytes.fromhex("020000000002"), bytes.fromhex("020000000001")


def by_the_textbook(data: bytes) -> int:
    """RFC 1071 4.1, word by word."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"))
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def summed(frame: bytes) -> bytes:
    """The frame with the sums that a kernel would put there: of IPv4's header, and of TCP, UDP or ICMPv6 in it."""
    ip = bytearray(frame[14:])
    if ip[0] >> 4 == 4:
        header = (ip[0] & 15) * 4
        length, protocol, ends = int.from_bytes(ip[2:4]), ip[9], bytes(ip[12:20])
        ip[10:12] = b"\0\0"
        ip[10:12] = by_the_textbook(bytes(ip[:header])).to_bytes(2)
        pseudo = ends + struct.pack("!BBH", 0, protocol, length - header)
    else:
        header, length, protocol = 40, 40 + int.from_bytes(ip[4:6]), ip[6]
        pseudo = bytes(ip[8:40]) + struct.pack("!II", length - header, protocol)
    place = {6: 16, 17: 6, 58: 2}.get(protocol)
    if place is not None and length - header >= place + 2:
        ip[header + place : header + place + 2] = b"\0\0"
        body = bytes(ip[header:length])
        ip[header + place : header + place + 2] = by_the_textbook(pseudo + body).to_bytes(2)
    return frame[:14] + bytes(ip)


def udp(payload: bytes = b"question", *, sport: int = 40000, dport: int = 53) -> bytes:
    return struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload


def to_tcp(**fields: int | bytes) -> bytes:
    return summed(ipv4(A4, B4, 6, tcp(40000, 80, **fields)))  # type: ignore[arg-type]


def reset(frame: bytes) -> Segment:
    """The reset that a frame is answered with, its sums checked by the textbook."""
    reply = answer(frame)
    assert reply is not None
    assert reply.kind == RESET
    assert summed(reply.frame) == reply.frame
    assert reply.frame[:12] == frame[6:12] + ANSWERER
    read = segment(Packet(time_ns=0, place=0, data=reply.frame, length_bytes=len(reply.frame)))
    assert read is not None
    assert read.payload_bytes == 0
    return read


def error(frame: bytes) -> tuple[int, int, bytes]:
    """Type, code and quotation of the ICMP message that a frame is answered with, its sums checked."""
    reply = answer(frame)
    assert reply is not None
    assert reply.kind == ERROR
    assert reply.frame[:12] == frame[6:12] + ANSWERER
    assert reply.frame[12:14] == frame[12:14]
    ip = reply.frame[14:]
    if ip[0] >> 4 == 4:
        assert summed(reply.frame) == reply.frame
        assert (ip[9], ip[12:16], ip[16:20]) == (1, frame[30:34], frame[26:30])
        message = ip[20:]
        assert by_the_textbook(message) == 0
    else:
        assert summed(reply.frame) == reply.frame
        assert (ip[6], ip[8:24], ip[24:40]) == (58, frame[38:54], frame[22:38])
        message = ip[40:]
    assert message[4:8] == bytes(4)
    return message[0], message[1], message[8:]


# --- the sum ---------------------------------------------------------------------------------------


@given(st.binary(max_size=80))
@example(b"")
@example(b"\0" * 7)
@example(b"\xff" * 8)
@example(b"\xff\xff\x00")
def test_the_checksum_is_the_textbooks(data: bytes) -> None:
    assert checksum(data) == by_the_textbook(data)


# --- TCP -------------------------------------------------------------------------------------------


def test_a_syn_is_refused_with_a_reset_that_acknowledges_it() -> None:
    # RFC 9293 3.10.7.1: <SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>; a SYN counts as one.
    reply = reset(to_tcp(seq=7000, flags=SYN, options=bytes.fromhex("020405b4")))
    assert (reply.seq, reply.ack, reply.flags) == (0, 7001, RST | ACK)
    assert (str(reply.src), str(reply.dst)) == ("10.0.0.2:80", "10.0.0.1:40000")


def test_a_segment_that_acknowledges_is_reset_with_the_number_that_its_sender_expects() -> None:
    # RFC 9293 3.10.7.1: <SEQ=SEG.ACK><CTL=RST>; RFC 5961 3.2 wants exactly that number.
    reply = reset(to_tcp(seq=7001, ack=90, flags=PSH | ACK, payload=b"odd"))
    assert (reply.seq, reply.ack, reply.flags) == (90, 0, RST)


def test_what_a_segment_without_acknowledgement_brings_counts_and_numbers_wrap() -> None:
    assert reset(to_tcp(seq=2**32 - 3, flags=SYN | FIN, payload=b"early")).ack == 4  # -3 + 5 bytes + SYN + FIN
    assert reset(to_tcp(seq=5, flags=0, payload=b"")).ack == 5


def test_padding_of_a_short_frame_is_no_data() -> None:
    assert reset(to_tcp(seq=10, flags=SYN) + bytes(6)).ack == 11


def test_over_ipv6_and_behind_ip_options_the_same() -> None:
    frame = summed(ipv6(A6, B6, 6, tcp(40000, 80, seq=1, flags=SYN)))
    reply = reset(frame)
    assert (reply.ack, str(reply.src), str(reply.dst)) == (2, "[fd00::2]:80", "[fd00::1]:40000")
    plain = ipv4(A4, B4, 6, b"\x01\x01\x01\x00" + tcp(40000, 80, seq=1, flags=SYN))
    options = summed(plain[:14] + b"\x46" + plain[15:])  # a header of six words
    assert reset(options).ack == 2


def test_a_reset_is_never_answered() -> None:
    assert answer(to_tcp(flags=RST)) is None
    assert answer(to_tcp(flags=RST | ACK, ack=5)) is None


# --- the rest --------------------------------------------------------------------------------------


def test_a_datagram_is_answered_with_port_unreachable_and_quoted() -> None:
    frame = summed(ipv4(A4, B4, 17, udp()))
    assert error(frame) == (3, 3, frame[14:])  # RFC 792
    frame = summed(ipv6(A6, B6, 17, udp()))
    assert error(frame) == (1, 4, frame[14:])  # RFC 4443 3.1


def test_a_datagram_without_a_checksum_is_sound_over_ipv4_and_not_over_ipv6() -> None:
    sound = bytearray(summed(ipv4(A4, B4, 17, udp())))
    sound[14 + 20 + 6 : 14 + 20 + 8] = b"\0\0"
    assert error(bytes(sound))[:2] == (3, 3)
    unsound = bytearray(summed(ipv6(A6, B6, 17, udp())))
    unsound[14 + 40 + 6 : 14 + 40 + 8] = b"\0\0"
    assert answer(bytes(unsound)) is None


def test_any_other_protocol_is_administratively_prohibited() -> None:
    ping4 = summed(ipv4(A4, B4, 1, b"\x08\0\xf7\xff\0\0\0\0"))
    assert error(ping4) == (3, 13, ping4[14:])  # RFC 1812 5.2.7.1
    ping6 = summed(ipv6(A6, B6, 58, b"\x80\0\0\0\0\0\0\0"))
    assert error(ping6) == (1, 1, ping6[14:])
    sctp = summed(ipv4(A4, B4, 132, bytes(12)))
    assert error(sctp)[:2] == (3, 13)


def test_no_more_is_quoted_than_makes_576_bytes_or_1280_in_all() -> None:
    old, new = (summed(frame) for frame in (ipv4(A4, B4, 17, udp(bytes(1400))), ipv6(A6, B6, 17, udp(bytes(1400)))))
    for frame, most in ((old, 576), (new, 1280)):
        reply = answer(frame)
        assert reply is not None
        assert len(reply.frame) - 14 == most
        _, _, quoted = error(frame)
        assert frame[14:].startswith(quoted)


@pytest.mark.parametrize("kind", [3, 4, 5, 11, 12])
def test_no_icmp_error_is_answered(kind: int) -> None:
    assert answer(summed(ipv4(A4, B4, 1, bytes([kind, 0, 0, 0, 0, 0, 0, 0])))) is None


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 127])
def test_no_icmpv6_error_is_answered(kind: int) -> None:
    assert answer(summed(ipv6(A6, B6, 58, bytes([kind, 0, 0, 0, 0, 0, 0, 0])))) is None
    assert answer(summed(ipv6(A6, B6, 58, b""))) is None


# --- fragments and extension headers -----------------------------------------------------------------


def fragment4(offset: int, *, more: bool, payload: bytes) -> bytes:
    frame = ipv4(A4, B4, 17, payload)
    place = (offset // 8) | (0x2000 if more else 0)
    whole = frame[:20] + struct.pack("!H", place) + frame[22:]
    ip = bytearray(whole[14:])
    ip[10:12] = by_the_textbook(bytes(ip[:20])).to_bytes(2)
    return whole[:14] + bytes(ip)


def test_of_a_fragmented_packet_the_first_is_answered_and_no_other() -> None:
    # Its checksum covers what is in the others, so nothing can be said of it.
    first = fragment4(0, more=True, payload=udp(bytes(600))[:512])
    assert error(first)[:2] == (3, 3)
    assert answer(fragment4(512, more=False, payload=bytes(96))) is None
    first_header, later_header = (struct.pack("!BBHI", 17, 0, place, 7) for place in (1, 512))  # RFC 8200 4.5
    assert error(ipv6(A6, B6, 44, first_header + udp(bytes(40))))[:2] == (1, 4)
    assert answer(ipv6(A6, B6, 44, later_header + bytes(96))) is None


def test_extension_headers_are_passed_over() -> None:
    segment_ = summed(ipv6(A6, B6, 6, tcp(40000, 80, seq=1, flags=SYN)))[54:]
    hop, routing, options = (
        bytes([following, size]) + bytes(6 + 8 * size) for following, size in ((43, 0), (60, 1), (51, 0))
    )
    authentication = bytes([6, 4]) + bytes(22)  # RFC 4302 2.2: in words of four bytes, less two
    reply = answer(ipv6(A6, B6, 0, hop + routing + options + authentication + segment_))
    assert reply is not None
    assert reply.kind == RESET
    assert summed(reply.frame) == reply.frame


def test_a_chain_of_headers_that_leads_out_of_the_packet_is_not_answered() -> None:
    assert answer(ipv6(A6, B6, 0, bytes([6, 200, 0, 0, 0, 0, 0, 0]))) is None
    assert answer(ipv6(A6, B6, 0, b"\x06")) is None


# --- what must not be answered ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target"),
    [("0.0.0.7", B4), ("224.0.0.1", B4), ("255.255.255.255", B4), (A4, "224.0.0.251"), (A4, "255.255.255.255")],
)
def test_what_is_from_or_to_no_single_host_is_not_answered(source: str, target: str) -> None:
    assert answer(summed(ipv4(source, target, 17, udp()))) is None


@pytest.mark.parametrize(("source", "target"), [("::", B6), ("ff02::1", B6), (A6, "ff02::fb")])
def test_nor_over_ipv6(source: str, target: str) -> None:
    assert answer(summed(ipv6(source, target, 17, udp()))) is None


def test_what_was_broadcast_on_the_network_is_not_answered() -> None:
    frame = summed(ipv4(A4, "10.0.0.255", 17, udp()))
    assert answer(b"\xff" * 6 + frame[6:]) is None
    assert answer(bytes.fromhex("01005e000001") + frame[6:]) is None


def test_a_wrong_checksum_is_not_answered() -> None:
    good = to_tcp(seq=1, flags=SYN)
    assert answer(good) is not None
    for at in (22, 14 + 20 + 4):  # in the IP header, in TCP
        bad = bytearray(good)
        bad[at] ^= 1
        assert answer(bytes(bad)) is None


def test_what_is_no_ip_is_not_answered() -> None:
    assert answer(ethernet(0x0806, bytes(28))) is None
    assert answer(b"") is None


@given(st.integers(0, 200))
def test_a_frame_that_was_cut_short_is_not_answered(length: int) -> None:
    for frame in (to_tcp(seq=1, flags=SYN), summed(ipv6(A6, B6, 17, udp(bytes(100))))):
        if length < len(frame):
            assert answer(frame[:length]) is None


@given(st.binary(min_size=0, max_size=90), st.sampled_from([0x0800, 0x86DD]), st.sampled_from([0x45, 0x4F, 0x60]))
def test_no_bytes_bring_it_down(data: bytes, kind: int, first: int) -> None:
    answer(MAC_B + MAC_A + struct.pack("!H", kind) + bytes([first]) + data)
