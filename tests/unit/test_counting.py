"""What a netem counted, each kind of drop apart where counters allow it; figures as tc reported them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from testbed.evidence.proof import AtTaps, LinkEvidence, Tally
from testbed.judge.counting import (
    class_packets,
    overflow_problem,
    overflows,
    redirected,
    root_packets,
    tally,
    tap_problem,
    tap_warning,
)
from testbed.spec.impairment import CLEAN, Impairment
from testbed.spec.timeline import Taken


def netem(packets: int, drops: int, qlen: int = 0) -> dict[str, Any]:
    return {"kind": "netem", "packets": packets, "drops": drops, "qlen": qlen}


def dropped_by_queue(counted: Tally) -> tuple[int, int]:
    return counted.tail_drops.low, counted.tail_drops.high


DELAY = Impairment(delay_s=0.1)
LOSS = Impairment(delay_s=0.05, loss_ratio=0.3)


def test_without_loss_every_drop_is_the_full_queues() -> None:
    counted = tally(DELAY, netem(310, 690), limit_packets=50)
    assert dropped_by_queue(counted) == (690, 690)
    assert counted.arrived_packets == 1000


def test_fewer_packets_than_the_queue_holds_cannot_overflow_it() -> None:
    assert dropped_by_queue(tally(LOSS, netem(723, 277), limit_packets=1000)) == (0, 0)


def test_a_redirect_that_was_never_refused_tells_that_no_queue_was_full() -> None:
    assert dropped_by_queue(tally(LOSS, netem(7000, 3000), limit_packets=50, refused=0)) == (0, 0)


def test_where_nothing_counts_them_apart_only_bounds_are_said() -> None:
    # 599 passed, 401 dropped; the redirect was refused 124 times (measured). 30 % of 1000 may drop 374 at 1e-6.
    counted = tally(LOSS, netem(599, 401), limit_packets=50, refused=124)
    low, high = dropped_by_queue(counted)
    assert 0 < low <= 124 == high
    assert dropped_by_queue(tally(LOSS, netem(599, 401), limit_packets=50)) == (low, 401)
    assert counted.as_json()["tail_drops"] == {"at_least": low, "at_most": 124}


def test_of_losses_in_bursts_nothing_is_known_without_the_redirect() -> None:
    burst = Impairment(loss_ratio=0.3, loss_burst_packets=3)
    assert dropped_by_queue(tally(burst, netem(500, 500), limit_packets=50)) == (0, 500)


def test_nothing_dropped_is_nothing_overflowed() -> None:
    assert dropped_by_queue(tally(DELAY, netem(0, 0), limit_packets=50)) == (0, 0)


@pytest.mark.parametrize(
    ("impairment", "flag"),
    [
        (DELAY, True),
        (Impairment(delay_s=0.1, limit_packets=50), False),
        (Impairment(delay_s=0.1, rate_bps=1e6), False),
        (Impairment(delay_s=0.1, jitter_s=0.01), True),  # the rate that keeps order was not asked for
    ],
)
def test_an_overflow_is_told_unless_a_rate_or_a_limit_asked_for_it(impairment: Impairment, flag: bool) -> None:
    problem = overflow_problem(impairment, tally(impairment, netem(310, 690), limit_packets=50), limit_packets=50)
    assert (problem is not None) == flag
    if problem is not None:
        assert "dropped 690 of 1000 packets" in problem
        assert "limit=50" in problem


def test_what_the_redirect_was_refused_is_its_overlimits() -> None:
    stats = {"bytes": 384812, "packets": 3009, "drops": 0, "overlimits": 814}
    action = {"order": 1, "kind": "mirred", "to_dev": "vec0", "stats": stats}
    filters: list[dict[str, Any]] = [
        {"kind": "u32"},
        {"kind": "u32", "options": {"fh": "800::800", "actions": [action]}},
    ]
    assert overflows(filters) == 814
    assert redirected(filters) == 3009
    assert overflows([{"kind": "u32", "options": {"fh": "800:"}}]) is None


@pytest.mark.parametrize(
    ("at_taps", "warned", "counts"),
    [
        (None, False, True),
        (AtTaps(1000, 0), False, True),
        (AtTaps(0, 0), False, True),
        (AtTaps(1000, 10), True, True),
        (AtTaps(1000, 11), True, False),
        (AtTaps(1, 1), True, False),
    ],
)
def test_what_was_lost_before_a_carried_kernel_is_told_and_more_than_a_hundredth_does_not_count(
    at_taps: AtTaps | None, warned: bool, counts: bool
) -> None:
    assert (tap_warning(at_taps) is not None) == warned
    assert (tap_problem(at_taps) is None) == counts


def test_a_class_is_found_by_its_number() -> None:
    classes = [{"handle": "1:10", "stats": {"packets": 5}}, {"handle": "1:3000", "stats": {"packets": 7}}]
    assert class_packets(classes, 0x3000) == 7
    assert class_packets(classes, 0x11) is None


def test_a_link_that_was_not_probed_says_so() -> None:
    link = LinkEvidence(link="a -> b", network="lan", asked={}, command="")
    assert link.as_json()["proof"] == {"read_back": "holds", "counters": "shown", "probe": "not asked"}
    assert link.as_json()["counters"] is None
    assert link.as_json()["steps"] == []


def test_the_steps_that_were_taken_are_written_with_their_times_up_to_a_number() -> None:
    down = Taken(planned_s=2.0, actual_s=2.0012, monotonic_s=9.0, unix_s=1e9, impairment=CLEAN, cut=True)
    slow = replace(down, planned_s=3.0, impairment=Impairment(delay_s=0.04), cut=None, complaint="refused")
    link = LinkEvidence(link="a -> b", network="lan", asked={}, command="", steps=[down, slow, *[down] * 10_000])
    written = link.as_json()
    assert written["steps"][0] == {
        "planned_s": 2.0,
        "actual_s": 2.0012,
        "unix_s": 1e9,
        "in_force": "cut",
        "passed_over": False,
        "complaint": None,
    }
    assert (written["steps"][1]["in_force"], written["steps"][1]["complaint"]) == ("delay=40ms", "refused")
    assert (len(written["steps"]), written["steps_left_out"]) == (10_000, 2)


def test_what_was_not_asked_did_not_happen() -> None:
    counted = tally(LOSS, netem(723, 277), limit_packets=1000)
    for span in (counted.duplicated, counted.reordered, counted.corrupted):
        assert (span.low, span.high, span.how) == (0, 0, "none was asked")


def test_what_the_root_saw_beyond_what_was_brought_are_second_copies() -> None:
    impairment = Impairment(duplicate_ratio=0.1)
    counted = tally(impairment, netem(1104, 0), limit_packets=1000, beyond=104)
    assert (counted.duplicated.low, counted.duplicated.high) == (104, 104)
    assert counted.duplicated.how.startswith("counted")
    assert counted.as_json()["duplicated"] == {"packets": 104, "from": counted.duplicated.how}
    assert root_packets([{"kind": "netem", "handle": "40:", "packets": 9, "drops": 0, "qlen": 0}]) is None
    assert root_packets([{"kind": "htb", "handle": "1:", "packets": 1000, "drops": 30, "qlen": 2}]) == 1032


@pytest.mark.parametrize("beyond", [-1, 1105])
def test_more_copies_than_packets_are_nobodys_count(beyond: int) -> None:
    counted = tally(Impairment(duplicate_ratio=0.1), netem(1104, 0), limit_packets=1000, beyond=beyond)
    assert counted.duplicated.how.startswith("derived")


def test_uncounted_copies_follow_from_the_share_of_what_came() -> None:
    span = tally(Impairment(duplicate_ratio=0.1), netem(1100, 0), limit_packets=1000).duplicated
    assert span.low < 100 < span.high  # 1000 came, and brought 100 copies
    assert span.high - span.low < 110
    assert "derived" in span.how
    assert tally(Impairment(duplicate_ratio=1.0), netem(2000, 0), limit_packets=1000).duplicated.low == 1000


def test_of_copies_where_packets_are_lost_too_only_the_most_is_said() -> None:
    span = tally(Impairment(duplicate_ratio=0.5, loss_ratio=0.9), netem(60, 945), limit_packets=2000).duplicated
    assert span.low == 0  # of 1000, 50 had a copy and were not lost; 1000 × 0.5 is no lower bound
    assert 50 < span.high < 500


@pytest.mark.parametrize(("gap", "expected"), [(1, 500), (5, 167)])
def test_packets_sent_ahead_follow_from_share_and_gap(gap: int, expected: int) -> None:
    # One goes ahead after gap - 1 that cannot, and a mean of two that could: 1000 / (gap - 1 + 2).
    impairment = Impairment(delay_s=0.01, reorder_ratio=0.5, reorder_gap_packets=gap)
    span = tally(impairment, netem(1000, 0), limit_packets=2000).reordered
    assert span.low < expected < span.high
    assert span.high - span.low < 200


def test_a_share_of_all_with_a_gap_sends_every_gapth_ahead() -> None:
    impairment = Impairment(delay_s=0.01, reorder_ratio=1.0, reorder_gap_packets=5)
    span = tally(impairment, netem(1000, 0), limit_packets=2000).reordered
    assert span.low <= 200 <= span.high
    assert span.high - span.low <= 1


def test_corrupted_ones_may_be_among_those_that_overflowed() -> None:
    impairment = Impairment(corrupt_ratio=1.0, rate_bps=1e6)
    span = tally(impairment, netem(600, 400), limit_packets=50).corrupted
    assert (span.low, span.high) == (200, 600)  # which of the 1000 was dropped is not known


def test_where_what_was_asked_changed_nothing_is_derived() -> None:
    counted = tally(Impairment(corrupt_ratio=0.5), netem(600, 0), limit_packets=50, changing=True)
    assert counted.as_json()["corrupted"]["at_most"] == 600
    assert counted.as_json()["corrupted"]["at_least"] == 0
