"""The noisy bisection: its intervals miss the boundary as seldom as they say, and runs go where they are needed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.errors import InvalidValueError
from testbed.judge.envelope import Interval, Search, staircase
from testbed.report import envelope as words
from testbed.report.page import Charts, Curves
from testbed.spec.axis import Axis

LEVELS, PROBABILITY, ALPHA, WIDTH = 16, 0.8, 0.1, 1
Curve = Callable[[int], float]


def search(**changes: float) -> Search:
    values = {"levels": LEVELS, "probability": PROBABILITY, "alpha": ALPHA, "width": WIDTH, **changes}
    return Search(**values)  # type: ignore[arg-type]  # levels and width are whole


def is_over(searched: Search) -> bool:
    return searched.interval.narrow(searched.levels, searched.width)


def run(curve: Curve, seed: int, most: int = 600) -> Search:
    """Search by runs of a test whose probability to pass is a curve over the levels."""
    random_ = random.Random(seed)  # noqa: S311  # draws that can be drawn again
    searched = search()
    for _ in range(most):
        if is_over(searched):
            break
        level = searched.next_level()
        searched.take(level, passed=random_.random() < curve(level))
    return searched


def boundary(curve: Curve) -> int:
    return sum(curve(level) >= PROBABILITY for level in range(LEVELS))


CURVES: dict[str, Curve] = {
    "a step": lambda level: 0.99 if level < 6 else 0.2,
    "a slope": lambda level: 1 / (1 + math.exp((level - 9) / 0.7)),
    "two steps, of no logistic form": lambda level: 0.95 if level < 4 else 0.6 if level < 12 else 0.0,
    "always as asked, to a hair": lambda _: PROBABILITY,
    "never as asked, by a hair": lambda _: PROBABILITY - 1e-9,
    "at the asked probability up to a level": lambda level: PROBABILITY if level < 8 else PROBABILITY - 1e-9,
}


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_the_interval_misses_the_boundary_as_seldom_as_it_says(curve: Curve) -> None:
    searches = [run(curve, seed, most=120) for seed in range(40)]
    missed = sum(not searched.interval.first <= boundary(curve) <= searched.interval.last for searched in searches)
    # 40 intervals at 10 %: 4 in the mean; more than 10 have a chance of 0.15 %.
    assert missed <= 10


@pytest.mark.parametrize(
    ("curve", "runs"),
    [
        (lambda level: 1.0 if level < 6 else 0.0, 25),
        (lambda _: 1.0, 24),
        (lambda _: 0.0, 8),
    ],
    ids=["a step", "always", "never"],
)
def test_a_clear_answer_takes_few_runs(curve: Curve, runs: int) -> None:
    searched = run(curve, 1)
    assert is_over(searched)
    assert searched.interval.first <= boundary(curve) <= searched.interval.last
    # A pass raises a bet by 1/0.8 at most, and 0.8^11 < 0.1: eleven are the fewest; at most twice as many are spent.
    assert sum(searched.passed) + sum(searched.failed) <= runs


def test_slopes_and_steps_are_found() -> None:
    for name in ("a step", "a slope", "two steps, of no logistic form"):
        searched = [run(CURVES[name], seed) for seed in range(10)]
        assert sum(map(is_over, searched)) >= 9, name


def test_each_end_is_tried_first() -> None:
    searched = search()
    assert searched.next_level() == 0
    searched.take(0, passed=True)
    assert searched.next_level() == LEVELS - 1


def test_without_runs_nothing_is_known() -> None:
    assert search().interval == Interval(first=0, last=LEVELS)
    assert not is_over(search())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, LEVELS - 1), st.booleans()), max_size=60))
def test_an_interval_never_grows_whatever_the_runs(runs: list[tuple[int, bool]]) -> None:
    searched = search()
    before = searched.interval
    for level, passed in runs:
        searched.take(level, passed=passed)
        now = searched.interval
        assert 0 <= now.first <= now.last <= LEVELS
        assert 0 <= searched.next_level() < LEVELS
        grew = now.first < before.first or now.last > before.last
        assert not grew or now.first == now.last, "only where every boundary is excluded another may be taken"
        before = now


@settings(max_examples=40, deadline=None)
@given(st.integers(0, LEVELS), st.integers(0, 5), st.integers(0, LEVELS - 1))
def test_a_bet_has_a_mean_of_at_most_one_against_the_true_boundary(true: int, passes: int, level: int) -> None:
    """Of the two outcomes of a run at the least favourable probability, weighed: that is what Ville needs."""
    wealth = []
    for passed in (True, False):
        searched = search()
        for _ in range(passes):
            searched.take(LEVELS // 2, passed=True)
        before = list(searched.bets())[true]
        searched.take(level, passed=passed)
        wealth.append(math.exp(list(searched.bets())[true] - before))
    assert PROBABILITY * wealth[0] + (1 - PROBABILITY) * wealth[1] <= 1 + 1e-9
    assert wealth[0] <= 1 or level >= true, "only from the boundary on do passes speak against it"


def test_what_is_asked_of_a_search_is_checked() -> None:
    for changes in ({"levels": 1}, {"probability": 1.0}, {"alpha": 0.0}, {"width": -1}):
        with pytest.raises(ValueError, match="levels, probability"):
            search(**changes)


# --- the map -----------------------------------------------------------------------------------------


def test_what_a_bad_link_holds_milder_ones_hold_and_what_a_mild_link_fails_worse_ones_fail() -> None:
    intervals = [Interval(first=2, last=9), Interval(first=4, last=12), Interval(first=0, last=6)]
    assert staircase(intervals) == [Interval(first=4, last=9), Interval(first=4, last=9), Interval(first=0, last=6)]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5)), min_size=1, max_size=8))
def test_a_staircase_never_rises(spans: list[tuple[int, int]]) -> None:
    steps = staircase([Interval(first=first, last=first + more) for first, more in spans])
    assert all(step.first <= step.last for step in steps)
    assert [step.last for step in steps] == sorted((step.last for step in steps), reverse=True)


# --- the axis ----------------------------------------------------------------------------------------


def test_values_are_evenly_spaced_and_written_as_the_user_does() -> None:
    axis = Axis.parse("loss=0..30%", 4)
    assert axis.texts == ("0%", "10%", "20%", "30%")
    assert axis.values == (0, 0.1, 0.2, 0.3)
    assert axis.at(3) == "loss=30%"
    assert Axis.parse("delay=10ms..0.4s", 3).texts == ("10ms", "205ms", "400ms")
    assert Axis.parse("rate=10mbit..2mbit", 3).texts == ("10mbit", "6mbit", "2mbit"), "a lower rate is worse"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss", "write WORD=MILD..BAD"),
        ("loss=3%", "write WORD=MILD..BAD"),
        ("los=0..3%", "los: unknown; did you mean 'loss'?"),
        ("latency=0..3ms", "here it is delay"),
        ("loss=3..3%", "an empty range: both ends are 3%"),
        ("loss=30%..0", "the mild end comes first, and loss rises as links get worse; write loss=0%..30%"),
        ("rate=1mbit..10mbit", "rate falls as links get worse; write rate=10mbit..1mbit"),
        ("loss=0..300%", "a percentage lies between 0% and 100%"),
        ("delay=0..5", "needs a unit"),
        ("slot=1ms..2ms", "slot is no quantity that gets worse"),
        ("ecn=true..false", "ecn is no quantity that gets worse"),
    ],
)
def test_a_range_that_cannot_be_searched_is_told(text: str, message: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        Axis.parse(text, 5)
    assert message in str(caught.value)


# --- the words ---------------------------------------------------------------------------------------

AXIS = Axis.parse("loss=0..4%", 5)


@pytest.mark.parametrize(
    ("first", "last", "sentence"),
    [
        (2, 3, "held to loss 1%, fails from 3% on"),
        (0, 0, "already fails at the mild end, loss 0%"),
        (5, 5, "still passes at the bad end, loss 4%"),
        (2, 5, "held to loss 1%"),
        (0, 3, "fails from 3% on"),
        (0, 5, "nothing known yet between loss 0% and 4%"),
    ],
)
def test_what_is_known_is_told_as_a_clause(first: int, last: int, sentence: str) -> None:
    assert words.sentence(AXIS, Interval(first=first, last=last)) == sentence


def test_head_is_worse_where_a_value_fails_that_base_holds() -> None:
    held, failed = Interval(first=3, last=4), Interval(first=1, last=2)
    assert words.change(held, failed) == "worse"
    assert words.change(failed, held) == "better"
    assert words.change(held, Interval(first=1, last=3)) == "no difference found"


def test_the_map_says_between_two_columns_no_more_than_both_do() -> None:
    across = Axis.parse("delay=0..100ms", 2)
    spans = [Interval(first=3, last=4), Interval(first=1, last=2)]
    columns = [
        words.Column(version="head", link=across.at(number), interval=span, runs=[(1, 0)] * 5, replay=None)
        for number, span in enumerate(spans)
    ]
    page = words.page_of(AXIS, across, columns, facts=[], confidence=0.95)
    (part,) = page.before
    assert isinstance(part, Charts)
    (chart,) = part.charts
    assert isinstance(chart, Curves)
    assert chart.curves == {
        "head held to": [(0, 2), (0, 0), (0.1, 0)],
        "head fails from": [(0, 4), (0.1, 4), (0.1, 2)],
    }
    assert (chart.x, chart.y) == ("delay (s)", "loss (%)")
