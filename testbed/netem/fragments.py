"""Fragments on a narrowed link: count the datagrams of other traffic that were impaired with it. Pure.

Only the first fragment of a datagram bears ports. So a link that is narrowed to a port impairs all fragments of the
protocol between its hosts (see `qdisc.filters`). The first fragments tell whether other datagrams were among them.
flower does not look into fragments, but a classic BPF program does: it comes before all other filters, counts, and lets
packets continue.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from testbed.evidence.proof import Check
from testbed.evidence.verdict import Verdict
from testbed.netem import bpf
from testbed.spec.links import Traffic

_PRIORITIES = {"ip": 3, "ipv6": 4}
"""After the filters that every IPv6 link has, before cuts and impairments (`qdisc`)."""
_TARGET = 0x10000
_HEADERS_BEFORE = 2  # how many IPv6 extension headers are skipped to find the fragment header


def program(family: str, mac: str, traffic: Traffic, target: str | None = None) -> bpf.Instructions | None:
    """A program that matches the first fragment of a datagram that is impaired with ``traffic`` but may not be of it.

    ``target``: the destination address, if the link is narrowed to one. None if there can be no such datagram.
    """
    is_v4 = family == "ip"
    if not traffic.protocol or (is_v4 and not traffic.port):
        return None
    if target is not None and (ip_address(target).version == 4) != is_v4:
        return None
    to = bpf.Assembler()
    to.interface(mac)
    if target is not None:
        to.address(target, bpf.V4_TARGET if is_v4 else bpf.V6_TARGET)
    if is_v4:
        _first_v4(to, bpf.PROTOCOLS[traffic.protocol])
    else:
        _first_v6(to, bpf.PROTOCOLS["icmpv6" if traffic.protocol == "icmp" else traffic.protocol])
    if traffic.port:
        to.add(bpf.LD_LENGTH)
        to.add(bpf.SUBTRACT_X)
        to.add(bpf.AT_LEAST, bpf.IP + 4, no="match")  # too short to bear ports
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
    """Continue with X at the protocol's header in a first fragment; another protocol's fragment matches at once."""
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
    to.add(bpf.EQUAL, number, yes="protocol")
    to.add(bpf.EQUAL, bpf.DESTINATION, no="miss")
    to.option()
    to.add(bpf.EQUAL, number, no="match")
    to.label("protocol")


def watch(device: str, minor: int, mac: str, traffic: Traffic, targets: Sequence[str] = ()) -> list[str]:
    """The lines that count, from 0, datagrams that are not of a source's traffic; none if there can be none."""
    return [
        f"filter replace dev {device} parent 1: protocol {family} prio {priority} handle {minor + number * _TARGET:#x} "
        f"bpf {bpf.bytecode(code)} action continue"
        for family, priority in _PRIORITIES.items()
        for number, target in enumerate(targets or (None,))
        if (code := program(family, mac, traffic, target)) is not None
    ]


def counted(shown: Iterable[Mapping[str, Any]], minor: int) -> int | None:
    """How many first fragments were counted for a source, from ``tc -s -j filter show``; None if nothing counts."""
    programs = [row for row in shown if row.get("kind") == "bpf" and row.get("pref") in _PRIORITIES.values()]
    counts = [
        int(action.get("stats", {}).get("packets", 0))
        for options in (program.get("options", {}) for program in programs)
        if int(options.get("handle", "0"), 16) % _TARGET == minor
        for action in options.get("actions", ())
    ]
    return sum(counts) if counts else None


def check(traffic: Traffic, others: int | None) -> Check:
    """The row on fragments in a narrowed link's evidence; ``others``: datagrams of other traffic."""
    return Check(
        field="traffic",
        asked=str(traffic),
        kernel=f"and fragments of {traffic.protocol}",
        seen="not counted" if others is None else f"{others} fragmented datagrams of other traffic",
        verdict=Verdict.UNKNOWN if others is None else Verdict.FAILS if others else Verdict.HOLDS,
    )


def problem(traffic: Traffic, others: int | None) -> str | None:
    """Why a test is not valid if fragments of other traffic were impaired as well; None if none were."""
    if not others:
        return None
    count = "a fragmented datagram" if others == 1 else f"{others} fragmented datagrams"
    return (
        f"{count} that may not be of {traffic} {'was' if others == 1 else 'were'} impaired as well, because fragments "
        f"bear no ports. Narrow the link to {traffic.protocol} or not at all, or send datagrams that fit the MTU"
    )
