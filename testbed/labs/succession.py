"""The death of an agent: found out, the test in which it happened told of it, and another one started for the next.

The agents meant are the one that holds the ports and the one that captures. An agent that does not answer in time is
not dead.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.errors import AgentError, LabError

if TYPE_CHECKING:
    from testbed.labs.channel import Channel
    from testbed.labs.lab import Lab, Port

PORTS, CAPTURE = "ports", "capture"
_ASKED = {PORTS: "recall", CAPTURE: "clock"}
"""What is asked of each, which takes it no time, to find out whether it is there."""


@dataclass(frozen=True, kw_only=True)
class AgentDeath:
    """An agent that ended, and nobody had asked it to."""

    role: str
    """``ports`` or ``capture``."""

    def __str__(self) -> str:
        held = {PORTS: "that holds the impairments", CAPTURE: "that captures, and watches how late packets are,"}
        return f"the agent {held[self.role]} ended during the test, and nobody had asked it to"


class Succession:
    """Which agents of a lab have died, and what they left."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.deaths: list[AgentDeath] = []
        """Those of this test, and of the time since the one before."""
        self._left: list[Port] = []

    def look(self) -> list[AgentDeath]:
        """Ask each agent whether it lives; the deaths so far."""
        for role, agent in self._lab.agents().items():
            death = AgentDeath(role=role)
            if death not in self.deaths and not _answers(agent, role):
                self.deaths.append(death)
                self._lab.carriage.watch_no_more(str(death))
        return self.deaths

    @property
    def died(self) -> bool:
        """Whether the agent that holds the ports is known to be dead."""
        return AgentDeath(role=PORTS) in self.deaths

    def end(self) -> bool:
        """End a test: whether the agent has died. Then nothing is known of ports any more, and of what was on them."""
        self.look()
        if not self.died:
            return False
        self._left += self._lab.forget_all()
        for program in self._lab.programs:
            with contextlib.suppress(LabError):  # in a local lab, they went with the agent
                program.stop("SIGKILL")
        return True

    def begin(self) -> None:
        """Before a test: start another agent for each that died. Raises LabError if that cannot be done."""
        self.look()
        if self.died:
            left, self._left = self._left + self._lab.forget_all(), []
            self._lab.replace_agent(left)
        if AgentDeath(role=CAPTURE) in self.deaths:
            self._lab.forget_capture_agent()
        self.deaths.clear()


def _answers(agent: Channel, role: str) -> bool:
    if agent.lives:
        with contextlib.suppress(AgentError):  # `lives` tells
            agent.call(_ASKED[role])
    return agent.lives
