"""Timelines: what steps and traces may contain, and how problems are reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed import units
from testbed.errors import InvalidValueError
from testbed.spec.impairment import CLEAN, Impairment
from testbed.spec.steps import parse_side
from testbed.spec.timeline import LATE_S, Outage, Phase, Taken, Timeline, between, steps_in_words
from testbed.spec.traces import OPPORTUNITY_BYTES, csv_rows, mahimahi_rows
from tests.unit.strategies import impairments

FILES = {
    "drive.csv": "time_s,rate_mbit,delay_ms\n0,10,20\n1,,30\n2,0,\n3,5,\n",
    "up": "10\n20\n20\n100\n150\n",
}


def read(name: str) -> str:
    if name not in FILES:
        raise InvalidValueError(f"trace {name!r}: no such file")
    return FILES[name]


def timeline(*steps: Mapping[str, object]) -> Timeline:
    side = parse_side(list(steps), read_trace=read)
    assert isinstance(side, Timeline)
    return side


def trace(**words: object) -> Timeline:
    side = parse_side(words, read_trace=read)
    assert isinstance(side, Timeline)
    return side


def problems_of(value: object) -> tuple[str, ...]:
    with pytest.raises(InvalidValueError) as refused:
        parse_side(value, read_trace=read)
    return refused.value.problems


# --- steps -----------------------------------------------------------------------------------------


def test_words_without_time_are_an_impairment() -> None:
    assert parse_side({"delay": "40ms"}, read_trace=read) == Impairment(delay_s=0.04)


def test_a_step_changes_what_it_names_and_the_rest_stays() -> None:
    wanted = timeline({"delay": "40ms", "rate": "10mbit"}, {"at": "2s", "loss": "5%"}, {"at": "3s", "rate": None})
    assert [phase.impairment for phase in wanted.phases] == [
        Impairment(delay_s=0.04, rate_bps=1e7),
        Impairment(delay_s=0.04, rate_bps=1e7, loss_ratio=0.05),
        Impairment(delay_s=0.04, loss_ratio=0.05),
    ]
    assert [phase.at_s for phase in wanted.phases] == [0, 2, 3]
    assert wanted.length_s == 3


def test_clean_begins_with_nothing() -> None:
    wanted = timeline({"delay": "40ms"}, {"at": "1s", "clean": True}, {"at": "2s", "clean": True, "loss": "1%"})
    assert [phase.impairment for phase in wanted.phases[1:]] == [CLEAN, Impairment(loss_ratio=0.01)]


def test_what_depends_on_a_word_goes_with_it() -> None:
    wanted = timeline(
        {"delay": "40ms", "jitter": "5ms", "distribution": "normal", "loss": "5%", "burst": 4},
        {"at": "1s", "jitter": "0ms", "loss": None},
    )
    assert wanted.phases[1].impairment == Impairment(delay_s=0.04, jitter_s=0.0)


def test_a_loss_model_takes_the_place_of_another() -> None:
    wanted = timeline({"loss": "5%", "burst": 4}, {"at": "1s", "gemodel": "1% 25%"}, {"at": "2s", "loss": "1%"})
    assert wanted.phases[1].impairment == Impairment(loss_gemodel=(0.01, 0.25, 1.0, 0.0))
    assert wanted.phases[2].impairment == Impairment(loss_ratio=0.01)


def test_before_the_first_step_the_link_is_clean() -> None:
    assert timeline({"at": "2s", "loss": "5%"}).phases[0] == Phase(at_s=0.0, impairment=CLEAN)
    assert timeline({"at": "2s", "outage": "1s"}).phases == (Phase(at_s=0.0, impairment=CLEAN),)


@pytest.mark.parametrize(
    ("short", "word", "first", "last"),
    [
        ("40ms -> 400ms over 10s", "delay_s", 0.04, 0.4),
        ("0% -> 5% over 10s", "loss_ratio", 0.0, 0.05),
        ("10mbit -> 500kbit over 10s", "rate_bps", 1e7, 5e5),
        ("40ms→400ms over 10s", "delay_s", 0.04, 0.4),
    ],
)
def test_the_unit_says_what_a_short_ramp_is_of(short: str, word: str, first: float, last: float) -> None:
    (phase,) = timeline({"ramp": short}).phases
    assert getattr(phase.impairment, word) == first
    assert phase.toward is not None
    assert getattr(phase.toward, word) == last
    assert phase.over_s == 10


def test_a_ramp_of_several_words_keeps_what_holds_beneath_and_its_end_stays() -> None:
    wanted = timeline(
        {"rate": "10mbit"},
        {"at": "1s", "ramp": {"delay": "10ms -> 30ms", "loss": "0% -> 4%", "over": "2s"}},
        {"at": "5s", "loss": "1%"},
    )
    assert wanted.at(2) == Impairment(rate_bps=1e7, delay_s=0.02, loss_ratio=0.02)
    assert wanted.at(4) == Impairment(rate_bps=1e7, delay_s=0.03, loss_ratio=0.04)
    assert wanted.at(5) == Impairment(rate_bps=1e7, delay_s=0.03, loss_ratio=0.01)


def test_jitter_may_ramp_from_nothing_with_a_shape() -> None:
    wanted = timeline(
        {"delay": "9ms"}, {"at": "1s", "distribution": "normal", "ramp": {"jitter": "0ms -> 4ms", "over": "1s"}}
    )
    assert wanted.at(1.5) == Impairment(delay_s=0.009, jitter_s=0.002, distribution="normal")


def test_an_outage_lies_over_what_goes_on_beneath() -> None:
    wanted = timeline({"ramp": "0ms -> 100ms over 10s"}, {"at": "2s", "outage": "3s"})
    assert wanted.outages == (Outage(at_s=2, for_s=3),)
    assert wanted.at(1.999) is not None
    assert wanted.at(2) is None
    assert wanted.at(4.999) is None
    assert wanted.at(5) == Impairment(delay_s=0.05)
    assert wanted.length_s == 10
    assert wanted.describe() == "timeline, 1 step over 10s, 1 outage"


def test_repeat_is_the_length() -> None:
    assert timeline({"delay": "1ms"}, {"at": "1s", "delay": "2ms"}, {"repeat": "9s"}).length_s == 9


def test_a_timeline_is_clean_or_random_as_a_whole() -> None:
    assert timeline({"at": "1s", "clean": True}).is_clean
    assert not timeline({"at": "1s", "outage": "1s"}).is_clean
    assert not timeline({"at": "1s", "delay": "1ms"}).is_random
    assert timeline({"ramp": "0% -> 1% over 1s"}).is_random
    assert timeline({"delay": "1ms"}, {"at": "1s", "loss": "1%", "seed": 7}).seed == 7


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ([{"at": "1s"}], "step 1: changes nothing; name a word such as delay, or ramp, outage, clean: true"),
        ([{"at": 2, "loss": "1%"}], 'step 1: at=2: a duration needs a unit; write at="2ms" or "2s"'),
        ([{"at": "2d", "loss": "1%"}], "step 1: at='2d': unknown unit 'd'; known: ns, us, µs, ms, s, min"),
        ([{"at": "1441min", "loss": "1%"}], "step 1: at='1441min': must be at most a day"),
        ([{"loss": "1%"}, {"loss": "2%"}],
         "step 2: without `at`: only the first step may omit it; write {at: 2s, …}"),
        ([{"at": "2s", "loss": "1%"}, {"at": "1s", "loss": "2%"}],
         "the step at 1s stands behind the one at 2s: put them in order"),
        ([{"at": "1s", "loss": "1%"}, {"at": "1s", "loss": "2%"}],
         "the step at 1s stands behind the one at 1s: put them in order"),
        ([{"ramp": "1ms -> 2ms over 4s"}, {"at": "3s", "loss": "1%"}],
         "the step at 3s comes in the middle of the ramp from 0s to 4s; end the ramp before it"),
        ([{"at": "1s", "outage": "2s"}, {"at": "2s", "outage": "2s"}],
         "the outage at 2s begins before the one at 1s has ended"),
        ([{"at": "1s", "outage": "2s", "loss": "1%"}],
         "step 1: outage with loss: an outage loses everything; write these in a step of their own"),
        ([{"at": "1s", "outage": "0s"}], "step 1: outage='0s': must be at most a day and at least 1ms"),
        ([{"outage": "2"}], 'step 1: outage=2: a duration needs a unit; write outage="2ms" or "2s"'),
        ([{"delay": "1ms"}, {"at": "2s", "delay": "2ms"}, {"repeat": "2s"}],
         "repeat=2s: too short for the steps, which last until 2s"),
        ([{"delay": "1ms"}, {"at": "1s", "outage": "2s"}, {"repeat": "2s"}],
         "repeat=2s: too short for the steps, which last until 3s"),
        ([{"repeat": "2s"}], "no step says what happens"),
        ([{"repeat": "2s", "delay": "1ms"}], "step 1: repeat stands alone, as the last step: {repeat: 60s}"),
        ([{"repeat": "2s"}, {"delay": "1ms"}],
         "step 1: repeat must be the last step: after this time, all steps begin again"),
        ([{"clean": "yes"}], "step 1: clean='yes': must be true or false"),
        ([{"jitter": "1ms"}, {"at": "1s", "loss": "1%"}],
         "step 1: jitter without delay: netem varies a delay; give the mean delay too"),
        ([{"loss": "1%", "ecn": True}, {"at": "1s", "outage": "1s"}],
         "ecn with an outage: netem would mark packets instead of losing them; leave one of them out"),
        ([{"ramp": "40ms over 2s"}],
         "step 1: ramp='40ms over 2s': cannot be read; write ramp: {delay: 40ms -> 400ms, over: 10s} or ramp: "
         "40ms -> 400ms over 10s"),
        ([{"ramp": {"delay": "1ms -> 2ms"}}],
         "step 1: ramp={'delay': '1ms -> 2ms'}: needs what changes, and over how long; write ramp: {delay: 40ms -> "
         "400ms, over: 10s} or ramp: 40ms -> 400ms over 10s"),
        ([{"ramp": {"delay": "2ms", "over": "1s"}}],
         "step 1: ramp: delay='2ms': needs a beginning and an end; write ramp: {delay: 40ms -> 400ms, over: 10s} or "
         "ramp: 40ms -> 400ms over 10s"),
        ([{"ramp": {"limit": "2 -> 3", "over": "1s"}}],
         "step 1: ramp: limit: unknown; known: delay, jitter, correlation, loss, duplicate, reorder, corrupt, rate"),
        ([{"delay": "1ms"}, 5], "step 2: must be a mapping such as {at: 2s, loss: 5%}; found 5"),
    ],
)  # fmt: skip
def test_steps_that_make_no_sense_are_refused(steps: Sequence[object], problem: str) -> None:
    assert problems_of(steps) == (problem,)


def test_every_problem_of_every_step_is_named_at_once() -> None:
    problems = problems_of([{"delay": "40", "lss": "1%"}, {"at": "x", "loss": 5}, {"at": "9s", "ramp": 3}])
    assert [problem.partition(":")[0] for problem in problems] == ["step 1", "step 1", "step 2", "step 2", "step 3"]
    assert "did you mean 'loss'?" in problems[1]


def test_words_of_timelines_outside_of_one_are_refused_with_the_way_to_write_it() -> None:
    assert problems_of({"at": "2s", "delay": "1ms"}) == (
        "at: belongs to a timeline, a list of steps; write [{delay: 40ms}, {at: 2s, outage: 1s}]",
    )


@given(impairments(), impairments(), st.floats(min_value=0, max_value=1))
def test_between_lies_between(first: Impairment, last: Impairment, share: float) -> None:
    try:
        middle = between(first, last, share)
    except InvalidValueError:
        return  # the two have words that cannot hold together, which a timeline's own ends never have
    for name in ("delay_s", "rate_bps", "loss_ratio"):
        a, b, value = (getattr(part, name) for part in (first, last, middle))
        if a is not None and b is not None and name != "loss_ratio":
            assert min(a, b) - 1e-9 <= value <= max(a, b) + 1e-9


# --- CSV ---------------------------------------------------------------------------------------------


def test_a_csv_says_what_changes_and_empty_cells_say_nothing() -> None:
    wanted = trace(trace="drive.csv", jitter="1ms")
    assert [(phase.at_s, phase.impairment.rate_bps, phase.impairment.delay_s) for phase in wanted.phases] == [
        (0, 1e7, 0.02),
        (1, 1e7, 0.03),
        (2, 5e6, 0.03),
        (3, 5e6, 0.03),
    ]
    assert {phase.impairment.jitter_s for phase in wanted.phases} == {0.001}
    assert wanted.describe() == "trace drive.csv, 4 steps over 3s"


def test_rate_0_holds_until_there_is_a_rate_again_also_around_the_end() -> None:
    assert [phase.hold_s for phase in trace(trace="drive.csv").phases] == [None, None, 1.0, None]
    FILES["wraps.csv"] = "time_s,rate_mbit\n0,0\n1,5\n2,0\n"
    wanted = trace(trace="wraps.csv", repeat="4s")
    assert [(phase.hold_s, phase.impairment.rate_bps) for phase in wanted.phases] == [
        (1.0, 5e6),
        (None, 5e6),
        (3.0, 5e6),
    ]


@pytest.mark.parametrize("header", ["time_s,delay_ms", "time [s], delay [ms]", "Time(s),Delay (ms)", "time/s,delay/ms"])
def test_units_stand_in_the_header_in_the_usual_ways(header: str) -> None:
    (row,) = csv_rows(f"{header}\n1.5,20\n")
    assert (row.at_s, row.words) == (1.5, {"delay": "20ms"})


def test_units_may_stand_in_the_cells_and_lines_may_be_comments() -> None:
    rows = csv_rows("# made by hand\ntime,loss\n\n250ms, 2%\n1s,\n")
    assert [(row.line, row.at_s, dict(row.words)) for row in rows] == [(4, 0.25, {"loss": "2%"}), (5, 1, {})]


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ["is empty; its first line must name the columns: time, rate, delay, loss"]),
        ("time,delay\n", ["has a header and no line behind it"]),
        ("time_s\n1\n", ["line 1: needs a column time and at least one of rate, delay, loss"]),
        ("delay_ms\n1\n", ["line 1: needs a column time and at least one of rate, delay, loss"]),
        ("time_s,delya\n1,1\n",
         ["line 1: column 'delya': unknown; did you mean 'delay'? Known: time, rate, delay, loss"]),
        ("time_s,delay_parsec\n",
         ["line 1: column 'delay_parsec': delay='1parsec': unknown unit 'parsec'; known: ns, us, µs, ms, s, min"]),
        ("time_s,delay_ms,delay_s\n0,1,1\n", ["line 1: column 'delay' stands twice"]),
        ("time_s,delay_ms\n0,1\n0,2\n0.5\n1,x\n",
         ["line 3: time='0': not after 0s, the line before it",
          "line 4: 1 cells where the header has 2 columns",
          "line 5: delay='xms': not a duration; write for example delay=\"40ms\""]),
        ("time,delay_ms\n1,1\n", ['line 2: time=1: a duration needs a unit; write time="1ms" or "1s"']),
    ],
)  # fmt: skip
def test_a_csv_that_makes_no_sense_is_refused_line_by_line(text: str, problems: list[str]) -> None:
    with pytest.raises(InvalidValueError) as refused:
        csv_rows(text)
    assert list(refused.value.problems) == problems


def test_a_trace_names_its_file_in_its_problems() -> None:
    FILES["bad.csv"] = "time_s,rate_mbit\n0,1\n1,0\n"
    assert problems_of({"trace": "bad.csv"}) == (
        "bad.csv: line 3: rate 0 to the end: nothing would ever leave; say loss 100%",
    )
    assert problems_of({"trace": "none.csv", "jittr": "1ms"})[1] == "trace 'none.csv': no such file"
    assert problems_of({"trace": "drive.csv", "repeat": "3s"}) == (
        "repeat='3s': the trace's last line is at 3s; give more",
    )
    assert problems_of({"trace": "up", "rate": "1mbit"}) == ("rate: a Mahimahi trace has its own",)


def test_a_word_that_a_traces_column_says_too_is_refused() -> None:
    assert problems_of({"trace": "drive.csv", "rate": "5mbit", "delay": "1ms", "loss": "1%"}) == (
        "rate='5mbit': drive.csv has a column rate, too; leave one of them out",
        "delay='1ms': drive.csv has a column delay, too; leave one of them out",
    )
    assert problems_of({"trace": "drive.csv", "window": "1s"}) == (
        "window: belongs to a Mahimahi trace; a CSV has its own times",
    )
    assert problems_of({"trace": 5}) == ("trace=5: must be the name of a file, for example traces/tunnel.csv",)


# --- Mahimahi ----------------------------------------------------------------------------------------


def test_a_mahimahi_trace_is_averaged_over_windows_and_begins_again_at_its_last_line() -> None:
    wanted = trace(trace="up", delay="20ms")
    # 4 packets in the first 100 ms; the 50 ms behind them, half a window, are one of their own, with 1.
    assert [(phase.at_s, phase.impairment.rate_bps) for phase in wanted.phases] == [
        (0, 4 * 12_000 / 0.1),
        (0.1, 12_000 / 0.05),
    ]
    assert wanted.repeat_s == 0.15
    assert {phase.impairment.delay_s for phase in wanted.phases} == {0.02}


def test_a_window_without_opportunities_is_a_hold_around_the_end_too() -> None:
    FILES["gap"] = "\n".join(["250"] * 3 + ["400"])
    wanted = trace(trace="gap")
    assert [(phase.at_s, phase.hold_s) for phase in wanted.phases] == [(0, 0.2), (0.2, None), (0.3, None)]


@given(
    st.lists(st.integers(min_value=0, max_value=5000), min_size=1, max_size=300).filter(lambda times: max(times) > 0),
    st.sampled_from([0.01, 0.05, 0.1, 0.25]),
)
def test_the_bytes_of_all_windows_are_those_of_all_opportunities(times: list[int], window_s: float) -> None:
    rows = mahimahi_rows("\n".join(map(str, sorted(times))), window_s=window_s)
    starts = [row.at_s for row in rows]
    assert starts == sorted(set(starts))
    assert starts[0] == 0
    assert rows[-1].at_s == max(times) / 1000
    carried = sum((row.rate_bps or 0) * (later.at_s - row.at_s) / 8 for row, later in pairwise(rows))
    assert carried == pytest.approx(len(times) * OPPORTUNITY_BYTES)


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ["has no opportunity after 0 ms, so it would begin again at once; is it a Mahimahi trace?"]),
        ("0\n0\n", ["has no opportunity after 0 ms, so it would begin again at once; is it a Mahimahi trace?"]),
        (
            "5\n3\nx\n-1\n1.5",
            [
                "line 2: 3 comes before 5, the line before it",
                "line 3: 'x': not a whole number of milliseconds",
                "line 4: '-1': not a whole number of milliseconds",
                "line 5: '1.5': not a whole number of milliseconds",
            ],
        ),
        ("86400001", ["lasts 86400001 ms; at most a day"]),
    ],
)
def test_what_is_no_mahimahi_trace_is_refused_line_by_line(text: str, problems: list[str]) -> None:
    with pytest.raises(InvalidValueError) as refused:
        mahimahi_rows(text)
    assert list(refused.value.problems) == problems


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    for reader in (csv_rows, mahimahi_rows):
        with suppress(InvalidValueError):
            assert reader(text)


_LEAVES = st.none() | st.booleans() | st.text(max_size=8) | st.sampled_from(["1s", "2ms", "5%", "1ms -> 2ms over 1s"])
_KEYS = st.sampled_from(["at", "ramp", "outage", "repeat", "clean", "delay", "loss", "trace", "x"])


@given(
    st.recursive(
        _LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4), max_leaves=12
    )
)
def test_anything_that_yaml_can_say_is_read_or_refused(value: object) -> None:
    with suppress(InvalidValueError):
        parse_side(value, read_trace=read)


# --- what was taken ----------------------------------------------------------------------------------


def test_a_step_later_than_10_ms_is_late_and_what_was_not_in_force_is_said() -> None:
    def taken(late_s: float, complaint: str | None = None) -> Taken:
        return Taken(
            planned_s=2.0, actual_s=2.0 + late_s, monotonic_s=0, unix_s=0, impairment=CLEAN, complaint=complaint
        )

    assert not taken(LATE_S - 0.001).is_late
    assert taken(LATE_S + 0.001).is_late
    assert steps_in_words([taken(0.0015), taken(0.004, "no")]) == (
        "2 steps, at worst 4.0 ms late: 2 s (+1.5 ms) clean; 2 s (+4.0 ms) clean NOT IN FORCE: no"
    )
    assert "… 2 more …" in steps_in_words([taken(0)] * 12, most=10)


def test_times_are_written_in_units() -> None:
    assert units.format_time(timeline({"delay": "1ms"}, {"at": "90s", "delay": "2ms"}).length_s) == "90s"
