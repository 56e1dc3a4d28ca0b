"""The lab whose links are impaired from within the receivers: for engines whose own network no container can enter.

Each receiver has an agent of its own, in its network namespace (`testbed.agent.within`), with a carried kernel of its
own where netem is carried, and one that captures.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from testbed.backends.docker.agents import Agents, Role
from testbed.backends.docker.lab import ComposeLab
from testbed.backends.docker.streams import Demultiplexed
from testbed.errors import AgentError, EnvironmentUnfitError, LabError
from testbed.lab.backend import Attached, Spot
from testbed.lab.channel import Channel
from testbed.lab.observer import spots_within
from testbed.lab.succession import CAPTURE, beside
from testbed.spec.links import PortRef

WITHIN = "within"
"""The role of the agent in a receiver's network namespace."""
_FIRST_NUMBER = 1 << 30
"""No interface has it."""


class ChannelWithin(Channel):
    """The way to an agent within a host, which outlives the host's interfaces and cannot see a sender's."""

    lab: WithinLab

    def call(self, operation: str, *, answer_within_s: float | None = None, **arguments: Any) -> Any:
        """See `Channel`. Senders are looked up here."""
        for number in arguments.get("needs", ()):
            if (sender := self.lab.replaced(number)) is not None:
                raise AgentError(f"`{sender}` was started again, or left the network", kind="gone")
        arguments |= {"needs": []} if "needs" in arguments else {}
        try:
            return super().call(operation, answer_within_s=answer_within_s, **arguments)
        except AgentError as error:
            if error.kind or not self.lab.ended(self):
                raise
            if operation == "paths":
                return {name: {"amiss": [str(error)], "gone": True} for name in arguments["ports"]}
            raise AgentError(str(error), kind="gone") from None


@dataclass(kw_only=True)
class AgentsWithin(Agents):
    """Starts agents, those within hosts among them."""

    lab: WithinLab

    def privileges(self, role: str) -> Role:
        """See `Agents`. What captures is in a host's network, too."""
        return replace(super().privileges(role), network="container") if role == CAPTURE else super().privileges(role)

    def channel(self, role: str, stream: Demultiplexed, *, name: str, kill: Callable[[], object]) -> Channel:
        """See `Agents`."""
        if role != WITHIN:
            return super().channel(role, stream, name=name, kill=kill)
        channel = ChannelWithin(stream, name=name, kill=kill)
        channel.lab = self.lab
        return channel


class WithinLab(ComposeLab):
    """A Compose file, brought up as a stack of its own, whose links are impaired within the receivers."""

    kind = "within"

    def __init__(self, *arguments: Any, outlives_us: bool = False, **keywords: Any) -> None:
        """See `ComposeLab`. Raises EnvironmentUnfitError for a lab that is to outlive us."""
        if outlives_us:
            raise EnvironmentUnfitError(
                f"--lab {self.kind}: the agents within the hosts end with the process that started them, so nothing "
                f"would stay impaired: use --lab compose"
            )
        super().__init__(*arguments, **keywords)
        self._numbers = itertools.count(_FIRST_NUMBER)
        self._plugs: dict[int, tuple[str, str, str]] = {}
        """By number: a host, its network, and the engine's words for that host's connection to it."""

    @property
    def _starting(self) -> Agents:
        identity = self.stack.identity
        return AgentsWithin(engine=self.engine, image=self.netem_image, identity=identity, network="none", lab=self)

    def boot(self, channel: Channel) -> None:
        """See `StackLab`. Only the agents within hosts need a kernel."""
        if isinstance(channel, ChannelWithin):
            super().boot(channel)

    # --- ports -----------------------------------------------------------------------------------

    def attach(self, host: str, network: str, *, to_count: bool = False) -> Attached:
        """See `Backend`."""
        ref = PortRef(host, network)
        name = f"{ref} watched" if to_count else str(ref)
        engine = "host" if to_count else self.netem_engine
        receiver = self._hosts[host]
        channel, ifindex = receiver.agent(WITHIN), receiver.interface(network)["ifindex"]
        if engine == "carried":
            self.boot(channel)
        port = channel.call("attach", port=name, ifindex=ifindex, engine=engine)
        number = self.port_of_sender(host, network)
        return Attached(ref=ref, name=name, channel=channel, port=port, ifindex=number)

    def port_of_sender(self, host: str, network: str) -> int:
        """A number for a host's connection to a network; another one after each start of the host."""
        plug = host, network, self._hosts[host].plug(network)
        known = next((number for number, other in self._plugs.items() if other == plug), None)
        number = next(self._numbers) if known is None else known
        self._plugs[number] = plug
        return number

    def replaced(self, number: int) -> str | None:
        """The host of this number if its connection is another one now; None if it is the same."""
        host, network, plug = self._plugs[number]
        return None if self._hosts[host].plug(network) == plug else host

    def ended(self, agent: Channel) -> bool:
        """Whether the host has ended, or was started again, that this agent is within."""
        known = next((host for host in self._hosts.values() if host.agents().get(WITHIN) is agent), None)
        return known is None or known.began_anew(WITHIN)

    def sweep(self) -> None:
        """See `StackLab`."""
        for host in self._hosts.values():
            if host.began_anew(WITHIN):
                host.forget_agent(WITHIN)
        agents = [host.agents().get(WITHIN) for host in self._hosts.values()]
        gone = [port for port in self.ports if port.channel not in agents]
        self.ports.forget(*gone)
        self.elsewhere.forget({port.name for port in gone})

    def forget_agent(self, role: str) -> None:
        """See `AgentOwner`. What it leaves keeps packets from its host, so another one puts that right at once."""
        name = next((name for name in self._hosts if role == beside(WITHIN, name)), None)
        left = [port for port in self.ports if port.ref.host == name]
        self.ports.forget(*left)
        super().forget_agent(role)
        if left and name is not None and self.whole.running(name):
            veths = [{**port.original} for port in left]
            self._hosts[name].agent(WITHIN).call("put_right", veths=veths)

    def replace_agent(self, left: Sequence[Mapping[str, Any]]) -> None:
        """See `AgentOwner`. The agents within hosts outlive it, but their ports are forgotten."""
        for host in self._hosts.values():
            agent = host.agents().get(WITHIN)
            if agent is not None and agent.answers:
                agent.call("heal")
        super().replace_agent(left)

    # --- what there is not -----------------------------------------------------------------------

    def machines_agent(self) -> Channel:
        """See `Backend`."""
        raise LabError(f"--lab {self.kind}: the engine's machine cannot be probed from within its containers")

    def own_addresses(self) -> Sequence[str]:
        """See `Backend`."""
        raise LabError(f"--lab {self.kind}: packets from and to beyond the stack cannot be captured within containers")

    def spots(self, host: str, network: str, src: str | None) -> list[Spot]:
        """See `Backend`."""
        port = self.ports.at(host, network)
        return spots_within(
            self,
            port=PortRef(host, network),
            src=src,
            sides={} if port is None else port.channel.call("sides", port=port.name),
            interface=self._hosts[host].interface(network),
        )

    def capture_agent(self, host: str = "") -> Channel:
        """See `Backend`. Each host has its own."""
        if not host:
            raise LabError(f"--lab {self.kind}: there is no place that the packets of all hosts pass")
        return self._hosts[host].agent(CAPTURE)
