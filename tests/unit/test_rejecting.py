"""Filters at a gate: their programs, run by this machine's kernel on frames written by hand; and their read-back."""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import Any

import pytest

from testbed.agent.answers import ANSWERER
from testbed.links import qdisc, rejecting
from testbed.model.topology import Traffic
from tests.unit.frames import ethernet, ipv4, ipv6, tcp

A4, B4, A6, B6 = "10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h


class Kernel:
    """A kernel that runs a program on frames: what it matches comes through a socket that filters."""

    def __init__(self, said: str, address: str, *targets: str) -> None:
        (self.filter, *self.others) = qdisc.cut_filters(0x10, [address], Traffic.parse(said), targets)

    def matches(self, frame: bytes) -> bool:
        family = {0x0800: "ip", 0x86DD: "ipv6"}.get(int.from_bytes(frame[12:14]), self.filter.family)
        return any(
            self._runs(rejecting.program(each), frame)
            for each in (self.filter, *self.others) if each.family == family
        )  # fmt: skip

    @staticmethod
    def _runs(program: rejecting.Program, frame: bytes) -> bool:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with left, right:
            code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
            right.setsockopt(
                socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(code))
            )
            right.setblocking(False)
            left.send(frame)
            try:
                return right.recv(65536) == frame
            except BlockingIOError:
                return False


def udp(sport: int, dport: int) -> bytes:
    return struct.pack("!HHHH", sport, dport, 12, 0) + b"word"


def test_all_of_a_hosts_packets_match_and_nobody_elses() -> None:
    whole = Kernel("", A4)
    assert whole.matches(ipv4(A4, B4, 6, tcp(1, 2)))
    assert whole.matches(ipv4(A4, B4, 1, bytes(8)))
    assert not whole.matches(ipv4(B4, A4, 6, tcp(1, 2)))
    whole = Kernel("", A6)
    assert whole.matches(ipv6(A6, B6, 6, tcp(1, 2)))
    assert whole.matches(ipv6(A6, B6, 58, b"\x80" + bytes(7)))
    assert not whole.matches(ipv6("fd00:1::1", B6, 6, tcp(1, 2)))
    assert not whole.matches(ipv6("fd00::1:1", B6, 6, tcp(1, 2)))


def test_of_what_goes_to_others_too_only_what_goes_to_the_targets_matches() -> None:
    to_b = Kernel("", A4, B4, B6, "10.0.0.9")
    assert to_b.matches(ipv4(A4, B4, 6, tcp(1, 2)))
    assert to_b.matches(ipv4(A4, "10.0.0.9", 17, udp(1, 2)))
    assert not to_b.matches(ipv4(A4, "10.0.0.8", 6, tcp(1, 2)))
    assert not to_b.matches(ipv4("10.0.0.8", B4, 6, tcp(1, 2)))
    to_b = Kernel("udp/9", A6, B4, B6)
    assert to_b.matches(ipv6(A6, B6, 17, udp(1, 9)))
    assert not to_b.matches(ipv6(A6, B6, 17, udp(1, 8)))
    assert not to_b.matches(ipv6(A6, "fd00::3", 17, udp(1, 9)))


def test_a_routers_packets_are_told_by_its_own_address_in_both_families() -> None:
    router = Kernel("tcp/80", "02:00:00:00:00:01")
    assert router.matches(ipv4("192.0.2.7", B4, 6, tcp(40000, 80)))
    assert router.matches(ipv6("2001:db8::7", B6, 6, tcp(40000, 80)))
    assert not router.matches(ipv6("2001:db8::7", B6, 6, tcp(40000, 81)))
    for other in ("02:00:00:00:01:01", "02:00:00:01:00:01"):
        assert not Kernel("", other).matches(ipv4(A4, B4, 6, tcp(40000, 80)))


@pytest.mark.parametrize("kind", range(128, 146))
def test_neighbour_discovery_and_listeners_reports_are_never_cut(kind: int) -> None:
    message = bytes([kind]) + bytes(23)
    router_alert = bytes([58, 0, 5, 2, 0, 0, 1, 0])  # RFC 2711
    cut = kind not in (*range(130, 138), 143)
    for said in ("", "icmp"):
        assert Kernel(said, A6).matches(ipv6(A6, B6, 58, message)) == cut
        assert Kernel(said, A6).matches(ipv6(A6, B6, 0, router_alert + message)) == cut
    assert Kernel("", A6).matches(ipv6(A6, B6, 0, bytes([17]) + router_alert[1:] + udp(1, 2)))


def test_an_answer_in_the_hosts_name_is_none_of_its_packets() -> None:
    for address, frame in ((A4, ipv4(A4, B4, 6, tcp(1, 2))), (A6, ipv6(A6, B6, 6, tcp(1, 2)))):
        ours = frame[:6] + ANSWERER + frame[12:]
        assert Kernel("", address).matches(frame)
        assert not Kernel("", address).matches(ours)
    assert bytes.fromhex(qdisc.ANSWERER.replace(":", "")) == ANSWERER


@pytest.mark.parametrize(("said", "number"), [("tcp", 6), ("udp", 17), ("icmp", 1)])
def test_a_protocol_matches_alone(said: str, number: int) -> None:
    old, new = Kernel(said, A4), Kernel(said, A6)
    for each in (1, 6, 17, 132):
        assert old.matches(ipv4(A4, B4, each, bytes(20))) == (each == number)
    wanted = 58 if said == "icmp" else number
    for each in (58, 6, 17, 132):
        assert new.matches(ipv6(A6, B6, each, bytes(20))) == (each == wanted)


def test_a_port_matches_at_either_end_and_behind_ip_options() -> None:
    for kernel, frame in ((Kernel("tcp/80", A4), ipv4), (Kernel("tcp/80", A6), ipv6)):
        source, target = (A4, B4) if frame is ipv4 else (A6, B6)
        assert kernel.matches(frame(source, target, 6, tcp(40000, 80)))
        assert kernel.matches(frame(source, target, 6, tcp(80, 40000)))
        assert not kernel.matches(frame(source, target, 6, tcp(40000, 81)))
        assert not kernel.matches(frame(source, target, 17, udp(40000, 80)))
    plain = ipv4(A4, B4, 6, b"\x01\x01\x01\x00" + tcp(40000, 80))
    assert Kernel("tcp/80", A4).matches(plain[:14] + b"\x46" + plain[15:])


def test_ports_are_found_behind_as_many_extension_headers_as_are_promised() -> None:
    for count in range(rejecting.EXTENSION_HEADERS + 2):
        headers, following = b"", 6
        for number in range(count):
            kind = (60, 43, 0)[number % 3]
            headers = bytes([following, number]) + bytes(6 + 8 * number) + headers
            following = kind
        for port in (80, 81):
            frame = ipv6(A6, B6, following, headers + tcp(40000, port))
            found = Kernel("tcp/80", A6).matches(frame)
            assert found == (port == 80 and count <= rejecting.EXTENSION_HEADERS)


def test_a_fragment_but_the_first_has_no_ports() -> None:
    for place, matches in ((1, True), (8, False)):
        header = struct.pack("!BBHI", 6, 0, place, 7)
        assert Kernel("tcp/80", A6).matches(ipv6(A6, B6, 44, header + tcp(1, 80))) == matches
        assert Kernel("tcp", A6).matches(ipv6(A6, B6, 44, header + tcp(1, 80)))
    frame = ipv4(A4, B4, 6, tcp(1, 80))
    later = frame[:20] + b"\x00\x08" + frame[22:]
    assert not Kernel("tcp/80", A4).matches(later)
    assert Kernel("tcp", A4).matches(later)


def test_what_is_no_ip_does_not_bring_it_down() -> None:
    assert not Kernel("tcp/80", A6).matches(ethernet(0x0806, bytes(28)))


# --- read-back -------------------------------------------------------------------------------------


def shown(chosen: qdisc.Filter, *, program: rejecting.Program | None = None, to: str = "tb0r0") -> dict[str, Any]:
    """A filter as ``tc -s -j filter show`` has it (iproute2 6.1)."""
    code = rejecting.program(chosen) if program is None else program
    return {
        "protocol": chosen.family, "pref": chosen.priority, "kind": "bpf", "chain": 0,
        "options": {
            "handle": hex(chosen.handle), "not_in_hw": True,
            "bytecode": {
                "length": len(code),
                "insns": [dict(zip(("code", "jt", "jf", "k"), each, strict=True)) for each in code],
            },
            "actions": [{
                "order": 1, "kind": "mirred", "mirred_action": "redirect", "direction": "egress", "to_dev": to,
                "control_action": {"type": "stolen"}, "stats": {"bytes": 120, "packets": 2, "drops": 0},
            }],
        },
    }  # fmt: skip


def test_what_the_kernel_holds_is_compared_with_what_was_compiled() -> None:
    old, new = qdisc.cut_filters(0x10, [A4, A6])
    kernel = [{"protocol": "ip", "pref": 14, "kind": "bpf", "chain": 0}, shown(old), shown(new)]
    assert rejecting.differences(kernel, [old, new], "tb0r0") == []
    assert rejecting.rejected_packets(kernel, [old, new]) == 4
    assert [each.found for each in rejecting.differences(kernel[:2], [old, new], "tb0r0")] == ["none"]
    other = [shown(old, program=rejecting.program(new)), shown(new, to="eth0")]
    assert [each.found for each in rejecting.differences(other, [old, new], "tb0r0")] == [
        "another program", "redirect eth0",
    ]  # fmt: skip
    assert rejecting.missing([], old)
    assert not rejecting.missing(kernel, old)


def test_every_line_fits_into_a_batch() -> None:
    last = qdisc.LAST_MINOR
    for said in ("", "tcp", "udp/65535", "icmp"):
        addresses = ["255.255.255.254", *["ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe"] * 8]
        for each in qdisc.cut_filters(last, addresses, Traffic.parse(said)):
            assert len(rejecting.put("tb0123456789ab", each, "tb0123456789ab")) <= 1024  # agent.batch: half a chunk
