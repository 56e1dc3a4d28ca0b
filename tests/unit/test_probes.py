"""The judge of probes, on flights through a netem modelled after sch_netem.c: correct links pass, others fail."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from typing import Any

import pytest

from testbed.errors import InvalidValueError
from testbed.evidence.proof import Check
from testbed.evidence.verdict import Verdict
from testbed.judge import statistics as exact
from testbed.judge.flight import Flight
from testbed.judge.impairments import judge, kernel_words, perhaps_busy
from testbed.judge.plan import ProbePlan, plan
from testbed.judge.rate import seen_rate_bps
from testbed.spec.impairment import Impairment

_NOISE_S = 0.0001


def netem(impairment: Impairment, draw: random.Random, count: int, pace_s: float, size_bytes: int = 64) -> Flight:
    """What an honest netem does to a flight: the draws and their order are sch_netem.c's."""
    bits = 8 * (size_bytes + 42)
    sent, arrivals, damaged = [], [], 0
    last_s = seen_s = float("-inf")
    bad, counter = False, 0

    def lose() -> bool:
        nonlocal bad
        if impairment.gilbert:
            p, r = impairment.gilbert[:2]
            before = bad
            bad = (draw.random() >= r) if bad else (draw.random() < p)
            return before
        return draw.random() < (impairment.loss_ratio or 0)

    def offer(number: int, now_s: float, duplicate: float) -> None:
        nonlocal last_s, seen_s, damaged, counter
        copies = 1 + (draw.random() < duplicate) - lose()
        if copies <= 0:
            return
        if copies > 1:
            offer(number, now_s, 0.0)
        hit = draw.random() < (impairment.corrupt_ratio or 0)
        if hit and draw.random() < 42 / (42 + size_bytes):
            return  # in the headers: it never arrives
        gap = impairment.reorder_gap_packets or 1
        if impairment.reorder_ratio and counter >= gap - 1 and draw.random() < impairment.reorder_ratio:
            counter, due_s = 0, now_s
        else:
            counter += 1
            jitter = (impairment.jitter_s or 0) * (2 * draw.random() - 1)
            due_s = now_s + max(0.0, (impairment.delay_s or 0) + jitter)
            if impairment.rate_bps or (impairment.jitter_s and not impairment.reorder_by_jitter):
                due_s = max(due_s, last_s) + (bits / impairment.rate_bps if impairment.rate_bps else 0)
                last_s = due_s
        arrives_s = due_s + draw.random() * _NOISE_S
        if due_s == last_s:  # what left in order arrives in order
            seen_s = arrives_s = max(arrives_s, seen_s)
        if hit:
            damaged += 1
        else:
            arrivals.append((number, round(arrives_s * 1e9)))

    for number in range(count):
        sent.append(round(number * pace_s * 1e9))
        offer(number, number * pace_s, impairment.duplicate_ratio or 0)
    return Flight(
        sent_ns=sent, arrivals=sorted(arrivals, key=lambda arrival: arrival[1]), damaged=damaged, size_bytes=size_bytes
    )


def judged(
    impairment: Impairment, real: Impairment | None = None, seed: int = 1, own_rate_bps: float = 400e6
) -> list[Check]:
    """What is said of ``asked`` where the link really does ``real``."""
    draw = random.Random(seed)  # noqa: S311  # a simulation
    real = real or impairment
    chosen = plan(impairment, limit_packets=1000)
    spread = train = own = None
    if chosen.spread:
        spread = netem(real, draw, chosen.spread, chosen.spread_pace_s)
    if chosen.train:
        train = netem(real, draw, chosen.train, chosen.train_pace_s, chosen.train_bytes)
        own = netem(Impairment(rate_bps=own_rate_bps), draw, chosen.clean_train, 0.0, chosen.train_bytes)
    return judge(
        impairment,
        netem(real, draw, chosen.count, chosen.pace_s, chosen.size_bytes),
        clean=netem(Impairment(), draw, 100, 0.001),
        spread=spread,
        train=train,
        clean_train=own,
    )


def fields(checks: list[Check], verdict: str) -> set[str]:
    return {check.field for check in checks if check.verdict == verdict}


HONEST = [
    Impairment(),
    Impairment(delay_s=0.02),
    Impairment(delay_s=0.02, jitter_s=0.003),
    Impairment(delay_s=0.12, jitter_s=0.025),
    Impairment(delay_s=0.12, jitter_s=0.025, reorder_by_jitter=True),
    Impairment(delay_s=0.01, jitter_s=0.01),
    Impairment(loss_ratio=0.005),
    Impairment(loss_ratio=0.3),
    Impairment(loss_ratio=1.0),
    Impairment(loss_ratio=0.05, loss_burst_packets=3),
    Impairment(loss_gemodel=(0.01, 0.25, 1.0, 0.0)),
    Impairment(duplicate_ratio=0.15, loss_ratio=0.1),
    Impairment(delay_s=0.02, reorder_ratio=0.15),
    Impairment(delay_s=0.02, reorder_ratio=0.5, reorder_gap_packets=5),
    Impairment(corrupt_ratio=0.15, loss_ratio=0.05),
    Impairment(rate_bps=5e6, delay_s=0.01),
    Impairment(rate_bps=50e3),
]


@pytest.mark.parametrize("impairment", HONEST, ids=lambda impairment: impairment.describe())
@pytest.mark.parametrize("seed", range(5))
def test_an_honest_link_is_never_condemned(impairment: Impairment, seed: int) -> None:
    assert fields(judged(impairment, seed=seed), Verdict.FAILS) == set()


def test_an_honest_link_is_judged_in_each_field_that_was_asked() -> None:
    assert fields(judged(Impairment(delay_s=0.05, rate_bps=5e6, loss_ratio=0.02)), Verdict.HOLDS) == {
        "delay",
        "loss",
        "rate",
    }
    assert fields(judged(Impairment(loss_ratio=0.05, loss_burst_packets=3)), Verdict.HOLDS) >= {
        "bursts begin",
        "bursts end",
    }
    assert fields(judged(Impairment(duplicate_ratio=0.1, delay_s=0.01)), Verdict.HOLDS) == {
        "delay",
        "loss",
        "duplicate",
    }
    assert fields(judged(Impairment(corrupt_ratio=0.1)), Verdict.HOLDS) == {"delay", "loss", "corrupt"}
    assert fields(judged(Impairment(delay_s=0.02, reorder_ratio=0.1)), Verdict.HOLDS) == {"delay", "loss", "reorder"}


NO = Impairment()
WRONG = [
    (Impairment(delay_s=0.02), NO, "delay", "as fast as without impairment"),
    (Impairment(delay_s=0.02), Impairment(delay_s=0.02 / 15.625), "delay", "/proc/net/psched"),
    (Impairment(delay_s=0.12, jitter_s=0.025), Impairment(delay_s=0.12 / 15.625, jitter_s=0.025 / 15.625), "delay",
     "/proc/net/psched"),
    (Impairment(delay_s=0.02), Impairment(delay_s=0.019), "delay", "shorter than asked"),
    (Impairment(delay_s=0.02), Impairment(delay_s=0.025), "delay", "longer than asked"),
    (Impairment(delay_s=0.12, jitter_s=0.025), Impairment(delay_s=0.12), "delay", ""),
    (Impairment(delay_s=0.0003, jitter_s=0.00005), Impairment(delay_s=0.028), "delay", "longer than asked"),
    (Impairment(delay_s=0.02, jitter_s=0.003), Impairment(delay_s=0.2, jitter_s=0.003), "delay", "longer than asked"),
    (Impairment(delay_s=0.02), Impairment(delay_s=0.02, loss_ratio=0.02), "loss", "a full queue"),
    (Impairment(loss_ratio=0.02), NO, "loss", "another path"),
    (Impairment(loss_ratio=0.1), Impairment(loss_ratio=0.018), "loss", "another path"),
    (Impairment(loss_ratio=0.05, loss_burst_packets=3), Impairment(loss_ratio=0.05), "bursts end", "loss model"),
    (Impairment(loss_ratio=0.05, loss_burst_packets=3), Impairment(loss_ratio=0.12, loss_burst_packets=3),
     "bursts begin", "loss model"),
    (NO, Impairment(loss_ratio=1.0), "loss", "nothing arrived"),
    (Impairment(duplicate_ratio=0.1), NO, "duplicate", "netem's place"),
    (NO, Impairment(duplicate_ratio=0.02), "duplicate", "bridge loops"),
    (Impairment(delay_s=0.02, reorder_ratio=0.15), Impairment(delay_s=0.02), "reorder", "netem's place"),
    (Impairment(delay_s=0.02, jitter_s=0.005), Impairment(delay_s=0.02, jitter_s=0.005, reorder_by_jitter=True),
     "out of order", "order-keeping"),
    (Impairment(corrupt_ratio=0.1), NO, "corrupt", "netem's place"),
    (Impairment(rate_bps=5e6), Impairment(rate_bps=10e6), "rate", "another path"),
    (Impairment(rate_bps=5e6), Impairment(rate_bps=4e6), "rate", "another queue"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("impairment", "real", "field", "cause"), WRONG, ids=[f"{a.describe()} / {b.describe()}" for a, b, _, _ in WRONG]
)
@pytest.mark.parametrize("seed", range(3))
def test_a_link_that_does_something_else_is_condemned(
    impairment: Impairment, real: Impairment, field: str, cause: str, seed: int
) -> None:
    failed = [
        check for check in judged(impairment, real, seed) if check.verdict == Verdict.FAILS and check.field == field
    ]
    assert failed, "condemned, and for this field"
    assert cause in failed[0].cause
    assert failed[0].asked in str(failed[0])


def test_what_no_outcome_could_condemn_is_shown_and_not_judged() -> None:
    few = Flight(sent_ns=[0] * 20, arrivals=[(number, 10**9) for number in range(20)])
    for impairment in (Impairment(delay_s=0.02), Impairment(delay_s=0.02, jitter_s=0.003)):
        (delay, loss) = judge(impairment, few, clean=netem(NO, random.Random(1), 100, 0.001))  # noqa: S311  # a simulation
        assert (delay.field, delay.verdict, loss.verdict) == ("delay", Verdict.SHOWN, Verdict.HOLDS)
        assert "too few to detect a longer delay" in delay.how
    impairment = Impairment(loss_gemodel=(0.01, 0.25, 1.0, 0.0))
    verdicts = {check.field: check.verdict for check in judged(impairment, Impairment(loss_ratio=1.0))}
    assert verdicts["bursts begin"] == Verdict.SHOWN, "of no packet that was delivered, nothing is known"
    assert verdicts["bursts end"] == Verdict.FAILS


def test_a_rate_beyond_the_machines_own_is_shown_and_not_judged() -> None:
    impairment, real = Impairment(rate_bps=1e9), Impairment(rate_bps=350e6)
    # The first of 400 packets waits in no queue: 399 intervals at 360 Mbit/s and its noise make 360.7.
    (rate,) = [check for check in judged(impairment, real, own_rate_bps=360e6) if check.field == "rate"]
    assert rate.verdict == Verdict.SHOWN
    assert "own rate without impairment is 360.7 Mbit/s" in rate.how


def test_a_fast_train_that_waited_for_one_turn_of_another_process_is_shown_and_not_judged() -> None:
    def rate(asked_bps: float, seen_bps: float) -> Check:
        checks = judged(Impairment(rate_bps=asked_bps), Impairment(rate_bps=seen_bps), own_rate_bps=3e9)
        return next(check for check in checks if check.field == "rate")

    # 5,499 packets of 1,442 bytes last 63 ms at 1 Gbit/s: at 868 Mbit/s they are 9.7 ms late, at 100 Mbit/s 571 ms.
    assert rate(1e9, 868e6).verdict == Verdict.SHOWN
    assert "late by 9.692 ms" in rate(1e9, 868e6).how
    assert rate(1e9, 100e6).verdict == Verdict.FAILS
    assert rate(50e6, 25e6).verdict == Verdict.FAILS


@pytest.mark.parametrize("asked_bps", [1e6, 20e6, 50e6, 200e6])
def test_a_rate_is_judged_to_a_tenth_up_to_200_mbit(asked_bps: float) -> None:
    def rate(share: float, loss: float | None = None) -> Check:
        wanted, real = (Impairment(rate_bps=rate_bps, loss_ratio=loss) for rate_bps in (asked_bps, asked_bps * share))
        return next(check for check in judged(wanted, real, own_rate_bps=600e6) if check.field == "rate")

    assert rate(1.0).verdict == Verdict.HOLDS
    assert "would detect a rate more than 2% too high, or more than 10% too low" in rate(1.0).how
    assert rate(0.88).verdict == Verdict.FAILS
    assert rate(1.04).verdict == Verdict.FAILS
    assert rate(1.0, loss=0.2).verdict == Verdict.HOLDS, "of so many fewer that pass, as many more are sent"


@pytest.mark.parametrize("share", [1.0, 1.04])
def test_a_machine_that_is_late_with_the_first_of_a_train_is_no_faster_link(share: float) -> None:
    impairment = Impairment(rate_bps=1e6, delay_s=0.02)
    one_ns = 1442 * 8 * 1000 / share
    due = [(number, round(20_000_000 + (number + 1) * one_ns)) for number in range(34)]
    late = [(number, max(when, 80_000_000)) for number, when in due]
    paced = Flight(sent_ns=[0], arrivals=[(0, 20_000_000)])
    for arrivals in (due, late):
        train = Flight(sent_ns=[0] * 34, arrivals=arrivals, size_bytes=1400)
        checks = judge(impairment, paced, clean=paced, train=train)
        (verdict,) = [check.verdict for check in checks if check.field == "rate"]
        assert (verdict == Verdict.FAILS) == (share > 1)


def test_a_train_is_never_longer_than_its_queue_holds() -> None:
    for impairment, limit in ((Impairment(rate_bps=200e6), 1000), (Impairment(rate_bps=50e6, delay_s=0.05), 6000)):
        chosen = plan(impairment, limit_packets=limit)
        one_s = 1442 * 8 / (impairment.rate_bps or 1)
        assert chosen.train * one_s >= 0.3
        # What is sent in the time that the whole takes, less what leaves in it, and what is on its way.
        waits = chosen.train * (1 - chosen.train_pace_s / one_s) + (impairment.delay_s or 0) / one_s
        assert waits <= limit / 2
    assert plan(Impairment(rate_bps=50e6, delay_s=0.05), limit_packets=20).train <= 10, "or it is sent at once"


def test_a_train_that_the_machine_sent_too_slowly_is_shown_and_not_judged() -> None:
    impairment = Impairment(rate_bps=200e6)
    one_ns = 1442 * 8 * 5  # at 200 Mbit/s, in ns
    sent = [number * one_ns * 5 // 4 for number in range(5000)]
    train = Flight(
        sent_ns=sent, arrivals=[(number, when + 50_000) for number, when in enumerate(sent)], size_bytes=1400
    )
    clean = Flight(
        sent_ns=[0] * 400, arrivals=[(number, number * one_ns // 3) for number in range(400)], size_bytes=1400
    )
    paced = Flight(sent_ns=[0], arrivals=[(0, 1)])
    (rate,) = [
        check
        for check in judge(impairment, paced, clean=paced, train=train, clean_train=clean)
        if check.field == "rate"
    ]
    assert rate.verdict == Verdict.SHOWN
    assert "the machine sent no more than 160 Mbit/s" in rate.how


def test_what_a_receiver_lost_is_no_slower_link() -> None:
    impairment = Impairment(rate_bps=200e6)
    one_ns = 1442 * 8 * 5
    clean = Flight(
        sent_ns=[0] * 400, arrivals=[(number, number * one_ns // 3) for number in range(400)], size_bytes=1400
    )
    paced = Flight(sent_ns=[0], arrivals=[(0, 1)])

    def verdict(lost: int) -> str:
        arrivals = [(number, number * one_ns) for number in range(5000) if number % 4 >= lost]
        train = Flight(sent_ns=[0] * 5000, arrivals=arrivals, size_bytes=1400)
        checks = judge(impairment, paced, clean=paced, train=train, clean_train=clean)
        return next(check.verdict for check in checks if check.field == "rate")

    assert verdict(lost=0) == Verdict.HOLDS
    assert verdict(lost=1) == Verdict.SHOWN, "three of four at their time are 150 Mbit/s, and none was late"


def test_packets_that_skip_the_delay_skip_the_rate_and_the_others_are_judged() -> None:
    impairment = Impairment(rate_bps=1e6, delay_s=0.02, reorder_ratio=0.5)
    (rate,) = [check for check in judged(impairment) if check.field == "rate"]
    assert rate.verdict == Verdict.HOLDS
    assert "that skipped the delay" in rate.seen
    for real_bps in (1.2e6, 0.8e6):
        (rate,) = [
            check for check in judged(impairment, replace(impairment, rate_bps=real_bps)) if check.field == "rate"
        ]
        assert rate.verdict == Verdict.FAILS


def test_what_skipped_the_delay_and_came_late_is_not_taken_for_a_faster_link() -> None:
    """A machine that was busy for longer than the delay gave three probes to the receiver in the train's middle."""
    impairment = Impairment(rate_bps=1e6, delay_s=0.02, reorder_ratio=0.5)
    one_ns = 1442 * 8 * 1000

    def check(real: float) -> Check:
        kept = [(number, int(20_000_000 + (number // 2 + 1) * one_ns / real)) for number in range(0, 80, 2)]
        skipped = [(number, 100_000) for number in range(1, 80, 2)]
        skipped[20:23] = [(number, 45_000_000) for number, _ in skipped[20:23]]
        train = Flight(sent_ns=[0] * 80, arrivals=kept + skipped, size_bytes=1400)
        clean = Flight(sent_ns=[0] * 100, arrivals=[(number, 50_000) for number in range(100)])
        checks = judge(impairment, clean, clean=clean, train=train, clean_train=train)
        return next(check for check in checks if check.field == "rate")

    assert check(1.0).verdict == Verdict.HOLDS
    assert check(1.05).verdict == Verdict.FAILS


def test_where_all_that_arrived_had_skipped_the_delay_that_is_said() -> None:
    impairment = Impairment(delay_s=0.04, reorder_ratio=0.9)
    (delay,) = [check for check in judged(impairment, NO) if check.field == "delay"]
    assert (delay.verdict, delay.how) == (Verdict.SHOWN, "all 200 that arrived had skipped the delay: not judged")
    (delay,) = [check for check in judged(impairment, Impairment(loss_ratio=1)) if check.field == "delay"]
    assert delay.how == "nothing arrived: not judged"


def test_only_what_is_late_or_slow_may_be_the_machines_doing() -> None:
    late = judged(Impairment(delay_s=0.02), Impairment(delay_s=0.03))
    assert perhaps_busy(late)
    assert perhaps_busy(judged(Impairment(rate_bps=5e6), Impairment(rate_bps=3e6)))
    assert not perhaps_busy(judged(Impairment(delay_s=0.02)))
    assert not perhaps_busy(judged(Impairment(delay_s=0.02), Impairment(delay_s=0.01)))
    assert not perhaps_busy(judged(Impairment(delay_s=0.02), Impairment(delay_s=0.03, loss_ratio=0.1)))


def test_the_plan_keeps_the_queue_empty_and_the_time_short() -> None:
    slow = plan(Impairment(rate_bps=50e3), limit_packets=1000)
    assert slow.pace_s >= 2 * 8 * (slow.size_bytes + 42) / 50e3
    assert slow.count * slow.pace_s <= 3
    short = plan(Impairment(delay_s=0.1, limit_packets=5), limit_packets=5)
    assert 0.1 / short.pace_s <= 5 / 2, "never more than half of the queue"
    assert short.train == 0
    assert plan(Impairment(loss_ratio=0.001), limit_packets=1000).count == 5000, "as many as there is time for"
    assert plan(Impairment(loss_ratio=0.3), limit_packets=1000).count < 1000


def test_the_sample_grows_with_the_precision_asked() -> None:
    def size(loss: float) -> int:
        chosen: ProbePlan = plan(Impairment(loss_ratio=loss), limit_packets=10**6, most_s=60)
        return chosen.count

    assert size(0.5) < size(0.1) < size(0.02)


@pytest.mark.parametrize(
    "impairment",
    [
        Impairment(loss_ratio=0.02),
        Impairment(duplicate_ratio=0.1, loss_ratio=0.1),
        Impairment(delay_s=0.02, reorder_ratio=0.2, reorder_gap_packets=3),
        Impairment(loss_ratio=0.05, loss_burst_packets=3),
    ],
    ids=lambda impairment: impairment.describe(),
)
@pytest.mark.parametrize("tolerance", [0.2, 0.5, 1.0])
def test_a_tolerance_is_kept_or_refused_with_the_time_it_takes(impairment: Impairment, tolerance: float) -> None:
    with pytest.raises(InvalidValueError) as refused:
        plan(impairment, limit_packets=10**6, most_s=0.1, tolerance=tolerance)
    times = [
        re.search(r"a relative error of ([\d.]+) in .* takes (\d+) probes, (\d+) s", problem)
        for problem in refused.value.problems
    ]
    assert all(match and float(match[1]) == tolerance for match in times)
    longest_s = max(int(match[3]) for match in times if match)
    assert plan(impairment, limit_packets=10**6, most_s=longest_s, tolerance=tolerance).count * 0.0005 <= longest_s


def test_a_share_that_is_off_by_the_tolerance_is_found_nine_times_in_ten() -> None:
    impairment, tolerance = Impairment(loss_ratio=0.1), 0.3
    n = plan(impairment, limit_packets=1000, most_s=60, tolerance=tolerance).count
    first, last = exact.accepted(n, 0.1, exact.ALPHA / 20)
    assert exact.at_most(first - 1, n, 0.07) >= 0.9
    assert exact.at_least(last + 1, n, 0.13) >= 0.9
    assert plan(impairment, limit_packets=1000, most_s=60, tolerance=0.15).count > 3 * n


def test_a_tolerance_is_refused_for_what_is_judged_as_a_range() -> None:
    impairment = Impairment(loss_ratio=0.01, corrupt_ratio=0.05)
    with pytest.raises(InvalidValueError, match=r"tolerance=0.2: with corrupt=5% .* loss=1% is judged as a range"):
        plan(impairment, limit_packets=1000, most_s=600, tolerance=0.2)
    assert plan(Impairment(corrupt_ratio=0.05), limit_packets=1000, most_s=600, tolerance=0.2).count > 1000


@pytest.mark.parametrize(
    "impairment",
    [
        Impairment(delay_s=0.04, reorder_ratio=0.005, reorder_gap_packets=5, loss_burst_packets=3, loss_ratio=0.4),
        Impairment(delay_s=0.04, jitter_s=0.0399, reorder_ratio=0.005),
    ],
    ids=lambda impairment: impairment.describe(),
)
def test_no_probes_are_sent_for_a_reordering_that_is_not_judged(impairment: Impairment) -> None:
    without = plan(replace(impairment, reorder_ratio=None, reorder_gap_packets=None), limit_packets=1000, most_s=600)
    assert plan(impairment, limit_packets=1000, most_s=600).count == without.count


def test_without_a_tolerance_the_note_says_what_would_be_found() -> None:
    (loss,) = [check for check in judged(Impairment(loss_ratio=0.02)) if check.field == "loss"]
    match = re.search(r"90% power to detect a share below ([\d.]+)% or above ([\d.]+)%", loss.how)
    assert match
    assert float(match[1]) < 2 < float(match[2]) < 4


@pytest.mark.parametrize(
    ("words", "begin"),
    [
        ({"alpha": 2}, "alpha=2: must be a ratio from 1e-12 to 0.1: how often a link that is as asked may fail"),
        ({"alpha": 0}, "alpha=0: must be a ratio"),
        ({"most_s": "x"}, "most_s='x': must be a number of seconds from 0.1 to 600"),
        ({"most_s": True}, "most_s=True: must be a number of seconds"),
        ({"most_s": float("nan")}, "most_s=nan: must be a number of seconds"),
        ({"tolerance": 0}, "tolerance=0: must be a number from 0.001 to 1"),
        ({"tolerance": 1.01}, "tolerance=1.01: must be a number from 0.001 to 1"),
        ({"tolerance": "50%"}, "tolerance='50%': must be a number from 0.001 to 1"),
    ],
    ids=str,
)
def test_what_no_proof_can_be_made_with_is_refused(words: dict[str, Any], begin: str) -> None:
    with pytest.raises(InvalidValueError) as refused:
        plan(Impairment(loss_ratio=0.1), limit_packets=1000, **words)
    assert [text[: len(begin)] for text in refused.value.problems] == [begin]


def test_a_flight_counts_as_the_rfcs_do() -> None:
    # Probes 0, 1, 3, 2, 2 arrive, 4 is lost: one reordered (RFC 4737), the second arrival of 2 is no delay of its own.
    flight = Flight(
        sent_ns=[0, 1000, 2000, 3000, 4000], arrivals=[(0, 500), (1, 1500), (3, 3500), (2, 3600), (2, 9000)]
    )
    assert flight.reordered == 1
    assert {number: round(delay * 1e9) for number, delay in flight.delays_s.items()} == {
        0: 500,
        1: 500,
        3: 500,
        2: 1600,
    }


def test_a_trains_rate_leaves_the_first_packet_out() -> None:
    # 3 packets of 1400 + 42 bytes, 11,536 bits, arrive 2 ms apart: 2 × 11,536 bits in 4 ms.
    train = Flight(sent_ns=[0, 0, 0], arrivals=[(0, 1_000_000), (1, 3_000_000), (2, 5_000_000)], size_bytes=1400)
    assert seen_rate_bps(Impairment(rate_bps=5e6), train) == pytest.approx(5_768_000)
    assert seen_rate_bps(Impairment(rate_bps=5e6), Flight(sent_ns=[0], arrivals=[(0, 1)])) is None


def test_packets_lost_by_their_number_are_each_looked_for() -> None:
    impairment = Impairment(drop_packets=((3, 3), (17, 20)), drop_every=50)
    sent = [number * 1_000_000 for number in range(200)]
    numbered = {2, 16, 17, 18, 19, 49, 99, 149, 199}
    honest = Flight(sent_ns=sent, arrivals=[(n, sent[n] + 50_000) for n in range(200) if n not in numbered])
    checks = {check.field: check for check in judge(impairment, honest, clean=honest)}
    assert (checks["lost by number"].verdict, checks["loss"].verdict) == (Verdict.HOLDS, Verdict.HOLDS)
    shifted = Flight(sent_ns=sent, arrivals=[(n, sent[n] + 50_000) for n in range(200) if n + 1 not in numbered])
    checks = {check.field: check for check in judge(impairment, shifted, clean=honest)}
    assert (checks["lost by number"].verdict, checks["loss"].verdict) == (Verdict.FAILS, Verdict.FAILS)
    assert "probe 3 arrived" in checks["lost by number"].seen


def test_a_token_bucket_may_pass_at_once_what_it_holds_and_no_more() -> None:
    impairment = Impairment(rate_bps=1e6, bucket_bytes=4326)  # three packets of 1442 bytes on the wire
    pace_ns = 1442 * 8 * 1000  # what one takes at 1 Mbit/s

    def train(at_once: int) -> Flight:
        times = [max(0, number - at_once) * pace_ns for number in range(12)]
        return Flight(sent_ns=[0] * 12, arrivals=list(enumerate(times)), size_bytes=1400)

    def verdict(flight: Flight) -> str:
        clean = Flight(sent_ns=[0], arrivals=[(0, 1)])
        (rate,) = [check for check in judge(impairment, clean, clean=clean, train=flight) if check.field == "rate"]
        return rate.verdict

    assert verdict(train(3)) == Verdict.HOLDS
    assert verdict(train(8)) == Verdict.FAILS
    chosen = plan(impairment, limit_packets=1000)
    assert chosen.train * 1442 <= 4326 + 1e6 / 8 * 0.1, "the bucket and its queue hold the train"


def test_a_chain_that_cannot_be_told_from_outside_is_shown_with_its_mean() -> None:
    impairment = Impairment(loss_gemodel=(0.01, 0.25, 0.5, 0.1))
    (loss,) = [check for check in judged(impairment, Impairment(loss_ratio=0.1)) if check.field == "loss"]
    assert loss.verdict == Verdict.SHOWN
    # (p·(1-h) + r·(1-k)) / (p + r) = (0.01·0.5 + 0.25·0.1) / 0.26
    assert "11.5%" in loss.how


def test_what_the_kernel_holds_is_said_in_the_words_of_the_checks() -> None:
    options = {
        "delay": {"delay": 0.02, "jitter": 0.003},
        "loss-random": {"loss": 0.02},
        "rate": {"rate": 625_000},
        "reorder": {"reorder": 0.1},
    }
    words = kernel_words(options)
    assert (words["delay"], words["loss"], words["rate"], words["reorder"]) == ("20ms ± 3ms", "2%", "5mbit", "10%")
    assert words["duplicate"] == "0%"
    assert kernel_words({"loss-gemodel": {"p": 0.01, "r": 0.25}})["bursts end"] == "r=25%"
