"""Lateness that several agents measure, of which one goes with its host."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from testbed.errors import AgentError
from testbed.evidence.proof import LinkEvidence
from testbed.lab.carriage import Carriage
from testbed.lab.ports import Port
from testbed.spec.links import LinkRef


class _Agent:
    """One within a host, whose carried kernel has its name."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.gone = False

    def call(self, operation: str, **_arguments: Any) -> Any:
        if self.gone:
            raise AgentError(f"agent of {self.host} has ended")
        if operation == "passages":
            return {"due_ns": 0, "kernels": {f"k-{self.host}": {"passages_ns": [1000] * 50, "missing_ns": []}}}
        return {f"k-{self.host}": {}} if operation == "clocks" else {}


class _Ports(list[Any]):
    """Ports that call whoever wants to know of their use."""


def test_an_agent_that_ended_with_its_host_takes_what_it_measured_and_nothing_of_others() -> None:
    agents = {host: _Agent(host) for host in ("a", "b")}
    ports = [
        SimpleNamespace(name=f"{host}@lan", kernel=f"k-{host}", channel=agent, ref=SimpleNamespace(host=host))
        for host, agent in agents.items()
    ]
    carriage = Carriage(_Ports(), SimpleNamespace(capture_agent=agents.get))  # type: ignore[arg-type]  # all it needs
    carriage.begin()
    for port in ports:
        carriage.watch(cast("Port", port))
    agents["a"].gone = True
    carriage.settle()
    seen = {}
    for port in ports:
        evidence = LinkEvidence(link="x -> y", network="lan", asked={}, command="")
        timed, problems = carriage.timed(evidence, LinkRef("x", "y", "lan"), cast("Port", port), None)
        assert problems == []
        seen[port.ref.host] = timed.warnings
    carriage.end()
    assert seen == {"a": ["how late carried kernel k-a was is not known: agent of a has ended"], "b": []}
