"""Links whose one end is beyond the network's hosts: what distinguishes their packets at a host's port. Pure.

All of them pass the gateway, which is the bridge's own interface: they have its MAC address, and behind it addresses of
the machine or of the outside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from testbed.errors import InvalidValueError
from testbed.netem.qdisc import Gateway
from testbed.observe.packet import Ip
from testbed.spec.links import LOCALHOST, OUTSIDE, LinkRef

_NAMES_PORT = 53


def ends(ref: LinkRef, gateway: Mapping[str, Any], own: Sequence[str], *, machine_is_ours: bool) -> dict[str, Any]:
    """What `ports.Source` has of such a link.

    ``gateway``: the agent's account of it. ``own``: the addresses of the engine's machine. ``machine_is_ours``: whether
    that is this one; if not, all that comes through it is of ``localhost``.
    """
    everything = (gateway["mac"],)
    is_machine = ref.far == LOCALHOST
    if is_machine:
        addresses = tuple(own) if machine_is_ours else everything
    else:
        addresses = everything if ref.far == OUTSIDE else (ref.far,)
    return {
        "addresses": addresses,
        "ifindex": gateway["ifindex"],
        "gateway": Gateway(mac=gateway["mac"], outward=ref.beyond == "dst", last=not is_machine),
        "spared": () if is_machine else tuple(own),
    }


@dataclass(frozen=True, kw_only=True)
class FarEnd:
    """What tells packets between a host and an end beyond the stack from others at the host's port."""

    far: str
    host: frozenset[bytes]
    """The host's addresses."""
    members: frozenset[bytes]
    """The addresses of all hosts on the network."""
    machine: frozenset[bytes]
    """The addresses of the engine's machine."""
    machine_is_ours: bool

    def has(self, ip: Ip | None) -> bool:
        """Whether a packet is between the two, in either direction."""
        if ip is None:
            return False
        others = [there for here, there in ((ip.src, ip.dst), (ip.dst, ip.src)) if here in self.host]
        return any(map(self._is_far, others))

    def _is_far(self, packed: bytes) -> bool:
        address = ip_address(packed)
        if packed in self.members or address.is_multicast or address.is_link_local:
            return False
        if self.far == LOCALHOST:
            return packed in self.machine or not self.machine_is_ours
        return packed not in self.machine and (self.far == OUTSIDE or address in ip_network(self.far))


def refuse_overlap(ref: LinkRef, others: Iterable[LinkRef]) -> None:
    """Refuse a link to addresses of which some are another link's: their packets would be of either.

    ``others``: the links of the port that are impaired or cut. Raises InvalidValueError.
    """
    if ref.far in ("", LOCALHOST, OUTSIDE):
        return
    mine = ip_network(ref.far)
    for other in others:
        if other.far in ("", LOCALHOST, OUTSIDE, ref.far):
            continue
        its = ip_network(other.far)
        if its[0] in mine or mine[0] in its:
            raise InvalidValueError(f"{ref}: some of its addresses are those of {other}: heal or mend that one first")


def of_names(ref: LinkRef) -> str | None:
    """What to know of a link that is narrowed to the port of name servers; None for others."""
    if ref.traffic.port != _NAMES_PORT:
        return None
    return (
        f"{ref}: the engine's resolver answers inside each container, so looking up a name crosses no link, but for "
        f"programs that ask a name server at the other end (`testbed init --resolver` writes one)"
    )


def of_another_machine(ref: LinkRef, *, machine_is_ours: bool) -> str | None:
    """What to know of the machine as an end where the engine is on another one; None where it is not."""
    if ref.far != LOCALHOST or machine_is_ours:
        return None
    return f"{ref}: {LOCALHOST} is all that comes through the engine's machine, this one's packets among them"
