"""What the parts of a lab must know of where its hosts run: each kind of lab tells it."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.errors import LabError
from testbed.evidence.hoststate import HostState
from testbed.lab.channel import Channel
from testbed.lab.host import Host
from testbed.observe.capture import Place
from testbed.observe.connections import Table
from testbed.observe.counters import Readings
from testbed.spec.links import PortRef
from testbed.spec.profile import Profile
from testbed.spec.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Attached:
    """A port toward a host that an agent was asked to attach."""

    ref: PortRef
    name: str
    """What the agent calls it."""
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


class Backend(abc.ABC):
    """Where the hosts of a lab run. What a kind of lab does not say of itself, it cannot do."""

    run_id: str
    """What tells this run from others."""

    topology: Topology
    profiles: Mapping[str, Profile]
    tables: Mapping[str, Path]
    """Tables of delays of one's own, by the name of the file."""
    netem_engine: str
    """Who executes netem here: ``host`` or ``carried``."""

    seedable: bool
    """Whether that netem takes a seed."""
    counts_classes: bool = True
    """Whether the machine's own tc tells what each class has passed on."""

    only_one: Sequence[str] = ()
    """What keeps a second lab of the same kind from being up beside it, each with what to write instead."""

    @abc.abstractmethod
    def up(self) -> None:
        """Bring everything up; on failure nothing stays."""

    @abc.abstractmethod
    def down(self) -> None:
        """Take everything down; what can be removed is removed even if something fails."""

    @property
    @abc.abstractmethod
    def hosts(self) -> Mapping[str, Host]:
        """Every host, by name."""

    def facts(self) -> dict[str, Any]:
        """What measurements on this lab depend on, as the results file has it: see `testbed.evidence.machine`."""
        return {"netem": self.netem_engine}

    # --- ports -----------------------------------------------------------------------------------

    @abc.abstractmethod
    def attach(self, host: str, network: str) -> Attached:
        """Make the port toward a host impairable."""

    @abc.abstractmethod
    def attach_to_count(self, host: str, network: str) -> Attached:
        """Have the machine's own kernel count what passes the port toward a host, whoever executes netem."""

    @abc.abstractmethod
    def port_of_sender(self, host: str, network: str) -> int:
        """The ifindex of the port of a host that sends into an impaired link."""

    def mac(self, _host: str, _network: str) -> str | None:
        """The MAC address of a host's interface on a network, if it is known."""
        return None

    def source_addresses(self, host: str, network: str) -> tuple[str, ...]:
        """Every address that a host's packets on a network may come from."""
        return self.hosts[host].addresses(network)

    def marks(self, host: str, network: str) -> tuple[str, ...]:
        """What tells the packets that a host sends on a network from others': their source addresses, IP and MAC.

        The interface tells those that bear an address which nobody told us, or another host's: what it passes on.
        """
        mac = self.mac(host, network)
        return (*self.source_addresses(host, network), *(() if mac is None else (mac,)))

    def spots(self, host: str, network: str, src: str | None) -> list[Spot]:
        """Where the packets of a port pass, before its impairment and after it; only a source's if one is given."""
        whose = host if src is None else f"{src} -> {host}"
        raise LabError(f"{whose} on {network}: packets cannot be captured in this kind of lab")

    # --- agents ----------------------------------------------------------------------------------

    def capture_agent(self) -> Channel:
        """The agent that captures, started when it is needed first."""
        raise LabError("packets cannot be captured in this kind of lab")

    def agents(self) -> Mapping[str, Channel]:
        """The agents that run now, by role: see `succession.AgentDeath`."""
        return {}

    def replace_agent(self, _left: Sequence[Mapping[str, Any]]) -> None:
        """Start another agent that holds ports, and put right what the dead one left of these. Raises LabError.

        ``left``: how the dead one found each host's own port.
        """
        raise LabError("the agent has died, and this kind of lab cannot start another")

    def went_with_its_host(self, _role: str) -> bool:
        """Whether an agent in a host's namespaces ended because the host did, or was started again."""
        return False

    def forget_agent(self, _role: str) -> None:
        """Let go of one that is not the ports', so that another is started when it is needed."""
        return

    # --- connections -----------------------------------------------------------------------------

    @property
    def tcp_hosts(self) -> Sequence[str]:
        """The hosts whose connections can be told now."""
        return ()

    def tcp_tables(self) -> dict[str, Table]:
        """The TCP connections of `tcp_hosts`; of one that is gone, none."""
        return {}

    def tcp_counters(self, _hosts: Sequence[str]) -> dict[str, Readings]:
        """What the kernel of each of these of `tcp_hosts` has counted (/proc/net/snmp, netstat); not of those gone."""
        return {}

    def destroy_tcp(self, _host: str, _ids: Sequence[str]) -> str | None:
        """Destroy connections of a host; why its kernel cannot, or None. Raises AgentError if the host is gone."""
        return None

    # --- hosts that stop and start ---------------------------------------------------------------

    def host_states(self) -> Mapping[str, HostState]:
        """Every host as it is now. A lab that knows none of this has hosts that stay as they are."""
        return {}

    def may_end(self, _host: str) -> bool:
        """Whether the program of a host is meant to end."""
        return False

    def last_lines(self, _host: str) -> tuple[str, ...]:
        """The few lines that the program of a host printed last."""
        return ()

    def halt(self, host: str, _grace: str | None) -> None:
        """Stop a host."""
        raise LabError(f"`{host}`: hosts of this kind of lab cannot be stopped")

    def kill_host(self, host: str, _signal: str) -> None:
        """Send a signal to a host's own program; with SIGKILL, return once it has ended."""
        raise LabError(f"`{host}`: hosts of this kind of lab cannot be killed")

    def revive(self, host: str, _timeout: str | None) -> None:
        """Start a host, and return once it is well."""
        raise LabError(f"`{host}`: hosts of this kind of lab cannot be started")

    def freeze(self, host: str) -> None:
        """Pause a host."""
        raise LabError(f"`{host}`: hosts of this kind of lab cannot be paused")

    def thaw(self, host: str) -> None:
        """Have a paused host go on."""
        raise LabError(f"`{host}`: hosts of this kind of lab cannot be resumed")

    def bring_back(self, wrong: Mapping[str, HostState]) -> None:
        """Have these hosts run again."""
        raise LabError(f"{', '.join(wrong)}: hosts of this kind of lab cannot be brought back")

    def await_healthy(self) -> None:
        """Wait until every host is healthy that can say so. Nothing is known of health here."""
        return
