"""Compile a bottleneck to tc lines, and compare it with the kernel's read-back. Pure.

The qdiscs of a port's last device, behind those of its senders (`qdisc`)::

    1: htb (default: direct queue)
    └── 1:10    class, one per bottleneck  <- flower filters: of each sender that shares it
        └── 10: tbf                        the rate; with the queue of a fifo
            └── 2010: codel, fq_codel, red
        └── 10: cake                       which keeps the rate itself

The bucket of tbf holds what leaves in 25 ms: a timer that comes so late loses none of the rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from testbed import units
from testbed.evidence.proof import QueueCounts
from testbed.netem import qdisc, readback
from testbed.netem.readback import Difference
from testbed.spec.bottleneck import Bottleneck
from testbed.spec.impairment import Impairment
from testbed.spec.links import Traffic

_INNER = 0x2000
_FULL_FRAME_BYTES = 1514
_BUCKET_S = 0.025
_CAKES_OWN = "cake"

# As tc-red(8) recommends, with the limit as the queue: the thresholds at a sixth and at half of it.
_RED_AVPKT = 1000
_RED_PROBABILITY = 0.1


def _as_impairment(bottleneck: Bottleneck, *, mtu: int) -> Impairment:
    """Its rate and its queue as those of a link's token bucket, which has the same tbf."""
    frame_bytes = max(mtu + 14, _FULL_FRAME_BYTES)
    bucket = max(2 * frame_bytes, math.ceil(bottleneck.rate_bps / 8 * _BUCKET_S))
    return Impairment(rate_bps=bottleneck.rate_bps, bucket_bytes=bucket, queue_bytes=bottleneck.queue_bytes)


def limit_packets(bottleneck: Bottleneck) -> int | None:
    """The queue in full packets, in which codel and fq_codel count; None for the kernel's own limit."""
    return None if bottleneck.queue_bytes is None else max(1, bottleneck.queue_bytes // _FULL_FRAME_BYTES)


def _inner(bottleneck: Bottleneck, *, mtu: int) -> tuple[str, dict[str, Any]]:
    """The words for tc of the qdisc behind tbf, and the options that the kernel must report."""
    kind = bottleneck.qdisc
    if kind == "red":
        limit = qdisc.sized_queue_bytes(_as_impairment(bottleneck, mtu=mtu))
        low, high = limit // 6, limit // 2
        burst = math.ceil((2 * low + high) / (3 * _RED_AVPKT))
        words = f"limit {limit} min {low} max {high} avpkt {_RED_AVPKT} burst {burst} probability {_RED_PROBABILITY}"
        words += f" bandwidth {units.format_rate(bottleneck.rate_bps)}{' ecn' if bottleneck.marks else ''}"
        return f"red {words}", {"limit": limit, "min": low, "max": high, "ecn": bottleneck.marks}
    limit_words, limited = "", dict[str, Any]()
    if (packets := limit_packets(bottleneck)) is not None:
        limit_words, limited = f" limit {packets}", {"limit": packets}
    return f"{kind}{limit_words} {'ecn' if bottleneck.marks else 'noecn'}", {**limited, "ecn": bottleneck.marks}


def lines(device: str, minor: int, bottleneck: Bottleneck, *, mtu: int) -> list[str]:
    """The lines that make a bottleneck's class, its rate and its queue."""
    made = [qdisc.make_class(device, minor)]
    if bottleneck.qdisc == _CAKES_OWN:
        size = "" if bottleneck.queue_bytes is None else f" memlimit {bottleneck.queue_bytes}"
        rate = units.format_rate(bottleneck.rate_bps)
        return [*made, f"qdisc replace dev {device} parent 1:{minor:x} handle {minor:x}: cake bandwidth {rate}{size}"]
    tbf = _as_impairment(bottleneck, mtu=mtu)
    rate, bucket = units.format_rate(bottleneck.rate_bps), tbf.bucket_bytes
    made.append(
        f"qdisc replace dev {device} parent 1:{minor:x} handle {minor:x}: tbf rate {rate} burst {bucket} "
        f"limit {qdisc.sized_queue_bytes(tbf)}"
    )
    if bottleneck.qdisc != "fifo":
        words, _ = _inner(bottleneck, mtu=mtu)
        made.append(f"qdisc replace dev {device} parent {minor:x}:1 handle {minor | _INNER:x}: {words}")
    return made


def remove(device: str, minor: int, flowers: Iterable[qdisc.Filter]) -> list[str]:
    """The lines that remove a bottleneck, with what waits there."""
    return [*(flower.delete(device) for flower in flowers), f"class delete dev {device} classid 1:{minor:x}"]


def filters(minor: int, number: int, addresses: Sequence[str], traffic: Traffic, *, part: int) -> list[qdisc.Filter]:
    """The filters that lead a sender's packets to the bottleneck; ``number``: different for each at the port."""
    own = qdisc.filters(qdisc.FIRST_MINOR + number, addresses, traffic, part=part)
    return [replace(flower, flow=f"1:{minor:x}") for flower in own]


def _rows(minor: int, qdiscs: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The qdisc of the class, and the one behind it; empty where there is none."""
    shown = {row.get("parent"): row for row in qdiscs}
    return shown.get(f"1:{minor:x}", {}), shown.get(f"{minor:x}:1", {})


def differences(
    bottleneck: Bottleneck, minor: int, qdiscs: Sequence[Mapping[str, Any]], *, mtu: int
) -> list[Difference]:
    """Every field in which the kernel's bottleneck differs from the request."""
    first, behind = _rows(minor, qdiscs)
    if bottleneck.qdisc == _CAKES_OWN:
        if first.get("kind") != _CAKES_OWN:
            return [Difference("qdisc", _CAKES_OWN, str(first.get("kind", "none")))]
        rate, size = first.get("options", {}).get("bandwidth"), first.get("memory_limit")
        wanted_rate = int(bottleneck.rate_bps) // 8
        differing = [] if rate == wanted_rate else [_differs("rate", wanted_rate, rate)]
        if bottleneck.queue_bytes not in (None, size):
            differing.append(_differs("queue", bottleneck.queue_bytes, size))
        return differing
    differing = readback.tbf_differences(_as_impairment(bottleneck, mtu=mtu), first or None)
    kind = behind.get("kind", "bfifo")
    wanted, options = (
        ("bfifo", {}) if bottleneck.qdisc == "fifo" else (bottleneck.qdisc, _inner(bottleneck, mtu=mtu)[1])
    )
    if kind != wanted:
        return [*differing, Difference("qdisc", bottleneck.qdisc, str(kind))]
    reported = behind.get("options", {})
    return differing + [
        _differs(name, value, reported.get(name, False)) for name, value in options.items()
        if value != reported.get(name, False)
    ]  # fmt: skip


def _differs(word: str, wanted: object, reported: object) -> Difference:
    return Difference(word, str(wanted), str(reported))


def counts(minor: int, qdiscs: Iterable[Mapping[str, Any]]) -> QueueCounts | None:
    """What a bottleneck has counted, from ``tc -s -j qdisc show``; None if there is none."""
    first, behind = _rows(minor, qdiscs)
    if not first:
        return None
    # tbf counts the drops of the queue within it, some of them twice (sch_tbf.c, qdisc_tree_reduce_backlog).
    queue = behind or first
    tins = queue.get("tins", ())
    marked = queue.get("ecn_mark", queue.get("marked", 0)) + sum(tin.get("ecn_mark", 0) for tin in tins)
    return QueueCounts(
        sent_packets=first["packets"],
        sent_bytes=first["bytes"],
        dropped_packets=queue["drops"],
        marked_packets=marked,
        waiting_packets=first["qlen"],
    )
