"""What a netem counted, each kind of drop separately as far as it can be known. Pure.

netem counts injected losses and drops by its full queue in one number (sch_netem.c: qdisc_qstats_drop,
qdisc_drop_all). HTB above it counts both as its own (sch_htb.c: net_xmit_drop_count is 1 for __NET_XMIT_BYPASS). But
only the full queue returns an error to the sender of a packet, and the redirect into a carried port counts these errors
exactly as ``overlimits`` (act_mirred.c), for all sources of the port together.

netem does not count duplicates, packets sent ahead and corrupted ones. Duplicates enter the root again (sch_netem.c,
netem_enqueue): they are what the port's root counted beyond what the redirect brought. The others follow from the
asked ratio and the number of packets that it was drawn for, within the binomial bounds at 1e-6.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from testbed.evidence.proof import AtTaps, Span, Tally
from testbed.judge import statistics as exact
from testbed.spec.impairment import Impairment


def overflows(filters: Iterable[Mapping[str, Any]]) -> int | None:
    """Number of packets that a port refused, from ``tc -s -j filter show`` of its entry."""
    return _redirect(filters, "overlimits")


def redirected(filters: Iterable[Mapping[str, Any]]) -> int | None:
    """Number of packets brought to a port, refused ones included, from ``tc -s -j filter show`` of its entry."""
    return _redirect(filters, "packets")


def _redirect(filters: Iterable[Mapping[str, Any]], counter: str) -> int | None:
    counts = [
        int(action["stats"][counter])
        for filter_ in filters
        for action in filter_.get("options", {}).get("actions", ())
        if action.get("kind") == "mirred" and counter in action.get("stats", {})
    ]
    return sum(counts) if counts else None


def root_packets(qdiscs: Iterable[Mapping[str, Any]]) -> int | None:
    """Number of packets that entered the port's root, netem's duplicates included; None if it has none of ours."""
    for qdisc in qdiscs:
        if qdisc.get("kind") == "htb" and qdisc.get("handle") == "1:":
            return int(qdisc["packets"]) + int(qdisc["drops"]) + int(qdisc["qlen"])
    return None


def beyond(entry: Iterable[Mapping[str, Any]], qdiscs: Iterable[Mapping[str, Any]]) -> int | None:
    """Number of packets that entered a port's root without its redirect; None where either is not counted."""
    redirect, root = redirected(entry), root_packets(qdiscs)
    return None if redirect is None or root is None else root - redirect


def tally(
    impairment: Impairment,
    netem: Mapping[str, Any],
    *,
    limit_packets: int,
    refused: int | None = None,
    changing: bool = False,
    beyond: int | None = None,
) -> Tally:
    """The counters of a link's netem since it was installed.

    ``limit_packets``: the limit of its queue. ``refused``: growth of `overflows` of the port's entry since then; None
    where nothing counts it. ``changing``: the impairment changed meanwhile, so losses of earlier steps are counted,
    too. ``beyond``: growth of `beyond` of the port since then, if no other link of it duplicates; None if unknown.
    """
    sent, dropped, queued = int(netem["packets"]), int(netem["drops"]), int(netem["qlen"])
    arrived = sent + dropped + queued
    lossy = changing or bool(impairment.loss_ratio or impairment.gilbert or impairment.loss_state)
    low, high = 0, dropped
    if not dropped:
        how = "nothing was dropped"
    elif not lossy:
        low, how = dropped, "no loss was asked: every drop is the full queue's"
    elif arrived <= limit_packets:
        high, how = 0, "fewer packets arrived than the queue holds"
    elif refused == 0:
        high, how = 0, "the redirect into the port was never refused"
    else:
        how = "between none and all drops: this kernel counts them together with the injected losses"
        if impairment.loss_ratio and not impairment.gilbert and not impairment.ecn and not changing:
            low = max(0, dropped - exact.accepted(arrived, impairment.loss_ratio)[1])
            how = "at least the drops beyond the asked loss (binomial, 1e-6)"
        if refused is not None:
            high = min(dropped, refused)
            how += "; at most the packets of all sources that the port refused"
    return Tally(
        sent_packets=sent,
        dropped_packets=dropped,
        queued_packets=queued,
        sent_bytes=netem.get("bytes"),
        tail_drops=Span(min(low, high), high, how),
        duplicated=_duplicated(impairment, arrived, changing, beyond, lossy=lossy),
        reordered=_reordered(impairment, sent + queued, changing),
        corrupted=_corrupted(impairment, sent + queued, high, changing),
    )


_NONE_ASKED = "none was asked"
_CHANGED = "not counted by this kernel, and the impairment changed meanwhile"
_BOUNDS = "within the binomial bounds at 1e-6"


def _duplicated(impairment: Impairment, arrived: int, changing: bool, beyond: int | None, *, lossy: bool) -> Span:
    ratio = impairment.duplicate_ratio or 0.0
    if beyond is not None and 0 <= beyond <= arrived and ratio:
        return Span(beyond, beyond, "counted: packets that entered the port's root beyond those brought to the port")
    if changing:
        return Span(0, arrived, _CHANGED)
    if not ratio:
        return Span(0, 0, _NONE_ASKED)
    # A packet brings a copy with this probability, if it is not lost (sch_netem.c, netem_enqueue), and the copies are
    # counted among those that arrived.
    least = 0
    if not lossy:
        least = exact.first_count(lambda copies: copies >= exact.accepted(arrived - copies, ratio)[0], arrived)
    most = exact.first_count(lambda copies: copies + 1 > exact.accepted(arrived - copies - 1, ratio)[1], arrived)
    return Span(least, most, f"derived: {ratio:.4g} of the packets that arrived, {_BOUNDS}")


def _reordered(impairment: Impairment, passed: int, changing: bool) -> Span:
    ratio, gap = impairment.reorder_ratio or 0.0, impairment.reorder_gap_packets or 1
    if changing:
        return Span(0, passed, _CHANGED)
    if not ratio:
        return Span(0, 0, _NONE_ASKED)

    def trials(ahead: int) -> int:
        """Packets drawn for: ``gap`` - 1 packets behind each one sent ahead are not."""
        return max(0, passed - ahead * (gap - 1))

    least = exact.first_count(lambda ahead: ahead >= exact.accepted(trials(ahead + 1), ratio)[0], passed)
    most = exact.first_count(lambda ahead: ahead + 1 > exact.accepted(trials(ahead), ratio)[1], passed)
    behind = "" if gap == 1 else f" {gap - 1} or more behind one that was sent ahead"
    return Span(least, most, f"derived: {ratio:.4g} of the packets that passed{behind}, {_BOUNDS}")


def _corrupted(impairment: Impairment, passed: int, overflowed: int, changing: bool) -> Span:
    ratio = impairment.corrupt_ratio or 0.0
    if changing:
        return Span(0, passed, _CHANGED)
    if not ratio:
        return Span(0, 0, _NONE_ASKED)
    # netem changes the bit before it finds its queue full.
    least = max(0, exact.accepted(passed, ratio)[0] - overflowed)
    most = min(passed, exact.accepted(passed + overflowed, ratio)[1])
    return Span(least, most, f"derived: {ratio:.4g} of the packets that passed, {_BOUNDS}")


def overflow_problem(impairment: Impairment, tally: Tally, *, limit_packets: int) -> str | None:
    """The problem of a queue that overflowed though neither a rate nor a limit asked for it; None if it did not."""
    if impairment.rate_bps is not None or impairment.limit_packets is not None or not tally.tail_drops.low:
        return None
    return (
        f"its queue overflowed and dropped {tally.tail_drops} of {tally.arrived_packets} packets, which nobody asked "
        f"for: more than limit={limit_packets} packets were on their way at once. Ask for a limit that holds them, or "
        f"for a rate"
    )


MOST_REFUSED_RATIO = 0.01
"""Of the packets that arrived at the carried kernels on a link's way. More losses than this count against the test."""


def tap_warning(at_taps: AtTaps | None) -> str | None:
    """The warning of packets that were lost before netem, of whichever link; None if there were none."""
    if at_taps is None or not at_taps.refused_packets:
        return None
    return (
        f"{at_taps.refused_packets} of {at_taps.came_packets} packets, of this link and those that share its ports, "
        f"found the queue before the carried kernel full and were lost, which nobody asked for"
    )


def tap_problem(at_taps: AtTaps | None) -> str | None:
    """The problem of too many such packets; None if there were not."""
    if at_taps is None or at_taps.refused_packets <= MOST_REFUSED_RATIO * at_taps.came_packets:
        return None
    return f"{tap_warning(at_taps)}: more than it takes. Send less at once, or use an engine with netem of its own"


def port_warning(dropped: AtTaps | None) -> str | None:
    """The warning of packets that a port without a carried kernel dropped; None if there were none."""
    if dropped is None or not dropped.refused_packets:
        return None
    return (
        f"{dropped.refused_packets} of {dropped.came_packets} packets, of this link and those that share its port, "
        "were lost there and not by netem: while the port was given its qdiscs, or because the host did not take them"
    )


def class_packets(classes: Iterable[Mapping[str, Any]], minor: int) -> int | None:
    """The packets that a class has passed on, from ``tc -s -j class show``; None if there is no such class."""
    handle = f"1:{minor:x}"
    return next((int(entry["stats"]["packets"]) for entry in classes if entry.get("handle") == handle), None)
