"""How many probes to send, how fast and how large, to judge an impairment. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from testbed.errors import InvalidValueError
from testbed.judge import statistics as exact
from testbed.judge.case import TOLERANCE_S
from testbed.judge.delay import LEVELS
from testbed.judge.flight import HEADERS_BYTES, LARGE_BYTES, SMALL_BYTES, TRAIN_BYTES
from testbed.judge.model import chain_visible, gaps_visible, longest_s, shortest_s, slot_s, wire_bits
from testbed.spec.impairment import Impairment

MOST_S = 2.5
"""Most seconds of probing per direction, by default."""
TESTS = 2 * len(LEVELS) + 11
"""Most tests of one direction: two of each quantile, one of the longest delay, two of each of four shares, two of a
rate."""

_PACE_S = 0.0005
_LEAST = 200
_LEAST_BURSTY = 4000
"""Fewer show little of losses in bursts."""
_MOST = 100_000_000
"""No share needs more within the longest time."""
_LONGEST_S = 600.0
_RELATIVE_ERROR, _LEAST_ERROR = 0.5, 0.002
"""Error of a share to detect without a tolerance: relative, and never less than the second, which is absolute."""
_TRAIN_S = 0.4
_AHEAD = 1.1
"""A train longer than half of the queue is sent this much faster than the rate: the queue never runs dry, and holds
the surplus."""
_TRAIN_AT_ONCE = 400
_TRAIN_MOST = 8000
_SLOW_BPS = 500e3
"""Below this rate a train of large packets takes too long."""
_TBF_LATENCY_S = 0.1
_SPREAD = 100
_SPREAD_PACE_S = 0.025


@dataclass(frozen=True, kw_only=True)
class ProbePlan:
    """How to probe one impairment."""

    count: int
    pace_s: float
    size_bytes: int
    checksum: bool
    train: int
    """Probes that measure a rate; 0 where there is none."""
    train_bytes: int
    train_pace_s: float
    """0: all at once, which half of the queue holds."""
    clean_train: int
    """Probes sent at once without impairment, to measure the machine's own rate."""
    spread: int
    """Probes sent far apart to show jitter where order is kept and each would wait for its predecessor."""
    spread_pace_s: float
    quiet_s: float
    """After this time without an arrival no more is to come."""


def vet(*, alpha: float, most_s: float, tolerance: float | None = None) -> None:
    """Refuse values that no proof can be made with. Raises InvalidValueError with every problem."""
    bounds = (
        ("alpha", alpha, 1e-12, 0.1, "a ratio from 1e-12 to 0.1: how often a link that is as asked may fail"),
        ("most_s", most_s, 0.1, _LONGEST_S, f"a number of seconds from 0.1 to {_LONGEST_S:g}"),
        ("tolerance", tolerance, 0.001, 1.0, "a number from 0.001 to 1: the relative error to detect (0.5 = 50 %)"),
    )
    problems = [
        f"{name}={value!r}: must be {what}"
        for name, value, low, high, what in bounds
        if value is not None or name != "tolerance"
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high
    ]
    if problems:
        raise InvalidValueError(problems)


def plan(
    impairment: Impairment,
    *,
    limit_packets: int,
    alpha: float = exact.ALPHA,
    most_s: float = MOST_S,
    tolerance: float | None = None,
) -> ProbePlan:
    """Sample size, pace and size of the probes.

    With ``tolerance``, each share that is off by this relative error is detected with probability `exact.POWER`;
    without, one that is off by 50 % or 0.2 percentage points, as far as the time allows. The pace leaves the link's
    queue, which holds ``limit_packets``, empty between probes. Raises InvalidValueError where a tolerance takes longer
    than ``most_s``.
    """
    vet(alpha=alpha, most_s=most_s, tolerance=tolerance)
    words = impairment.words()
    if tolerance is not None and impairment.corrupt_ratio and (impairment.loss_ratio or impairment.duplicate_ratio):
        ranges = " ".join(f"{name}={value}" for name, value in words.items() if name in ("loss", "duplicate"))
        raise InvalidValueError(
            f"tolerance={tolerance:g}: with corrupt={words['corrupt']} some damaged packets are lost, too, so that "
            f"{ranges} is judged as a range: prove {ranges} without corrupt, or omit the tolerance"
        )
    wait_s = longest_s(impairment) + slot_s(impairment)
    size = LARGE_BYTES if impairment.corrupt_ratio else SMALL_BYTES
    pace_s = max(_PACE_S, 2 * wait_s / limit_packets, slot_s(impairment))
    if impairment.rate_bps:
        pace_s = max(pace_s, 2 * wire_bits(impairment, size) / impairment.rate_bps)
    most = max(20, int(most_s / pace_s))
    alpha_each = exact.share(alpha, TESTS)
    needed = {
        name: needs(share, part, alpha_each, tolerance, _MOST if tolerance is not None else most)
        for name, share, part in _shares(impairment, size)
    }
    if tolerance is not None and (late := {name: count for name, count in needed.items() if count > most}):
        raise InvalidValueError(
            f"tolerance={tolerance:g}: to detect a relative error of {tolerance:.3g} in {name} takes {count} probes, "
            f"{math.ceil(count * pace_s)} s, where most_s={most_s:g}; give more time or a larger tolerance"
            for name, count in late.items()
        )
    train, train_bytes, train_pace_s = _train(impairment, limit_packets)
    train_s = 4 * wire_bits(impairment, train_bytes) / impairment.rate_bps if impairment.rate_bps else 0.0
    return ProbePlan(
        count=min(max([_LEAST_BURSTY if impairment.bursty else _LEAST, *needed.values()]), most),
        pace_s=pace_s,
        size_bytes=size,
        checksum=not impairment.corrupt_ratio,
        train=train,
        train_bytes=train_bytes,
        train_pace_s=train_pace_s,
        clean_train=min(train, _TRAIN_AT_ONCE),
        spread=_SPREAD if impairment.jitter_s and not impairment.reorder_by_jitter else 0,
        spread_pace_s=max(pace_s, min(2 * (impairment.jitter_s or 0.0), _SPREAD_PACE_S)),
        quiet_s=2 * wait_s + train_s + 0.3,
    )


def needs(share: float, part: float, alpha: float, tolerance: float | None, most: int) -> int:
    """How many probes detect a wrong share, if it is drawn for this ``part`` of them."""
    error = share * tolerance if tolerance is not None else max(share * _RELATIVE_ERROR, _LEAST_ERROR)
    # Beyond 0 or 1 there is no share: it can only be wrong to the other side.
    low, high = share - error, share + error
    draws = exact.sample_size(
        share, low if low >= 0 else share, high if high <= 1 else share, alpha, most=max(1, math.ceil(most * part))
    )
    return math.ceil(draws / part)


def _shares(impairment: Impairment, size_bytes: int) -> Iterator[tuple[str, float, float]]:
    """Each share that is judged: its name, its value, and the part of the probes that it is drawn for."""
    loss, twice, words = impairment.loss_ratio or 0.0, impairment.duplicate_ratio or 0.0, impairment.words()
    visible = size_bytes / (HEADERS_BYTES + size_bytes)
    shares: list[tuple[str, float, float]] = []
    if chain_visible(impairment) and impairment.gilbert is not None:
        p, r = impairment.gilbert[:2]
        shares += [("the bursts' begin (p)", p, r / (p + r)), ("the bursts' end (r)", r, p / (p + r))]
    if not impairment.bursty:
        shares += [("loss", loss * (1 - twice), 1.0), ("duplicate", twice * (1 - loss) ** 2, 1.0)]
        if not twice:
            shares.append(("corrupt", (impairment.corrupt_ratio or 0.0) * (1 - loss) * visible, 1.0))
    if impairment.reorder_ratio and gaps_visible(impairment) and shortest_s(impairment) >= 2 * TOLERANCE_S:
        gap = impairment.reorder_gap_packets or 1
        arrives = 1 - (impairment.mean_loss or 0.0)
        shares.append(("reorder", impairment.reorder_ratio, arrives / (1 + impairment.reorder_ratio * (gap - 1))))
    for name, share, part in shares:
        if 0 < share < 1 and part > 0:
            drawn = part * (1 - 1 / impairment.drop_every if impairment.drop_every else 1)
            yield f"{name}={words[name]}" if name in words else name, share, drawn


def _train(impairment: Impairment, limit_packets: int) -> tuple[int, int, float]:
    """The train that measures the rate: number of probes, their size in bytes, and their pace in seconds."""
    if not impairment.rate_bps:
        return 0, TRAIN_BYTES, 0.0
    size = TRAIN_BYTES if impairment.rate_bps >= _SLOW_BPS else SMALL_BYTES
    one_s = wire_bits(impairment, size) / impairment.rate_bps
    fitting = max(int(_TRAIN_S / one_s), 20)
    at_once = max(2, min(fitting, _TRAIN_AT_ONCE, limit_packets // 2))
    if impairment.bucket_bytes is not None:  # the bucket, and half of its queue
        queue_bytes = impairment.queue_bytes
        if queue_bytes is None:
            queue_bytes = int(impairment.rate_bps / 8 * _TBF_LATENCY_S)
        holds = (impairment.bucket_bytes + queue_bytes // 2) // (size + HEADERS_BYTES)
        return max(2, min(at_once, holds)), size, 0.0
    if impairment.bursty or impairment.by_number or impairment.duplicate_ratio or impairment.reorder_ratio:
        return at_once, size, 0.0
    # Half of the queue, less the packets that are on their way.
    room = limit_packets // 2 - longest_s(impairment) / one_s
    paced = min(fitting, _TRAIN_MOST, int(room * _AHEAD / (_AHEAD - 1)))
    if paced <= at_once:
        return at_once, size, 0.0
    return paced, size, one_s * (1 - (impairment.loss_ratio or 0.0)) / _AHEAD
