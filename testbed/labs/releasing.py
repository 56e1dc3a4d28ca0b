"""Give back what is not impaired any more: ports to their switch, and to hosts the offloads that they had.

A test must find what it would have found alone, whatever was impaired before it. What takes time to prepare is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from testbed.errors import LabError

if TYPE_CHECKING:
    from testbed.labs.channel import Channel
    from testbed.labs.lab import Host, Lab, Port
    from testbed.model.topology import LinkRef


class PerPacket:
    """Which interfaces were made to send packet by packet, and what their offloads were before."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        """``state``: as another process left it; see `state`."""
        self._before = {key: (int(each[0]), dict(each[1])) for key, each in (state or {}).items()}

    def want(self, host: Host, network: str, ifindex: int) -> None:
        """Have a host's interface send packet by packet; ``ifindex``: of its port, another once it is started again."""
        key = f"{host.name}@{network}"
        if self._before.get(key, (0, {}))[0] != ifindex:
            self._before[key] = (ifindex, host.send_per_packet(network))

    def give_back(self, hosts: Mapping[str, Host], *, but: Collection[str]) -> None:
        """Set every other interface to what it was; ``but``: ``host@network``."""
        for key in [each for each in self._before if each not in but]:
            _, before = self._before.pop(key)
            host, _, network = key.rpartition("@")
            try:
                hosts[host].send_as_before(network, before)
            except (LabError, KeyError):
                continue  # it is gone, and was started again, if at all, with what is usual

    def state(self) -> dict[str, Any]:
        """What another process must know, as JSON."""
        return dict(self._before)


def release(lab: Lab, *, but: Collection[LinkRef] = ()) -> None:
    """Take what is ours out of the way at every port that nothing impairs or cuts; ``but``: links about to be impaired.

    Raises AgentError.
    """
    using = {*lab.impaired, *lab.cuts, *but}
    pairs = {(ref.src, ref.dst) for ref in using}
    unwatched = {id(each.port): each.port for ref, each in lab.watched.items() if (ref.src, ref.dst) not in pairs}
    for ref in [ref for ref in lab.watched if (ref.src, ref.dst) not in pairs]:
        del lab.watched[ref]
    needed = {id(each.port) for each in lab.watched.values()}
    kept = {f"{ref.dst}@{ref.network}" for ref in using}
    idle: dict[int, tuple[Channel, list[Port]]] = {}
    for port in {**unwatched, **{id(port): port for port in lab.ports}}.values():
        if not port.released and port.name not in kept and id(port) not in needed:
            idle.setdefault(id(port.channel), (port.channel, []))[1].append(port)
    for channel, ports in idle.values():
        done = channel.call("release", ports=[port.name for port in ports])["released"]
        for port in ports:
            if port.name in done:
                port.let_go()
    lab.per_packet.give_back(lab.hosts, but={f"{host}@{ref.network}" for ref in using for host in (ref.src, ref.dst)})
