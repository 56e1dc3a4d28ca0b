"""A lab of a Compose file: the common part of the engine's lab and the local one.

They differ in how hosts are started and stopped, and where the agents run.
"""

from __future__ import annotations

import abc
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from testbed.backends.hosts import AgentHost
from testbed.backends.starting import allowed_s, await_well
from testbed.compose.options import NETEM_CHOICES
from testbed.errors import AgentError, EnvironmentUnfitError, LabError
from testbed.evidence.hoststate import PAUSED, HostState, meant_to_end
from testbed.lab.backend import Attached, Spot
from testbed.lab.channel import Channel
from testbed.lab.host import seconds
from testbed.lab.lab import Lab
from testbed.lab.observer import spots_of_port
from testbed.lab.succession import CAPTURE, PORTS, beside
from testbed.lab.wholeness import LAST_LINES
from testbed.netem.profiles import Profiles, Tables, load_profiles
from testbed.observe.connections import Received
from testbed.observe.counters import Readings
from testbed.spec.links import PortRef

SomeHost = TypeVar("SomeHost", bound=AgentHost)
_BOOTS_WITHIN_S = 120


class StackLab(Lab, Generic[SomeHost]):
    """A Compose file, brought up."""

    versions: Mapping[str, str] = {}
    """The versions of the programs that run its hosts."""
    look_every_s = 0.05
    """Seconds between two looks at hosts that are awaited."""

    def __init__(
        self,
        *,
        kind: str,
        netem: str,
        up_deadline: str,
        say: Callable[[str], None],
        warn: Callable[[str], None] | None,
    ) -> None:
        """``kind``: its name among `compose.options.LAB_CHOICES`.

        Nothing is read or started yet. Raises EnvironmentUnfitError, InvalidValueError.
        """
        super().__init__(say)
        if netem not in NETEM_CHOICES:
            raise EnvironmentUnfitError(f"netem={netem!r}: must be one of {', '.join(NETEM_CHOICES)}")
        self.run_id = secrets.token_hex(4)
        self.kind = kind
        self._asked_netem = netem
        self._warn = warn or say
        self._up_deadline_s = allowed_s(up_deadline)
        self._profiles: Profiles | None = None
        self._tables: Tables | None = None
        self._hosts: dict[str, SomeHost] = {}
        self._agent: Channel | None = None
        self._capture_agent: Channel | None = None
        self._undo = ExitStack()
        self._able: Mapping[str, Any] = {}
        """The agent's answer to `capabilities`; empty before that."""
        self._offloads: dict[str, bool] | None = None
        """The original offloads of the first interface whose offloads were switched off."""
        self._carried_kernel: str | None = None
        """The release of the carried kernel, once one was started."""

    # --- what is known before anything runs ------------------------------------------------------

    @property
    @abc.abstractmethod
    def netem_folder(self) -> Path:
        """``netem/`` beside the Compose file, with the user's own profiles, traces and tables."""

    @property
    def profiles(self) -> Mapping[str, Any]:  # type: ignore[override]  # read lazily: collection needs no file
        """Every profile, the ones in ``netem/`` beside the Compose file first. Raises InvalidValueError."""
        if self._profiles is None:
            self._profiles = load_profiles(self.netem_folder)
        return self._profiles

    @property
    def tables(self) -> Mapping[str, Path]:  # type: ignore[override]  # likewise
        """Tables of delays in ``netem/`` beside the Compose file. Raises InvalidValueError."""
        if self._tables is None:
            self._tables = Tables(self.netem_folder)
        return self._tables

    @property
    def hosts(self) -> Mapping[str, SomeHost]:
        """Every host of the running stack, by name."""
        return self._hosts

    # --- up and down -----------------------------------------------------------------------------

    def down(self) -> None:
        """Take everything down; what can be removed is removed even if something fails."""
        self.ports.clear()
        self.elsewhere.watched.clear()
        self._undo.close()

    def forget(self) -> None:
        """Know no more of what was up."""
        self._hosts.clear()
        self._agent = self._capture_agent = None

    def close_agents(self) -> None:
        """End the agents other than the one that holds the ports."""
        with ExitStack() as undo:
            for host in self._hosts.values():
                undo.callback(host.close)
            undo.callback(self.close_capture_agent)

    def _await_well(self, hosts: Collection[SomeHost], timeout_s: float) -> None:
        await_well(hosts, deadline_s=timeout_s, late=f"not well after {timeout_s:g} s", every_s=self.look_every_s)

    # --- netem -----------------------------------------------------------------------------------

    def choose_engine(self, channel: Channel) -> None:
        """Find out whether netem is this kernel's own or a carried one's.

        Raises EnvironmentUnfitError.
        """
        self._able = able = channel.call("capabilities")
        if self._asked_netem == "host" and able["host_netem"]:
            raise EnvironmentUnfitError(
                f"--netem host: this kernel ({able['kernel']}) has no usable netem: {able['host_netem'].rstrip('.')}. "
                f"Load it (modprobe sch_netem) or use --netem carried."
            )
        if self._asked_netem == "carried" or able["host_netem"]:
            self.netem_engine, self.seedable = "carried", True
        else:
            self.netem_engine, self.seedable = "host", able["host_seed"]

    def boot(self, channel: Channel) -> None:
        """Have the agent start the carried kernel, if it does not run. Raises EnvironmentUnfitError."""
        try:
            self._carried_kernel = channel.call("boot", answer_within_s=_BOOTS_WITHIN_S)["release"]
        except AgentError as error:
            raise EnvironmentUnfitError(f"the carried kernel did not start: {error}") from None

    def facts(self) -> dict[str, Any]:
        """See `Backend`."""
        own = self._able.get("kernel")
        self._offloads = self._offloads or next((entry["offloads"] for entry in self.ports.per_packet.state()), None)
        return {
            "kernel": own,
            "netem": self.netem_engine,
            "tc": self._able.get("tc"),
            "offloads": self._offloads,
            "netem_kernel": own if self.netem_engine == "host" else self._carried_kernel,
            "lab": self.kind,
            "images": {name: host.image for name, host in self._hosts.items() if host.image},
            "versions": self.versions,
        }

    # --- what becomes of hosts: `wholeness.HostControl` --------------------------------------

    @property
    @abc.abstractmethod
    def services(self) -> Mapping[str, Any]:
        """The services of the Compose file, as Compose prints them."""

    def may_end(self, host: str) -> bool:
        """Whether its program is meant to end: see `hoststate.meant_to_end`."""
        return self._hosts[host].service_name in meant_to_end(self.services)

    def last_lines(self, host: str) -> tuple[str, ...]:
        """See `HostControl`."""
        return self._hosts[host].last_lines(LAST_LINES)

    @abc.abstractmethod
    def start_host(self, host: SomeHost) -> None:
        """Start a host; its service is not awaited."""

    def needed(self, host: str) -> Sequence[str]:
        """See `HostControl`."""
        dependencies = self._depends_on(self._hosts[host].service_name)
        return [
            other
            for name, dependency in dependencies.items()
            if name in self.topology.services
            and (dependency or {}).get("condition") != "service_completed_successfully"
            for other in self.topology.services[name].hosts
        ]

    def revive(self, host: str, timeout: str | None) -> None:
        """See `HostControl`."""
        self.start_host(self._hosts[host])
        self._await_well([self._hosts[host]], self._up_deadline_s if timeout is None else seconds(timeout))

    def bring_back(self, wrong: Mapping[str, HostState]) -> None:
        """See `HostControl`."""
        for name in sorted(wrong, key=lambda name: self._depth(self._hosts[name].service_name)):
            self.restore(self._hosts[name], wrong[name])
            self._await_well([self._hosts[name]], self._up_deadline_s)

    def restore(self, host: SomeHost, state: HostState) -> None:
        """Have a host run again as when the stack came up; its service is not awaited."""
        if state.status == PAUSED:
            self.thaw(host.name)
        else:
            self.start_host(host)

    def _depends_on(self, service: str) -> Mapping[str, Any]:
        return self.services.get(service, {}).get("depends_on") or {}

    def _depth(self, service: str) -> int:
        """The length of the longest chain of services that wait for each other, up to this one."""
        return 1 + max(map(self._depth, self._depends_on(service)), default=0)

    # --- agents ----------------------------------------------------------------------------------

    @property
    def channel(self) -> Channel:
        """The way to the agent that holds the ports. Raises LabError if the lab is not up."""
        if self._agent is None:
            raise LabError("the lab is not up")
        return self._agent

    def machines_agent(self) -> Channel:
        """See `Backend`. The agent that holds the ports is there."""
        return self.channel

    def own_addresses(self) -> Sequence[str]:
        """See `Backend`."""
        addresses: list[str] = self.channel.call("own_addresses")
        return addresses

    @abc.abstractmethod
    def start_capture_agent(self) -> Channel:
        """Start the agent that captures."""

    def capture_agent(self, _host: str = "") -> Channel:
        """See `Backend`."""
        self.channel  # noqa: B018  # the lab must be up
        if self._capture_agent is None:
            self._capture_agent = self.start_capture_agent()
        return self._capture_agent

    def close_capture_agent(self) -> None:
        """Let it go, if there is one."""
        if self._capture_agent is not None:
            self._capture_agent.close()
            self._capture_agent = None

    def agents(self) -> Mapping[str, Channel]:
        """See `AgentOwner`."""
        known = {PORTS: self._agent, CAPTURE: self._capture_agent}
        for name, host in self._hosts.items():
            known |= {beside(role, name): agent for role, agent in host.agents().items()}
        return {role: agent for role, agent in known.items() if agent is not None}

    def went_with_its_host(self, role: str) -> bool:
        """See `AgentOwner`."""
        return any(
            role == beside(known, name) and host.began_anew(known)
            for name, host in self._hosts.items()
            for known in host.agents()
        )

    def forget_agent(self, role: str) -> None:
        """See `AgentOwner`."""
        if role == CAPTURE:
            self.close_capture_agent()
        for name, host in self._hosts.items():
            for known in host.agents():
                if role == beside(known, name):
                    host.forget_agent(known)

    def sweep(self) -> None:
        """Forget ports that went with their hosts, before packets are sent to hosts that were started again."""
        if self._agent is not None:
            gone = set(self._agent.call("sweep"))
            self.ports.forget(*(port for port in self.ports if port.name in gone))
            self.elsewhere.forget(gone)

    # --- ports -----------------------------------------------------------------------------------

    def attach(self, host: str, network: str, *, to_count: bool = False) -> Attached:
        """See `Backend`."""
        ref = PortRef(host, network)
        name = f"{ref} watched" if to_count else str(ref)
        engine = "host" if to_count else self.netem_engine
        channel, ifindex = self.channel, self.port_of_sender(host, network)
        port = channel.call("attach", port=name, ifindex=ifindex, engine=engine)
        return Attached(ref=ref, name=name, channel=channel, port=port, ifindex=ifindex)

    @abc.abstractmethod
    def members(self, network: str) -> Sequence[str]:
        """The hosts that are on a network now."""

    def spots(self, host: str, network: str, src: str | None) -> list[Spot]:
        """See `Backend`."""
        return spots_of_port(
            self,
            self.channel,
            host=host,
            network=network,
            src=src,
            members=self.members(network),
            end=lambda name: self.port_of_sender(name, network),
            attached=self.ports.at(host, network) is not None,
        )

    def tcp_counters(self, hosts: Sequence[str]) -> dict[str, Readings]:
        """See `Backend`."""
        readings: dict[str, Readings] = {}
        for name in hosts:
            if (inside := self._hosts[name].known_inside) is not None:
                with suppress(AgentError):  # its host has ended
                    readings[name] = inside.call("counters")
        return readings

    def count_payload(self, hosts: Sequence[str]) -> None:
        """See `KernelReadings`."""
        for name in hosts:
            if (inside := self._hosts[name].known_inside) is not None:
                with suppress(AgentError):  # its host has ended, or its kernel does not tell
                    inside.call("count_payload")

    def payload(self) -> Mapping[str, Sequence[Received]]:
        """See `KernelReadings`."""
        received = {}
        for name, host in self._hosts.items():
            if (inside := host.known_inside) is not None:
                with suppress(AgentError):  # its host has ended
                    if (answer := inside.call("payload")) is not None:
                        received[name] = Received.read(answer)
        return received

    def destroy_tcp(self, host: str, ids: Sequence[str]) -> str | None:
        """See `Sockets`."""
        refused: str | None = self._hosts[host].ask("destroy_tcp", ids=list(ids))["refused"]
        return refused
