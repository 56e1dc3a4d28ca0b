"""The splice of a carried port, described once: what makes it, and how to tell from a read-back that it is there. Pure.

What leads packets from device to device is a tc filter each (`Redirect`); the devices must be there, up, and where
they belong (`Device`). See `ports` for the drawing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Of what has no other condition; the rejecting filters of a gate, and ARP's at a veth, come before.
_LAST_PRIORITY = 60_000
IFF_UP = 0x1  # linux/if.h


@dataclass(frozen=True, kw_only=True)
class Redirect:
    """A filter that sends every packet, or those of one kind, on to another device."""

    source: str
    target: str
    at: str = "parent ffff:"
    """Where it hangs, in tc's words; ``egress`` or ``ingress`` of a clsact qdisc."""
    protocol: str = "all"
    priority: int = _LAST_PRIORITY
    into: str = "egress"
    """Whether they leave through the target, or come in there."""
    first: str = ""
    """Another action that comes before, in tc's words."""
    match: str = "0 0"
    """Which packets: a value, its mask, and where, as tc's ``match u32`` has them. Every one."""

    def put(self) -> str:
        """The line that makes it."""
        return (
            f"filter add dev {self.source} {self.at} protocol {self.protocol} prio {self.priority} u32"
            f" match u32 {self.match} {self.first}action mirred {self.into} redirect dev {self.target}"
        )

    def show(self) -> str:
        """The line that reads it back, among others."""
        return f"filter show dev {self.source} {self.at}"

    def held(self, shown: Iterable[Mapping[str, Any]]) -> bool:
        """Whether it is among what that line shows."""
        wanted = {
            "kind": "mirred", "mirred_action": "redirect", "direction": self.into, "to_dev": self.target
        }  # fmt: skip
        return any(
            each.get("kind") == "u32" and each.get("protocol") == self.protocol and each.get("pref") == self.priority
            and any(wanted.items() <= action.items() for action in each.get("options", {}).get("actions", ()))
            for each in shown
        )  # fmt: skip

    def packets(self, shown: Iterable[Mapping[str, Any]]) -> int:
        """How many it has sent on, by what that line shows."""
        return sum(
            int(action.get("stats", {}).get("packets", 0))
            for each in shown if each.get("pref") == self.priority
            for action in each.get("options", {}).get("actions", ()) if action.get("to_dev") == self.target
        )  # fmt: skip

    def __str__(self) -> str:
        what = "ARP" if self.protocol == "arp" else "packets"
        return f"what leads {what} from {self.source} to {self.target}"


def joined(one: str, other: str) -> list[Redirect]:
    """Everything that comes in at one device leaves through the other, both ways."""
    return [Redirect(source=one, target=other), Redirect(source=other, target=one)]


def past(gate: str, veth: str) -> list[Redirect]:
    """ARP from the gate to the veth at once, and from there as if it came in at the gate."""
    return [
        Redirect(source=gate, target=veth, at="egress", protocol="arp"),
        Redirect(source=veth, target=gate, protocol="arp", priority=1, into="ingress"),
    ]


def mark(number: int) -> str:
    """The action that marks an answer: the gate's filters know it by the mark, and htb lets its priority pass."""
    return f"action skbedit mark {number} priority 1:0"


def lines(redirects: Sequence[Redirect]) -> Iterator[str]:
    """The lines that make them, their qdiscs first."""
    for device, at in dict.fromkeys((each.source, each.at) for each in redirects):
        yield f"qdisc add dev {device} {'ingress' if at.startswith('parent') else 'clsact'}"
    yield from (each.put() for each in redirects)


def missing(redirects: Sequence[Redirect], shown: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """What is not there, in words; ``shown``: what each redirect's `Redirect.show` brought, nothing if it failed."""
    return [f"{each} is gone" for each in redirects if not each.held(shown.get(each.show(), ()))]


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device as it is now."""

    name: str
    flags: int | None
    """Of linux/if.h; None if there is no such device."""
    carrier: bool = True
    """Whether its other end is there and up."""
    master: str | None = None
    """The bridge that it is on."""


def amiss(device: Device, *, master: str | None = None, far_end: str = "its other end") -> list[str]:
    """What is wrong with a device that is to be up, joined with ``far_end``, and on the bridge ``master`` or none."""
    if device.flags is None:
        return [f"{device.name} is gone"]
    found = []
    if not device.flags & IFF_UP:
        found.append(f"{device.name} is down")
    elif not device.carrier:
        found.append(f"{device.name} has no carrier: {far_end} is down")
    if device.master != master:
        where = f"on {device.master}" if device.master else "on no bridge"
        found.append(f"{device.name} is {where}, and belongs {f'on {master}' if master else 'on none'}")
    return found
