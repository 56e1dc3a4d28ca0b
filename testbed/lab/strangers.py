"""Unknown MAC addresses behind a host's port: of a macvlan, a changed address, a virtual router.

Filters recognize a sender by its addresses. Packets from an unknown MAC and IP address pass them. The switch learns
each MAC address behind a port and when it was last seen, but not where its packets went.
"""

from __future__ import annotations

import time

from testbed.errors import AgentError, LabError
from testbed.lab.backend import Backend
from testbed.lab.ports import Port
from testbed.netem import qdisc
from testbed.spec.links import LinkRef


def problem(backend: Backend, ref: LinkRef, port: Port) -> str | None:
    """A problem if a link's sender sent from an unknown address; None if not. Raises AgentError.

    The addresses of the lab's other hosts are known: the sender may be a bridge.
    """
    if ref.beyond:  # its packets are known by the gateway's interface, whoever sends them
        return None
    source = port.sources[ref]
    own = next((address for address in source.addresses if qdisc.is_mac(address)), None)  # as its filters know it
    if own is None:
        return None
    ages_s: dict[str, float] = port.channel.call("heard", ifindex=source.ifindex)
    since_s = time.monotonic() - source.since_s  # after the request: better report an address than miss it
    senders = {mac for mac, age_s in ages_s.items() if age_s <= since_s and mac != own}
    strange = sorted(senders - _known(backend)) if senders else []
    if not strange:
        return None
    which = ", ".join(strange[:3]) + (f" and {len(strange) - 3} more" if len(strange) > 3 else "")
    return (
        f"`{ref.src}` sent from {which} too, MAC addresses that no host of the lab has (a macvlan, a changed "
        f"address?): what of that went to `{ref.dst}` may have gone past. Have it send from {own} alone"
    )


def _known(backend: Backend) -> set[str | None]:
    known = set[str | None]()
    for name, host in backend.hosts.items():
        for network in backend.topology.networks_of(name):
            try:
                known.add(host.mac(network))
            except (AgentError, LabError):
                continue  # it has ended, or changed its address, which is unknown then
    return known
