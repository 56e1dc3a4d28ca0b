"""What a kind of lab provides for its links: hosts, ports, and the agents beside them."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.errors import LabError
from testbed.lab.channel import Channel
from testbed.lab.host import Host
from testbed.observe.capture import Place
from testbed.spec.links import PortRef
from testbed.spec.profile import Profile
from testbed.spec.topology import Topology
from testbed.text import shown


@dataclass(frozen=True, kw_only=True)
class Attached:
    """A port toward a host, attached by an agent."""

    ref: PortRef
    name: str
    """What the agent calls it."""
    channel: Channel
    """The way to the agent."""
    port: Mapping[str, Any]
    """The agent's account of it."""
    ifindex: int
    """The host's own port on the engine's machine."""


@dataclass(frozen=True, kw_only=True)
class Spot:
    """An interface of the engine's machine where a port's packets pass."""

    place: Place
    interface: Mapping[str, Any]
    """``device`` or ``ifindex``, for the agent."""
    addresses: tuple[str, ...] = ()
    """Only packets from or to one of these; all if there are none."""


class Backend(abc.ABC):
    """Where the hosts of a lab run.

    A kind of lab that does not override a method with a body cannot do what it is for. What else it may be able to do
    is in `wholeness.HostControl`, `succession.AgentOwner` and `connections.KernelReadings`.
    """

    run_id: str
    """Distinguishes this run from others."""

    topology: Topology
    profiles: Mapping[str, Profile]
    tables: Mapping[str, Path]
    """The user's tables of delays, by the name of the file."""
    netem_engine: str
    """Whose netem is used: ``host`` or ``carried``."""

    seedable: bool
    """Whether that netem takes a seed."""
    counts_classes: bool = True
    """Whether the machine's tc reports the packets of each class."""

    images_from: Sequence[Mapping[str, str]] = ()
    """Other engines, which send images that they have: the variables that lead to each."""
    machine_is_ours = True
    """Whether the engine's machine is this one. If not, what comes through it counts as its own."""

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

    @property
    def netem_folder(self) -> Path | None:
        """The folder of the user's profiles, traces and tables, if there is one."""
        return None

    def origins(self) -> Mapping[str, str]:
        """By service, where its programs are from, in words; empty if they are an engine's containers.

        Nothing is built or unpacked. Raises TestbedError, as `up` does.
        """
        return {}

    def run_images(self, _images: Mapping[str, str]) -> None:
        """Run these images in place of the Compose file's, by service. A lab without images ignores it."""
        return

    def facts(self) -> dict[str, Any]:
        """What measurements on this lab depend on, as the results file has it: see `testbed.evidence.machine`."""
        return {"netem": self.netem_engine}

    def machine_of(self, _host: str) -> str:
        """Which machine a host is on: hosts of one machine share its clocks."""
        return ""

    def machine(self, name: str) -> Any:
        """A machine of a lab that spans several. Raises LabError in others."""
        raise LabError(f"machine {shown(name)}: this lab is on one machine; --lab swarm spans several")

    @abc.abstractmethod
    def attach(self, host: str, network: str, *, to_count: bool = False) -> Attached:
        """Attach the port toward a host, so that it can be impaired.

        ``to_count``: only for the machine's own kernel to count its packets, whoever executes netem.
        """

    @abc.abstractmethod
    def port_of_sender(self, host: str, network: str) -> int:
        """The ifindex of the port of a host that sends into an impaired link."""

    def machines_agent(self) -> Channel:
        """An agent in the network of the engine's machine, which sends and receives probes."""
        raise LabError("the machine cannot be probed in this kind of lab")

    def own_addresses(self) -> Sequence[str]:
        """The addresses of the engine's machine."""
        raise LabError("the packets of the machine cannot be told from others in this kind of lab")

    def spots(self, host: str, network: str, src: str | None) -> list[Spot]:
        """Where the packets of a port pass, before its impairment and after it. ``src``: only that host's packets."""
        whose = host if src is None else f"{src} -> {host}"
        raise LabError(f"{whose} on {network}: packets cannot be captured in this kind of lab")

    def capture_agent(self, _host: str = "") -> Channel:
        """The agent that captures at the ports of a host, or of every host; started on first use."""
        raise LabError("packets cannot be captured in this kind of lab")
