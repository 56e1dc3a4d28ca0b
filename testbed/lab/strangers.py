"""MAC addresses that a host sends from and that no host of the lab has: a macvlan's, a changed one, a virtual router's.

Filters know a sender by its addresses. What it sends from a MAC and an IP address that nobody told us goes past them.
The switch learns each MAC address behind a port, and when it was seen last; not where its packets went.
"""

from __future__ import annotations

import time

from testbed.errors import AgentError, LabError
from testbed.lab.backend import Backend
from testbed.lab.ports import Port
from testbed.netem import qdisc
from testbed.spec.links import LinkRef


def problem(backend: Backend, ref: LinkRef, port: Port) -> str | None:
    """Why a test does not count in which a link's sender sent from such an address. Raises AgentError.

    Addresses of the lab's other hosts are none of them: the sender may be a bridge.
    """
    source = port.sources[ref]
    own = next((address for address in source.addresses if qdisc.is_mac(address)), None)  # as its filters know it
    if own is None:
        return None
    ages_s: dict[str, float] = port.channel.call("heard", ifindex=source.ifindex)
    since_s = time.monotonic() - source.since_s  # not before: what came while we asked is rather told than not
    heard = {mac for mac, age_s in ages_s.items() if age_s <= since_s and mac != own}
    strange = sorted(heard - _known(backend)) if heard else []
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
                continue  # it has ended, or changed its address: then that is strange
    return known
