"""A failure made smaller: the losses that matter are left, in the simplest impairment that has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.judge.shrinking import Put, Scenario, Shrinking, minimised, numbered
from testbed.pytest.shrinking import Shrunk
from testbed.spec.impairment import CLEAN, Impairment
from testbed.spec.links import LinkRef
from testbed.spec.steps import parse_steps, write_steps
from testbed.spec.timeline import Timeline

THERE, BACK = LinkRef("a", "b", "lan"), LinkRef("b", "a", "lan")
LOSSY = Impairment(delay_s=0.03, jitter_s=0.005, distribution="normal", loss_ratio=0.05)


def shrunk(
    fails: Callable[[Scenario], bool],
    puts: dict[Put, Impairment | Timeline],
    lost: dict[LinkRef, Sequence[int]],
    *,
    work: dict[str, int] | None = None,
    most_tries: int = 1000,
) -> Shrinking:
    shrinking = Shrinking(Scenario(puts, work or {}), fails, most_tries=most_tries)
    shrinking.run(lost)
    return shrinking


def loses(scenario: Scenario, *packets: tuple[LinkRef, int]) -> bool:
    return {(Put(link, 0), number) for link, number in packets} <= set(scenario.dropped)


def test_the_two_losses_that_matter_are_left_and_all_other_words_go() -> None:
    shrinking = shrunk(
        lambda scenario: loses(scenario, (THERE, 17), (BACK, 4)),
        {Put(THERE, 0): LOSSY, Put(BACK, 0): LOSSY},
        {THERE: [2, 9, 17, 18, 30], BACK: [1, 4, 33]},
    )
    assert shrinking.best.puts == {
        Put(THERE, 0): Impairment(drop_packets=((17, 17),)),
        Put(BACK, 0): Impairment(drop_packets=((4, 4),)),
    }
    assert shrinking.complete
    assert shrinking.tries < 60


def test_a_word_that_matters_stays_with_what_it_needs() -> None:
    def fails(scenario: Scenario) -> bool:
        wanted = scenario.puts[Put(THERE, 0)]
        assert isinstance(wanted, Impairment)
        return bool(wanted.jitter_s)

    assert shrunk(fails, {Put(THERE, 0): LOSSY}, {THERE: [1, 2]}).best.puts == {
        Put(THERE, 0): Impairment(delay_s=0.03, jitter_s=0.005)
    }


def test_losses_stay_random_where_numbered_ones_do_not_fail() -> None:
    def fails(scenario: Scenario) -> bool:
        return getattr(scenario.puts[Put(THERE, 0)], "loss_ratio", None) == 0.05

    shrinking = shrunk(fails, {Put(THERE, 0): LOSSY, Put(BACK, 0): LOSSY}, {THERE: [3], BACK: [5]})
    assert shrinking.best.puts == {Put(THERE, 0): Impairment(loss_ratio=0.05), Put(BACK, 0): CLEAN}


def test_the_packets_of_a_link_that_is_impaired_twice_have_no_numbers_of_one_impairment() -> None:
    puts: dict[Put, Impairment | Timeline] = {Put(THERE, 0): LOSSY, Put(THERE, 1): LOSSY}
    tried: list[Scenario] = []

    def fails(scenario: Scenario) -> bool:
        tried.append(scenario)
        return False

    shrunk(fails, puts, {THERE: [3]})
    assert tried
    assert not any(scenario.dropped for scenario in tried)


def test_a_timeline_becomes_its_losses_or_else_its_few_steps_that_matter() -> None:
    later = [{"at": f"{second}s", "delay": f"{second}ms"} for second in range(1, 9)]
    outages = [{"at": "2s", "outage": "1s"}, {"at": "5s", "outage": "1s"}]
    timeline = parse_steps([{"delay": "10ms"}, *later, *outages, {"repeat": "20s"}])
    of_losses = shrunk(lambda scenario: loses(scenario, (THERE, 7)), {Put(THERE, 0): timeline}, {THERE: [6, 7, 8]})
    assert of_losses.best.puts == {Put(THERE, 0): Impairment(drop_packets=((7, 7),))}

    def fails(scenario: Scenario) -> bool:
        wanted = scenario.puts[Put(THERE, 0)]
        return isinstance(wanted, Timeline) and any(outage.at_s == 5 for outage in wanted.outages)

    (left,) = shrunk(fails, {Put(THERE, 0): timeline}, {THERE: [6, 7, 8]}).best.puts.values()
    assert isinstance(left, Timeline)
    assert write_steps(left) == [
        {"at": "0s", "clean": True, "delay": "10ms"},
        {"at": "5s", "outage": "1s"},
    ]


def test_with_less_work_the_last_packets_have_smaller_numbers() -> None:
    """The farewell after so many messages is the packet that must be lost."""

    def fails(scenario: Scenario) -> bool:
        return loses(scenario, (THERE, scenario.work["messages"] + 1))

    best = shrunk(fails, {Put(THERE, 0): LOSSY}, {THERE: [4, 21]}, work={"messages": 20}).best
    assert (best.work, best.dropped) == ({"messages": 1}, [(Put(THERE, 0), 2)])


def test_no_more_is_tried_than_allowed_and_the_best_until_then_is_kept() -> None:
    puts: dict[Put, Impairment | Timeline] = {Put(THERE, 0): LOSSY}
    spent = shrunk(lambda scenario: loses(scenario, (THERE, 17)), puts, {THERE: range(1, 100)}, most_tries=5)
    assert (spent.tries, spent.complete) == (5, False)
    assert 1 < len(spent.best.dropped) < 99


@given(st.sets(st.integers(1, 60), min_size=1), st.data())
def test_what_is_left_fails_and_with_any_one_item_less_it_does_not(items: set[int], data: st.DataObject) -> None:
    needed = data.draw(st.sets(st.sampled_from(sorted(items))))
    assert set(minimised(sorted(items), lambda chosen: needed <= set(chosen))) == needed


def test_numbers_replace_every_kind_of_loss() -> None:
    for words in ({"loss": "5%", "burst": 3}, {"gemodel": "1% 25%"}, {"drop_every": 5, "drop_packets": [3]}):
        impairment = Impairment.parse({"delay": "5ms", **words})
        assert numbered(impairment, [3, 4, 9]) == Impairment(delay_s=0.005, drop_packets=((3, 4), (9, 9)))
    assert numbered(Impairment(delay_s=0.005), []) is None


@pytest.mark.parametrize(
    "steps",
    [
        [{"delay": "40ms", "rate": "10mbit"}, {"at": "2s", "loss": "5%"}, {"at": "3s", "rate": None}],
        [{"at": "2s", "outage": "1s"}],
        [{"delay": "40ms"}, {"at": "1s", "ramp": "40ms -> 400ms over 10s"}, {"at": "20s", "clean": True}],
        [{"ramp": {"delay": "0ms -> 40ms", "loss": "5% -> 0%", "over": "5s"}}, {"repeat": "9s"}],
    ],
)
def test_a_timeline_is_written_as_steps_that_read_as_the_same(steps: list[dict[str, object]]) -> None:
    timeline = parse_steps(steps)
    written = write_steps(timeline)
    assert written is not None
    assert parse_steps(written) == timeline


def test_a_trace_that_holds_packets_is_not_written_as_steps() -> None:
    timeline = parse_steps([{"delay": "1ms"}])
    assert write_steps(replace(timeline, phases=(replace(timeline.phases[0], hold_s=1.0),))) is None


def test_what_is_told_can_be_pasted_into_the_test() -> None:
    whole = Scenario({Put(THERE, 0): LOSSY, Put(BACK, 0): LOSSY, Put(BACK, 1): LOSSY}, {"messages": 20})
    best = Scenario(
        {Put(THERE, 0): Impairment(drop_packets=((3, 3), (7, 9))), Put(BACK, 0): CLEAN, Put(BACK, 1): LOSSY},
        {"messages": 2},
    )
    shrunk = Shrunk(
        seed=9, tries=30, found=whole, best=best, lost_packets=6, marked=frozenset({THERE, BACK}), complete=False
    )
    assert shrunk.lines() == [
        "made smaller by 30 tries; the most tries were made, so it may become smaller still: 6 lost packets, now 4 by "
        "number; the same failure comes (with --testbed-seed 9) of",
        "  @pytest.mark.impair(\"a -> b on lan\", drop_packets='3, 7-9')",
        "  no impairment of b -> a on lan",
        "  lab.impair(\"b -> a on lan\", delay='30ms', jitter='5ms', distribution='normal', loss='5%')"
        "  # its impairment 2",
        "  at_most(2, 'messages'), not 20",
    ]
    assert Impairment.parse({"drop_packets": "3, 7-9"}) == best.puts[Put(THERE, 0)]
    assert replace(shrunk, best=whole).lines() == ["not made smaller by 30 tries"]
