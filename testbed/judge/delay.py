"""Judge the delay that probes had. Pure."""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

from testbed import units
from testbed.evidence.proof import Check
from testbed.evidence.verdict import Verdict
from testbed.judge import statistics as exact
from testbed.judge.case import ANOTHER_PATH, ANOTHER_QDISC, TICK_S, TOLERANCE_S, Case, milliseconds
from testbed.judge.flight import Flight
from testbed.judge.model import longest_s, serialisation_s
from testbed.spec.impairment import Impairment

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Quantiles that are tested where there is jitter."""
_LATE_RATIO = 0.15
"""A busy machine delays some probes itself: this share may be later than the tolerance."""
_MOST_CLOCK_RATIO = 0.1
"""The most that two machines' clocks may differ from what is known, as a share of the delay that is judged."""
_TABLE_UNIT = 8192
_PSCHED = 15.625
"""tc that cannot read /proc/net/psched counts time in units of 64 ns × 15.625 (iproute2: tc_core.c)."""
_LONGER = "longer than asked: the machine is overloaded, or packets wait in another queue on their way"


def delay(case: Case) -> list[Check]:
    """The one-way delay of probes that did not skip it."""
    impairment, flight = case.impairment, case.flight
    early = case.early(flight)
    delays = {number: delay_s for number, delay_s in flight.delays_s.items() if number not in (early or ())}
    check = Check(field="delay", asked=_words(impairment))
    if not delays:
        how = f"all {len(early)} that arrived had skipped the delay" if early else "nothing arrived"
        return [replace(check, how=f"{how}: not judged")]
    values = sorted(delays.values())
    seen = f"median {milliseconds(statistics.median(values))}, {milliseconds(values[0])} to {milliseconds(values[-1])}"
    spread = f", σ {milliseconds(statistics.pstdev(values))}" if impairment.jitter_s else ""
    error_s = flight.clock_error_ns / 1e9
    check = replace(check, seen=seen + spread + (f", clocks ± {milliseconds(error_s)}" if error_s else ""))
    if early is None:
        return [replace(check, how="too short to tell from packets that skip it: shown, not judged")]
    base_s = (impairment.delay_s or 0.0) + serialisation_s(impairment, flight.size_bytes)
    if error_s > max(TOLERANCE_S, base_s * _MOST_CLOCK_RATIO):
        return [replace(check, how="the clocks of the two machines are not known well enough: shown, not judged")]
    if impairment.jitter_s:
        return [_jittered(case, check, delays, base_s)]
    if impairment.slot is not None:
        return [replace(check, how="waiting for a slot adds to it: shown, not judged")]
    return [_constant(case, check, values, base_s)]


def _words(impairment: Impairment) -> str:
    mean = units.format_time(impairment.delay_s or 0.0)
    if not impairment.jitter_s:
        return mean
    return f"{mean} ± {units.format_time(impairment.jitter_s)} {impairment.distribution}"


def _constant(case: Case, check: Check, values: Sequence[float], base_s: float) -> Check:
    """A delay without jitter: no probe arrives before it, and half of them within the tolerance after it."""
    median_s = statistics.median(values)
    early = sum(value < base_s - TICK_S for value in values)
    if early and case.impairment.delay_s:
        how = f"{early} of {len(values)} came before the delay was over"
        return _failed(case, check, how, median_s)
    limit_s = base_s + case.tolerance_s
    in_time = sum(value <= limit_s for value in values)
    late, few = _mostly_late(case, in_time, len(values))
    how = f"none before it, {in_time} of {len(values)} within {milliseconds(limit_s)}: order statistics of the median"
    if late:
        return _failed(case, check, how, median_s)
    return replace(check, verdict=Verdict.SHOWN if few else Verdict.HOLDS, how=how + few)


def _failed(case: Case, check: Check, how: str, median_s: float) -> Check:
    """A delay that is not as asked, with what probably caused it."""
    asked_s = case.impairment.delay_s or 0.0
    clean_s = statistics.median(case.clean.delays_s.values()) if case.clean.delays_s else 0.0
    check = replace(check, verdict=Verdict.FAILS, how=how)
    if asked_s and abs((median_s - clean_s) * _PSCHED - asked_s) < asked_s / 4 + case.tolerance_s:
        return replace(
            check,
            cause="1/15.6 of what was asked: the tc that set it could not read /proc/net/psched; mount /proc where it "
            "runs",
        )
    if median_s < clean_s + asked_s / 10 + case.tolerance_s:
        return replace(check, cause=f"as fast as without impairment: {ANOTHER_PATH}")
    if median_s < asked_s:
        return replace(check, cause=f"shorter than asked: {ANOTHER_QDISC}")
    return _longer(check, how)


def _longer(check: Check, how: str) -> Check:
    return replace(check, verdict=Verdict.FAILS, how=how, cause=_LONGER, maybe_busy=True)


def _mostly_late(case: Case, in_time: int, count: int) -> tuple[bool, str]:
    """Whether fewer than half came in time; and a note where there are too few probes to detect that."""
    few = exact.at_most(0, count, 0.5) >= case.alpha
    return exact.at_most(in_time, count, 0.5) < case.alpha, "; too few to detect a longer delay" if few else ""


def _jittered(case: Case, check: Check, delays: dict[int, float], base_s: float) -> Check:
    """Quantiles of the asked distribution: for each, a binomial test of the number of delays below it.

    Where order is kept a packet leaves no earlier than its predecessor: its delay is the larger of its own draw and of
    what is left of the predecessor's. The test of a quantile takes only probes for which the latter lies below it:
    their own draw alone decides whether they arrive before it. If all are late these tests have hardly any probes; so
    half of all must arrive within the longest delay that was asked.
    """
    impairment, tolerance_s = case.impairment, case.tolerance_s
    exactly_tested = not impairment.delay_correlation and impairment.slot is None
    if not exactly_tested or (impairment.distribution != "uniform" and not case.table):
        return replace(check, how="there is no exact test of it: shown, not judged")
    quantile = _quantile_of(impairment, case.table)
    floors_s = {} if impairment.reorder_by_jitter and not impairment.rate_bps else _floors_s(case.flight)
    most_s = base_s + longest_s(impairment) - (impairment.delay_s or 0.0) + tolerance_s
    within = sum(delay_s <= most_s for delay_s in delays.values())
    late, few = _mostly_late(case, within, len(delays))
    notes = [f"{within} of {len(delays)} within {milliseconds(most_s)}{few}"]
    if late:
        how = f"{notes[0]}, and no delay longer was asked"
        return _longer(check, how)
    for level in LEVELS:
        deviation_s, share = quantile(level)
        at_s = base_s + deviation_s
        if at_s <= 0:
            continue
        usable = [delay_s for number, delay_s in delays.items() if floors_s.get(number, -math.inf) < at_s]
        n, before = len(usable), sum(delay_s <= at_s - TICK_S for delay_s in usable)
        in_time = sum(delay_s <= at_s + tolerance_s for delay_s in usable)
        notes.append(f"{level:.0%} by {milliseconds(at_s)}: {before} to {in_time} of {n}")
        too_early = exact.at_least(before, n, share) < case.alpha / 2 if n else False
        too_late = exact.at_most(in_time, n, share * (1 - _LATE_RATIO)) < case.alpha / 2 if n else False
        if too_late:
            return _longer(check, f"{notes[-1]} came within it, a share of {share:.3g} was asked")
        if too_early:
            how = f"{notes[-1]} came before it, a share of {share:.3g} was asked"
            return _failed(case, check, how, statistics.median(delays.values()))
    return replace(check, verdict=Verdict.SHOWN if few else Verdict.HOLDS, how="; ".join(notes))


def _floors_s(flight: Flight) -> dict[int, float]:
    """The least delay that each probe can have, because its predecessor leaves first."""
    floors_s: dict[int, float] = {}
    latest_ns = -math.inf
    for number, arrived_ns in sorted(flight.first.items()):
        floors_s[number] = (latest_ns - flight.sent_ns[number]) / 1e9
        latest_ns = max(latest_ns, arrived_ns)
    return floors_s


def _quantile_of(impairment: Impairment, table: Sequence[int]) -> Callable[[float], tuple[float, float]]:
    """A function from a level to the deviation from the mean delay there, and the share that lies at or below it."""
    jitter_s = impairment.jitter_s or 0.0
    if impairment.distribution == "uniform":
        return lambda level: ((2 * level - 1) * jitter_s, level)
    ordered = sorted(table)

    def at(level: float) -> tuple[float, float]:
        value = ordered[min(int(level * len(ordered)), len(ordered) - 1)]
        return value * jitter_s / _TABLE_UNIT, bisect.bisect_right(ordered, value) / len(ordered)

    return at
