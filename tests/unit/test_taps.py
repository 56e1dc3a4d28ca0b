"""Packets that were refused before carried kernels, by link and test."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from testbed.errors import AgentError
from testbed.evidence.proof import AtTaps
from testbed.lab.ports import Port
from testbed.lab.taps import Taps
from testbed.spec.links import LinkRef, PortRef

LINK = LinkRef(src="a", dst="b", network="lan")


def counts(came: int, lost: int) -> dict[str, int]:
    return {"in_packets": came - lost, "refused_packets": lost}


class Counting:
    """An agent whose counters are set by the test."""

    def __init__(self) -> None:
        self.told: dict[str, Any] | None = {}
        """Of ports with a carried kernel."""
        self.dropped: dict[str, Any] = {}
        """Of ports without one."""

    def call(self, operation: str, *, ports: list[str]) -> dict[str, Any]:
        if self.told is None:
            raise AgentError("it died")
        reply = {"carried": self.told, "dropped": self.dropped}[operation]
        return {name: reply[name] for name in ports if name in reply}


def port(agent: Counting, host: str, kernel: str | None = "tbk") -> Port:
    ref = PortRef(host, "lan")
    return cast("Port", SimpleNamespace(ref=ref, name=str(ref), channel=agent, kernel=kernel))


def test_a_packet_passes_its_senders_port_and_its_receivers() -> None:
    agent, taps = Counting(), Taps()
    agent.told = {"a@lan": {"to_host": counts(100, 50), "from_host": counts(7, 0)}}
    taps.begin([port(agent, "a")])
    assert taps.refused(LINK) == AtTaps(0, 0)
    agent.told = {
        "a@lan": {"to_host": counts(900, 500), "from_host": counts(17, 3)},
        "b@lan": {"to_host": counts(20, 4), "from_host": counts(900, 500)},
    }
    taps.look([port(agent, "a"), port(agent, "b")])
    assert taps.refused(LINK) == AtTaps(30, 7)


def test_a_port_that_was_attached_anew_counts_from_nothing() -> None:
    agent, taps = Counting(), Taps()
    agent.told = {"b@lan": {"to_host": counts(100, 50)}}
    taps.begin([port(agent, "b")])
    agent.told = {"b@lan": {"to_host": counts(10, 2)}}
    taps.look([port(agent, "b")])
    assert taps.refused(LINK) == AtTaps(10, 2)


def test_of_a_port_that_is_gone_the_next_test_knows_nothing() -> None:
    agent, taps = Counting(), Taps()
    agent.told = {"b@lan": {"to_host": counts(100, 50)}}
    taps.begin([port(agent, "b")])
    taps.begin([])
    assert taps.refused(LINK) is None


def test_where_no_kernel_is_carried_nothing_is_known_and_an_agent_that_died_changes_nothing() -> None:
    agent, taps = Counting(), Taps()
    agent.told = None
    taps.begin([port(agent, "b", kernel=None)])
    taps.look([port(agent, "b")])
    assert taps.refused(LINK) is None


def test_a_port_without_a_carried_kernel_tells_what_it_dropped() -> None:
    agent, taps = Counting(), Taps()
    agent.dropped = {"b@lan": {"came_packets": 100, "refused_packets": 50}}
    taps.begin([port(agent, "b", kernel=None)])
    assert taps.dropped(LINK) == AtTaps(0, 0)
    agent.dropped = {
        "a@lan": {"came_packets": 7, "refused_packets": 7},
        "b@lan": {"came_packets": 150, "refused_packets": 52},
    }
    taps.look([port(agent, "a", kernel=None), port(agent, "b", kernel=None)])
    assert taps.dropped(LINK) == AtTaps(50, 2)
    assert taps.refused(LINK) is None


def test_what_our_own_probes_had_refused_is_none_of_the_tests() -> None:
    agent, taps = Counting(), Taps()
    agent.told = {"b@lan": {"to_host": counts(100, 50)}}
    taps.begin([port(agent, "b")])
    agent.told = {"b@lan": {"to_host": counts(110, 51)}}
    with taps.leaving_out([port(agent, "b")]):
        agent.told = {"b@lan": {"to_host": counts(9000, 5000)}}
    agent.told = {"b@lan": {"to_host": counts(9007, 5002)}}
    taps.look([port(agent, "b")])
    assert taps.refused(LINK) == AtTaps(17, 3)


def test_a_port_that_was_attached_anew_while_probed_counts_what_the_test_had_so_far() -> None:
    agent, taps = Counting(), Taps()
    taps.begin([])
    agent.told = {"b@lan": {"to_host": counts(110, 51)}}
    with taps.leaving_out([port(agent, "b")]):
        agent.told = {"b@lan": {"to_host": counts(90, 5)}}
    assert taps.refused(LINK) == AtTaps(110, 51)
    agent.told = {"b@lan": {"to_host": counts(100, 6)}}
    taps.look([port(agent, "b")])
    assert taps.refused(LINK) == AtTaps(120, 52)
