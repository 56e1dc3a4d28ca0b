"""What theory says of waiting times in TCP: probe, time-out, back-off. Pure.

RFC 6298 (retransmission time-out), RFC 8985 (RACK and tail loss probe), RFC 5681 (duplicate acknowledgements).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

MIN_RTO_S = 0.2
"""Linux's least time-out (TCP_RTO_MIN, include/net/tcp.h); RFC 6298 2.4 has 1 s."""
INITIAL_RTO_S = 1.0
"""Of a SYN, whose round trip is not known yet (RFC 6298 2.1)."""
DELAYED_ACK_S = 0.2
"""What a probe allows for a delayed acknowledgment of a single segment (RFC 8985 7.2: WCDelAckT)."""
DUPLICATE_ACKS = 3
"""After so many a segment counts as lost (RFC 5681 3.2; RFC 8985 6.2 where no reordering was seen)."""


def first_rto_s(round_trip_s: float) -> float:
    """The time-out after one measured round trip: R + max(4 · R/2, Linux's least) (RFC 6298 2.2)."""
    return round_trip_s + max(2 * round_trip_s, MIN_RTO_S)


def probe_timeout_s(*, srtt_s: float, rto_s: float, segments_in_flight: int) -> float:
    """When a tail loss probe is due after the last segment, or the last acknowledgment (RFC 8985 7.2).

    Twice the smoothed round trip, with an allowance for a delayed acknowledgment if one segment alone is in flight;
    never later than the time-out.
    """
    if segments_in_flight < 1:
        raise ValueError(f"segments_in_flight={segments_in_flight}: there is nothing to probe for")
    return min(2 * srtt_s + (DELAYED_ACK_S if segments_in_flight == 1 else 0.0), rto_s)


def ratios(waits_s: Sequence[float]) -> list[float]:
    """Each waiting time over the one before: 2 in RFC 6298 5.5. Raises ValueError for one that is not above 0."""
    if any(each <= 0 for each in waits_s):
        raise ValueError(f"waiting times of {list(waits_s)} s: each must be above 0")
    return [later / earlier for earlier, later in pairwise(waits_s)]


def doubles(waits_s: Sequence[float], *, tolerance: float = 0.3) -> bool:
    """Whether each waiting time is about twice the one before, of at least three.

    The kernel's timer wheel is late by up to an eighth of a wait (kernel/time/timer.c: LVL_CLK_DIV), so that an honest
    ratio lies between 2 / 1.125 and 2 · 1.125; the rest of ``tolerance`` is for a busy machine.
    """
    found = ratios(waits_s)
    return len(found) >= 2 and all(2 * (1 - tolerance) <= each <= 2 * (1 + tolerance) for each in found)
