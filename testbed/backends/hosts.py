"""A host with agents: its programs, its network as an agent sees it, and the agents in its namespaces."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from testbed.backends.starting import Wellness
from testbed.errors import InvalidValueError
from testbed.lab import readiness
from testbed.lab.channel import Channel
from testbed.lab.host import Host, Program
from testbed.lab.lab import Lab
from testbed.lab.output import ReadProgram
from testbed.spec.words import unknown
from testbed.text import shown

_LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # compared only
"""The address of this machine for each address that a port is published at."""


class AgentHost(Host):
    """A host whose network an agent sees from within."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.name = name
        self._lab = lab
        self._whole = lab.whole
        self._agents: dict[str, tuple[Channel, str]] = {}
        """The agents in its namespaces by role, each with the start of the host that it belongs to."""

    @property
    def image(self) -> str:
        """The id of the image that it runs; empty where there is none."""
        return ""

    def __repr__(self) -> str:
        return f"<Host {self.name}>"

    # --- the service -----------------------------------------------------------------------------

    @property
    def service_name(self) -> str:
        """The service in the Compose file of which it is a replica; empty if there is none."""
        service = self._lab.topology.service_of(self.name)
        return service.name if service else ""

    def check_health(self) -> None:
        """Take its health check one step on, if nobody else does."""
        return

    @abc.abstractmethod
    def wellness(self) -> Wellness:
        """Whether its service is well now."""

    def last_lines(self, most: int) -> tuple[str, ...]:
        """The last lines that its service printed."""
        return tuple(self.logs().splitlines()[-most:])

    # --- programs --------------------------------------------------------------------------------

    @abc.abstractmethod
    def begin(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, workdir: str | None = None, user: str = ""
    ) -> ReadProgram:
        """Start a program in the host, and read its output."""

    @abc.abstractmethod
    def listeners(self, port: int, deadline_s: float) -> dict[str, Any]:
        """Await a listener on a TCP port: whether it is ``listening``, and the ``ports`` that are listened on."""

    def launch(
        self,
        argv: Sequence[str],
        *,
        ready: int | str | Callable[[Program], bool] | None,
        timeout: str,
        env: Mapping[str, str] | None,
        workdir: str | None,
        user: str,
    ) -> Program:
        """Start a program in the host; see `Host.start`."""
        readiness.check_argv(argv)
        readiness.check_free(self.name, argv, ready, self.listeners)
        program = self.begin(argv, env=env, workdir=workdir, user=user)
        self._lab.ledger.programs.append(program)
        if ready is not None:
            try:
                readiness.await_ready(self.name, argv, program, ready, timeout, self.listeners)
            except BaseException:
                program.stop("SIGKILL")
                raise
        return program

    # --- the network -----------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def networks(self) -> Sequence[str]:
        """Its networks by the Compose file."""

    @abc.abstractmethod
    def addressed(self) -> Iterable[tuple[str, Sequence[str]]]:
        """Each network that it is on now, and its addresses there, IPv4 before IPv6."""

    @abc.abstractmethod
    def publications(self) -> Mapping[tuple[int, str], tuple[str, int]]:
        """Its published ports by number and protocol, and the address and number of each. Raises LabError."""

    @abc.abstractmethod
    def interface_name(self, network: str) -> str:
        """The name of its interface on a network."""

    @abc.abstractmethod
    def ask(self, operation: str, **arguments: Any) -> Any:
        """Ask an agent that sees the host's network namespace."""

    def addresses(self, network: str | None = None) -> tuple[str, ...]:
        """Its addresses, IPv4 before IPv6."""
        if network is not None and network not in self.networks:
            raise InvalidValueError(f"`{self.name}`: network {network!r}: {unknown(network, self.networks)}")
        return tuple(address for name, here in self.addressed() if network in (None, name) for address in here)

    def published(self, port: int, *, protocol: str = "tcp") -> tuple[str, int]:
        """See `Host.published`."""
        known = self.publications()
        if (port, protocol) in known:
            address, number = known[port, protocol]
            return _LOOPBACK.get(address, address), number
        listed = ", ".join(f"{number}/{kind}" for number, kind in sorted(known)) or "none"
        raise InvalidValueError(
            f"`{self.name}`: port {shown(port)}/{shown(protocol)} is not published; published: {listed}. To publish a "
            f'port, write for example ports: ["127.0.0.1::8080"] in the Compose file'
        )

    def url(self, scheme: str, port: int) -> str:
        """See `Host.url`."""
        address, number = self.published(port)
        return f"{scheme}://{f'[{address}]' if ':' in address else address}:{number}"

    def counters(self) -> dict[str, dict[str, int]]:
        """The kernel's counters of the host's network namespace."""
        counted: dict[str, dict[str, int]] = self.ask("counters")
        return counted

    def connections(self) -> list[dict[str, Any]]:
        """The TCP connections that its kernel still works on, also those whose program has ended."""
        known: list[dict[str, Any]] = self.ask("connections")
        return known

    def send_per_packet(self, network: str) -> dict[str, bool]:
        """Switch segmentation offloads off on its interface; returns what they were."""
        before: dict[str, bool] = self.ask("per_packet", interface=self.interface_name(network))
        return before

    def send_as_before(self, network: str, offloads: Mapping[str, bool]) -> None:
        """Set them to what they were."""
        self.ask("put_back", interface=self.interface_name(network), offloads_were=dict(offloads))

    # --- agents in it ----------------------------------------------------------------------------

    @abc.abstractmethod
    def start_agent(self, role: str) -> Channel:
        """Start an agent in its namespaces."""

    def its_start(self) -> str:
        """An id of this start of the host; after another start its namespaces are new."""
        return ""

    def agent(self, role: str) -> Channel:
        """An agent in its namespaces; a new one if there is none, it has died, or the host was started again."""
        start = self.its_start()
        known, of_start = self._agents.get(role, (None, ""))
        if known is not None and of_start == start:
            if known.answers:
                return known
            self._lab.succession.look()
        self.forget_agent(role)
        channel = self.start_agent(role)
        self._agents[role] = channel, start
        return channel

    def inside(self) -> Channel:
        """The agent in its network namespace."""
        return self.agent("inside")

    @property
    def known_inside(self) -> Channel | None:
        """The agent in its network namespace if there is one that answers; none is started."""
        channel, _ = self._agents.get("inside", (None, ""))
        return channel if channel is not None and channel.answers else None

    def agents(self) -> dict[str, Channel]:
        """The agents in its namespaces, by role."""
        return {role: channel for role, (channel, _) in list(self._agents.items())}

    def began_anew(self, role: str) -> bool:
        """Whether the host has ended, or was started again, since an agent of this role was started in it."""
        _, start = self._agents.get(role, (None, ""))
        return start != self.its_start()

    def forget_agent(self, role: str) -> None:
        """Let one go."""
        channel, _ = self._agents.pop(role, (None, ""))
        if channel is not None:
            channel.close()

    def close(self) -> None:
        """Let its agents go."""
        for role in list(self._agents):
            self.forget_agent(role)
