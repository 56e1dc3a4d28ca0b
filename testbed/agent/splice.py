"""The splice of a carried port: the lines that make it, and the check of a read-back. Pure.

Each `Redirect` is a tc filter that sends packets from one device to another. Each `Device` must exist, be up, and be on
its bridge. See `detour` for the drawing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

# The priority of unconditional redirects; the rejecting filters of a gate, and ARP's at a veth, come before them.
_LAST_PRIORITY = 60_000
_WITHIN = 50_000
"""Of the redirects at a host's own interface, by family."""
_INGRESS = "parent ffff:"  # of the ingress qdisc
_CLSACT_INGRESS = "ingress"
# ld #queue; jeq #1, skip, take: a tap notes the queue that a frame came from, counted from 1 (net/tun.c,
# skb_record_rx_queue), and sending leaves 0 with one queue (net/core/dev.c, netdev_core_pick_tx). No action that marks
# packets is in every kernel.
_NOT_OF_A_TAP = 'bpf run bytecode "4,32 0 0 4294963224,21 1 0 1,6 0 0 4294967295,6 0 0 0" flowid 1:1'
IFF_UP = 0x1  # linux/if.h


@dataclass(frozen=True, kw_only=True)
class Redirect:
    """A filter that sends packets on to another device."""

    source: str
    target: str
    at: str = _INGRESS
    """The filter's parent, in tc's words; ``egress`` or ``ingress`` of a clsact qdisc."""
    protocol: str = "all"
    priority: int = _LAST_PRIORITY
    into: str = "egress"
    """Whether packets leave through the target, or enter there (``ingress``)."""
    first: str = ""
    """An action that comes before the redirect, in tc's words."""
    match: str = "0 0"
    """Which packets, as in tc's ``match u32``: value, mask, and ``at`` with an offset; all by default."""
    once: bool = False
    """Whether packets pass that entered here from a tap: they have been redirected before."""

    def put(self) -> str:
        """The line that makes it."""
        return (
            f"filter add dev {self.source} {self.at} protocol {self.protocol} prio {self.priority}"
            f" {_NOT_OF_A_TAP if self.once else f'u32 match u32 {self.match}'}"
            f" {self.first}action mirred {self.into} redirect dev {self.target}"
        )

    def delete(self) -> str:
        """The line that removes it, with others of its priority."""
        return f"filter delete dev {self.source} {self.at} protocol {self.protocol} prio {self.priority}"

    def show(self) -> str:
        """The line that reads it back, with others."""
        return f"filter show dev {self.source} {self.at}"

    def is_in(self, shown: Iterable[Mapping[str, Any]]) -> bool:
        """Whether it is among the filters that `show` brought."""
        own = {"kind": "bpf" if self.once else "u32", "protocol": self.protocol, "pref": self.priority}
        redirect = {"kind": "mirred", "mirred_action": "redirect", "direction": self.into, "to_dev": self.target}
        return any(
            redirect.items() <= action.items()
            for row in shown
            if own.items() <= row.items()
            for action in row.get("options", {}).get("actions", ())
        )

    def packets(self, shown: Iterable[Mapping[str, Any]]) -> int:
        """How many packets it has redirected, by the filters that `show` brought."""
        return sum(
            int(action.get("stats", {}).get("packets", 0))
            for row in shown
            if row.get("pref") == self.priority
            for action in row.get("options", {}).get("actions", ())
            if action.get("to_dev") == self.target
        )

    def __str__(self) -> str:
        packets = "ARP" if self.protocol == "arp" else "packets"
        return f"the redirect of {packets} from {self.source} to {self.target}"


def joined(device: str, entry: str) -> list[Redirect]:
    """Redirects of all packets that enter at one device of a carried port to the other, both ways.

    The one that has the qdiscs has a clsact qdisc, for `staged`.
    """
    return [Redirect(source=device, target=entry, at=_CLSACT_INGRESS), Redirect(source=entry, target=device)]


def staged(last: str, first: str) -> Redirect:
    """The redirect of what leaves through ``last`` to the ifb device ``first``, which sends it to ``last`` again.

    It passes this filter once: ifb marks what it sends (drivers/net/ifb.c, tc_skip_classify), and a filter's action
    does nothing to a packet that is marked so (net/sched/act_api.c, tcf_action_exec).
    """
    return Redirect(source=last, target=first, at="egress")


def past(gate: str, veth: str) -> list[Redirect]:
    """Redirects of ARP from the gate to the veth, and from there as if it entered at the gate."""
    return [
        Redirect(source=gate, target=veth, at="egress", protocol="arp"),
        Redirect(source=veth, target=gate, protocol="arp", priority=1, into="ingress"),
    ]


def within(interface: str, first: str, back: str | None = None) -> list[Redirect]:
    """Redirects of IP packets that enter at a host's own interface to the device ``first``, and from ``back`` again.

    Without ``back``, the first is an ifb, which sends them there itself; they pass the filters once: see `staged`.
    """
    first_way = Redirect(source=interface, target=first, at=_CLSACT_INGRESS, once=back is not None)
    families = enumerate(("ip", "ipv6"), _WITHIN)
    into = [replace(first_way, protocol=family, priority=priority) for priority, family in families]
    return into if back is None else [*into, Redirect(source=back, target=interface, into="ingress")]


def mark(number: int) -> str:
    """The action that marks an answer: gate filters recognise the mark, and htb passes its priority unimpaired."""
    return f"action skbedit mark {number} priority 1:0"


def lines(redirects: Sequence[Redirect]) -> Iterator[str]:
    """The lines that make them, their qdiscs first."""
    for device, at in dict.fromkeys((redirect.source, redirect.at) for redirect in redirects):
        yield f"qdisc add dev {device} {'ingress' if at == _INGRESS else 'clsact'}"
    yield from (redirect.put() for redirect in redirects)


def missing(redirects: Sequence[Redirect], shown: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """The redirects that are gone, in words; ``shown``: the filters by the line of `Redirect.show`."""
    return [f"{redirect} is gone" for redirect in redirects if not redirect.is_in(shown.get(redirect.show(), ()))]


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device as it is now."""

    name: str
    flags: int | None
    """Of linux/if.h; None if the device does not exist."""
    carrier: bool = True
    """Whether its other end exists and is up."""
    master: str | None = None
    """The bridge that it is on."""


def amiss(device: Device, *, master: str | None = None, far_end: str = "its other end") -> list[str]:
    """What is wrong with a device that must be up, connected to ``far_end``, and on the bridge ``master`` or none."""
    if device.flags is None:
        return [f"{device.name} is gone"]
    problems = []
    if not device.flags & IFF_UP:
        problems.append(f"{device.name} is down")
    elif not device.carrier:
        problems.append(f"{device.name} has no carrier: {far_end} is down")
    if device.master != master:
        where = f"on {device.master}" if device.master else "on no bridge"
        problems.append(f"{device.name} is {where}, but belongs {f'on {master}' if master else 'on none'}")
    return problems
