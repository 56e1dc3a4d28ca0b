"""What netem does with probes, after its model (sch_netem.c): times, sizes, and which draws are visible. Pure."""

from __future__ import annotations

from testbed.judge.flight import HEADERS_BYTES
from testbed.spec.impairment import Impairment

_TABLE_REACH = 4
"""The delay tables of iproute2 reach this many jitters from the mean."""


def longest_s(impairment: Impairment) -> float:
    """The longest delay that netem draws."""
    reach = 1 if impairment.distribution == "uniform" else _TABLE_REACH
    return (impairment.delay_s or 0.0) + reach * (impairment.jitter_s or 0.0)


def shortest_s(impairment: Impairment) -> float:
    """The shortest delay that netem draws, of packets that do not skip it."""
    return 2 * (impairment.delay_s or 0.0) - longest_s(impairment)


def slot_s(impairment: Impairment) -> float:
    """The longest time between two slots; 0 without slots."""
    slot = impairment.slot
    if slot is None:
        return 0.0
    return slot.max_s or (slot.mean_s or 0.0) + _TABLE_REACH * (slot.jitter_s or 0.0)


def wire_bits(impairment: Impairment, size_bytes: int) -> int:
    """The bits that a probe takes of the rate."""
    return 8 * (size_bytes + HEADERS_BYTES + (impairment.overhead_bytes or 0))


def serialisation_s(impairment: Impairment, size_bytes: int) -> float:
    """How long a single probe takes at the rate; 0 where a token bucket passes it at once."""
    if not impairment.rate_bps or impairment.bucket_bytes is not None:
        return 0.0
    return wire_bits(impairment, size_bytes) / impairment.rate_bps


def lost_by_number(impairment: Impairment, count: int) -> set[int]:
    """The probes of ``count`` that are lost by their number, from 0; the first packet has number 1."""
    ranges = [range(first - 1, min(last, count)) for first, last in impairment.drop_packets]
    if impairment.drop_every:
        ranges.append(range(impairment.drop_every - 1, count, impairment.drop_every))
    return set().union(*ranges)


def chain_visible(impairment: Impairment) -> bool:
    """Whether arrivals show the state of the loss model: everything is lost in one, nothing in the other."""
    disturbed = impairment.by_number or impairment.duplicate_ratio or impairment.corrupt_ratio
    return impairment.gilbert is not None and impairment.gilbert[2:] == (1.0, 0.0) and not disturbed


def gaps_visible(impairment: Impairment) -> bool:
    """Whether arrivals show which packets could skip the delay: lost packets and duplicates count in a gap."""
    disturbed = (
        impairment.by_number
        or impairment.loss_ratio
        or impairment.bursty
        or impairment.duplicate_ratio
        or impairment.corrupt_ratio
    )
    return (impairment.reorder_gap_packets or 1) == 1 or not disturbed
