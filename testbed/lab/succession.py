"""The death of an agent: found out, the test in which it happened told of it, and another one started for the next.

The agents meant are the one that holds the ports, the one that captures, and those in hosts' namespaces. One that did
not answer in time, nor when it was asked once more, is as good as dead: it is killed.
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
_BESIDE = {"inside": "in the network of", "files": "among the files of"}


def beside(role: str, host: str) -> str:
    """What an agent in a host's namespaces is called among a lab's agents."""
    return f"{_BESIDE[role]} `{host}`"


@dataclass(frozen=True, kw_only=True)
class AgentDeath:
    """An agent that ended, and nobody had asked it to, or that does not answer any more."""

    role: str
    """``ports``, ``capture``, or `beside` of a host."""
    silent_s: float = 0.0
    """How long it was waited for in vain; 0 if it ended."""

    def __str__(self) -> str:
        which = f"the agent {_HELD.get(self.role, self.role)}"
        if self.silent_s:
            return f"{which} hung: it did not answer for {self.silent_s:g} s, and another takes its place"
        return f"{which} ended during the test, and nobody had asked it to"


class AgentOwner:
    """What a kind of lab says of its agents. One that overrides nothing has none that could die."""

    def agents(self) -> Mapping[str, Channel]:
        """The agents that run now, by role: see `AgentDeath`."""
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
        """``programs``: those of the test. ``unwatch``: told why lateness cannot be known any more.

        ``forget``: has all be forgotten that was on ports; gives the ports.
        """
        self._owner = owner
        self._programs = programs
        self._unwatch = unwatch
        self._forget_ports = forget
        self.deaths: list[AgentDeath] = []
        """Those of this test, and of the time since the one before."""
        self._left: dict[int, Mapping[str, Any]] = {}
        """How each host's own port was found that a dead agent had attached, by its ifindex."""

    def look(self) -> list[AgentDeath]:
        """Ask each agent whether it is there; the deaths so far. To one that is not, nothing more is said."""
        known = {death.role for death in self.deaths}
        for role, agent in self._owner.agents().items():
            if role in known or _answers(agent):
                continue
            agent.give_up()
            if self._owner.went_with_its_host(role):
                continue  # what became of the host is told of it
            self.deaths.append(AgentDeath(role=role, silent_s=agent.silent_s))
            if role in (PORTS, CAPTURE):
                self._unwatch(str(self.deaths[-1]))
        return self.deaths

    @property
    def died(self) -> bool:
        """Whether the agent that holds the ports is known to be dead."""
        return any(death.role == PORTS for death in self.deaths)

    def end(self) -> bool:
        """End a test: whether the agent has died. Then nothing is known of ports any more, and of what was on them."""
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
            self._left = {}  # now, for the next may die as it starts
        self._forget()
        self.deaths.clear()

    def _leave(self) -> None:
        """Know no more of any port but how its host's own was found."""
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
