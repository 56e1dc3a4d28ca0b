"""Filters at a gate: their programs, run by this machine's kernel on frames written by hand; and their read-back."""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import Any

import pytest

from testbed.agent.answers import ANSWERER
from testbed.agent.batch import LONGEST_LINE
from testbed.lab import severed
from testbed.netem import bpf, fragments, qdisc, rejecting
from testbed.spec.links import Traffic
from tests.unit.frames import ethernet, ipv4, ipv6, tcp

A4, B4, A6, B6 = "10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h


class Kernel:
    """A kernel that runs a program on frames: what it matches comes through a socket that filters."""

    def __init__(self, text: str, address: str, *targets: str) -> None:
        (self.filter, *self.others) = severed.ways(severed.REJECT, 0x10, [address], Traffic.parse(text), targets)

    def matches(self, frame: bytes) -> bool:
        family = {0x0800: "ip", 0x86DD: "ipv6"}.get(int.from_bytes(frame[12:14]), self.filter.family)
        return any(
            runs(rejecting.program(filter_), frame)
            for filter_ in (self.filter, *self.others)
            if filter_.family == family
        )


def runs(program: bpf.Instructions, frame: bytes) -> bool:
    """Whether this machine's kernel matches a frame with a program."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
        right.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(code)))
        right.setblocking(False)
        left.send(frame)
        try:
            return right.recv(65536) == frame
        except BlockingIOError:
            return False


def udp(sport: int, dport: int) -> bytes:
    return struct.pack("!HHHH", sport, dport, 12, 0) + b"word"


def test_what_goes_to_the_gateway_and_networks_behind_it_matches() -> None:
    gateway = qdisc.Gateway(mac="02:00:00:00:00:0b", outward=True, last=True)
    (way,) = severed.ways(severed.REJECT, 0x10, ["203.0.113.128/26"], Traffic.parse("tcp/80"), gateway=gateway)[:1]

    def matches(address: str, *, mac: str = gateway.mac, port: int = 80) -> bool:
        frame = ipv4(A4, address, 6, tcp(1, port))
        return runs(rejecting.program(way), bytes.fromhex(mac.replace(":", "")) + frame[6:])

    assert matches("203.0.113.128")
    assert matches("203.0.113.191")
    assert not matches("203.0.113.192")
    assert not matches("203.0.113.127")
    assert not matches("203.0.113.130", mac="02:00:00:00:00:0c")
    assert not matches("203.0.113.130", port=81)
    (six,) = severed.ways(severed.REJECT, 0x10, ["fd00:1::/33"], Traffic(), gateway=gateway)[:1]
    to = bytes.fromhex(gateway.mac.replace(":", ""))
    assert runs(rejecting.program(six), to + ipv6(A6, "fd00:1:7fff::1", 6, tcp(1, 2))[6:])
    assert not runs(rejecting.program(six), to + ipv6(A6, "fd00:1:8000::1", 6, tcp(1, 2))[6:])


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


def test_what_is_no_ip_is_told_by_its_interface_alone() -> None:
    (rest,) = [
        cut_filter for cut_filter in qdisc.cut_filters(0x10, ["02:00:00:00:00:01"]) if cut_filter.family == "all"
    ]
    program = rejecting.program(rest, 0x5EED)
    tagged = ethernet(0x8100, struct.pack("!HH", 7, 0x0800) + bytes(40))
    assert runs(program, tagged)
    assert not runs(program, tagged[:11] + b"\x02" + tagged[12:])
    # linux/filter.h: SKF_AD_PROTOCOL 0, SKF_AD_VLAN_TAG_PRESENT 48. On this socket a frame has neither.
    assert [step[3] for step in program[2:5]] == [2**32 - 0x1000 + 48, 0, 2**32 - 0x1000]
    assert {step[3] for step in program[5:8]} == {0x0800, 0x86DD, 0x0806}
    assert not any(
        cut_filter.family == "all" for cut_filter in qdisc.cut_filters(0x10, ["02:00:00:00:00:01"], Traffic("udp"))
    )


@pytest.mark.parametrize("kind", range(128, 146))
def test_neighbour_discovery_and_listeners_reports_are_never_cut(kind: int) -> None:
    message = bytes([kind]) + bytes(23)
    router_alert = bytes([58, 0, 5, 2, 0, 0, 1, 0])  # RFC 2711
    cut = kind not in (*range(130, 138), 143)
    for traffic in ("", "icmp"):
        assert Kernel(traffic, A6).matches(ipv6(A6, B6, 58, message)) == cut
        assert Kernel(traffic, A6).matches(ipv6(A6, B6, 0, router_alert + message)) == cut
    assert Kernel("", A6).matches(ipv6(A6, B6, 0, bytes([17]) + router_alert[1:] + udp(1, 2)))


def test_an_answer_is_told_by_its_mark_and_by_nothing_that_a_frame_can_bear() -> None:
    (whole,) = qdisc.cut_filters(0x10, [A4])
    frame = ipv4(A4, B4, 6, tcp(1, 2))
    assert runs(rejecting.program(whole, 0x5EED), frame[:6] + ANSWERER + frame[12:])
    load, compare, *_ = rejecting.program(whole, 0x5EED)
    # linux/filter.h: SKF_AD_OFF is -0x1000, SKF_AD_MARK 20; a frame on this socket bears the mark 0.
    assert (load[3], compare[3]) == (2**32 - 0x1000 + 20, 0x5EED)
    assert not runs(rejecting.program(whole, 0), frame)


@pytest.mark.parametrize(("text", "number"), [("tcp", 6), ("udp", 17), ("icmp", 1)])
def test_a_protocol_matches_alone(text: str, number: int) -> None:
    old, new = Kernel(text, A4), Kernel(text, A6)
    for protocol in (1, 6, 17, 132):
        assert old.matches(ipv4(A4, B4, protocol, bytes(20))) == (protocol == number)
    wanted = 58 if text == "icmp" else number
    for protocol in (58, 6, 17, 132):
        assert new.matches(ipv6(A6, B6, protocol, bytes(20))) == (protocol == wanted)


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
    for count in range(bpf.EXTENSION_HEADERS + 2):
        headers, following = b"", 6
        for number in range(count):
            kind = (60, 43, 0)[number % 3]
            headers = bytes([following, number]) + bytes(6 + 8 * number) + headers
            following = kind
        for port in (80, 81):
            frame = ipv6(A6, B6, following, headers + tcp(40000, port))
            way = Kernel("tcp/80", A6).matches(frame)
            assert way == (port == 80 and count <= bpf.EXTENSION_HEADERS)


def fragment6(place: int, protocol: int, payload: bytes, *, before: int = 0) -> bytes:
    """A frame with a fragment; ``before`` it so many extension headers."""
    following, headers = 44, struct.pack("!BBHI", protocol, 0, place, 7) + payload
    for number in range(before):
        headers = bytes([following, 0]) + bytes(6) + headers
        following = (0, 43)[number % 2]
    return ipv6(A6, B6, following, headers)


def fragment4(place: int, protocol: int, payload: bytes) -> bytes:
    frame = ipv4(A4, B4, protocol, payload)
    return frame[:20] + place.to_bytes(2) + frame[22:]


MORE4, MORE6 = 0x2000, 1


def test_a_first_fragment_matches_by_its_ports_and_each_later_one_for_want_of_them() -> None:
    for protocol, header, number in (("tcp", tcp, 6), ("udp", udp, 17)):
        old, new, garbage = Kernel(f"{protocol}/80", A4), Kernel(f"{protocol}/80", A6), bytes([135, 136] * 8)
        for port in (80, 81):
            assert old.matches(fragment4(MORE4, number, header(1, port))) == (port == 80)
            assert new.matches(fragment6(MORE6, number, header(1, port))) == (port == 80)
        assert old.matches(fragment4(MORE4 | 5, number, garbage))
        assert old.matches(fragment4(5, number, garbage))
        assert new.matches(fragment6(8 | MORE6, number, garbage))
        assert new.matches(fragment6(8, number, garbage, before=2))
        assert new.matches(fragment6(8, 60, garbage))  # options, and behind them perhaps the port
        for other in (1, 58, 132):
            assert not old.matches(fragment4(5, other, garbage))
            assert not new.matches(fragment6(8, other, garbage))


def test_what_stands_in_a_later_fragment_is_no_kind_of_message() -> None:
    for traffic in ("", "icmp"):
        assert Kernel(traffic, A6).matches(fragment6(8, 58, bytes([135]) + bytes(23)))


# --- fragments of other traffic ----------------------------------------------------------------------


def counted(text: str, frame: bytes, target: str | None = None) -> bool:
    """Whether a frame from `a`'s interface is counted as one of another datagram than those that are meant."""
    family = "ip" if frame[12:14] == b"\x08\0" else "ipv6"
    code = fragments.program(family, MAC, Traffic.parse(text), target)
    frame = frame[:6] + bytes.fromhex(MAC.replace(":", "")) + frame[12:]
    return code is not None and runs(code, frame)


MAC = "02:00:00:00:00:01"


def test_first_fragments_of_other_ports_are_counted_and_nothing_else() -> None:
    options = bytes([17, 0]) + bytes(6)
    for port, other in ((80, False), (81, True)):
        assert counted("udp/80", fragment4(MORE4, 17, udp(1, port))) == other
        assert counted("udp/80", fragment4(MORE4, 17, udp(port, 1))) == other
        assert counted("udp/80", fragment6(MORE6, 17, udp(1, port))) == other
        assert counted("udp/80", fragment6(MORE6, 17, udp(port, 1), before=2)) == other
        assert counted("udp/80", fragment6(MORE6, 60, options + udp(1, port))) == other
        for whole in (ipv4(A4, B4, 17, udp(1, port)), ipv6(A6, B6, 17, udp(1, port))):
            assert not counted("udp/80", whole)
        for later in (fragment4(MORE4 | 5, 17, udp(1, port)), fragment6(8 | MORE6, 17, udp(1, port))):
            assert not counted("udp/80", later)
        for protocol in (1, 6, 58):
            assert not counted("udp/80", fragment4(MORE4, protocol, tcp(1, port)))
            assert not counted("udp/80", fragment6(MORE6, protocol, tcp(1, port)))


def test_a_first_fragment_that_does_not_say_its_ports_is_counted() -> None:
    assert counted("udp/80", fragment6(MORE6, 17, b"\0\x50"))
    assert counted("udp/80", fragment6(MORE6, 60, bytes([60, 0]) + bytes(6) + bytes([17, 0]) + bytes(6) + udp(1, 80)))


def test_of_a_protocol_only_fragments_that_hide_it_may_be_others() -> None:
    assert fragments.program("ip", MAC, Traffic("udp")) is None
    assert fragments.program("ip", MAC, Traffic()) is fragments.program("ipv6", MAC, Traffic()) is None
    for protocol, other in ((17, False), (6, True)):
        assert counted("udp", fragment6(MORE6, 60, bytes([protocol, 0]) + bytes(6) + udp(1, 2))) == other
    assert not counted("udp", fragment6(MORE6, 17, udp(1, 2)))
    assert not counted("udp", fragment6(MORE6, 6, udp(1, 2)))


def test_other_senders_and_other_targets_are_not_counted() -> None:
    assert counted("udp/80", fragment4(MORE4, 17, udp(1, 2)), B4)
    assert not counted("udp/80", fragment4(MORE4, 17, udp(1, 2)), "10.0.0.9")
    assert counted("udp/80", fragment6(MORE6, 17, udp(1, 2)), B6)
    assert not counted("udp/80", fragment6(MORE6, 17, udp(1, 2)), "fd00::9")
    assert not counted("udp/80", fragment6(MORE6, 17, udp(1, 2)), B4)
    code = fragments.program("ip", "02:00:00:00:00:02", Traffic("udp", 80))
    frame = fragment4(MORE4, 17, udp(1, 2))
    assert code is not None
    assert not runs(code, frame[:6] + bytes.fromhex(MAC.replace(":", "")) + frame[12:])


def test_counts_are_read_of_one_source_alone_and_missing_ones_are_told() -> None:
    lines = fragments.watch("veth1", 0x10, MAC, Traffic("udp", 80), [B4, "10.0.0.9", B6])
    assert [line.split(" bpf ")[0] for line in lines] == [
        f"filter replace dev veth1 parent 1: protocol {family} prio {priority} handle {handle:#x}"
        for family, priority, handle in (("ip", 3, 0x10), ("ip", 3, 0x10010), ("ipv6", 4, 0x20010))
    ]
    assert all(line.endswith(" action continue") for line in lines)
    gact = [{"kind": "gact", "stats": {"packets": 3}}]
    kernel = [
        {"kind": "bpf", "pref": priority, "options": {"handle": handle, "actions": gact}}
        for priority, handle in ((3, "0x10"), (3, "0x10010"), (4, "0x20010"), (4, "0x11"), (9, "0x10"))
    ]
    assert fragments.counted(kernel, 0x10) == 9
    assert fragments.counted(kernel, 0x12) is None
    assert fragments.check(Traffic("udp", 80), None).verdict == "unknown"
    assert fragments.problem(Traffic("udp", 80), 0) is None


def test_what_is_no_ip_does_not_bring_it_down() -> None:
    assert not Kernel("tcp/80", A6).matches(ethernet(0x0806, bytes(28)))


# --- read-back -------------------------------------------------------------------------------------


def shown(chosen: qdisc.Filter, *, program: bpf.Instructions | None = None, to: str = "tb0r0") -> dict[str, Any]:
    """A filter as ``tc -s -j filter show`` has it (iproute2 6.1)."""
    code = rejecting.program(chosen) if program is None else program
    return {
        "protocol": chosen.family, "pref": chosen.priority, "kind": "bpf", "chain": 0,
        "options": {
            "handle": hex(chosen.handle), "not_in_hw": True,
            "bytecode": {
                "length": len(code),
                "insns": [dict(zip(("code", "jt", "jf", "k"), instruction, strict=True)) for instruction in code],
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
    assert rejecting.differences(kernel, [old, new], "tb0r0", None) == []
    assert rejecting.rejected_packets(kernel, [old, new]) == 4
    assert [difference.reported for difference in rejecting.differences(kernel[:2], [old, new], "tb0r0", None)] == [
        "none"
    ]
    other = [shown(old, program=rejecting.program(new)), shown(new, to="eth0")]
    assert [difference.reported for difference in rejecting.differences(other, [old, new], "tb0r0", None)] == [
        "another program",
        "redirect eth0",
    ]
    assert rejecting.missing([], old)
    assert not rejecting.missing(kernel, old)


def test_every_line_fits_into_a_batch() -> None:
    last = qdisc.LAST_MINOR
    for traffic in ("", "tcp", "udp/65535", "icmp"):
        addresses = ["255.255.255.254", *["ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe"] * 8]
        for way in severed.ways(severed.REJECT, last, addresses, Traffic.parse(traffic), addresses):
            line = rejecting.put("tb0123456789ab", way, "tb0123456789ab", 2**32 - 1)
            assert len(line) <= LONGEST_LINE
        for target in ((), addresses):
            for line in fragments.watch("tb0123456789ab", last, "ff:ff:ff:ff:ff:fe", Traffic.parse(traffic), target):
                assert len(line) <= LONGEST_LINE
