"""What a netem counted, each kind of drop apart as far as it can be known. Pure.

netem counts an injected loss and a drop by its full queue in one number (sch_netem.c: qdisc_qstats_drop,
qdisc_drop_all), and HTB above it does not tell them apart either: it counts both as its own (sch_htb.c,
net_xmit_drop_count is 1 for __NET_XMIT_BYPASS). But only the full queue returns an error to whoever sent the packet,
and the redirect that feeds a carried port counts those errors as ``overlimits`` (act_mirred.c): of all sources of the
port together, exactly.

Duplicates, packets sent ahead and corrupted ones netem does not count at all. Second copies come in at the root once
more (sch_netem.c, netem_enqueue), and so are what the port's root saw beyond what the redirect brought; the others
follow from the asked share and the number of packets that it was drawn for, within the counts that are not condemned
at 1e-6.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from testbed.evidence.proof import AtTaps, Span, Tally
from testbed.judge import statistics as exact
from testbed.spec.impairment import Impairment


def overflows(filters: Iterable[Mapping[str, Any]]) -> int | None:
    """How many packets the redirect into a port was refused, from ``tc -s -j filter show`` of its entry."""
    return _redirect(filters, "overlimits")


def redirected(filters: Iterable[Mapping[str, Any]]) -> int | None:
    """How many packets the redirect has brought to a port, the refused ones included; from the same."""
    return _redirect(filters, "packets")


def _redirect(filters: Iterable[Mapping[str, Any]], name: str) -> int | None:
    counted = [
        int(action["stats"][name])
        for each in filters
        for action in each.get("options", {}).get("actions", ())
        if action.get("kind") == "mirred" and name in action.get("stats", {})
    ]
    return sum(counted) if counted else None


def root_packets(qdiscs: Iterable[Mapping[str, Any]]) -> int | None:
    """How many packets came to the port's root, netem's second copies included; None if it has none of ours."""
    for each in qdiscs:
        if each.get("kind") == "htb" and each.get("handle") == "1:":
            return int(each["packets"]) + int(each["drops"]) + int(each["qlen"])
    return None


def beyond(entry: Iterable[Mapping[str, Any]], qdiscs: Iterable[Mapping[str, Any]]) -> int | None:
    """How many packets came to a port's root that its redirect did not bring; None where either is not counted."""
    brought, came = redirected(entry), root_packets(qdiscs)
    return None if brought is None or came is None else came - brought


def tally(
    asked: Impairment, netem: Mapping[str, Any], *, limit_packets: int, refused: int | None = None,
    changing: bool = False, beyond: int | None = None,
) -> Tally:  # fmt: skip
    """The counters of a link's netem since it was put there.

    ``limit_packets``: what its queue holds. ``refused``: what `overflows` of the port's entry grew by since then; None
    where nothing counts it. ``changing``: what is asked changed meanwhile, so losses of earlier steps are counted, too.
    ``beyond``: how many packets more came to the port's root than were brought to it since then, where this link alone
    doubles any; None where that is not known.
    """
    sent, dropped, queued = int(netem["packets"]), int(netem["drops"]), int(netem["qlen"])
    arrived = sent + dropped + queued
    lossy = changing or bool(asked.loss_ratio or asked.gilbert or asked.loss_state)
    low, high = 0, dropped
    if not dropped:
        how = "nothing was dropped"
    elif not lossy:
        low, how = dropped, "no loss was asked: every drop is the full queue's"
    elif arrived <= limit_packets:
        high, how = 0, "fewer packets came than the queue holds"
    elif refused == 0:
        high, how = 0, "the redirect into the port was never refused"
    else:
        how = "between none and all drops: this kernel counts them together with the injected losses"
        if asked.loss_ratio and not asked.gilbert and not asked.ecn and not changing:
            low = max(0, dropped - exact.accepted(arrived, asked.loss_ratio)[1])
            how = "at least what exceeds the asked loss (binomial, 1e-6)"
        if refused is not None:
            high = min(dropped, refused)
            how += "; at most what the redirect into the port was refused, of all its sources"
    return Tally(
        sent_packets=sent,
        dropped_packets=dropped,
        queued_packets=queued,
        tail_drops=(min(low, high), high),
        tail_drops_from=how,
        duplicated=_duplicated(asked, arrived, changing, beyond, lossy=lossy),
        reordered=_reordered(asked, sent + queued, changing),
        corrupted=_corrupted(asked, sent + queued, high, changing),
    )


_NONE_ASKED = "none was asked"
_CHANGED = "not counted by this kernel, and what was asked changed meanwhile"


def _duplicated(asked: Impairment, arrived: int, changing: bool, beyond: int | None, *, lossy: bool) -> Span:
    share = asked.duplicate_ratio or 0.0
    if beyond is not None and 0 <= beyond <= arrived and share:
        return Span(beyond, beyond, "counted: so many more came to the port's root than were brought to the port")
    if changing:
        return Span(0, arrived, _CHANGED)
    if not share:
        return Span(0, 0, _NONE_ASKED)
    # A packet brings a copy with this probability, if it is not lost (sch_netem.c, netem_enqueue), and the copies are
    # counted among those that arrived.
    least = (
        0 if lossy else exact.first_count(lambda copies: copies >= exact.accepted(arrived - copies, share)[0], arrived)
    )
    most = exact.first_count(lambda copies: copies + 1 > exact.accepted(arrived - copies - 1, share)[1], arrived)
    return Span(least, most, f"derived: {share:.4g} of what came, within the binomial's bounds at 1e-6")


def _reordered(asked: Impairment, passed: int, changing: bool) -> Span:
    share, gap = asked.reorder_ratio or 0.0, asked.reorder_gap_packets or 1
    if changing:
        return Span(0, passed, _CHANGED)
    if not share:
        return Span(0, 0, _NONE_ASKED)

    def trials(ahead: int) -> int:
        """Packets that chance decided about: after each that went ahead, ``gap`` - 1 wait without being asked."""
        return max(0, passed - ahead * (gap - 1))

    least = exact.first_count(lambda ahead: ahead >= exact.accepted(trials(ahead + 1), share)[0], passed)
    most = exact.first_count(lambda ahead: ahead + 1 > exact.accepted(trials(ahead), share)[1], passed)
    which = "what passed" if gap == 1 else f"what passed {gap - 1} or more behind one that went ahead"
    return Span(least, most, f"derived: {share:.4g} of {which}, within the binomial's bounds at 1e-6")


def _corrupted(asked: Impairment, passed: int, overflowed: int, changing: bool) -> Span:
    share = asked.corrupt_ratio or 0.0
    if changing:
        return Span(0, passed, _CHANGED)
    if not share:
        return Span(0, 0, _NONE_ASKED)
    # netem changes the bit before it finds its queue full.
    least = max(0, exact.accepted(passed, share)[0] - overflowed)
    most = min(passed, exact.accepted(passed + overflowed, share)[1])
    return Span(least, most, f"derived: {share:.4g} of what passed, within the binomial's bounds at 1e-6")


def overflow_problem(asked: Impairment, tally: Tally, *, limit_packets: int) -> str | None:
    """What to say of a queue that overflowed though neither a rate nor a limit asked for it; None if it did not."""
    if asked.rate_bps is not None or asked.limit_packets is not None or not tally.tail_drops[0]:
        return None
    low, high = tally.tail_drops
    count = str(low) if low == high else f"{low} to {high}"
    return (
        f"its queue overflowed and dropped {count} of {tally.arrived_packets} packets, which nobody asked for: more "
        f"than limit={limit_packets} packets were on their way at once. Ask for a limit that holds them, or for a rate"
    )


MOST_REFUSED_RATIO = 0.01
"""Of the packets that came to the carried kernels on a link's way. What is lost beyond it, counts against the test."""


def tap_warning(at_taps: AtTaps | None) -> str | None:
    """What to say of packets that were lost before netem could see them, whichever link they were of; None of none."""
    if at_taps is None or not at_taps.refused_packets:
        return None
    return (
        f"{at_taps.refused_packets} of {at_taps.came_packets} packets, of this link and those that share its ports, "
        f"found the queue before the carried kernel full and were lost, which nobody asked for"
    )


def tap_problem(at_taps: AtTaps | None) -> str | None:
    """What to say where these were too many for the result to count; None where not."""
    if at_taps is None or at_taps.refused_packets <= MOST_REFUSED_RATIO * at_taps.came_packets:
        return None
    return f"{tap_warning(at_taps)}: more than it takes. Send less at once, or use an engine with netem of its own"


def class_packets(classes: Iterable[Mapping[str, Any]], minor: int) -> int | None:
    """The packets that a class has passed on, from ``tc -s -j class show``; None if there is no such class."""
    handle = f"1:{minor:x}"
    return next((int(each["stats"]["packets"]) for each in classes if each.get("handle") == handle), None)
