"""What a netem counted, each kind of drop apart as far as it can be known. Pure.

netem counts an injected loss and a drop by its full queue in one number (sch_netem.c: qdisc_qstats_drop,
qdisc_drop_all), and HTB above it does not tell them apart either: it counts both as its own (sch_htb.c,
net_xmit_drop_count is 1 for __NET_XMIT_BYPASS). But only the full queue returns an error to whoever sent the packet,
and the redirect that feeds a carried port counts those errors as ``overlimits`` (act_mirred.c): of all sources of the
port together, exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from testbed.judge import statistics as exact
from testbed.model.evidence import Tally
from testbed.model.impairment import Impairment


def overflows(filters: Iterable[Mapping[str, Any]]) -> int | None:
    """How many packets the redirect into a port was refused, from ``tc -s -j filter show`` of its entry."""
    counted = [
        int(action["stats"]["overlimits"])
        for each in filters
        for action in each.get("options", {}).get("actions", ())
        if action.get("kind") == "mirred" and "overlimits" in action.get("stats", {})
    ]
    return sum(counted) if counted else None


def tally(
    asked: Impairment, netem: Mapping[str, Any], *, limit_packets: int, refused: int | None = None,
    changing: bool = False,
) -> Tally:  # fmt: skip
    """The counters of a link's netem since it was put there.

    ``limit_packets``: what its queue holds. ``refused``: what `overflows` of the port's entry grew by since then; None
    where nothing counts it. ``changing``: what is asked changed meanwhile, so losses of earlier steps are counted, too.
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
        duplicated_packets=None if asked.duplicate_ratio else 0,
    )


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


def class_packets(classes: Iterable[Mapping[str, Any]], minor: int) -> int | None:
    """The packets that a class has passed on, from ``tc -s -j class show``; None if there is no such class."""
    handle = f"1:{minor:x}"
    return next((int(each["stats"]["packets"]) for each in classes if each.get("handle") == handle), None)
