"""Restore ports that nothing impairs any more, and the offloads of hosts.

A test must find the same lab whatever was impaired before it. What takes long to prepare is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from testbed.lab.channel import Channel
from testbed.lab.elsewhere import Elsewhere
from testbed.lab.host import Host
from testbed.lab.ports import Port, Ports
from testbed.spec.links import LinkRef


def release(ports: Ports, elsewhere: Elsewhere, hosts: Mapping[str, Host], *, but: Collection[LinkRef] = ()) -> None:
    """Take packets past our qdiscs at every port that nothing impairs or cuts. ``but``: links about to be impaired.

    Raises AgentError.
    """
    using = {*ports.impaired, *ports.cut, *but}
    pairs = {(ref.src, ref.dst) for ref in using}
    unneeded = {ref: watched.port for ref, watched in elsewhere.watched.items() if (ref.src, ref.dst) not in pairs}
    for ref in unneeded:
        del elsewhere.watched[ref]
    needed = {id(watched.port) for watched in elsewhere.watched.values()}
    kept = {replace(ref.receivers_port, out=out) for ref in using for out in (False, True)}  # they share a cable
    idle: dict[int, tuple[Channel, list[Port]]] = {}
    for port in {id(port): port for port in (*unneeded.values(), *ports)}.values():
        if not port.released and port.ref not in kept and id(port) not in needed:
            idle.setdefault(id(port.channel), (port.channel, []))[1].append(port)
    for channel, together in idle.values():
        done = channel.call("release", ports=[port.name for port in together])["released"]
        for port in together:
            if port.name in done:
                port.let_go()
    ports.per_packet.give_back(hosts, but={*kept, *(ref.senders_port for ref in using)})
