"""Cuts that reject: compile them to filters at the switch's gate, and compare those with the read-back. Pure.

A gate is in tc's words: a device and ``egress``, or ``ingress`` for what a host sends beyond the stack.

The gate is the device of the machine's own kernel through which every packet to a host leaves the switch, before any
qdisc. That kernel may have no flower. So the keys of a `qdisc.Filter` become a classic BPF program, which every kernel
with cls_bpf takes without further capabilities (Linux, networking/filter.rst; tc-bpf(8)). Packets that it matches are
redirected to a tap, where the agent replies to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from testbed.netem import bpf
from testbed.netem.qdisc import Filter
from testbed.netem.readback import Difference
from testbed.spec.links import MULTICAST_LISTENERS, NEIGHBOUR_DISCOVERY

_PASSED = "nothing done with it"
_LISTENERS_OPTIONS_BYTES = 8  # RFC 3810, section 5: a router alert, and nothing else


def program(wanted: Filter, mark: int | None = None) -> bpf.Instructions:
    """A program that matches what a filter's keys match, but no packet with our ``mark`` and none that links need."""
    to = bpf.Assembler()
    if mark is not None:
        to.add(bpf.LD, bpf.MARK)
        to.add(bpf.EQUAL, mark, yes="miss")
    if wanted.family == "all":
        to.add(bpf.LD, bpf.TAGGED)  # a VLAN's tag: the frame matches whatever it holds
        to.add(bpf.EQUAL, 0, no="rest")
        to.add(bpf.LD, bpf.ETHERTYPE)
        for ethertype in bpf.OTHERS_ETHERTYPES:
            to.add(bpf.EQUAL, ethertype, yes="miss")
        to.label("rest")
        _interfaces(to, wanted)
        return to.end()
    is_v4 = wanted.family == "ip"
    _interfaces(to, wanted)
    if "src_ip" in wanted.keys:
        to.address(str(wanted.keys["src_ip"]), bpf.V4_SOURCE if is_v4 else bpf.V6_SOURCE)
    if "dst_ip" in wanted.keys:
        to.address(str(wanted.keys["dst_ip"]), bpf.V4_TARGET if is_v4 else bpf.V6_TARGET)
    number = bpf.PROTOCOLS[str(wanted.keys["ip_proto"])] if "ip_proto" in wanted.keys else None
    ports = [(place, int(wanted.keys[key])) for place, key in ((0, "src_port"), (2, "dst_port")) if key in wanted.keys]
    if is_v4:
        _narrow_v4(to, number, ports)
    else:
        _narrow_v6(to, number, ports)
    return to.end()


def _interfaces(to: bpf.Assembler, wanted: Filter) -> None:
    for key, place in (("src_mac", bpf.FROM_MAC), ("dst_mac", bpf.TO_MAC)):
        if key in wanted.keys:
            to.interface(str(wanted.keys[key]), place)


def _narrow_v4(to: bpf.Assembler, number: int | None, ports: Iterable[tuple[int, int]]) -> None:
    if number is not None:
        to.add(bpf.LDB, bpf.V4_PROTOCOL)
        to.add(bpf.EQUAL, number, no="miss")
    for place, port in ports:
        to.add(bpf.LDH, bpf.V4_FRAGMENT)
        to.add(bpf.ANY_BIT, bpf.V4_PLACE, yes="match")  # a later fragment has no ports
        to.add(bpf.LDX_HEADER, bpf.IP)
        to.add(bpf.LDH_X, bpf.IP + place)
        to.add(bpf.EQUAL, port, no="miss")


def _narrow_v6(to: bpf.Assembler, number: int | None, ports: Iterable[tuple[int, int]]) -> None:
    to.add(bpf.LDX, bpf.V6_BYTES)
    to.add(bpf.LDB, bpf.V6_NEXT)
    if number is None:
        to.add(bpf.EQUAL, bpf.HOP_BY_HOP, no="plain")
        to.add(bpf.LDB_X, bpf.IP)
        to.add(bpf.EQUAL, bpf.PROTOCOLS["icmpv6"], no="match")
        to.add(bpf.LDX, bpf.V6_BYTES + _LISTENERS_OPTIONS_BYTES)
        to.add(bpf.JUMP, yes="kind")
        to.label("plain")
        to.add(bpf.EQUAL, bpf.PROTOCOLS["icmpv6"], no="match")
    else:
        _find_v6(to, number)
    if number in (None, bpf.PROTOCOLS["icmpv6"]):
        to.label("kind")
        to.add(bpf.LDB_X, bpf.IP)
        for kind in MULTICAST_LISTENERS:
            to.add(bpf.EQUAL, kind, yes="miss")
        to.add(bpf.AT_LEAST, NEIGHBOUR_DISCOVERY.start, no="match")
        to.add(bpf.AT_LEAST, NEIGHBOUR_DISCOVERY.stop, no="miss")
    for place, port in ports:
        to.add(bpf.LDH_X, bpf.IP + place)
        to.add(bpf.EQUAL, port, no="miss")


def _find_v6(to: bpf.Assembler, number: int) -> None:
    """Continue with X at the protocol's own header, counted from the IP header on.

    Later fragments have no such header. They match by the next header that their fragment header names: the protocol,
    or options that may precede it.
    """
    for step in range(bpf.EXTENSION_HEADERS):
        to.add(bpf.EQUAL, number, yes="protocol")
        to.add(bpf.EQUAL, bpf.FRAGMENT, yes=f"fragment {step}")
        for option in bpf.OPTIONS:
            to.add(bpf.EQUAL, option, yes=f"options {step}")
        to.add(bpf.JUMP, yes="miss")
        to.label(f"fragment {step}")
        to.add(bpf.LDH_X, bpf.IP + 2)
        to.add(bpf.ANY_BIT, bpf.V6_PLACE, yes="later")
        to.fragment()
        to.add(bpf.JUMP, yes=f"next {step}")
        to.label(f"options {step}")
        to.option()
        to.label(f"next {step}")
    to.add(bpf.EQUAL, number, yes="protocol", no="miss")
    to.label("later")
    to.add(bpf.LDB_X, bpf.IP)
    to.add(bpf.EQUAL, number, yes="match")
    to.add(bpf.EQUAL, bpf.DESTINATION, yes="match", no="miss")
    to.label("protocol")


def put(gate: str, wanted: Filter, tap: str, mark: int | None) -> str:
    """The line that redirects what a filter matches to a tap, or replaces the one with its handle."""
    code = bpf.bytecode(program(wanted, mark))
    return f"filter replace {_where(gate, wanted)} bpf {code} action mirred egress redirect dev {tap}"


def spare(gate: str, wanted: Filter, on: str) -> str:
    """The line that lets pass what a filter matches, whatever later filters reject.

    ``on``: the device to which the gate's last filter redirects everything; empty: no action, so it goes on by itself.
    """
    action = f" action mirred egress redirect dev {on}" if on else ""
    return f"filter replace {_where(gate, wanted)} bpf {bpf.bytecode(program(wanted))}{action}"


def get(gate: str, wanted: Filter) -> str:
    """The line that reads it back."""
    return f"filter get {_where(gate, wanted)} bpf"


def delete(gate: str, wanted: Filter) -> str:
    """The line that removes it."""
    return f"filter delete {_where(gate, wanted)} bpf"


def show(gate: str) -> str:
    """The read-back of all of them."""
    return f"filter show dev {gate}"


def _where(gate: str, wanted: Filter) -> str:
    return f"dev {gate} protocol {wanted.family} prio {wanted.priority} handle {wanted.handle:#x}"


def differences(
    shown: Iterable[Mapping[str, Any]], wanted: Iterable[Filter], tap: str, mark: int | None
) -> list[Difference]:
    """Whether each filter is installed, is the compiled program, and redirects to the tap; empty: does nothing."""
    installed = _installed(shown)
    differing = []
    for want in wanted:
        keys = " ".join(f"{name} {value}" for name, value in want.keys.items())
        options = installed.get((want.priority, want.handle))
        target = f"redirect {tap}" if tap else _PASSED
        requested = f"{keys}: {target}"
        if options is None:
            differing.append(Difference("rejecting filter", requested, "none"))
            continue
        steps = options.get("bytecode", {}).get("insns", ())
        if tuple((step["code"], step["jt"], step["jf"], step["k"]) for step in steps) != program(want, mark):
            differing.append(Difference("rejecting filter", requested, "another program"))
        if (reported := _target(options)) != target:
            differing.append(Difference("rejecting filter", requested, reported))
    return differing


def missing(shown: Iterable[Mapping[str, Any]], wanted: Filter) -> bool:
    """Whether a filter is not installed."""
    return (wanted.priority, wanted.handle) not in _installed(shown)


def rejected_packets(shown: Iterable[Mapping[str, Any]], wanted: Iterable[Filter]) -> int:
    """How many packets the filters redirected, or failed to."""
    installed = _installed(shown)
    return sum(
        int(action.get("stats", {}).get("packets", 0))
        for want in wanted
        for action in installed.get((want.priority, want.handle), {}).get("actions", ())
    )


def _installed(shown: Iterable[Mapping[str, Any]]) -> dict[tuple[int, int], Mapping[str, Any]]:
    return {
        (row["pref"], int(options["handle"], 16)): options
        for row in shown
        if row.get("kind") == "bpf" and "handle" in (options := row.get("options", {}))
    }


def _target(options: Mapping[str, Any]) -> str:
    for action in options.get("actions", ()):
        return f"{action.get('mirred_action', action.get('kind'))} {action.get('to_dev', '')}".strip()
    return _PASSED
