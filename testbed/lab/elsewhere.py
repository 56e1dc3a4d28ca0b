"""Other paths between the ends of an impaired link: shared networks, and the packets counted there."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from testbed.errors import AgentError
from testbed.judge import counting
from testbed.lab.backend import Backend
from testbed.lab.ports import Port, Ports
from testbed.lab.wholeness import Wholeness
from testbed.netem import qdisc, watching
from testbed.spec.links import LinkRef, PortRef
from testbed.text import shown


@dataclass
class Watched:
    """One path beside the impaired link."""

    port: Port
    minor: int
    before: dict[LinkRef, int] = field(default_factory=dict)
    """Packets that had taken this path when each link beside it was impaired or cut."""


class Elsewhere:
    """The other paths of a lab's impaired and cut links."""

    def __init__(self, ports: Ports, whole: Wholeness, backend: Backend) -> None:
        self._ports = ports
        self._whole = whole
        self._backend = backend
        self.watched: dict[LinkRef, Watched] = {}
        """By the link that each path would be."""

    def watch(self, ref: LinkRef) -> None:
        """Count packets from one end of a link to the other that take a second network, which both ends share."""
        topology = self._backend.topology
        ends = [topology.service_of(host) for host in (ref.src, ref.dst)]
        shared = [
            n for n in (ends[0].networks if ends[0] else ()) if ends[1] and n in ends[1].networks and n != ref.network
        ]
        for network in shared:
            key = replace(ref, network=network)
            try:
                if key not in self.watched or _went(self.watched[key]) is None:
                    self.watched.pop(key, None)
                    watched = self._begin(ref, network)
                    if watched is None:
                        continue
                    # From now on, the counter of the whole link misses the packets of this part.
                    wholes = {whole for known in self.watched.values() for whole in known.before if _is_way(key, whole)}
                    watched.before.update(dict.fromkeys(wholes, 0))
                    self.watched[key] = watched
                for other, known in self.watched.items():
                    if other.network == network and _is_way(other, ref):
                        known.before[ref] = _went(known) or 0
            except AgentError as error:
                if error.kind != "gone":
                    raise
                self.watched.pop(key, None)  # a host was started again; counting begins anew the next time

    def _begin(self, ref: LinkRef, network: str) -> Watched | None:
        """None where the kernel cannot count; packets on the other path are not noticed then."""
        if not self._backend.counts_classes:
            return None
        port = self._port(ref.dst, network)
        minor = watching.FIRST_MINOR + sum(known.port is port for known in self.watched.values())
        whole = self._backend.netem_engine == "host"
        root = qdisc.root(port.device) if whole else [watching.root(port.device)]
        lines = [] if port.rooted else root
        src = self._backend.hosts[ref.src]
        rewritten = () if port.gateway is None else port.gateway["addresses"]
        lines += watching.source(
            port.device,
            minor,
            src.source_addresses(network),
            ref.traffic,
            rewritten=rewritten,
            mac=src.mac(network) if rewritten else None,
        )
        complaints = self._ports.tc(port, lines, resume=port.released)["complaints"]
        if complaints:
            return None
        port.rooted = True
        return Watched(port=port, minor=minor)

    def _port(self, host: str, network: str) -> Port:
        """The port toward a host in the machine's own kernel, which can count with either netem engine."""
        if self._backend.netem_engine == "host":
            return self._ports.attached(host, network)
        for known in self.watched.values():
            if known.port.ref == PortRef(host, network):
                return known.port
        return Port.of(self._backend.attach(host, network, to_count=True))

    def forget(self, ports: Collection[str]) -> None:
        """Forget ports of these names, which are gone."""
        self.watched = {ref: watched for ref, watched in self.watched.items() if watched.port.name not in ports}

    def went(self, ref: LinkRef) -> dict[str, int]:
        """Number of packets per other network since the link was impaired or cut."""
        went: dict[str, int] = {}
        for other, watched in self.watched.items():
            if ref in watched.before:
                try:
                    now = _went(watched)
                    if now is not None:
                        went[other.network] = went.get(other.network, 0) + now - watched.before[ref]
                except AgentError as error:
                    if error.kind != "gone":
                        raise
        return {network: packets for network, packets in went.items() if packets}

    def problem(self, ref: LinkRef) -> str | None:
        """A problem if both ends of a link are on a network that is not in the Compose file; None if not."""
        shared = set(self._whole.networks(ref.src)) & set(self._whole.networks(ref.dst))
        strange = sorted(shared - set(self._backend.topology.networks_of(ref.src)))
        if not strange:
            return None
        return (
            f"`{ref.src}` and `{ref.dst}` are connected to {', '.join(map(shown, strange))} too, and not by the "
            f"Compose file: nothing counts what goes there. Disconnect one of them, or write the network in the file"
        )

    def what_to_do(self, ref: LinkRef) -> str:
        """What to do where packets took another network."""
        return (
            f"the traffic took another path. Which address of `{ref.dst}` does the program use? On `{ref.network}` it "
            f"has {', '.join(self._backend.hosts[ref.dst].addresses(ref.network))}"
        )


def ways(went: dict[str, int]) -> str:
    """The packets per network, in words."""
    return ", ".join(f"{packets} packets took `{network}`" for network, packets in went.items())


def _is_way(other: LinkRef, ref: LinkRef) -> bool:
    """Whether two links carry the same traffic on different networks."""
    return other.network != ref.network and ref.covers(replace(other, network=ref.network))


def _went(watched: Watched) -> int | None:
    """The packets counted so far; None if the class is gone."""
    port = watched.port
    answer = port.channel.call("tc", port=port.name, lines=[f"class show dev {port.device}"])
    return counting.class_packets(answer["shown"][-1], watched.minor) if answer["shown"] else None
