"""Judge a flight of probes against an impairment, by exact tests. Pure.

The models are netem's own (sch_netem.c): which draws it makes for a packet, in which order. Every verdict ``fails``
is wrong at most `alpha` of the time on an honest link, for all fields of the link together; what has no exact test is
shown and not judged.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise
from typing import Any

from testbed import units
from testbed.errors import InvalidValueError
from testbed.evidence.proof import Check
from testbed.evidence.verdict import Verdict
from testbed.judge import statistics as exact
from testbed.spec.impairment import Impairment

HEADERS_BYTES = 14 + 20 + 8
"""Ethernet, IPv4 and UDP, before each probe's own bytes; netem counts them all."""

MOST_S = 2.5
"""How long the probes of one direction are sent at most, unless said otherwise."""

_PACE_S = 0.0005
_LEAST = 200
# What is shown of losses in bursts is little without so many.
_LEAST_BURSTY = 4000
# No share needs more within any time that may be asked; and beyond it nobody waits.
_MOST = 100_000_000
_LONGEST_S = 600.0
# Of a share, where no tolerance is asked; and never less than the second, absolute.
_HALF = 0.5
_SMALL_BYTES, _LARGE_BYTES, _TRAIN_BYTES = 64, 1000, 1400
_TRAIN_S = 0.4
# A train that is longer than half of the queue is sent by so much faster than the rate: the queue never runs dry, and
# holds what is too much.
_AHEAD = 1.1
_SPREAD = 100
_SPREAD_PACE_S = 0.025
_TRAIN_AT_ONCE = 400
_TRAIN_MOST = 8000
# Below this rate a train of large packets takes too long.
_SLOW_BPS = 500e3

# A machine that is busy delays some of the probes itself: so many may be later than the tolerance.
_LATE = 0.15
_TOLERANCE_S = 0.0005
_TOLERANCE = 0.002
_TICK_S = 1e-6
# A sender that moves between processors may overtake itself: so many may be out of order without netem's doing.
_SELF_REORDERED = 0.001
_RATE_ABOVE, _RATE_BELOW = 1.02, 0.9
# A whole train may be late by so much without the link's doing: that of 1 Gbit/s lasts 5 ms, as long as one turn of
# another process.
_STALL_S = 0.02
# What is slower than asked is blamed on the link only if the machine alone is so much faster.
_OWN_RATE = 1.5


class BusyCause(StrEnum):
    """Causes that a busy machine may have."""

    LONGER = "longer than asked: the machine is overloaded, or packets wait in another queue on their way"
    SLOWER = "another queue on the way is slower, or the machine is overloaded"


_TABLE_UNIT = 8192
_TABLE_REACH = 4
_TESTS = 21
"""More are never made of one direction: two of each of five quantiles, one of the longest delay, two of each share,
two of a rate."""
_LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)
# tc that cannot read /proc/net/psched counts time in units of 64 ns × 15.625 (facts of iproute2: tc_core.c).
_PSCHED = 15.625


@dataclass(frozen=True, kw_only=True)
class Flight:
    """Probes of one direction: when each was sent, what arrived."""

    sent_ns: Sequence[int]
    arrivals: Sequence[tuple[int, int]]
    """The number and the time of each arrival, in order of arrival."""
    damaged: int = 0
    """Arrivals whose CRC was wrong."""
    size_bytes: int = _SMALL_BYTES

    @property
    def count(self) -> int:
        """How many were sent."""
        return len(self.sent_ns)

    @property
    def first(self) -> dict[int, int]:
        """When each probe arrived first."""
        first: dict[int, int] = {}
        for number, when in self.arrivals:
            first.setdefault(number, when)
        return first

    @property
    def delays_s(self) -> dict[int, float]:
        """The one-way delay of each probe that arrived; seconds (RFC 7679)."""
        return {number: (when - self.sent_ns[number]) / 1e9 for number, when in self.first.items()}

    @property
    def reordered(self) -> int:
        """Arrivals with a smaller number than one that came before (RFC 4737, 3.3); duplicates left out."""
        count, highest = 0, -1
        for number in self.first:
            count += number < highest
            highest = max(highest, number)
        return count


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to probe one impairment."""

    count: int
    pace_s: float
    size_bytes: int
    checksum: bool
    train: int
    """Probes sent at once to measure a rate; 0 where there is none."""
    train_bytes: int
    train_pace_s: float
    """0: all at once, which half of the queue holds."""
    clean_train: int
    """Probes sent at once without impairment, to measure the machine's own rate."""
    spread: int
    """Probes sent so far apart that jitter shows, where order is kept and the next would wait for the one before."""
    spread_pace_s: float
    quiet_s: float
    """So long without an arrival, and none comes any more."""


def vet(*, alpha: float, most_s: float, tolerance: float | None = None) -> None:
    """Refuse what no proof can be made with. Raises InvalidValueError with every problem."""
    problems = [
        f"{name}={value!r}: must be {bounds}"
        for name, value, low, high, bounds in (
            ("alpha", alpha, 1e-12, 0.1, "a share from 1e-12 to 0.1: how often an honest link may be condemned"),
            ("most_s", most_s, 0.1, _LONGEST_S, f"a number of seconds from 0.1 to {_LONGEST_S:g}"),
            ("tolerance", 1.0 if tolerance is None else tolerance, 0.001, 1.0,
             "a number from 0.001 to 1: by what part of itself a share must be off to be found"),
        )
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high
    ]  # fmt: skip
    if problems:
        raise InvalidValueError(problems)


def plan(
    asked: Impairment,
    *,
    limit_packets: int,
    alpha: float = exact.ALPHA,
    most_s: float = MOST_S,
    tolerance: float | None = None,
) -> Plan:
    """Sample size, pace and size of the probes.

    So many that each share which is off by ``tolerance`` of itself is found with probability `exact.POWER`; without
    one, by half of itself or 0.2 %, or as near to that as there is time for. The pace leaves the link's queue empty
    between two probes. ``limit_packets``: what the queue holds. Raises InvalidValueError where a tolerance takes more
    time than ``most_s``.
    """
    vet(alpha=alpha, most_s=most_s, tolerance=tolerance)
    if tolerance is not None and asked.corrupt_ratio and (asked.loss_ratio or asked.duplicate_ratio):
        words = " ".join(f"{name}={value}" for name, value in asked.words().items() if name in ("loss", "duplicate"))
        raise InvalidValueError(
            f"tolerance={tolerance:g}: with corrupt={asked.words()['corrupt']} some damaged packets are lost, too, so "
            f"that {words} is judged as a range: prove {words} without corrupt, or ask for no tolerance"
        )
    longest_s = _longest_s(asked) + _slot_s(asked)
    size = _LARGE_BYTES if asked.corrupt_ratio else _SMALL_BYTES
    pace_s = max(_PACE_S, 2 * longest_s / limit_packets, _slot_s(asked))
    if asked.rate_bps:
        pace_s = max(pace_s, 2 * _bits(asked, size) / asked.rate_bps)
    most = max(20, int(most_s / pace_s))
    alone = exact.share(alpha, _TESTS)
    needed = {
        words: needs(share, each, alone, tolerance, _MOST if tolerance is not None else most)
        for words, share, each in _shares(asked, size)
    }
    if tolerance is not None and (late := {words: count for words, count in needed.items() if count > most}):
        raise InvalidValueError(
            f"tolerance={tolerance:g}: to find {words} off by {tolerance:.3g} of itself takes {count} probes, "
            f"{math.ceil(count * pace_s)} s, where most_s={most_s:g}; give more time or a greater tolerance"
            for words, count in late.items()
        )
    train, train_bytes, train_pace_s = _train(asked, limit_packets)
    return Plan(
        count=min(max([_LEAST_BURSTY if asked.bursty else _LEAST, *needed.values()]), most),
        pace_s=pace_s,
        size_bytes=size,
        checksum=not asked.corrupt_ratio,
        train=train,
        train_bytes=train_bytes,
        train_pace_s=train_pace_s,
        clean_train=min(train, _TRAIN_AT_ONCE),
        spread=_SPREAD if asked.jitter_s and not asked.reorder_by_jitter else 0,
        spread_pace_s=max(pace_s, min(2 * (asked.jitter_s or 0.0), _SPREAD_PACE_S)),
        quiet_s=2 * longest_s + (4 * _bits(asked, train_bytes) / asked.rate_bps if asked.rate_bps else 0) + 0.3,
    )


def needs(share: float, each: float, alpha: float, tolerance: float | None, most: int) -> int:
    """How many probes it takes to find a share that is off, if so large a part of them is drawn for (``each``)."""
    off = share * tolerance if tolerance is not None else max(share * _HALF, _TOLERANCE)
    # What is off so far that it is no share can only be off to the other side.
    low, high = share - off, share + off
    draws = exact.sample_size(
        share, low if low >= 0 else share, high if high <= 1 else share, alpha, most=max(1, math.ceil(most * each))
    )
    return math.ceil(draws / each)


def _shares(asked: Impairment, size_bytes: int) -> Iterator[tuple[str, float, float]]:
    """Each share that is judged: its words, what is realised of it, and the part of the probes that it is drawn for."""
    loss, twice, words = asked.loss_ratio or 0.0, asked.duplicate_ratio or 0.0, asked.words()
    visible = size_bytes / (HEADERS_BYTES + size_bytes)
    found: list[tuple[str, float, float]] = []
    if _told_chain(asked) and asked.gilbert is not None:
        p, r = asked.gilbert[:2]
        found += [("the bursts' begin (p)", p, r / (p + r)), ("the bursts' end (r)", r, p / (p + r))]
    if not asked.bursty:
        found += [("loss", loss * (1 - twice), 1.0), ("duplicate", twice * (1 - loss) ** 2, 1.0)]
        if not twice:
            found.append(("corrupt", (asked.corrupt_ratio or 0.0) * (1 - loss) * visible, 1.0))
    if asked.reorder_ratio and _told_gaps(asked) and _shortest_s(asked) >= 2 * _TOLERANCE_S:
        gap = asked.reorder_gap_packets or 1
        arrives = 1 - (asked.mean_loss or 0.0)
        found.append(("reorder", asked.reorder_ratio, arrives / (1 + asked.reorder_ratio * (gap - 1))))
    for name, share, each in found:
        if 0 < share < 1 and each > 0:
            drawn = each * (1 - 1 / asked.drop_every if asked.drop_every else 1)
            yield f"{name}={words[name]}" if name in words else name, share, drawn


def _train(asked: Impairment, limit_packets: int) -> tuple[int, int, float]:
    """How many probes measure the rate, of how many bytes, at which pace."""
    if not asked.rate_bps:
        return 0, _TRAIN_BYTES, 0.0
    size = _TRAIN_BYTES if asked.rate_bps >= _SLOW_BPS else _SMALL_BYTES
    one_s = _bits(asked, size) / asked.rate_bps
    fitting = max(int(_TRAIN_S / one_s), 20)
    at_once = max(2, min(fitting, _TRAIN_AT_ONCE, limit_packets // 2))
    if asked.bucket_bytes is not None:  # it, and half of what waits for it: 100 ms unless said otherwise
        waits_bytes = asked.queue_bytes if asked.queue_bytes is not None else int(asked.rate_bps / 8 * 0.1)
        holds = (asked.bucket_bytes + waits_bytes // 2) // (size + HEADERS_BYTES)
        return max(2, min(at_once, holds)), size, 0.0
    if asked.bursty or asked.by_number or asked.duplicate_ratio or asked.reorder_ratio:
        return at_once, size, 0.0
    # What half of the queue holds beyond those that are on their way.
    room = limit_packets // 2 - _longest_s(asked) / one_s
    paced = min(fitting, _TRAIN_MOST, int(room * _AHEAD / (_AHEAD - 1)))
    if paced <= at_once:
        return at_once, size, 0.0
    return paced, size, one_s * (1 - (asked.loss_ratio or 0.0)) / _AHEAD


def judge(
    asked: Impairment,
    flight: Flight,
    *,
    clean: Flight,
    spread: Flight | None = None,
    train: Flight | None = None,
    clean_train: Flight | None = None,
    table: Sequence[int] = (),
    alpha: float = exact.ALPHA,
) -> list[Check]:
    """Every field of the impairment against what the probes saw.

    ``clean``: probes of the same path without impairment, from which the machine's own delay is known. ``spread``:
    probes far apart, for the delay. ``train``: probes sent at once, where a rate is asked;
    ``clean_train`` without impairment, from which the machine's own rate is known. ``table``: iproute2's delay
    table, where the distribution has one.
    """
    tests = [_loss, _duplicates, _reordering, _corruption, _rate]
    each = _Case(asked, flight, clean, train, clean_train, table, exact.share(alpha, _TESTS))
    delay = _delay(each if spread is None else replace(each, flight=spread))
    return delay + [check for test in tests for check in test(each)]


def perhaps_busy(checks: Sequence[Check]) -> bool:
    """Whether all that failed is what a busy machine does too: what is late or slow is worth another look."""
    failed = [check for check in checks if check.verdict is Verdict.FAILS]
    return bool(failed) and all(isinstance(check.cause, BusyCause) for check in failed)


@dataclass(frozen=True)
class _Case:
    asked: Impairment
    flight: Flight
    clean: Flight
    train: Flight | None
    clean_train: Flight | None
    table: Sequence[int]
    alpha: float
    """Of one test."""

    @property
    def offered(self) -> int:
        """The probes that were not lost by their number before netem saw them."""
        return self.flight.count - len(_numbered(self.asked, self.flight.count))

    @property
    def tolerance_s(self) -> float:
        """What the machine adds to a delay: 0.5 ms, and what nine of ten probes of the clean path stayed below."""
        clean = sorted(self.clean.delays_s.values())
        return _TOLERANCE_S + (clean[int(len(clean) * 0.9)] if clean else 0.0)


def _shortest_s(asked: Impairment) -> float:
    """How long the delay is at least, of what does not skip it; as much below its mean as the longest is above."""
    return 2 * (asked.delay_s or 0.0) - _longest_s(asked)


def _slot_s(asked: Impairment) -> float:
    """The longest time between two turns to send; 0 without slots."""
    if asked.slot is None:
        return 0.0
    return asked.slot.max_s or (asked.slot.mean_s or 0.0) + _TABLE_REACH * (asked.slot.jitter_s or 0.0)


def _serialisation_s(asked: Impairment, size_bytes: int) -> float:
    """How long a probe alone takes at the rate; nothing where a token bucket lets it pass at once."""
    return _bits(asked, size_bytes) / asked.rate_bps if asked.rate_bps and asked.bucket_bytes is None else 0.0


def _longest_s(asked: Impairment) -> float:
    reach = 1 if asked.distribution == "uniform" else _TABLE_REACH
    return (asked.delay_s or 0.0) + reach * (asked.jitter_s or 0.0)


def _bits(asked: Impairment, size_bytes: int) -> int:
    return 8 * (size_bytes + HEADERS_BYTES + (asked.overhead_bytes or 0))


def _counted(
    name: str, asked: str, k: int, n: int, low: float, high: float, alpha: float, *, of: str = "", cause: str = ""
) -> Check:
    """A count against a share between ``low`` and ``high``, by the exact binomial tails."""
    tail = 1.0
    if k < n * low:
        tail = exact.at_most(k, n, low)
    elif k > n * high:
        tail = exact.at_least(k, n, high)
    first, last = exact.accepted(n, low, alpha)[0], exact.accepted(n, high, alpha)[1]
    fails = tail < alpha / 2
    lowest, highest = exact.interval(k, n, alpha)
    below, above = exact.found_shares(first, last, n)
    would = " or ".join(
        [*([f"below {_percent(below)}"] if below > 0 else []), *([f"above {_percent(above)}"] if above < 1 else [])]
    )
    return Check(
        field=name,
        asked=asked,
        seen=f"{_percent(k / n) if n else '—'} ({k} of {n}{of})",
        verdict=Verdict.FAILS if fails else Verdict.HOLDS if would else Verdict.SHOWN,
        how=f"binomial: {first} to {last} accepted; seen share lies in {_percent(lowest)} to {_percent(highest)}; "
        f"a share {would or 'of another size'} would {'' if would else 'not '}be found, {exact.POWER:.0%} surely",
        cause=cause if fails else "",
    )


def _percent(share: float) -> str:
    return f"{share * 100:.3g}%"


# --- loss ----------------------------------------------------------------------------------------------


def _loss(case: _Case) -> list[Check]:
    asked, flight, n = case.asked, case.flight, case.flight.count
    arrived = flight.first
    numbered = _numbered(asked, n)
    told = _by_number(asked, numbered, arrived)
    n -= len(numbered)  # the others are lost at random, if they are
    reached = len(arrived.keys() - numbered)
    missing = n - reached - min(flight.damaged, n - reached)
    duplicate, corrupt = asked.duplicate_ratio or 0.0, asked.corrupt_ratio or 0.0
    words = " ".join(
        f"{name}={value}" for name, value in asked.words().items() if name in ("loss", "burst", "gemodel", "loss_state")
    )
    if asked.gilbert is not None or asked.loss_state is not None:
        return [*told, *_burst_loss(case, words, missing)]
    p = asked.loss_ratio or 0.0
    # A packet that is lost and duplicated arrives once. Of a damaged one, what hits the headers never arrives.
    hidden = HEADERS_BYTES / (HEADERS_BYTES + flight.size_bytes)
    low = p * (1 - duplicate)
    high = low + (1 - low) * corrupt * hidden
    nothing = "nothing arrived: does another path, a firewall or a cut stand between the hosts?"
    more = "a full queue (limit), or a receiver that cannot keep up, drops more than was asked"
    less = "the packets took another path, or another qdisc took the netem's place"
    cause = nothing if missing == n else more if missing > n * high else less
    return [*told, _counted("loss", asked=str(asked.words().get("loss", "0%")), k=missing, n=n, low=low, high=high,
                     alpha=case.alpha, cause=cause)]  # fmt: skip


def _numbered(asked: Impairment, count: int) -> set[int]:
    """Which probes are lost by their number; the first packet has number 1."""
    ranges = [range(first - 1, min(last, count)) for first, last in asked.drop_packets]
    every = range(asked.drop_every - 1, count, asked.drop_every) if asked.drop_every else range(0)
    return {number for each in (*ranges, every) for number in each}


def _by_number(asked: Impairment, numbered: set[int], arrived: Mapping[int, int]) -> list[Check]:
    if not asked.by_number:
        return []
    words = " ".join(
        f"{name}={value}" for name, value in asked.words().items() if name in ("drop_packets", "drop_every")
    )
    came = sorted(numbered & arrived.keys())
    which = f"; probe {came[0] + 1} arrived" if came else ""
    return [Check(field="lost by number", asked=words, seen=f"{len(numbered) - len(came)} of {len(numbered)}{which}",
                  verdict=Verdict.FAILS if came else Verdict.HOLDS, how="every one of them, and by its number",
                  cause="other packets were counted in between" if came else "")]  # fmt: skip


def _burst_loss(case: _Case, words: str, missing: int) -> list[Check]:
    asked, flight, n = case.asked, case.flight, case.flight.count
    arrived = flight.first
    lost = [number not in arrived for number in range(n)]
    lengths = exact.bursts(lost)
    mean = f"{statistics.fmean(lengths):.3g}" if lengths else "—"
    share = Check(
        field="loss", asked=words, seen=f"{_percent(missing / n)} ({missing} of {n}); mean burst {mean}",
        verdict=Verdict.SHOWN, how="judged by the steps of the chain, below",
    )  # fmt: skip
    gilbert = asked.gilbert
    if gilbert is None or not _told_chain(asked):
        expected = asked.mean_loss
        how = f"the chain's mean is {_percent(expected)}; " if expected is not None else ""
        return [replace(share, how=f"{how}its states cannot be told apart from outside: shown, not judged")]
    steps = exact.transitions(lost)
    p, r = gilbert[:2]
    cause = "the loss model in the kernel is another one, or packets took another path"
    return [
        share,
        _counted("bursts begin", asked=f"p={_percent(p)}", k=steps.to_bad, n=steps.from_good, low=p, high=p,
                 alpha=case.alpha, of=" delivered", cause=cause),
        _counted("bursts end", asked=f"r={_percent(r)}", k=steps.to_good, n=steps.from_bad, low=r, high=r,
                 alpha=case.alpha, of=" lost", cause=cause),
    ]  # fmt: skip


def _told_chain(asked: Impairment) -> bool:
    """Whether the states of a loss model can be told from what arrives: all is lost in one, nothing in the other."""
    disturbed = asked.by_number or asked.duplicate_ratio or asked.corrupt_ratio
    return asked.gilbert is not None and asked.gilbert[2:] == (1.0, 0.0) and not disturbed


# --- duplicates, reordering, corruption --------------------------------------------------------------------


def _duplicates(case: _Case) -> list[Check]:
    asked, flight = case.asked, case.flight
    times = Counter(number for number, _ in flight.arrivals)
    twice = sum(count > 1 for count in times.values())
    d = asked.duplicate_ratio or 0.0
    if d and (asked.gilbert or asked.loss_state):
        return [Check(field="duplicate", asked=_percent(d), seen=f"{twice} of {flight.count}",
                      how="with losses in bursts there is no exact test: shown, not judged")]  # fmt: skip
    if not d and not twice:
        return []
    # The copy is offered to the netem again, and may itself be lost or damaged.
    high = d * (1 - (asked.loss_ratio or 0.0)) ** 2
    low = high * (1 - (asked.corrupt_ratio or 0.0)) ** 2
    return [_counted("duplicate", asked=_percent(d), k=twice, n=case.offered, low=low, high=high, alpha=case.alpha,
                     cause="another qdisc took the netem's place, or a bridge loops")]  # fmt: skip


def _reordering(case: _Case) -> list[Check]:
    asked, flight = case.asked, case.flight
    arrived = len(flight.first)
    if asked.reorder_by_jitter or asked.duplicate_ratio:
        name = "reordered by jitter" if asked.reorder_by_jitter else "reordered"
        seen = f"{_percent(flight.reordered / arrived) if arrived else '—'} ({flight.reordered} of {arrived})"
        if not asked.reorder_ratio:
            return [Check(field=name, asked="allowed", seen=seen, how="how much depends on the pace: shown")]
    if not asked.reorder_ratio:
        check = _counted("out of order", asked="0%", k=flight.reordered, n=arrived, low=0.0, high=_SELF_REORDERED,
                         alpha=case.alpha, cause="jitter without an order-keeping rate, or several paths")  # fmt: skip
        return [check] if check.verdict is Verdict.FAILS else []
    return _overtaking(case)


def _overtaking(case: _Case) -> list[Check]:
    """Those that skipped the delay (sch_netem.c: every gap-th at the earliest, then with the asked probability)."""
    asked, flight = case.asked, case.flight
    p, gap = asked.reorder_ratio or 0.0, asked.reorder_gap_packets or 1
    early = _early(case)
    if early is None or not _told_gaps(asked):
        why = "the delay is too short to tell which ones skipped it" if early is None else "lost packets count in a gap"
        return [Check(field="reorder", asked=_percent(p), seen=f"{flight.reordered} out of order",
                      how=f"{why}: shown, not judged")]  # fmt: skip
    trials = skipped = counter = 0
    for number in sorted(flight.first):
        if counter >= gap - 1:
            trials += 1
            skipped += number in early
        counter = 0 if number in early else counter + 1
    return [_counted("reorder", asked=_percent(p), k=skipped, n=trials, low=p, high=p, alpha=case.alpha,
                     of=" that might", cause="another qdisc took the netem's place")]  # fmt: skip


def _told_gaps(asked: Impairment) -> bool:
    """Whether it can be told which packets might have skipped the delay: what is lost or doubled counts in a gap."""
    disturbed = (
        asked.by_number or asked.loss_ratio or asked.bursty or asked.duplicate_ratio or asked.corrupt_ratio
    )  # fmt: skip
    return (asked.reorder_gap_packets or 1) == 1 or not disturbed


def _early(case: _Case) -> set[int] | None:
    """The probes that skipped the delay; None where it is too short to tell."""
    shortest_s = _shortest_s(case.asked)
    if not case.asked.reorder_ratio:
        return set()
    if shortest_s < 2 * case.tolerance_s:
        return None
    return {number for number, delay_s in case.flight.delays_s.items() if delay_s < shortest_s - _TICK_S}


def _corruption(case: _Case) -> list[Check]:
    asked, flight = case.asked, case.flight
    c = asked.corrupt_ratio or 0.0
    if not c:
        return []
    if asked.duplicate_ratio or asked.gilbert or asked.loss_state:
        return [Check(field="corrupt", asked=_percent(c), seen=f"{flight.damaged} of {flight.count}",
                      how="with duplicates or bursts there is no exact test: shown, not judged")]  # fmt: skip
    visible = c * (1 - (asked.loss_ratio or 0.0)) * flight.size_bytes / (HEADERS_BYTES + flight.size_bytes)
    return [_counted("corrupt", asked=_percent(c), k=flight.damaged, n=case.offered, low=visible, high=visible,
                     alpha=case.alpha, of=" damaged in the payload",
                     cause="another qdisc took the netem's place, or checksums drop damaged probes first")]  # fmt: skip


# --- delay -----------------------------------------------------------------------------------------------


def _delay(case: _Case) -> list[Check]:
    asked, flight = case.asked, case.flight
    early = _early(case)
    delays = {number: value for number, value in flight.delays_s.items() if number not in (early or ())}
    words = units.format_time(asked.delay_s or 0.0)
    if not delays:
        how = f"all {len(early)} that arrived had skipped the delay" if early else "nothing arrived"
        return [Check(field="delay", asked=words, how=f"{how}: not judged")]
    values = sorted(delays.values())
    median = statistics.median(values)
    seen = f"median {_ms(median)}, {_ms(values[0])} to {_ms(values[-1])}"
    if early is None:
        return [Check(field="delay", asked=words, seen=seen, how="shorter than can be told from packets that skip it")]
    base_s = (asked.delay_s or 0.0) + _serialisation_s(asked, flight.size_bytes)
    if asked.jitter_s:
        return _jittered(case, delays, base_s, seen)
    if _lines_up(asked):
        return [Check(field="delay", asked=words, seen=seen, how="what waits behind it adds to it: shown, not judged")]
    soon = sum(value < base_s - _TICK_S for value in values)
    if soon and asked.delay_s:
        return [Check(
            field="delay", asked=words, seen=seen, verdict=Verdict.FAILS,
            how=f"{soon} of {len(values)} came before the delay was over", cause=_cause_of_delay(case, median),
        )]  # fmt: skip
    limit_s = base_s + case.tolerance_s
    in_time = sum(value <= limit_s for value in values)
    late, few = _mostly_late(case, in_time, len(values))
    return [Check(
        field="delay", asked=words, seen=seen,
        verdict=Verdict.FAILS if late else Verdict.SHOWN if few else Verdict.HOLDS,
        how=f"none before it, {in_time} of {len(values)} within {_ms(limit_s)}: order statistics of the median{few}",
        cause=_cause_of_delay(case, median) if late else "",
    )]  # fmt: skip


def _mostly_late(case: _Case, in_time: int, count: int) -> tuple[bool, str]:
    """Whether fewer than half came in time; and why that could not have been found, else empty."""
    few = exact.at_most(0, count, 0.5) >= case.alpha
    return exact.at_most(in_time, count, 0.5) < case.alpha, "; so few could not show a longer one" if few else ""


def _lines_up(asked: Impairment) -> bool:
    """Whether packets are let out in groups, so that the delay alone says little."""
    return asked.slot is not None


def _cause_of_delay(case: _Case, median_s: float) -> str:
    asked_s = case.asked.delay_s or 0.0
    clean = statistics.median(case.clean.delays_s.values()) if case.clean.delays_s else 0.0
    if asked_s and abs((median_s - clean) * _PSCHED - asked_s) < asked_s / 4 + case.tolerance_s:
        return "1/15.6 of what was asked: the tc that set it could not read /proc/net/psched; mount /proc where it runs"
    if median_s < clean + asked_s / 10 + case.tolerance_s:
        return "as fast as without impairment: the packets took another path, or another qdisc took the netem's place"
    if median_s < asked_s:
        return "shorter than asked: another qdisc took the netem's place"
    return BusyCause.LONGER


def _jittered(case: _Case, delays: dict[int, float], base_s: float, seen: str) -> list[Check]:
    """Quantiles of the asked distribution, each a binomial test of how many delays lie below it.

    Where order is kept a packet leaves no earlier than the one before it: its delay is the larger of its own draw and
    of what is left of the other's. The test of a quantile takes only the probes for which the latter lies below it:
    whether such a one arrives before the quantile depends on its own draw alone. Where all are late hardly one is
    left for these tests; so half of all must arrive within the longest delay that was asked.
    """
    asked, tolerance_s = case.asked, case.tolerance_s
    jitter_s = asked.jitter_s or 0.0
    words = f"{units.format_time(asked.delay_s or 0.0)} ± {units.format_time(jitter_s)} {asked.distribution}"
    spread = statistics.pstdev(delays.values())
    seen = f"{seen}, σ {_ms(spread)}"
    if asked.delay_correlation or (asked.distribution != "uniform" and not case.table) or _lines_up(asked):
        return [Check(field="delay", asked=words, seen=seen, how="there is no exact test of it: shown, not judged")]
    quantile = _quantile_of(asked, case.table)
    bounds = {} if asked.reorder_by_jitter and not asked.rate_bps else _bounds(case.flight)
    longest_s = base_s + _longest_s(asked) - (asked.delay_s or 0.0) + tolerance_s
    within = sum(value <= longest_s for value in delays.values())
    late, few = _mostly_late(case, within, len(delays))
    told = [f"{within} of {len(delays)} within {_ms(longest_s)}{few}"]
    worst: Check | None = None
    if late:
        worst = Check(
            field="delay", asked=words, seen=seen, verdict=Verdict.FAILS,
            how=f"{told[0]}, and no delay longer was asked", cause=BusyCause.LONGER,
        )  # fmt: skip
    for level in _LEVELS:
        at_s, share = quantile(level)
        at_s = base_s + at_s
        if at_s <= 0:
            continue
        usable = [value for number, value in delays.items() if bounds.get(number, -math.inf) < at_s]
        n, soon = len(usable), sum(value <= at_s - _TICK_S for value in usable)
        in_time = sum(value <= at_s + tolerance_s for value in usable)
        told.append(f"{level:.0%} by {_ms(at_s)}: {soon} to {in_time} of {n}")
        too_soon = exact.at_least(soon, n, share) < case.alpha / 2 if n else False
        too_late = exact.at_most(in_time, n, share * (1 - _LATE)) < case.alpha / 2 if n else False
        if worst is None and (too_soon or too_late):
            worst = Check(
                field="delay", asked=words, seen=seen, verdict=Verdict.FAILS,
                how=f"{told[-1]} came {'before' if too_soon else 'within'} it, a share of {share:.3g} was asked",
                cause=BusyCause.LONGER if too_late else _cause_of_delay(case, statistics.median(delays.values())),
            )  # fmt: skip
    verdict = Verdict.SHOWN if few else Verdict.HOLDS
    return [worst or Check(field="delay", asked=words, seen=seen, verdict=verdict, how="; ".join(told))]


def _bounds(flight: Flight) -> dict[int, float]:
    """Of each probe, what its delay cannot be less than because the one that came before it leaves first."""
    bounds: dict[int, float] = {}
    latest = -math.inf
    for number, when in sorted(flight.first.items()):
        bounds[number] = (latest - flight.sent_ns[number]) / 1e9
        latest = max(latest, when)
    return bounds


def _quantile_of(asked: Impairment, table: Sequence[int]) -> Callable[[float], tuple[float, float]]:
    """A function from a level to the deviation from the mean delay there, and the share that lies at or below it."""
    jitter_s = asked.jitter_s or 0.0
    if asked.distribution == "uniform":
        return lambda level: ((2 * level - 1) * jitter_s, level)
    ordered = sorted(table)

    def at(level: float) -> tuple[float, float]:
        value = ordered[min(int(level * len(ordered)), len(ordered) - 1)]
        return value * jitter_s / _TABLE_UNIT, bisect.bisect_right(ordered, value) / len(ordered)

    return at


def _ms(value_s: float) -> str:
    return f"{value_s:.4g} s" if abs(value_s) >= 1 else f"{value_s * 1e3:.4g} ms"


# --- rate -------------------------------------------------------------------------------------------------


def seen_rate_bps(asked: Impairment, train: Flight) -> float | None:
    """The rate at which a train left: all bits but the first packet's, over the time from the first to the last."""
    times = [when for _, when in train.arrivals]
    if len(times) < 2 or max(times) <= min(times):
        return None
    return (len(times) - 1) * _bits(asked, train.size_bytes) / ((max(times) - min(times)) / 1e9)


def _rate(case: _Case) -> list[Check]:
    asked = case.asked
    if not asked.rate_bps or case.train is None:
        return []
    words, early = units.format_rate(asked.rate_bps), _early(replace(case, flight=case.train)) or set()
    # What skips the delay skips the rate: it is kept by the others alone.
    kept = [each for each in case.train.arrivals if each[0] not in early]
    train = replace(case.train, arrivals=_without_overtakers(kept) if asked.reorder_ratio else kept)
    rate = seen_rate_bps(asked, train)
    if rate is None:
        return [Check(field="rate", asked=words, how=f"{len(train.arrivals)} of a train arrived: not judged")]
    seen = f"{rate / 1e6:.4g} Mbit/s (a train of {train.count}, {len(train.arrivals)} arrived)"
    if asked.reorder_ratio:
        in_all = seen_rate_bps(asked, case.train) or rate
        more = len(case.train.arrivals) - len(train.arrivals)
        seen += f"; {in_all / 1e6:.4g} Mbit/s with {more} more that skipped the delay"
    one_s = _bits(asked, train.size_bytes) / asked.rate_bps
    if asked.bucket_bytes is not None:
        return [_bucket_rate(asked, train, words, seen)]
    blurred = 4 * (_longest_s(asked) - (asked.delay_s or 0)) > train.count * one_s * 0.1
    if asked.duplicate_ratio or asked.slot or blurred or (asked.reorder_ratio and _early(case) is None):
        how = "jitter, duplicates or reordering blur its ends: shown, not judged"
        return [Check(field="rate", asked=words, seen=seen, how=how)]
    if rate > asked.rate_bps * _RATE_ABOVE:
        cause = "the packets took another path, or another qdisc took the netem's place"
        return [
            Check(field="rate", asked=words, seen=seen, verdict=Verdict.FAILS, how="faster than asked", cause=cause)
        ]
    pairs = _side_by_side_s(train)
    lasts_s, late_s = len(pairs) * one_s, sum(pairs) - len(pairs) * one_s
    slow = _cannot_judge_slow(case, train)
    if rate >= asked.rate_bps * _RATE_BELOW:
        least = max(1 - _RATE_BELOW, _STALL_S / (lasts_s + _STALL_S))
        too_low = f"; one too low would not: {slow}" if slow else f", and one more than {least:.0%} too low"
        how = f"a rate more than {_RATE_ABOVE - 1:.0%} too high would be found{too_low}"
        return [Check(field="rate", asked=words, seen=seen, verdict=Verdict.HOLDS, how=how)]
    if slow:
        return [Check(field="rate", asked=words, seen=seen, how=f"{slow}: shown, not judged")]
    if late_s < max(_STALL_S, lasts_s * (1 / _RATE_BELOW - 1)):
        how = f"late by {_ms(late_s)}, no more than a busy machine may be: shown, not judged"
        return [Check(field="rate", asked=words, seen=seen, how=how)]
    return [
        Check(
            field="rate", asked=words, seen=seen, verdict=Verdict.FAILS, how="slower than asked", cause=BusyCause.SLOWER
        )
    ]


def _without_overtakers(arrivals: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those that came in their order, as all that keep a rate do.

    What skipped the delay and came late all the same, for the machine was busy, is told by whom it overtook.
    """
    found: list[tuple[int, int]] = []
    for number, when in sorted(arrivals):
        if not found or when >= found[-1][1]:
            found.append((number, when))
    return found


def _side_by_side_s(train: Flight) -> list[float]:
    """The times from each arrival to that of the next probe that was sent.

    What a receiver that cannot keep up has lost took the link's time, what the link has lost did not: so of those that
    came behind a gap nothing is known.
    """
    ordered = sorted(train.arrivals, key=lambda each: each[1])
    return [(later - when) / 1e9 for (number, when), (after, later) in pairwise(ordered) if after == number + 1]


def _cannot_judge_slow(case: _Case, train: Flight) -> str:
    """Why a train that is slow is not the link's doing; empty if it is."""
    asked_bps, machine = case.asked.rate_bps or 0.0, case.clean_train
    own = None if machine is None else seen_rate_bps(case.asked, machine)
    if own is None or own < asked_bps * _OWN_RATE:
        return f"the machine's own rate without impairment is {_mbit(own)}"
    lasted_s = (max(train.sent_ns) - min(train.sent_ns)) / 1e9
    passes = (train.count - 1) * (1 - (case.asked.mean_loss or 0.0)) * _bits(case.asked, train.size_bytes)
    if lasted_s > 0 and passes / lasted_s < asked_bps * _RATE_ABOVE:
        return f"the machine sent no more than {_mbit(passes / lasted_s)}"
    return ""


def _mbit(rate_bps: float | None) -> str:
    return "unknown" if rate_bps is None else f"{rate_bps / 1e6:.4g} Mbit/s"


def _bucket_rate(asked: Impairment, train: Flight, words: str, seen: str) -> Check:
    """Never more than the bucket and what the rate has filled into it since: tc-tbf(8)."""
    times = [when for _, when in train.arrivals]
    lasted_s = (max(times) - min(times)) / 1e9
    allowed = (asked.bucket_bytes or 0) * 8 + (asked.rate_bps or 0) * lasted_s * _RATE_ABOVE
    passed = (len(times) - 1) * _bits(asked, train.size_bytes)
    more = passed > allowed
    return Check(
        field="rate", asked=f"{words} after a bucket of {asked.bucket_bytes} bytes", seen=seen,
        verdict=Verdict.FAILS if more else Verdict.HOLDS,
        how=f"{passed} bits passed in {_ms(lasted_s)}, {allowed:.0f} may",
        cause="the packets took another path, or another qdisc took the bucket's place" if more else "",
    )  # fmt: skip


def kernel_words(options: dict[str, Any] | Any) -> dict[str, str]:
    """What ``tc -j qdisc show`` says of each field that probes judge, in the words of the checks."""
    delay, rate = options.get("delay", {}), options.get("rate", {})
    words = {"delay": units.format_time(delay.get("delay", 0.0))}
    if delay.get("jitter"):
        words["delay"] += f" ± {units.format_time(delay['jitter'])}"
    words["loss"] = _share(options.get("loss-random", {}).get("loss", 0.0))
    if model := options.get("loss-gemodel"):
        words["loss"] = "gemodel " + " ".join(_share(model.get(key, 0.0)) for key in ("p", "r"))
        words["bursts begin"] = f"p={_share(model.get('p', 0.0))}"
        words["bursts end"] = f"r={_share(model.get('r', 0.0))}"
    if model := options.get("loss-state"):
        words["loss"] = "state " + " ".join(_share(value) for value in model.values())
    for name in ("duplicate", "reorder", "corrupt"):
        words[name] = _share(options.get(name, {}).get(name, 0.0))
    words["rate"] = units.format_rate(rate["rate"] * 8) if rate.get("rate") else "none"
    return words


def _share(ratio: float) -> str:
    """As tc shows it: the kernel keeps shares in steps of 1/2³², so that 10 % is 10.0000000116 %."""
    return units.format_ratio(float(f"{ratio:.6g}"))
