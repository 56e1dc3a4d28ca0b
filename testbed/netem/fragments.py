"""Fragments on a link that is narrowed: count those that were impaired with it and are not of its traffic. Pure.

A fragment but the first bears no ports, so all fragments of the protocol between two hosts go the narrowed way (see
`qdisc.filters`). Whether another datagram than those meant was among them the first fragments tell, which flower does
not look into: a classic BPF program does, ahead of all other filters, and lets what it counts go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from testbed.evidence.proof import Check
from testbed.evidence.verdict import Verdict
from testbed.netem import bpf
from testbed.spec.topology import Traffic

_PRIORITIES = {"ip": 3, "ipv6": 4}
"""Behind what every IPv6 link has, before cuts and impairments (`qdisc`)."""
_TARGET = 0x10000
_HEADERS_BEFORE = 2  # so many IPv6 extension headers are passed over to find the fragment header


def program(family: str, mac: str, traffic: Traffic, target: str | None = None) -> bpf.Program | None:
    """What matches the first fragment of a datagram that is led with ``traffic`` and is not, or perhaps not, of it.

    ``target``: where it goes, if only that is meant. None where no such datagram can be led there.
    """
    old = family == "ip"
    if not traffic.protocol or (old and not traffic.port):
        return None
    if target is not None and (ip_address(target).version == 4) != old:
        return None
    to = bpf.Assembler()
    to.interface(mac)
    if target is not None:
        to.address(target, bpf.V4_TARGET if old else bpf.V6_TARGET)
    if old:
        _first_v4(to, bpf.PROTOCOLS[traffic.protocol])
    else:
        _first_v6(to, bpf.PROTOCOLS["icmpv6" if traffic.protocol == "icmp" else traffic.protocol])
    if traffic.port:
        to.add(bpf.LD_LENGTH)
        to.add(bpf.SUBTRACT_X)
        to.add(bpf.AT_LEAST, bpf.IP + 4, no="match")  # too short to bear its ports
        for place in (0, 2):
            to.add(bpf.LDH_X, bpf.IP + place)
            to.add(bpf.EQUAL, traffic.port, yes="miss")
    else:
        to.add(bpf.JUMP, yes="miss")
    return to.end()


def _first_v4(to: bpf.Assembler, number: int) -> None:
    to.add(bpf.LDH, bpf.V4_FRAGMENT)
    to.add(bpf.ANY_BIT, bpf.V4_PLACE, yes="miss")
    to.add(bpf.ANY_BIT, bpf.V4_MORE, no="miss")
    to.add(bpf.LDB, bpf.V4_PROTOCOL)
    to.add(bpf.EQUAL, number, no="miss")
    to.add(bpf.LDX_HEADER, bpf.IP)


def _first_v6(to: bpf.Assembler, number: int) -> None:
    """Go on to the protocol's header in a first fragment, at X; what is not the protocol's matches at once."""
    to.add(bpf.LDX, bpf.V6_BYTES)
    to.add(bpf.LDB, bpf.V6_NEXT)
    for step in range(_HEADERS_BEFORE):
        to.add(bpf.EQUAL, bpf.FRAGMENT, yes="fragment")
        for option in bpf.OPTIONS:
            to.add(bpf.EQUAL, option, yes=f"options {step}")
        to.add(bpf.JUMP, yes="miss")
        to.label(f"options {step}")
        to.option()
    to.add(bpf.EQUAL, bpf.FRAGMENT, no="miss")
    to.label("fragment")
    to.add(bpf.LDH_X, bpf.IP + 2)
    to.add(bpf.ANY_BIT, bpf.V6_PLACE, yes="miss")
    to.fragment()
    to.add(bpf.EQUAL, number, yes="found")
    to.add(bpf.EQUAL, bpf.DESTINATION, no="miss")
    to.option()
    to.add(bpf.EQUAL, number, no="match")
    to.label("found")


def watch(device: str, minor: int, mac: str, traffic: Traffic, targets: Sequence[str] = ()) -> list[str]:
    """The lines that count what is not of a source's traffic, from 0; none where there can be no such thing."""
    return [
        f"filter replace dev {device} parent 1: protocol {family} prio {priority} handle {minor + number * _TARGET:#x} "
        f"bpf {bpf.bytecode(code)} action continue"
        for family, priority in _PRIORITIES.items()
        for number, target in enumerate(targets or (None,))
        if (code := program(family, mac, traffic, target)) is not None
    ]


def counted(shown: Iterable[Mapping[str, Any]], minor: int) -> int | None:
    """How many first fragments were counted for a source, from ``tc -s -j filter show``; None if nothing counts."""
    counts = [
        int(action.get("stats", {}).get("packets", 0))
        for each in shown
        if each.get("kind") == "bpf" and each.get("pref") in _PRIORITIES.values()
        and int((options := each.get("options", {})).get("handle", "0"), 16) % _TARGET == minor
        for action in options.get("actions", ())
    ]  # fmt: skip
    return sum(counts) if counts else None


def check(traffic: Traffic, others: int | None) -> Check:
    """What a narrowed link's table says of fragments; ``others``: so many were not its own."""
    seen = "not counted" if others is None else f"{others} fragmented datagrams of other traffic"
    return Check(
        field="traffic", asked=str(traffic), kernel=f"and fragments of {traffic.protocol}", seen=seen,
        verdict=Verdict.UNKNOWN if others is None else Verdict.FAILS if others else Verdict.HOLDS,
    )  # fmt: skip


def problem(traffic: Traffic, others: int | None) -> str | None:
    """Why a test does not count in which fragments of other traffic were impaired as well."""
    if not others:
        return None
    count = "a fragmented datagram" if others == 1 else f"{others} fragmented datagrams"
    return (
        f"{count} that cannot be told to be of {traffic} went its way too: fragments bear no ports. Narrow the link to "
        f"{traffic.protocol} or not at all, or have the datagrams fit the MTU"
    )
