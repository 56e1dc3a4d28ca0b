"""Judge the rate at which a train of probes left. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from testbed import units
from testbed.evidence.proof import Check
from testbed.evidence.verdict import Verdict
from testbed.judge.case import ANOTHER_PATH, Case, milliseconds
from testbed.judge.flight import Flight
from testbed.judge.model import longest_s, shortest_s, wire_bits
from testbed.spec.impairment import Impairment

_ABOVE, _BELOW = 1.02, 0.9
_STALL_S = 0.02
"""A whole train may be late by this without the link's doing: that of 1 Gbit/s lasts 5 ms, as long as one turn of
another process."""
_OWN_RATE = 1.5
"""A slow train is blamed on the link only if the machine alone is faster by this factor."""
_SLOWER = "another queue on the way is slower, or the machine is overloaded"


def seen_rate_bps(impairment: Impairment, train: Flight) -> float | None:
    """The rate of a train: all bits but the first packet's, per time from the first arrival to the last."""
    times_ns = [arrived_ns for _, arrived_ns in train.arrivals]
    if len(times_ns) < 2 or max(times_ns) <= min(times_ns):
        return None
    return (len(times_ns) - 1) * wire_bits(impairment, train.size_bytes) / ((max(times_ns) - min(times_ns)) / 1e9)


def rate(case: Case) -> list[Check]:
    """The rate, where one is asked."""
    impairment = case.impairment
    if not impairment.rate_bps or case.train is None:
        return []
    check = Check(field="rate", asked=units.format_rate(impairment.rate_bps))
    early = case.early(case.train)
    # What skips the delay skips the rate.
    kept = [(number, time_ns) for number, time_ns in case.train.arrivals if number not in (early or ())]
    train = replace(case.train, arrivals=_without_overtakers(kept) if impairment.reorder_ratio else kept)
    rate_bps = seen_rate_bps(impairment, train)
    if rate_bps is None:
        return [replace(check, how=f"{len(train.arrivals)} of a train arrived: not judged")]
    seen = f"{_megabits(rate_bps)} (a train of {train.count}, {len(train.arrivals)} arrived)"
    if impairment.reorder_ratio:
        total_bps = seen_rate_bps(impairment, case.train) or rate_bps
        more = len(case.train.arrivals) - len(train.arrivals)
        seen += f"; {_megabits(total_bps)} with {more} more that skipped the delay"
    check = replace(check, seen=seen)
    if impairment.bucket_bytes is not None:
        return [_bucket(impairment, train, check)]
    one_s = wire_bits(impairment, train.size_bytes) / impairment.rate_bps
    blurred = 4 * (longest_s(impairment) - (impairment.delay_s or 0)) > train.count * one_s * 0.1
    reordered = impairment.reorder_ratio and case.early(case.flight) is None
    if impairment.duplicate_ratio or impairment.slot or blurred or reordered:
        return [replace(check, how="jitter, duplicates or reordering blur its ends: shown, not judged")]
    if rate_bps > impairment.rate_bps * _ABOVE and _too_soon(impairment, train, one_s):
        return [replace(check, verdict=Verdict.FAILS, how="faster than asked", cause=ANOTHER_PATH)]
    return [_not_too_fast(case, train, check, rate_bps, one_s)]


def _too_soon(impairment: Impairment, train: Flight, one_s: float) -> bool:
    """Whether the last arrived before the rate lets all of them pass, since the first was sent.

    A machine that is late with the first arrivals brings them closer together, and none of them too soon.
    """
    first = min(number for number, _ in train.arrivals)
    last_ns = max(arrived_ns for _, arrived_ns in train.arrivals)
    took_s = (last_ns - train.sent_ns[first]) / 1e9 - max(shortest_s(impairment), 0.0)
    return len(train.arrivals) * one_s > took_s * _ABOVE


def _not_too_fast(case: Case, train: Flight, check: Check, rate_bps: float, one_s: float) -> Check:
    """Judge whether a rate is too low."""
    gaps_s = _gaps_s(train)
    lasts_s, late_s = len(gaps_s) * one_s, sum(gaps_s) - len(gaps_s) * one_s
    own_limit = _own_limit(case, train)
    if rate_bps >= (case.impairment.rate_bps or 0.0) * _BELOW:
        least = max(1 - _BELOW, _STALL_S / (lasts_s + _STALL_S))
        low = f"not one too low: {own_limit}" if own_limit else f"or more than {least:.0%} too low"
        return replace(
            check, verdict=Verdict.HOLDS, how=f"would detect a rate more than {_ABOVE - 1:.0%} too high, {low}"
        )
    if own_limit:
        return replace(check, how=f"{own_limit}: shown, not judged")
    if late_s < max(_STALL_S, lasts_s * (1 / _BELOW - 1)):
        how = f"late by {milliseconds(late_s)}, no more than a busy machine may be: shown, not judged"
        return replace(check, how=how)
    return replace(check, verdict=Verdict.FAILS, how="slower than asked", cause=_SLOWER, maybe_busy=True)


def _without_overtakers(arrivals: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Arrivals in the order of their numbers, as everything that keeps a rate has it.

    Probes that skipped the delay but came late, because the machine was busy, are known by those that they overtook.
    """
    kept: list[tuple[int, int]] = []
    latest_ns = -math.inf
    for number, arrived_ns in sorted(arrivals):
        if arrived_ns >= latest_ns:
            kept.append((number, arrived_ns))
            latest_ns = arrived_ns
    return kept


def _gaps_s(train: Flight) -> list[float]:
    """Times from each arrival to that of the next probe sent.

    A packet lost by a slow receiver took the link's time, one lost by the link did not; so arrivals behind a loss say
    nothing.
    """
    by_time = sorted((arrived_ns, number) for number, arrived_ns in train.arrivals)
    return [
        (next_ns - arrived_ns) / 1e9
        for (arrived_ns, number), (next_ns, next_number) in pairwise(by_time)
        if next_number == number + 1
    ]


def _own_limit(case: Case, train: Flight) -> str:
    """Why a slow train may be the machine's own doing; empty if it is the link's."""
    asked_bps = case.impairment.rate_bps or 0.0
    own_bps = None if case.clean_train is None else seen_rate_bps(case.impairment, case.clean_train)
    if own_bps is None or own_bps < asked_bps * _OWN_RATE:
        return f"the machine's own rate without impairment is {_megabits(own_bps)}"
    lasted_s = (max(train.sent_ns) - min(train.sent_ns)) / 1e9
    passes = (train.count - 1) * (1 - (case.impairment.mean_loss or 0.0))
    bits = passes * wire_bits(case.impairment, train.size_bytes)
    if lasted_s > 0 and bits / lasted_s < asked_bps * _ABOVE:
        return f"the machine sent no more than {_megabits(bits / lasted_s)}"
    return ""


def _megabits(rate_bps: float | None) -> str:
    return "unknown" if rate_bps is None else f"{rate_bps / 1e6:.4g} Mbit/s"


def _bucket(impairment: Impairment, train: Flight, check: Check) -> Check:
    """Never more than the bucket holds and what the rate has filled into it since (tc-tbf(8))."""
    times_ns = [arrived_ns for _, arrived_ns in train.arrivals]
    lasted_s = (max(times_ns) - min(times_ns)) / 1e9
    allowed = (impairment.bucket_bytes or 0) * 8 + (impairment.rate_bps or 0) * lasted_s * _ABOVE
    passed = (len(times_ns) - 1) * wire_bits(impairment, train.size_bytes)
    return replace(
        check,
        asked=f"{check.asked} after a bucket of {impairment.bucket_bytes} bytes",
        verdict=Verdict.FAILS if passed > allowed else Verdict.HOLDS,
        how=f"{passed} bits passed in {milliseconds(lasted_s)}, {allowed:.0f} may",
        cause="the packets took another path, or another qdisc took the bucket's place" if passed > allowed else "",
    )
