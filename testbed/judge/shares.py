"""Judge what netem draws for each packet: loss, duplicates, reordering, corruption. Pure."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping

from testbed.evidence.proof import Check
from testbed.evidence.verdict import Verdict
from testbed.judge import statistics as exact
from testbed.judge.case import ANOTHER_PATH, ANOTHER_QDISC, Case, percent
from testbed.judge.flight import HEADERS_BYTES
from testbed.judge.model import chain_visible, gaps_visible, lost_by_number
from testbed.spec.impairment import Impairment

_SELF_REORDERED = 0.001
"""A sender that moves between processors may overtake itself: this share may be out of order without netem."""

_LOSS_WORDS = ("loss", "burst", "gemodel", "loss_state")


def loss(case: Case) -> list[Check]:
    """Losses at random, in bursts, and by number."""
    impairment, flight = case.impairment, case.flight
    arrived = flight.first
    numbered = lost_by_number(impairment, flight.count)
    checks = _by_number(impairment, numbered, arrived)
    n = case.offered
    reached = len(arrived.keys() - numbered)
    missing = n - reached - min(flight.damaged, n - reached)
    if impairment.gilbert is not None or impairment.loss_state is not None:
        return [*checks, *_bursts(case, impairment.describe(*_LOSS_WORDS), missing)]
    # A packet that is lost and duplicated arrives once. A packet damaged in its headers never arrives.
    hidden = HEADERS_BYTES / (HEADERS_BYTES + flight.size_bytes)
    low = (impairment.loss_ratio or 0.0) * (1 - (impairment.duplicate_ratio or 0.0))
    high = low + (1 - low) * (impairment.corrupt_ratio or 0.0) * hidden
    if missing == n:
        cause = "nothing arrived: does another path, a firewall or a cut stand between the hosts?"
    elif missing > n * high:
        cause = "a full queue (limit), or a receiver that cannot keep up, drops more than was asked"
    else:
        cause = ANOTHER_PATH
    requested = str(impairment.words().get("loss", "0%"))
    return [*checks, case.count_check("loss", requested, k=missing, n=n, low=low, high=high, cause=cause)]


def _by_number(impairment: Impairment, numbered: set[int], arrived: Mapping[int, int]) -> list[Check]:
    if not impairment.by_number:
        return []
    survivors = sorted(numbered & arrived.keys())
    which = f"; probe {survivors[0] + 1} arrived" if survivors else ""
    return [
        Check(
            field="lost by number",
            asked=impairment.describe("drop_packets", "drop_every"),
            seen=f"{len(numbered) - len(survivors)} of {len(numbered)}{which}",
            verdict=Verdict.FAILS if survivors else Verdict.HOLDS,
            how="every one of them, and by its number",
            cause="other packets were counted in between" if survivors else "",
        )
    ]


def _bursts(case: Case, words: str, missing: int) -> list[Check]:
    impairment, flight, n = case.impairment, case.flight, case.flight.count
    arrived = flight.first
    lost = [number not in arrived for number in range(n)]
    lengths = exact.bursts(lost)
    mean = f"{statistics.fmean(lengths):.3g}" if lengths else "—"
    seen = f"{percent(missing / n)} ({missing} of {n}); mean burst {mean}"
    if impairment.gilbert is None or not chain_visible(impairment):
        share = impairment.mean_loss
        how = f"the chain's mean is {percent(share)}; " if share is not None else ""
        return [Check(field="loss", asked=words, seen=seen, how=f"{how}its states are not visible: shown, not judged")]
    steps = exact.transitions(lost)
    p, r = impairment.gilbert[:2]
    cause = "the loss model in the kernel is another one, or packets took another path"
    return [
        Check(field="loss", asked=words, seen=seen, how="judged by the steps of the chain, below"),
        *(
            case.count_check(field, requested, k=k, n=n, low=ratio, high=ratio, of=of, cause=cause)
            for field, requested, ratio, k, n, of in (
                ("bursts begin", f"p={percent(p)}", p, steps.to_bad, steps.from_good, " delivered"),
                ("bursts end", f"r={percent(r)}", r, steps.to_good, steps.from_bad, " lost"),
            )
        ),
    ]


def duplicates(case: Case) -> list[Check]:
    """Probes that arrived more than once."""
    impairment, flight = case.impairment, case.flight
    copies = Counter(number for number, _ in flight.arrivals)
    twice = sum(count > 1 for count in copies.values())
    ratio = impairment.duplicate_ratio or 0.0
    if ratio and (impairment.gilbert or impairment.loss_state):
        how = "with losses in bursts there is no exact test: shown, not judged"
        return [Check(field="duplicate", asked=percent(ratio), seen=f"{twice} of {flight.count}", how=how)]
    if not ratio and not twice:
        return []
    # The copy is offered to the netem again, and may itself be lost or damaged.
    high = ratio * (1 - (impairment.loss_ratio or 0.0)) ** 2
    low = high * (1 - (impairment.corrupt_ratio or 0.0)) ** 2
    cause = f"{ANOTHER_QDISC}, or a bridge loops"
    return [case.count_check("duplicate", percent(ratio), k=twice, n=case.offered, low=low, high=high, cause=cause)]


def reordering(case: Case) -> list[Check]:
    """Probes out of order."""
    impairment, flight = case.impairment, case.flight
    arrived = len(flight.first)
    if impairment.reorder_ratio:
        return _overtaking(case)
    if impairment.reorder_by_jitter or impairment.duplicate_ratio:
        name = "reordered by jitter" if impairment.reorder_by_jitter else "reordered"
        seen = f"{percent(flight.reordered / arrived) if arrived else '—'} ({flight.reordered} of {arrived})"
        return [Check(field=name, asked="allowed", seen=seen, how="how much depends on the pace: shown")]
    cause = "jitter without an order-keeping rate, or several paths"
    check = case.count_check(
        "out of order", "0%", k=flight.reordered, n=arrived, low=0.0, high=_SELF_REORDERED, cause=cause
    )
    return [check] if check.verdict is Verdict.FAILS else []


def _overtaking(case: Case) -> list[Check]:
    """Probes that skipped the delay (sch_netem.c: the gap-th packet at the earliest, then with the asked ratio)."""
    impairment, flight = case.impairment, case.flight
    ratio, gap = impairment.reorder_ratio or 0.0, impairment.reorder_gap_packets or 1
    early = case.early(flight)
    if early is None or not gaps_visible(impairment):
        why = "the delay is too short to tell which ones skipped it" if early is None else "lost packets count in a gap"
        seen = f"{flight.reordered} out of order"
        return [Check(field="reorder", asked=percent(ratio), seen=seen, how=f"{why}: shown, not judged")]
    trials = skipped = counter = 0
    for number in sorted(flight.first):
        if counter >= gap - 1:
            trials += 1
            skipped += number in early
        counter = 0 if number in early else counter + 1
    check = case.count_check(
        "reorder", percent(ratio), k=skipped, n=trials, low=ratio, high=ratio, of=" that might", cause=ANOTHER_QDISC
    )
    return [check]


def corruption(case: Case) -> list[Check]:
    """Probes damaged in their payload."""
    impairment, flight = case.impairment, case.flight
    ratio = impairment.corrupt_ratio or 0.0
    if not ratio:
        return []
    if impairment.duplicate_ratio or impairment.gilbert or impairment.loss_state:
        how = "with duplicates or bursts there is no exact test: shown, not judged"
        return [Check(field="corrupt", asked=percent(ratio), seen=f"{flight.damaged} of {flight.count}", how=how)]
    visible = ratio * (1 - (impairment.loss_ratio or 0.0)) * flight.size_bytes / (HEADERS_BYTES + flight.size_bytes)
    of, cause = " damaged in the payload", f"{ANOTHER_QDISC}, or checksums drop damaged probes first"
    check = case.count_check(
        "corrupt", percent(ratio), k=flight.damaged, n=case.offered, low=visible, high=visible, of=of, cause=cause
    )
    return [check]
