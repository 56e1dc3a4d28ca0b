"""Cuts that reject: compile what is cut to filters at the switch's gate, and compare what the kernel holds. Pure.

The gate is the device through which every packet to a host leaves the switch, before any qdisc, in the machine's own
kernel. That kernel may be one without flower. So the keys of `qdisc.Filter` become a classic BPF program, which every
kernel with cls_bpf takes without further capabilities (Linux, networking/filter.rst; tc-bpf(8)), and what it matches
is redirected to a tap where the agent answers it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from testbed.netem import bpf
from testbed.netem.qdisc import Filter
from testbed.netem.readback import Difference
from testbed.spec.topology import MULTICAST_LISTENERS, NEIGHBOUR_DISCOVERY

_LISTENERS_OPTIONS_BYTES = 8  # RFC 3810, section 5: a router alert, and nothing else


def program(chosen: Filter, mark: int | None = None) -> bpf.Program:
    """What matches the packets that a filter's keys name; never what bears our ``mark``, nor what every link has."""
    to = bpf.Assembler()
    if mark is not None:
        to.add(bpf.LD, bpf.MARK)
        to.add(bpf.EQUAL, mark, yes="miss")
    if chosen.family == "all":
        to.add(bpf.LD, bpf.TAGGED)  # by a VLAN's tag: then what is in it is not looked at
        to.add(bpf.EQUAL, 0, no="rest")
        to.add(bpf.LD, bpf.ETHERTYPE)
        for each in bpf.OTHERS_ETHERTYPES:
            to.add(bpf.EQUAL, each, yes="miss")
        to.label("rest")
        to.interface(str(chosen.keys["src_mac"]))
        return to.end()
    old = chosen.family == "ip"
    if "src_mac" in chosen.keys:
        to.interface(str(chosen.keys["src_mac"]))
    if "src_ip" in chosen.keys:
        to.address(str(chosen.keys["src_ip"]), bpf.V4_SOURCE if old else bpf.V6_SOURCE)
    if "dst_ip" in chosen.keys:
        to.address(str(chosen.keys["dst_ip"]), bpf.V4_TARGET if old else bpf.V6_TARGET)
    number = bpf.PROTOCOLS[str(chosen.keys["ip_proto"])] if "ip_proto" in chosen.keys else None
    ports = [(place, int(chosen.keys[key])) for place, key in ((0, "src_port"), (2, "dst_port")) if key in chosen.keys]
    if old:
        _narrow_v4(to, number, ports)
    else:
        _narrow_v6(to, number, ports)
    return to.end()


def _narrow_v4(to: bpf.Assembler, number: int | None, ports: Iterable[tuple[int, int]]) -> None:
    if number is not None:
        to.add(bpf.LDB, bpf.V4_PROTOCOL)
        to.add(bpf.EQUAL, number, no="miss")
    for place, port in ports:
        to.add(bpf.LDH, bpf.V4_FRAGMENT)
        to.add(bpf.ANY_BIT, bpf.V4_PLACE, yes="match")  # no first fragment: it has no ports
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
    """Go on to the protocol's own header: then X says where it is, from the IP header on.

    A fragment but the first has no such header. It matches by what its fragment header names: the protocol, or options
    behind which the protocol may be.
    """
    for step in range(bpf.EXTENSION_HEADERS):
        to.add(bpf.EQUAL, number, yes="found")
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
    to.add(bpf.EQUAL, number, yes="found", no="miss")
    to.label("later")
    to.add(bpf.LDB_X, bpf.IP)
    to.add(bpf.EQUAL, number, yes="match")
    to.add(bpf.EQUAL, bpf.DESTINATION, yes="match", no="miss")
    to.label("found")


def put(gate: str, chosen: Filter, tap: str, mark: int | None) -> str:
    """The line that redirects what a filter names to a tap, or replaces the one with its handle."""
    code = bpf.bytecode(program(chosen, mark))
    return f"filter replace {_where(gate, chosen)} bpf {code} action mirred egress redirect dev {tap}"


def get(gate: str, chosen: Filter) -> str:
    """The line that reads it back."""
    return f"filter get {_where(gate, chosen)} bpf"


def delete(gate: str, chosen: Filter) -> str:
    """The line that takes it off."""
    return f"filter delete {_where(gate, chosen)} bpf"


def show(gate: str) -> str:
    """The read-back of all of them."""
    return f"filter show dev {gate} egress"


def _where(gate: str, chosen: Filter) -> str:
    return f"dev {gate} egress protocol {chosen.family} prio {chosen.priority} handle {chosen.handle:#x}"


def differences(
    shown: Iterable[Mapping[str, Any]], wanted: Iterable[Filter], tap: str, mark: int | None
) -> list[Difference]:
    """Whether each filter is there, is the program that was compiled, and redirects to the tap."""
    found = _found(shown)
    differing = []
    for each in wanted:
        keys = " ".join(f"{name} {value}" for name, value in each.keys.items())
        options = found.get((each.priority, each.handle))
        asked = f"{keys} redirected to {tap}"
        if options is None:
            differing.append(Difference("rejecting filter", asked, "none"))
            continue
        code = [tuple(step[name] for name in ("code", "jt", "jf", "k"))
                for step in options.get("bytecode", {}).get("insns", ())]  # fmt: skip
        if tuple(code) != program(each, mark):
            differing.append(Difference("rejecting filter", asked, "another program"))
        if (target := _target(options)) != f"redirect {tap}":
            differing.append(Difference("rejecting filter", asked, target))
    return differing


def missing(shown: Iterable[Mapping[str, Any]], one: Filter) -> bool:
    """Whether a filter is not there."""
    return (one.priority, one.handle) not in _found(shown)


def rejected_packets(shown: Iterable[Mapping[str, Any]], wanted: Iterable[Filter]) -> int:
    """How many packets the filters have redirected, or could not."""
    found = _found(shown)
    return sum(
        int(action.get("stats", {}).get("packets", 0))
        for each in wanted
        for action in found.get((each.priority, each.handle), {}).get("actions", ())
    )


def _found(shown: Iterable[Mapping[str, Any]]) -> dict[tuple[int, int], Mapping[str, Any]]:
    return {
        (each["pref"], int(options["handle"], 16)): options
        for each in shown
        if each.get("kind") == "bpf" and "handle" in (options := each.get("options", {}))
    }


def _target(options: Mapping[str, Any]) -> str:
    for action in options.get("actions", ()):
        return f"{action.get('mirred_action', action.get('kind'))} {action.get('to_dev', '')}".strip()
    return "nothing done with it"
