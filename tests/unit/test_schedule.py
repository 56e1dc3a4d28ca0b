"""What a timeline becomes for the kernel: stairs, holds, cuts, and steps that can follow each other in place."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import InvalidValueError
from testbed.netem import qdisc
from testbed.netem.schedule import MOST_STAIRS, NO_RATE_BPS, RESOLUTION_S, Schedule, compile_timeline, lost, step_seed
from testbed.spec.impairment import Impairment
from testbed.spec.steps import parse_side
from testbed.spec.timeline import Timeline
from testbed.spec.traces import mahimahi_rows

FILES: dict[str, str] = {}


def compiled(*steps: Mapping[str, object], seed: int | None = None, **words: object) -> Schedule:
    side = parse_side(list(steps) or words, read_trace=FILES.__getitem__)
    assert isinstance(side, Timeline)
    return compile_timeline(side, seed=seed)


def problems_of(*steps: Mapping[str, object]) -> tuple[str, ...]:
    with pytest.raises(InvalidValueError) as refused:
        compiled(*steps)
    return refused.value.problems


def times(schedule: Schedule) -> list[float]:
    return [moment.at_s for moment in schedule.moments]


def test_a_ramp_is_stairs_of_100_ms_each_at_its_middle_and_ends_exactly() -> None:
    schedule = compiled({"delay": "0ms"}, {"at": "1s", "ramp": "0ms -> 100ms over 500ms"})
    assert times(schedule) == pytest.approx([0, 1, 1.1, 1.2, 1.3, 1.4, 1.5])
    assert [moment.impairment.delay_s for moment in schedule.moments] == pytest.approx(
        [0, 0.01, 0.03, 0.05, 0.07, 0.09, 0.1]
    )
    assert RESOLUTION_S == 0.1


def test_a_ramp_that_ends_where_the_next_step_or_the_whole_begins_makes_no_step_of_no_time() -> None:
    schedule = compiled(
        {"at": "100ms", "ramp": "1ms -> 2ms over 200ms"},
        {"at": "300ms", "delay": "9ms"},
        {"at": "400ms", "ramp": "9ms -> 1ms over 100ms"},
        {"repeat": "500ms"},
    )
    assert times(schedule) == [0, 0.1, 0.2, 0.3, 0.4]
    assert schedule.at(0.3).impairment.delay_s == 0.009


def test_a_long_ramp_has_longer_stairs() -> None:
    schedule = compiled({"ramp": "0ms -> 100ms over 60min"})
    assert len(schedule.moments) == MOST_STAIRS + 1


def test_an_outage_loses_everything_and_comes_back_to_where_the_ramp_beneath_is() -> None:
    schedule = compiled({"ramp": "0ms -> 100ms over 1s"}, {"at": "250ms", "outage": "500ms"})
    assert [moment.at_s for moment in schedule.moments if moment.impairment.loss_ratio == 1] == [0.25]
    assert [round(moment.at_s, 6) for moment in schedule.moments] == [0, 0.1, 0.2, 0.25, 0.75, 0.8, 0.9, 1.0]
    assert schedule.at(0.76).impairment.delay_s == 0.075


def test_an_outage_that_ends_with_the_period_ends_with_its_beginning() -> None:
    schedule = compiled({"delay": "1ms"}, {"at": "1s", "outage": "1s"}, {"repeat": "2s"})
    assert times(schedule) == [0, 1]
    assert [schedule.at(time_s).impairment.loss_ratio for time_s in (0.5, 1.5, 2.5, 3.5)] == [None, 1, None, 1]


def test_nothing_gets_through_an_outage_by_being_sent_twice_or_marked() -> None:
    cut = lost(Impairment(loss_gemodel=(0.1, 0.5, 1, 0), ecn=True, duplicate_ratio=0.5, corrupt_ratio=0.1))
    assert cut == Impairment(loss_ratio=1.0, corrupt_ratio=0.1)


def test_a_hold_is_a_delay_until_its_end_and_then_the_rate_that_follows() -> None:
    FILES["x.csv"] = "time_s,rate_mbit\n0,10\n1,0\n1.25,2\n"
    schedule = compiled(trace="x.csv", delay="5ms")
    assert [
        (round(moment.at_s, 6), moment.impairment.delay_s, moment.impairment.rate_bps) for moment in schedule.moments
    ] == [
        (0, 0.005, 1e7),
        (1, 0.255, 2e6),
        (1.1, 0.155, 2e6),
        (1.2, 0.055, 2e6),
        (1.25, 0.005, 2e6),
    ]


def test_a_step_without_a_rate_among_steps_with_one_is_given_a_rate_beyond_any_link() -> None:
    schedule = compiled({"rate": "1mbit"}, {"at": "1s", "rate": None}, {"at": "2s", "delay": "9ms", "jitter": "1ms"})
    assert [moment.impairment.rate_bps for moment in schedule.moments] == [1e6, NO_RATE_BPS, None]
    assert qdisc.effective_rate_bps(schedule.moments[2].impairment) is not None


def test_the_queue_is_as_long_as_the_longest_that_any_step_needs() -> None:
    schedule = compiled({"delay": "500ms"}, {"at": "1s", "delay": "1ms"})
    assert {moment.impairment.limit_packets for moment in schedule.moments} == {
        qdisc.sized_limit(Impairment(delay_s=0.5))
    }


def test_steps_that_change_nothing_are_left_out_for_each_begins_the_random_numbers_anew() -> None:
    assert times(compiled({"loss": "1%"}, {"at": "1s", "loss": "1%"}, {"at": "2s", "loss": "2%"})) == [0, 2]


def test_each_random_step_has_a_seed_of_its_own_that_the_same_seed_always_gives() -> None:
    steps = ({"delay": "1ms"}, {"at": "1s", "loss": "1%"}, {"at": "2s", "loss": "2%"})
    seeds = [moment.impairment.seed for moment in compiled(*steps, seed=7).moments]
    assert seeds == [None, step_seed(7, 1), step_seed(7, 2)]
    assert len(set(seeds)) == 3
    named = compiled({"loss": "1%", "seed": 9}, {"at": "1s", "loss": "2%"}, seed=7)
    assert [moment.impairment.seed for moment in named.moments] == [9, step_seed(9, 1)]
    assert [moment.impairment.seed for moment in compiled(*steps).moments] == [None, None, None]


@pytest.mark.parametrize(
    ("first", "second", "problem"),
    [
        ({"delay": "9ms", "jitter": "1ms", "distribution": "normal"}, {"distribution": "uniform"},
         "distribution is not the same at 0s and at 1s: netem cannot remove it without losing queued packets; use a "
         "distribution other than uniform in every step with jitter"),
        ({"loss": "1%", "ecn": True}, {"ecn": False},
         "ecn is not the same at 0s and at 1s: netem cannot remove it without losing queued packets; use ecn in every "
         "step or in none"),
        ({"corrupt": "1%"}, {"corrupt": None, "delay": "1ms"},
         "corrupt is not the same at 0s and at 1s: netem cannot remove it without losing queued packets; use corrupt "
         "in every step or in none"),
        ({"delay": "9ms", "jitter": "1ms", "reorder_by_jitter": True}, {"rate": "1mbit"},
         "reorder_by_jitter with a rate, or without it in another step: netem keeps order once it has a rate, and "
         "cannot drop the rate without losing queued packets; use reorder_by_jitter in every step, and no rate"),
    ],
)  # fmt: skip
def test_what_netem_would_keep_from_an_earlier_step_is_refused(
    first: dict[str, object], second: dict[str, object], problem: str
) -> None:
    if "reorder_by_jitter" in first:
        second = {**second, "reorder_by_jitter": False}
    assert problems_of(first, {"at": "1s", **second}) == (problem,)


@pytest.mark.parametrize("words", [{"rate": "1mbit", "bucket": "2kB"}, {"drop_every": 3}, {"drop_packets": [3]}])
def test_what_is_beside_netem_is_refused_even_in_a_single_step(words: dict[str, object]) -> None:
    (problem,) = problems_of(words)
    assert problem.startswith("bucket, drop_packets and drop_every cannot be part of a timeline")


def test_one_shape_may_follow_another() -> None:
    first = {"delay": "9ms", "jitter": "1ms", "distribution": "normal"}
    schedule = compiled(first, {"at": "1s", "distribution": "pareto"})
    assert qdisc.can_change_in_place(schedule.moments[0].impairment, schedule.moments[1].impairment)


def test_a_shape_that_nothing_looks_at_may_stay() -> None:
    shaped = {"delay": "9ms", "jitter": "1ms", "distribution": "normal"}
    assert len(compiled({"delay": "9ms"}, {"at": "1s", **shaped}, {"at": "2s", "jitter": None}).moments) == 3


WORDS = st.fixed_dictionaries(
    {},
    optional={
        "delay": st.sampled_from(["0ms", "1ms", "250ms"]),
        "loss": st.sampled_from(["0%", "3%", "100%"]),
        "rate": st.sampled_from(["64kbit", "1gbit", None]),
        "outage": st.sampled_from(["10ms", "1s", "5s"]),
        "ramp": st.sampled_from(["1ms -> 2s over 3s", "5% -> 1% over 130ms", "1mbit -> 2mbit over 1s"]),
    },
)


@given(st.lists(st.tuples(st.integers(min_value=0, max_value=20), WORDS), min_size=1, max_size=6), st.booleans())
def test_moments_are_in_order_from_0_on_and_each_can_follow_the_one_before_it(
    changes: list[tuple[int, dict[str, object]]], again: bool
) -> None:
    steps: list[dict[str, object]] = []
    for at_s, words in changes:
        chosen = {"outage": words["outage"]} if "outage" in words else words
        steps.append({"at": f"{at_s}s", **chosen})
    if again:
        steps.append({"repeat": "21s"})
    try:
        schedule = compiled(*steps, seed=1)
    except InvalidValueError:
        return  # in the wrong order, or nothing said
    assert times(schedule)[0] == 0
    assert all(earlier < later for earlier, later in pairwise(times(schedule)))
    assert schedule.repeat_s is None or times(schedule)[-1] < schedule.repeat_s
    for earlier, later in pairwise([*schedule.moments, schedule.moments[0]]):
        assert qdisc.can_change_in_place(earlier.impairment, later.impairment)


@given(st.lists(st.integers(min_value=1, max_value=4000), min_size=1, max_size=200))
def test_a_mahimahi_trace_offers_its_bytes_outside_of_holds(opportunities: list[int]) -> None:
    FILES["m"] = "\n".join(map(str, sorted(opportunities)))
    schedule = compiled(trace="m")
    assert schedule.repeat_s == max(opportunities) / 1000
    holds = {row.at_s for row in mahimahi_rows(FILES["m"]) if row.rate_bps == 0}
    ends = [*times(schedule)[1:], schedule.repeat_s]
    carried = sum(
        (moment.impairment.rate_bps or 0) * (end_s - moment.at_s) / 8
        for moment, end_s in zip(schedule.moments, ends, strict=True)
        if not moment.impairment.delay_s
    )
    assert carried == pytest.approx(1500 * len(opportunities))
    assert holds <= {moment.at_s for moment in schedule.moments if moment.impairment.delay_s}
