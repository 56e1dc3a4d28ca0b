"""Timelines on a real kernel: what datagrams see, by the clock that their hosts and the agent share.

A datagram's delay is that of the step in force when it arrived at the port. So every bound here is an order of
events: a datagram sent after a step was taken has at least its delay; one sent before it was due has not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed import ComposeLab
from testbed.labs.compose import ComposeHost

_PROGRAM = "/tmp/stamped.py"
_PORT = "9003"


@dataclass
class Datagram:
    """One that was sent, by CLOCK_MONOTONIC."""

    sent_s: float
    arrived_s: float | None

    @property
    def delay_s(self) -> float:
        assert self.arrived_s is not None
        return self.arrived_s - self.sent_s


@dataclass
class Flow:
    """Datagrams at a steady pace, in the background."""

    src: ComposeHost
    dst: ComposeHost

    def start(self, count: int, pace_s: float = 0.005) -> None:
        address = self.dst.addresses("lan")[0]
        self.receiver = self.dst.start(["python3", _PROGRAM, "receive", _PORT], ready="ready")
        self.sender = self.src.start(["python3", _PROGRAM, "send", address, _PORT, str(count), str(pace_s)])

    def finish(self) -> list[Datagram]:
        sender = self.sender.wait("60s")
        assert sender.ok, sender.stderr
        sent: list[float] = json.loads(sender.stdout)
        receiver = self.receiver.stop("SIGTERM")
        arrived: dict[int, float] = dict(json.loads(receiver.stdout.splitlines()[1]))
        return [Datagram(sent_s=at, arrived_s=arrived.get(number)) for number, at in enumerate(sent)]


@pytest.fixture
def flow(lab: ComposeLab) -> Flow:
    client, server = lab.hosts["client"], lab.hosts["server"]
    for host in (client, server):
        host.put(_PROGRAM, (Path(__file__).parent / "programs" / "stamped.py").read_bytes())
    return Flow(client, server)


def test_the_delay_changes_at_the_step_and_not_before(lab: ComposeLab, flow: Flow) -> None:
    link = lab.link("client -> server")
    flow.start(600)
    link.impair([{"delay": "20ms"}, {"at": "1s", "delay": "120ms"}, {"at": "2s", "delay": "20ms"}])
    seen = flow.finish()
    first, second, third = link.steps()
    assert [each.planned_s for each in (first, second, third)] == [0, 1, 2]
    assert all(each.complaint is None and each.late_s >= 0 for each in (first, second, third))

    due_s = second.monotonic_s - second.late_s
    before = [each for each in seen if first.monotonic_s < each.sent_s < due_s - 0.005]
    slow = [each for each in seen if second.monotonic_s < each.sent_s < third.monotonic_s - third.late_s - 0.005]
    after = [each for each in seen if each.sent_s > third.monotonic_s]
    assert min(map(len, (before, slow, after))) >= 50
    assert min(each.delay_s for each in before) >= 0.020
    assert min(each.delay_s for each in slow) >= 0.120
    # The median, not the worst: this machine may be busy.
    assert sorted(each.delay_s for each in before)[len(before) // 2] < 0.060
    assert sorted(each.delay_s for each in after)[len(after) // 2] < 0.060
    assert not [each for each in seen if each.arrived_s is None], "a step lost what was queued"


def test_an_outage_loses_what_is_sent_in_it_and_nothing_else(lab: ComposeLab, flow: Flow) -> None:
    link = lab.link("client -> server")
    flow.start(500)
    link.impair([{"delay": "50ms"}, {"at": "1s", "outage": "500ms"}])
    seen = flow.finish()
    _, begins, ends = link.steps()
    assert begins.impairment.loss_ratio == 1
    lost = [each for each in seen if each.arrived_s is None]
    inside = [each for each in seen if begins.monotonic_s < each.sent_s < ends.monotonic_s - ends.late_s - 0.005]
    assert len(inside) >= 50
    assert all(each.arrived_s is None for each in inside)
    # Those under way when it began arrive: it is at the port's entrance. 5 ms for a datagram to get there.
    early_s = begins.monotonic_s - begins.late_s - 0.005
    assert all(early_s <= each.sent_s <= ends.monotonic_s for each in lost)
    assert link.counters().dropped_packets >= len(lost)
