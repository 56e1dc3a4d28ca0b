"""What a judge of one field works with: the impairment, the flights, and the false-alarm rate of one test. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from testbed.evidence.proof import Check
from testbed.evidence.verdict import Verdict
from testbed.judge import statistics as exact
from testbed.judge.flight import Flight
from testbed.judge.model import lost_by_number, shortest_s
from testbed.spec.impairment import Impairment

TOLERANCE_S = 0.0005
TICK_S = 1e-6
_CLEAN_LEVEL = 0.9

ANOTHER_PATH = "the packets took another path, or another qdisc took the netem's place"
ANOTHER_QDISC = "another qdisc took the netem's place"


@dataclass(frozen=True)
class Case:
    """One direction of a link."""

    impairment: Impairment
    flight: Flight
    clean: Flight
    """Probes of the same path without impairment."""
    train: Flight | None
    clean_train: Flight | None
    table: Sequence[int]
    """iproute2's delay table, where the distribution has one."""
    alpha: float
    """The false-alarm rate of one test."""

    @property
    def offered(self) -> int:
        """Number of probes that netem saw: those not lost by their number."""
        return self.flight.count - len(lost_by_number(self.impairment, self.flight.count))

    @property
    def tolerance_s(self) -> float:
        """What machines add to a delay: 0.5 ms, the clean path's 90 % quantile, what their clocks may differ."""
        clean = sorted(self.clean.delays_s.values())
        clocks_s = 2 * self.flight.clock_error_ns / 1e9
        return TOLERANCE_S + clocks_s + (clean[int(len(clean) * _CLEAN_LEVEL)] if clean else 0.0)

    def early(self, flight: Flight) -> set[int] | None:
        """The probes of a flight that skipped the delay; None where it is too short to tell."""
        limit_s = shortest_s(self.impairment)
        if not self.impairment.reorder_ratio:
            return set()
        if limit_s < 2 * self.tolerance_s:
            return None
        return {number for number, delay_s in flight.delays_s.items() if delay_s < limit_s - TICK_S}

    def count_check(
        self, field: str, requested: str, *, k: int, n: int, low: float, high: float, of: str = "", cause: str = ""
    ) -> Check:
        """Test a count of k in n against shares from ``low`` to ``high``, by the exact binomial tails."""
        tail = 1.0
        if k < n * low:
            tail = exact.at_most(k, n, low)
        elif k > n * high:
            tail = exact.at_least(k, n, high)
        first, last = exact.accepted(n, low, self.alpha)[0], exact.accepted(n, high, self.alpha)[1]
        fails = tail < self.alpha / 2
        lowest, highest = exact.interval(k, n, self.alpha)
        below, above = exact.found_shares(first, last, n)
        shares = [f"below {percent(below)}"] * (below > 0) + [f"above {percent(above)}"] * (above < 1)
        power = f"{exact.POWER:.0%} power to detect a share {' or '.join(shares)}" if shares else "no power"
        return Check(
            field=field,
            asked=requested,
            seen=f"{percent(k / n) if n else '—'} ({k} of {n}{of})",
            verdict=Verdict.FAILS if fails else Verdict.HOLDS if shares else Verdict.SHOWN,
            how=f"binomial: {first} to {last} accepted; interval of the share {percent(lowest)} to {percent(highest)}; "
            f"{power}",
            cause=cause if fails else "",
        )


def percent(share: float) -> str:
    """A share for people: three significant digits."""
    return f"{share * 100:.3g}%"


def milliseconds(time_s: float) -> str:
    """A time for people: four significant digits."""
    return f"{time_s:.4g} s" if abs(time_s) >= 1 else f"{time_s * 1e3:.4g} ms"
