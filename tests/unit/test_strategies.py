"""Strategies for users: what is drawn is valid, as bad as allowed at the most, and the same in each run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st

from testbed import InvalidValueError, strategies
from testbed.netem.schedule import compile_timeline
from testbed.spec.impairment import CLEAN, Impairment
from testbed.spec.timeline import Timeline

_WORDS = {"delay": "200ms", "jitter": "500us", "loss": "5%", "rate": "1mbit"}
_ALL = {**_WORDS, "duplicate": "100%", "reorder": "100%", "corrupt": "1%", "drop_packets": 40}


def hold(impairment: Impairment) -> bool:
    """Whether it is within the bounds of `_WORDS`."""
    return (
        (impairment.delay_s or 0) <= 0.2
        and (impairment.jitter_s or 0) <= 0.0005
        and (impairment.loss_ratio or 0) <= 0.05
        and (impairment.rate_bps or 1e9) >= 1e6
    )


@given(strategies.impairments(**_ALL))
def test_an_impairment_is_as_bad_as_allowed_at_the_most_and_what_is_random_has_a_seed(impairment: Impairment) -> None:
    assert hold(impairment)
    assert (impairment.corrupt_ratio or 0) <= 0.01
    assert all(1 <= first <= last <= 40 for first, last in impairment.drop_packets)
    assert not impairment.is_random or impairment.seed is not None
    assert Impairment.parse(impairment.words()) == impairment


@given(strategies.timelines(length="5s", most_steps=4, outage="2s", duplicate="10%", **_WORDS))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_a_timeline_can_be_played_and_ends_in_time(timeline: Timeline) -> None:
    assert len(timeline.phases) <= 4
    assert all(phase.at_s <= 5 and hold(phase.impairment) for phase in timeline.phases)
    assert all(outage.at_s <= 5 and outage.for_s <= 2 for outage in timeline.outages)
    compile_timeline(timeline, seed=1)
    assert not timeline.is_random or timeline.seed is not None


def test_what_is_found_shrinks_to_the_word_that_matters() -> None:
    smallest = find(strategies.impairments(**_ALL), lambda impairment: (impairment.delay_s or 0) >= 0.04)
    assert smallest == Impairment(delay_s=0.04)
    assert find(strategies.impairments(), lambda _: True) == CLEAN
    outage = find(strategies.timelines(outage="2s", delay="1ms"), lambda timeline: bool(timeline.outages))
    assert (len(outage.phases), outage.outages[0].for_s) == (1, 0.001)


def refusals() -> Iterator[tuple[Callable[[], st.SearchStrategy[object]], list[str]]]:
    yield (
        lambda: strategies.impairments(delay="fast", lost="5%", jitter="-1ms"),
        ["delay", "lost: ", "jitter"],
    )
    yield lambda: strategies.impairments(jitter="5ms"), ["jitter without delay has no effect: give delay, too"]
    yield lambda: strategies.impairments(drop_packets=0), ["drop_packets=0: must be a whole number, how many"]
    yield lambda: strategies.timelines(), ["timelines(): what may change? Give a word"]
    yield (
        lambda: strategies.timelines(length="0s", most_steps=0, outage="1", corrupt="1%"),
        ["length='0s': must be at least 1ms", "outage", "corrupt: ", "most_steps=0: must be a whole number"],
    )


@pytest.mark.parametrize(("ask", "problems"), [*refusals()])
def test_every_problem_is_told_at_once(ask: Callable[[], object], problems: list[str]) -> None:
    with pytest.raises(InvalidValueError) as refused:
        ask()
    assert len(refused.value.problems) == len(problems)
    for problem, begin in zip(refused.value.problems, problems, strict=True):
        assert problem.startswith(begin)
