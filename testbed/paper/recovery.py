"""TCP's waiting times in theory: probe, time-out, back-off. Pure.

RFC 6298 (retransmission time-out), RFC 8985 (RACK and tail loss probe), RFC 5681 (duplicate acknowledgements).
"""

from __future__ import annotations

from collections.abc import Sequence

MIN_RTO_S = 0.2
"""Linux's shortest time-out (TCP_RTO_MIN, include/net/tcp.h); RFC 6298 2.4 has 1 s."""
INITIAL_RTO_S = 1.0
"""Time-out of a SYN, before the round trip is known (RFC 6298 2.1)."""
DELAYED_ACK_S = 0.2
"""A probe's allowance for a delayed acknowledgment of a single segment (RFC 8985 7.2: WCDelAckT)."""


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


def doubles(waits_s: Sequence[float], first_s: float) -> bool:
    """Whether at least three waits are those of a time-out of ``first_s`` that is doubled each time (RFC 6298 5.5).

    A timer is never early, but the kernel reports its time-out rounded. It is late by up to an eighth
    (kernel/time/timer.c: LVL_CLK_DIV), and on a busy machine by a time that does not grow with the wait. A busy machine
    also stamps packets late: a wait that begins with such a packet looks shorter, as the one before looked longer.
    """
    if first_s <= 0:
        raise ValueError(f"first_s={first_s}: a time-out is above 0")
    late_s = _STAMPED_LATE_S  # at most, of the packet that a wait begins with
    for number, wait_s in enumerate(waits_s):
        due_s = first_s * 2**number
        if not _EARLIEST * due_s - late_s <= wait_s <= _LATEST * due_s + _BUSY_S:
            return False
        late_s = min(max(wait_s - due_s, _STAMPED_LATE_S), _BUSY_S)
    return len(waits_s) >= 3


_EARLIEST, _LATEST, _BUSY_S, _STAMPED_LATE_S = 0.95, 1.25, 0.1, 0.03
