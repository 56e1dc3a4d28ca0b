"""Bottlenecks: what a user may ask, the lines for tc, and what the kernel's read-back says of them."""

from __future__ import annotations

from typing import Any

import pytest

from testbed.errors import InvalidValueError
from testbed.evidence.proof import QueueCounts
from testbed.netem import shaping
from testbed.spec.bottleneck import Bottleneck, by_port, name_of
from testbed.spec.links import LinkRef, Traffic

FIFO = Bottleneck(rate_bps=8e6, queue_bytes=200_000)
RED = Bottleneck(rate_bps=8e6, queue_bytes=60_000, qdisc="red", ecn=True)
FQ_CODEL = Bottleneck(rate_bps=8e6, queue_bytes=200_000, qdisc="fq_codel")
CAKE = Bottleneck(rate_bps=8e6, qdisc="cake")
SENT = {"bytes": 6056, "packets": 4, "drops": 0, "qlen": 0}
TBF: dict[str, Any] = {
    "kind": "tbf",
    "handle": "10:",
    "parent": "1:10",
    **SENT,
    "options": {"rate": 1_000_000, "burst": 25_000, "lat": 175_000},
}


def inner(kind: str, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "handle": "2010:", "parent": "10:1", **SENT, **more}


def told(bottleneck: Bottleneck, *qdiscs: dict[str, Any]) -> list[str]:
    return [str(difference) for difference in shaping.differences(bottleneck, 0x10, qdiscs, mtu=1500)]


def test_words_and_values_are_the_same_bottleneck() -> None:
    for words in (
        {"rate": "8mbit", "queue": "200kB", "qdisc": "fifo"},
        {"rate": "1.5mbit", "qdisc": "codel", "ecn": True},
        {"rate": "1gbit", "qdisc": "fq_codel", "ecn": False},
    ):
        assert Bottleneck.parse(words).words() == words
    assert Bottleneck.parse({"rate": "8mbit", "queue": None}).describe() == "rate=8mbit qdisc=fifo"
    assert RED.describe() == "rate=8mbit queue=60kB qdisc=red ecn=true"


def test_every_problem_of_the_words_is_told_at_once() -> None:
    with pytest.raises(InvalidValueError) as error:
        Bottleneck.parse({"bandwidth": "8mbit", "queue": "many", "ecn": 1})
    assert [problem.partition(":")[0] for problem in error.value.problems] == [
        *("bandwidth", "queue='many'", "ecn=1", "rate")
    ]
    assert "here it is rate" in error.value.problems[0]
    with pytest.raises(InvalidValueError) as error:
        Bottleneck.parse({"rate": "1kbit", "queue": "1B", "qdisc": "fqcodel"})
    assert [problem.partition(":")[0] for problem in error.value.problems] == [
        *("rate=1kbit", "queue=1B", "qdisc='fqcodel'")
    ]
    assert "did you mean 'fq_codel'?" in error.value.problems[2]


@pytest.mark.parametrize(
    ("qdisc", "ecn", "which"),
    [("fifo", True, "codel, fq_codel, cake, red"), ("cake", False, "fifo, codel, fq_codel, red")],
)
def test_a_discipline_that_cannot_mark_or_must_is_refused(qdisc: str, ecn: bool, which: str) -> None:
    with pytest.raises(InvalidValueError, match=f"use {which}$"):
        Bottleneck(rate_bps=8e6, qdisc=qdisc, ecn=ecn)


def test_links_to_one_port_share_a_bottleneck_and_its_name() -> None:
    refs = [LinkRef(src, dst, "lan", Traffic("tcp", 80)) for dst in ("d", "e") for src in ("a", "b", "c", "f", "g")]
    ports = by_port(refs)
    assert [name_of(links) for links in ports.values()] == [f"a, b, c and 2 more -> {dst} tcp/80" for dst in ("d", "e")]


def test_a_fifo_is_the_token_buckets_own_queue() -> None:
    assert shaping.lines("eth9", 0x10, FIFO, mtu=1500)[1:] == [
        "qdisc replace dev eth9 parent 1:10 handle 10: tbf rate 8mbit burst 25000 limit 200000"
    ]


def test_other_disciplines_come_behind_the_token_bucket_and_cake_in_its_place() -> None:
    assert shaping.lines("eth9", 0x10, FQ_CODEL, mtu=1500)[2] == (
        "qdisc replace dev eth9 parent 10:1 handle 2010: fq_codel limit 132 ecn"
    )
    assert shaping.lines("eth9", 0x10, RED, mtu=1500)[2] == (
        "qdisc replace dev eth9 parent 10:1 handle 2010: red limit 60000 min 10000 max 30000 avpkt 1000 burst 17 "
        "probability 0.1 bandwidth 8mbit ecn"
    )
    assert shaping.lines("eth9", 0x10, CAKE, mtu=1500)[1:] == [
        "qdisc replace dev eth9 parent 1:10 handle 10: cake bandwidth 8mbit"
    ]


def test_a_bucket_holds_two_packets_of_the_largest_size_however_slow_it_is() -> None:
    slow = Bottleneck(rate_bps=64e3)
    assert "burst 3028 " in shaping.lines("eth9", 0x10, slow, mtu=1500)[1]
    assert "burst 18028 " in shaping.lines("eth9", 0x10, slow, mtu=9000)[1]


def test_what_the_kernel_holds_is_compared_field_by_field() -> None:
    assert told(FIFO, TBF) == []
    assert told(FIFO, {**TBF, "options": {**TBF["options"], "rate": 2_000_000, "lat": 87_500}}) == [
        "asked rate 8mbit, the kernel reports 16mbit"
    ]
    assert told(FIFO) == ["asked bucket 25kB, the kernel reports none"]
    assert told(FIFO, TBF, inner("codel")) == ["asked qdisc fifo, the kernel reports codel"]
    held = inner("fq_codel", options={"limit": 132, "ecn": True})
    assert told(FQ_CODEL, TBF, held) == []
    assert told(FQ_CODEL, TBF) == ["asked qdisc fq_codel, the kernel reports bfifo"]
    assert told(FQ_CODEL, TBF, inner("fq_codel", options={"limit": 10240})) == [
        "asked limit 132, the kernel reports 10240",
        "asked ecn True, the kernel reports False",
    ]
    assert told(CAKE, {"kind": "cake", "parent": "1:10", "options": {"bandwidth": 1_000_000}}) == []
    assert told(CAKE, {"kind": "cake", "parent": "1:10", "options": {"bandwidth": "unlimited"}}) == [
        "asked rate 1000000, the kernel reports unlimited"
    ]


def test_drops_and_marks_are_those_of_the_queue_and_not_of_the_bucket_around_it() -> None:
    around = {**TBF, "drops": 7, "qlen": 2}
    assert shaping.counts(0x10, [around]) == QueueCounts(
        sent_packets=4, sent_bytes=6056, dropped_packets=7, marked_packets=0, waiting_packets=2
    )
    behind = shaping.counts(0x10, [around, inner("fq_codel", drops=5, ecn_mark=3)])
    assert behind is not None
    assert (behind.dropped_packets, behind.marked_packets, behind.arrived_packets) == (5, 3, 11)
    red = shaping.counts(0x10, [around, inner("red", drops=5, marked=2)])
    assert red is not None
    assert red.marked_packets == 2
    cake = shaping.counts(
        0x10, [{"kind": "cake", "parent": "1:10", **SENT, "drops": 1, "tins": [{"ecn_mark": 2}, {"ecn_mark": 3}]}]
    )
    assert cake is not None
    assert (cake.dropped_packets, cake.marked_packets) == (1, 5)
    assert shaping.counts(0x10, []) is None


def test_what_came_before_a_test_is_not_its_own() -> None:
    earlier = QueueCounts(sent_packets=1, sent_bytes=100, dropped_packets=2, marked_packets=3, waiting_packets=4)
    now = QueueCounts(sent_packets=11, sent_bytes=1100, dropped_packets=22, marked_packets=33, waiting_packets=5)
    assert now - earlier == QueueCounts(
        sent_packets=10, sent_bytes=1000, dropped_packets=20, marked_packets=30, waiting_packets=5
    )
