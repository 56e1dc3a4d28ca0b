"""Agents that die: noticed, reported by the test in which it happened, and replaced for the next.

This concerns the agent that holds the ports, the one that captures, and those in hosts' namespaces. An agent that does
not answer in time, nor a second request, is killed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.errors import AgentError, LabError
from testbed.lab.channel import Channel
from testbed.lab.host import Program
from testbed.lab.ports import Port

PORTS, CAPTURE = "ports", "capture"
_HELD = {PORTS: "that holds the impairments", CAPTURE: "that captures, and watches how late packets are,"}
_BESIDE = {
    "inside": "in the network of",
    "files": "among the files of",
    "within": "that holds the impairments toward",
    CAPTURE: "that captures at",
}


def beside(role: str, host: str) -> str:
    """The role of an agent in a host's namespaces, among a lab's agents."""
    return f"{_BESIDE[role]} `{host}`"


@dataclass(frozen=True, kw_only=True)
class AgentDeath:
    """An agent that ended without being asked to, or that does not answer any more."""

    role: str
    """``ports``, ``capture``, or `beside` of a host."""
    silent_s: float = 0.0
    """How long it did not answer; 0 if it ended."""

    def __str__(self) -> str:
        which = f"the agent {_HELD.get(self.role, self.role)}"
        if self.silent_s:
            return f"{which} hung: it did not answer for {self.silent_s:g} s, and another takes its place"
        return f"{which} ended during the test, and nobody had asked it to"


class AgentOwner:
    """The agents of a kind of lab. A lab that overrides nothing has none that could die."""

    def agents(self) -> Mapping[str, Channel]:
        """The agents that run now, by role: see `AgentDeath`."""
        return {}

    def replace_agent(self, _left: Sequence[Mapping[str, Any]]) -> None:
        """Start another agent for the ports, and repair what the dead one left of them. Raises LabError.

        ``left``: the original state of each host's own port.
        """
        raise LabError("the agent has died, and this kind of lab cannot start another")

    def went_with_its_host(self, _role: str) -> bool:
        """Whether an agent in a host's namespaces ended because the host did, or was started again."""
        return False

    def forget_agent(self, _role: str) -> None:
        """Release an agent other than the ports', so that another is started on demand."""
        return


class Succession:
    """Which agents of a lab have died, and what they left."""

    def __init__(
        self,
        owner: AgentOwner,
        programs: Sequence[Program],
        *,
        unwatch: Callable[[str], None],
        forget: Callable[[], list[Port]],
    ) -> None:
        """``programs``: those of the test. ``unwatch``: called with the reason why lateness cannot be measured.

        ``forget``: forgets everything on ports, and returns them.
        """
        self._owner = owner
        self._programs = programs
        self._unwatch = unwatch
        self._forget_ports = forget
        self.deaths: list[AgentDeath] = []
        """The deaths in this test, and since the test before."""
        self._left: dict[int, Mapping[str, Any]] = {}
        """The original state of hosts' own ports that a dead agent had attached, by ifindex."""

    def look(self) -> list[AgentDeath]:
        """Check that each agent answers. Returns the deaths so far; a dead agent gets no more requests."""
        known = {death.role for death in self.deaths}
        for role, agent in self._owner.agents().items():
            if role in known or _answers(agent):
                continue
            agent.give_up()
            if self._owner.went_with_its_host(role):
                continue  # the change of its host is reported instead
            self.deaths.append(AgentDeath(role=role, silent_s=agent.silent_s))
            if role in (PORTS, CAPTURE):
                self._unwatch(str(self.deaths[-1]))
        return self.deaths

    @property
    def died(self) -> bool:
        """Whether the agent that holds the ports is known to be dead."""
        return any(death.role == PORTS for death in self.deaths)

    def end(self) -> bool:
        """End a test. Returns whether the agent of the ports has died; then all ports are forgotten."""
        self.look()
        if not self.died:
            self._forget()
            return False
        self._leave()
        for program in self._programs:
            with contextlib.suppress(LabError):  # in a local lab, they went with the agent
                program.stop("SIGKILL")
        return True

    def begin(self) -> None:
        """Before a test: start another agent for each that died. Raises LabError if that cannot be done."""
        self.look()
        if self.died:
            self._leave()
            self._owner.replace_agent(list(self._left.values()))
            self._left = {}  # now, for the new agent may die as it starts
        self._forget()
        self.deaths.clear()

    def _leave(self) -> None:
        """Forget all ports, but keep the original state of their hosts' own ports."""
        self._left |= {port.ifindex: dict(port.original) for port in self._forget_ports()}

    def _forget(self) -> None:
        for role, agent in self._owner.agents().items():
            if role != PORTS and not agent.answers:
                self._owner.forget_agent(role)


def _answers(agent: Channel) -> bool:
    if agent.lives:
        with contextlib.suppress(AgentError):  # `answers` tells
            agent.call("alive")
    return agent.answers
