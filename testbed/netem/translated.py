"""Packets whose source address a NAT rule of the engine's machine rewrote to that of the network's gateway. Pure.

Where bridged packets pass iptables (net.bridge.bridge-nf-call-iptables), a rule meant for routed packets, such as one
left by a network that is gone, rewrites them too: MASQUERADE gives them the address of the bridge. They keep the MAC
address of their sender. A classic BPF program counts them before all other filters, and lets them continue.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from testbed.netem import bpf

_PRIORITIES = {4: 5, 6: 6}
"""By the version of IP: after those of `fragments`."""


def program(mac: str, address: str) -> bpf.Instructions:
    """A program that matches packets from this address that another interface sent."""
    packed = bytes.fromhex(mac.replace(":", ""))
    to = bpf.Assembler()
    to.add(bpf.LD, bpf.FROM_MAC)
    to.add(bpf.EQUAL, int.from_bytes(packed[:4]), no="another")
    to.add(bpf.LDH, bpf.FROM_MAC + 4)
    to.add(bpf.EQUAL, int.from_bytes(packed[4:]), yes="miss")
    to.label("another")
    to.address(address, bpf.V4_SOURCE if ip_address(address).version == 4 else bpf.V6_SOURCE)
    return to.end()


def watch(device: str, gateway: Mapping[str, Any]) -> list[str]:
    """The lines that count them from 0 at a port; ``gateway``: its ``mac`` and ``addresses``."""
    return [
        f"filter replace dev {device} parent 1: protocol {'ip' if version == 4 else 'ipv6'} "
        f"prio {_PRIORITIES[version]} handle {number:#x} bpf {bpf.bytecode(program(gateway['mac'], address))} "
        f"action continue"
        for number, address in enumerate(gateway["addresses"], start=1)
        for version in (ip_address(address).version,)
    ]


def counted(shown: Iterable[Mapping[str, Any]]) -> int:
    """How many were counted at a port, from ``tc -s -j filter show``."""
    return sum(
        int(action.get("stats", {}).get("packets", 0))
        for row in shown
        if row.get("kind") == "bpf" and row.get("pref") in _PRIORITIES.values()
        for action in row.get("options", {}).get("actions", ())
    )


def warning(packets: int, *, end: str, gateway: Mapping[str, Any] | None, senders: Sequence[str]) -> str | None:
    """The warning that so many packets reached a link's ``end`` with the gateway's address; None if none did.

    ``senders``: the addresses of the link's sender.
    """
    if packets <= 0 or gateway is None:
        return None
    return (
        f"{packets} packet{'s' if packets > 1 else ''} from hosts of the network reached {end} with the source address "
        f"{' or '.join(gateway['addresses'])}, which is the gateway's, and not their own (the sender of this link has "
        f"{', '.join(senders)}): a NAT rule of the engine's machine rewrites them. `iptables -t nat -S` (`ip6tables`) "
        f"shows it: its -s covers the address that they were sent from. A network that is gone may have left it; "
        f"the engine's own rules cover hosts that send from their address of another network"
    )
