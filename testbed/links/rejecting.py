"""Cuts that reject: compile what is cut to filters at the switch's gate, and compare what the kernel holds. Pure.

The gate is the device through which every packet to a host leaves the switch, before any qdisc, in the machine's own
kernel. That kernel may be one without flower. So the keys of `qdisc.Filter` become a classic BPF program, which every
kernel with cls_bpf takes without further capabilities (Linux, networking/filter.rst; tc-bpf(8)), and what it matches
is redirected to a tap where the agent answers it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Any

from testbed.links.proof import Difference
from testbed.links.qdisc import ANSWERER, Filter
from testbed.model.topology import MULTICAST_LISTENERS, NEIGHBOUR_DISCOVERY

EXTENSION_HEADERS = 3
"""So many of a packet's IPv6 extension headers are passed over to find its protocol."""

Program = tuple[tuple[int, int, int, int], ...]
"""Instructions: code, jumps if true and if false, operand."""

# linux/bpf_common.h, linux/filter.h
_LD, _LDH, _LDB, _LDH_X, _LDB_X = 0x20, 0x28, 0x30, 0x48, 0x50
_LDX, _LDX_HEADER, _LD_MEMORY, _ST = 0x01, 0xB1, 0x60, 0x02
_TAX, _TXA, _ADD, _ADD_X, _SHIFT = 0x07, 0x87, 0x04, 0x0C, 0x64
_JUMP, _EQUAL, _GREATER, _AT_LEAST, _ANY_BIT, _RETURN = 0x05, 0x15, 0x25, 0x35, 0x45, 0x06
# cls_bpf.c: -1 is "match, with the filter's own actions", 0 is "no match".
_MATCH, _MISS = 0xFFFFFFFF, 0

# Offsets from the frame's begin: Ethernet, then RFC 791 and RFC 8200.
_FROM_MAC, _IP = 6, 14
_V4_FRAGMENT, _V4_PROTOCOL, _V4_SOURCE, _V4_TARGET = _IP + 6, _IP + 9, _IP + 12, _IP + 16
_V6_NEXT, _V6_SOURCE, _V6_TARGET, _V6_BYTES = _IP + 6, _IP + 8, _IP + 24, 40
_PROTOCOLS = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58}
_FRAGMENT, _HOP_BY_HOP = 44, 0
_OPTIONS = (_HOP_BY_HOP, 43, 60)
_LISTENERS_OPTIONS_BYTES = 8  # RFC 3810, section 5: a router alert, and nothing else


class _Assembler:
    """Instructions whose jumps name labels; None is the instruction behind."""

    def __init__(self) -> None:
        self._code: list[tuple[int, str | None, str | None, int]] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def add(self, code: int, operand: int = 0, *, yes: str | None = None, no: str | None = None) -> None:
        self._code.append((code, yes, no, operand))

    def assemble(self) -> Program:
        program: list[tuple[int, int, int, int]] = []
        for place, (code, yes, no, operand) in enumerate(self._code):
            far = [0 if name is None else self._labels[name] - place - 1 for name in (yes, no)]
            program.append((code, 0, 0, far[0]) if code == _JUMP else (code, far[0], far[1], operand))
        return tuple(program)


def program(chosen: Filter) -> Program:
    """What matches the packets that a filter's keys name; never an answer of our own, nor what every link has."""
    to = _Assembler()
    to.add(_LD, _FROM_MAC)
    to.add(_EQUAL, int.from_bytes(bytes.fromhex(ANSWERER.replace(":", ""))[:4]), yes="miss")
    old = chosen.family == "ip"
    if "src_mac" in chosen.keys:
        mac = bytes.fromhex(str(chosen.keys["src_mac"]).replace(":", ""))
        for code, place, part in ((_LD, _FROM_MAC, mac[:4]), (_LDH, _FROM_MAC + 4, mac[4:])):
            to.add(code, place)
            to.add(_EQUAL, int.from_bytes(part), no="miss")
    for key, place in (("src_ip", _V4_SOURCE if old else _V6_SOURCE), ("dst_ip", _V4_TARGET if old else _V6_TARGET)):
        packed = ip_address(str(chosen.keys[key])).packed if key in chosen.keys else b""
        for at in range(0, len(packed), 4):
            to.add(_LD, place + at)
            to.add(_EQUAL, int.from_bytes(packed[at : at + 4]), no="miss")
    number = _PROTOCOLS[str(chosen.keys["ip_proto"])] if "ip_proto" in chosen.keys else None
    ports = [(place, int(chosen.keys[key])) for place, key in ((0, "src_port"), (2, "dst_port")) if key in chosen.keys]
    if old:
        _narrow_v4(to, number, ports)
    else:
        _narrow_v6(to, number, ports)
    to.label("match")
    to.add(_RETURN, _MATCH)
    to.label("miss")
    to.add(_RETURN, _MISS)
    return to.assemble()


def _narrow_v4(to: _Assembler, number: int | None, ports: Iterable[tuple[int, int]]) -> None:
    if number is not None:
        to.add(_LDB, _V4_PROTOCOL)
        to.add(_EQUAL, number, no="miss")
    for place, port in ports:
        to.add(_LDH, _V4_FRAGMENT)
        to.add(_ANY_BIT, 0x1FFF, yes="miss")  # no first fragment: it has no ports
        to.add(_LDX_HEADER, _IP)
        to.add(_LDH_X, _IP + place)
        to.add(_EQUAL, port, no="miss")


def _narrow_v6(to: _Assembler, number: int | None, ports: Iterable[tuple[int, int]]) -> None:
    to.add(_LDX, _V6_BYTES)
    to.add(_LDB, _V6_NEXT)
    if number is None:
        to.add(_EQUAL, _HOP_BY_HOP, no="plain")
        to.add(_LDB_X, _IP)
        to.add(_EQUAL, _PROTOCOLS["icmpv6"], no="match")
        to.add(_LDX, _V6_BYTES + _LISTENERS_OPTIONS_BYTES)
        to.add(_JUMP, yes="kind")
        to.label("plain")
        to.add(_EQUAL, _PROTOCOLS["icmpv6"], no="match")
    else:
        _find_v6(to, number, first_alone=bool(ports))
    if number in (None, _PROTOCOLS["icmpv6"]):
        to.label("kind")
        to.add(_LDB_X, _IP)
        for kind in MULTICAST_LISTENERS:
            to.add(_EQUAL, kind, yes="miss")
        to.add(_AT_LEAST, NEIGHBOUR_DISCOVERY.start, no="match")
        to.add(_AT_LEAST, NEIGHBOUR_DISCOVERY.stop, no="miss")
    for place, port in ports:
        to.add(_LDH_X, _IP + place)
        to.add(_EQUAL, port, no="miss")


def _find_v6(to: _Assembler, number: int, *, first_alone: bool) -> None:
    """Go on to the protocol's own header: then X says where it is, from the IP header on."""
    for step in range(EXTENSION_HEADERS):
        to.add(_EQUAL, number, yes="found")
        to.add(_EQUAL, _FRAGMENT, yes=f"fragment {step}")
        for option in _OPTIONS:
            to.add(_EQUAL, option, yes=f"options {step}")
        to.add(_JUMP, yes="miss")
        to.label(f"fragment {step}")
        if first_alone:
            to.add(_LDH_X, _IP + 2)
            to.add(_ANY_BIT, 0xFFF8, yes="miss")
        to.add(_LDB_X, _IP)
        to.add(_ST, 0)
        to.add(_TXA)
        to.add(_ADD, 8)
        to.add(_JUMP, yes=f"next {step}")
        to.label(f"options {step}")
        to.add(_LDB_X, _IP)
        to.add(_ST, 0)
        to.add(_LDB_X, _IP + 1)
        to.add(_ADD, 1)
        to.add(_SHIFT, 3)
        to.add(_ADD_X)
        to.label(f"next {step}")
        to.add(_TAX)
        to.add(_LD_MEMORY, 0)
    to.add(_EQUAL, number, no="miss")
    to.label("found")


def put(gate: str, chosen: Filter, tap: str) -> str:
    """The line that redirects what a filter names to a tap, or replaces the one with its handle."""
    code = program(chosen)
    written = ",".join([str(len(code)), *(" ".join(map(str, each)) for each in code)])
    return f'filter replace {_where(gate, chosen)} bpf bytecode "{written}" action mirred egress redirect dev {tap}'


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


def differences(shown: Iterable[Mapping[str, Any]], wanted: Iterable[Filter], tap: str) -> list[Difference]:
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
        if tuple(code) != program(each):
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
