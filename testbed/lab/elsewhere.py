"""Other ways from one end of an impaired link to the other: networks that the two share, and what is counted there."""

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
    """One way that is not the impaired one."""

    port: Port
    minor: int
    before: dict[LinkRef, int] = field(default_factory=dict)
    """Packets that had gone this way when a link was impaired or cut, for each of which it is another way."""


class Elsewhere:
    """The other ways of a lab's impaired and cut links."""

    def __init__(self, ports: Ports, whole: Wholeness, backend: Backend) -> None:
        self._ports = ports
        self._whole = whole
        self._backend = backend
        self.watched: dict[LinkRef, Watched] = {}
        """By the link that each way would be."""

    def watch(self, ref: LinkRef) -> None:
        """Count what goes from one end of an impaired or cut link to the other over another network that they share."""
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
                    # What it counts, the counts of a whole of which it is a part miss from now on.
                    wholes = {whole for known in self.watched.values() for whole in known.before if _is_way(key, whole)}
                    watched.before.update(dict.fromkeys(wholes, 0))
                    self.watched[key] = watched
                for other, known in self.watched.items():
                    if other.network == network and _is_way(other, ref):
                        known.before[ref] = _went(known) or 0
            except AgentError as error:
                if error.kind != "gone":
                    raise
                self.watched.pop(key, None)  # a host was started again: begun anew the next time

    def _begin(self, ref: LinkRef, network: str) -> Watched | None:
        """None where the kernel cannot count: the other path then goes unseen."""
        if not self._backend.counts_classes:
            return None
        port = self._port(ref.dst, network)
        minor = watching.FIRST_MINOR + sum(known.port is port for known in self.watched.values())
        whole = self._backend.netem_engine == "host"
        root = qdisc.root(port.device) if whole else [watching.root(port.device)]
        lines = [] if port.rooted else root
        lines += watching.source(
            port.device, minor, self._backend.hosts[ref.src].source_addresses(network), ref.traffic
        )
        complaints = self._ports.tc(port, lines, resume=port.released)["complaints"]
        if complaints:
            return None
        port.rooted = True
        return Watched(port=port, minor=minor)

    def _port(self, host: str, network: str) -> Port:
        """The port toward a host in the machine's own kernel, which counts whoever executes netem."""
        if self._backend.netem_engine == "host":
            return self._ports.attached(host, network)
        for known in self.watched.values():
            if known.port.ref == PortRef(host, network):
                return known.port
        return Port.of(self._backend.attach(host, network, to_count=True))

    def forget(self, ports: Collection[str]) -> None:
        """Count no more at ports of these names, which are gone."""
        self.watched = {ref: watched for ref, watched in self.watched.items() if watched.port.name not in ports}

    def went(self, ref: LinkRef) -> dict[str, int]:
        """How many packets took each other network since the link was impaired or cut."""
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
        """Why a test does not count whose link has both ends on a network that the Compose file does not have."""
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
    """How many packets took which network, in words."""
    return ", ".join(f"{packets} packets took `{network}`" for network, packets in went.items())


def _is_way(other: LinkRef, ref: LinkRef) -> bool:
    """Whether packets of the one are packets of the other on another network."""
    return other.network != ref.network and ref.covers(replace(other, network=ref.network))


def _went(watched: Watched) -> int | None:
    """The packets counted so far; None if the class is gone."""
    port = watched.port
    answer = port.channel.call("tc", port=port.name, lines=[f"class show dev {port.device}"])
    return counting.class_packets(answer["shown"][-1], watched.minor) if answer["shown"] else None
