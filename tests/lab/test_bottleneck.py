"""A bottleneck that several senders share: its rate and its queue, and that it is gone when it is healed.

How exact it is, `test_virtual_bottleneck` says: no machine's load matters there.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from testbed import ImpairmentNotAppliedError, Lab
from testbed.lab.waiting import await_condition
from testbed.netem import shaping
from testbed.observe.packet import ip_of
from testbed.observe.passages import crossing
from testbed.spec.bottleneck import Bottleneck
from tests.lab.conftest import HERE, as_one_test, lab_of

BELOW_THE_LAB = True


@pytest.fixture(scope="module")
def four(kind: str, pytestconfig: pytest.Config) -> Iterator[Lab]:
    with lab_of(kind, pytestconfig, HERE / "stacks" / "four.yaml") as lab:
        yield lab


@pytest.fixture
def lab(four: Lab) -> Iterator[Lab]:
    yield from as_one_test(four)


def test_three_senders_share_one_rate_and_one_queue_behind_their_own_links_until_they_are_healed(lab: Lab) -> None:
    lab.impair("a -> d", delay="30ms")
    (bottleneck,) = lab.shape("* -> d", rate="8mbit", queue="50kB")
    assert lab.link("a -> d").impairment is not None, "what was there stays, before the bottleneck"
    server = lab.host("d").addresses("lan")
    with lab.capture("d", snap_bytes=64) as narrow, lab.traffic("* -> d", udp="4mbit", size=958):
        await_condition(bottleneck.counters, lambda counts: counts.dropped_packets > 300, deadline_s=60)
    counts = bottleneck.counters()
    crossed = [passage for passage in crossing(narrow.capture, server) if passage.before.length_bytes == 1000]
    missing = [passage for passage in crossed if passage.lost]
    assert counts.waiting_packets == 0
    assert len(missing) == counts.dropped_packets > 300
    arrived_ns = sorted(passage.after[0].time_ns for passage in crossed if passage.after)[50:]  # the bucket was full
    least_s = (len(arrived_ns) - 50) * 8000 / 8e6  # and may have filled again, while the machine was late
    assert (arrived_ns[-1] - arrived_ns[0]) / 1e9 > 0.98 * least_s, "packets of 1000 bytes, headers included"
    through_netem = lab.link("a -> d").counters().sent_packets
    sources = [ip.src for passage in crossed if (ip := ip_of(passage.before.data)) is not None]
    own = sources.count(ip_address(lab.host("a").addresses("lan")[0]).packed)
    assert own <= through_netem <= own + 20, "its packets had a delay of their own, and no others"
    lab.verifier.verify()
    (shared,) = [link for link in lab.ledger.evidence if link.queue is not None]
    assert (shared.link, shared.read_back, shared.counters) == ("a, b, c -> d", "holds", "holds")
    assert shared.queue == counts
    assert shared.met_packets == counts.arrived_packets
    lab.heal()
    before = lab.host("d").counters()["Udp"]["InDatagrams"]
    with lab.traffic("* -> d", udp="4mbit", size=958) as traffic:
        await_condition(
            lambda: lab.host("d").counters()["Udp"]["InDatagrams"], lambda now: now > before + 600, deadline_s=60
        )
    flows = traffic.stop()
    assert sum(flow.received_bytes for flow in flows) > 0.8 * sum(flow.sent_bytes for flow in flows), "12 Mbit/s pass"


def test_a_bottleneck_that_cannot_be_replaced_stays(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    (bottleneck,) = lab.shape("* -> d", rate="8mbit", queue="50kB")
    lines = shaping.lines

    def refused(device: str, minor: int, bottleneck: Bottleneck, *, mtu: int) -> list[str]:
        wrong = [f"qdisc add dev {device} parent 1: nonsense"] if bottleneck.rate_bps == 9e6 else []
        return [*lines(device, minor, bottleneck, mtu=mtu), *wrong]

    monkeypatch.setattr(shaping, "lines", refused)
    with pytest.raises(ImpairmentNotAppliedError, match="nonsense"):
        lab.shape("* -> d", rate="9mbit", queue="20kB")
    with lab.traffic("* -> d", udp="4mbit"):
        await_condition(bottleneck.counters, lambda counts: counts.dropped_packets > 0, deadline_s=60)
    lab.verifier.verify()
    last = [link for link in lab.ledger.evidence if link.queue is not None][-1]
    assert (last.read_back, last.asked["rate"], last.asked["queue"]) == ("holds", "8mbit", "50kB")
