"""What the parts of a lab must know of where its hosts run: each kind of lab tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from testbed.lab.channel import Channel
from testbed.lab.host import Host
from testbed.observe.capture import Place
from testbed.observe.connections import Table
from testbed.spec.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Attached:
    """A port toward a host that an agent was asked to attach."""

    name: str
    channel: Channel
    """The way to the agent."""
    port: Mapping[str, Any]
    """What the agent says of it."""
    ifindex: int
    """Of the host's own port on the engine's machine."""


@dataclass(frozen=True, kw_only=True)
class Spot:
    """An interface of the engine's machine where a port's packets pass."""

    place: Place
    interface: Mapping[str, Any]
    """``device`` or ``ifindex``, for the agent."""
    addresses: tuple[str, ...] = ()
    """Only packets from or to one of these; all if there are none."""


class Backend(Protocol):
    """Where the hosts of a lab run."""

    seedable: bool
    """Whether the netem takes a seed."""
    counts_classes: bool
    """Whether the machine's own tc tells what each class has passed on."""

    @property
    def topology(self) -> Topology:
        """What the Compose file says."""

    @property
    def netem_engine(self) -> str:
        """Who executes netem: ``host`` or ``carried``."""

    @property
    def tables(self) -> Mapping[str, Path]:
        """Tables of delays of one's own, by the name of the file."""

    @property
    def hosts(self) -> Mapping[str, Host]:
        """Every host, by name."""

    # --- ports -----------------------------------------------------------------------------------

    def attach(self, host: str, network: str) -> Attached:
        """Make the port toward a host impairable."""

    def attach_to_count(self, host: str, network: str) -> Attached:
        """Have the machine's own kernel count what passes the port toward a host, whoever executes netem."""

    def port_of_sender(self, host: str, network: str) -> int:
        """The ifindex of the port of a host that sends into an impaired link."""

    def mac(self, host: str, network: str) -> str | None:
        """The MAC address of a host's interface on a network, if it is known."""

    def source_addresses(self, host: str, network: str) -> tuple[str, ...]:
        """Every address that a host's packets on a network may come from."""

    def marks(self, host: str, network: str) -> tuple[str, ...]:
        """What tells the packets that a host sends on a network from others': their source addresses, IP and MAC."""

    def spots(self, host: str, network: str, src: str | None) -> list[Spot]:
        """Where the packets of a port pass, before its impairment and after it; only a source's if one is given."""

    # --- agents ----------------------------------------------------------------------------------

    def agents(self) -> Mapping[str, Channel]:
        """The agents that run now, by role: see `succession.AgentDeath`."""

    def replace_agent(self, left: Sequence[Mapping[str, Any]]) -> None:
        """Start another agent that holds ports, and put right what the dead one left of these. Raises LabError.

        ``left``: how the dead one found each host's own port.
        """

    def capture_agent(self) -> Channel:
        """The agent that captures, started when it is needed first."""

    def forget_agent(self, role: str) -> None:
        """Let go of one that is not the ports', so that another is started when it is needed."""

    # --- connections -----------------------------------------------------------------------------

    @property
    def tcp_hosts(self) -> Sequence[str]:
        """The hosts whose connections can be told now."""

    def tcp_tables(self) -> dict[str, Table]:
        """The TCP connections of `tcp_hosts`; of one that is gone, none."""

    def destroy_tcp(self, host: str, ids: Sequence[str]) -> str | None:
        """Destroy connections of a host; why its kernel cannot, or None. Raises AgentError if the host is gone."""
