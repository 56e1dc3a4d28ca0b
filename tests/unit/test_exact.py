"""Verdicts in virtual time: identical is the same for certain; of what differs, over how many seeds it does so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from testbed.evidence.metric import Metric
from testbed.evidence.trail import Passed, Trail, around, partings
from testbed.evidence.verdict import Verdict
from testbed.judge.cells import Run, TestRun
from testbed.judge.changes import Change
from testbed.judge.comparison import Comparison, compare
from testbed.judge.exact import first_difference
from testbed.report import compared, page
from testbed.report import comparison as words


def run(seed: int, *values: float, outcome: Verdict = Verdict.HOLDS, content: Mapping[str, Any] | None = None) -> Run:
    metric = Metric(name="answer", values=values, unit="s", better="lower")
    test = TestRun(id="t", outcome=outcome, metrics={"answer": metric}, content=content or {})
    machine = {"virtual": {"python": "3.11"}}
    return Run(source=f"{seed}", seed=seed, tests={"t": test}, started="2027-01-15", machine=machine)


def judged(base: Sequence[float], head: Sequence[float]) -> Comparison:
    sides = ([run(seed, value) for seed, value in enumerate(side, start=1)] for side in (base, head))
    return compare(*sides)


def change(base: Sequence[float], head: Sequence[float]) -> Change:
    (answer,) = (one for one in judged(base, head).judged if not one.cell.of_outcome)
    return answer.change


def test_identical_runs_are_the_same_however_few() -> None:
    comparison = judged([0.25], [0.25])
    assert comparison.change is Change.SAME
    assert (comparison.identical, comparison.parted) == (("t",), ())
    assert "identical to the last bit under every one of 1 seeds: t" in list(words.notes(comparison))
    assert words.exit_status(comparison) == 0


def test_what_is_worse_under_more_seeds_than_chance_would_have_regressed() -> None:
    """Two cells: 2⁻ⁿ must be at most 0.01 / 2, so that eight seeds are enough and seven are not."""
    assert change([1.0] * 8, [1.2] * 8) is Change.REGRESSED
    assert change([1.0] * 8, [0.8] * 8) is Change.IMPROVED
    assert change([1.0] * 7, [1.2] * 7) is Change.UNDECIDED
    comparison = judged([1.0] * 7, [1.2] * 7)
    (answer,) = comparison.waiting
    assert answer.more == 1
    assert words.cell_line(answer).endswith(
        "undecided: +20.0% [+20.0% to +20.0%], 1 s to 1.2 s; worse under 7 of 7 seeds; about 1 more decide it"
    )


def test_worse_under_some_seeds_and_better_under_others_is_undecided() -> None:
    """As of a version that loses other packets."""
    comparison = judged([1.0] * 20, [1.5, 0.5] * 10)
    (answer,) = comparison.waiting
    assert (answer.change, answer.more) == (Change.UNDECIDED, None)
    assert "worse under 10 and better under 10 of 20 seeds; no number like these" in words.cell_line(answer)


def test_less_than_matters_is_the_same_and_yet_told() -> None:
    comparison = judged([1.0, 1.0, 1.0], [1.0, 1.0, 1.001])
    assert comparison.change is Change.SAME
    (parting,) = comparison.parted
    assert words.parting_line(parting) == (
        "t: differs under 1 of 3 seeds; first under seed 3, in metric answer: 1.0 in base, 1.001 in head"
    )
    assert any(
        "different, by less than matters, under 1 of 3 seeds" in words.cell_line(one) for one in comparison.judged
    )


def test_a_seed_under_which_head_alone_fails_is_told_and_one_is_no_verdict_on_all() -> None:
    base = [run(seed, 1.0) for seed in range(1, 6)]
    head = [run(seed, 1.0, outcome=Verdict.FAILS if seed == 4 else Verdict.HOLDS) for seed in range(1, 6)]
    comparison = compare(base, head)
    assert comparison.change is Change.UNDECIDED
    assert comparison.broken[0].head_failed == 1
    assert (comparison.parted[0].seed, comparison.parted[0].what) == (4, "outcome")


@pytest.mark.parametrize(
    ("base", "head", "difference"),
    [
        ({"captures": ["a"], "replay": "x"}, {"captures": [], "replay": "y"}, None),
        ({"programs": [{"stdout": "1"}]}, {"programs": [{"stdout": "2"}]}, ("programs stdout", "'1'", "'2'")),
        ({"links": [1, {"seen": 5}]}, {"links": [1, {"seen": 6}]}, ("links 2 seen", "5", "6")),
        ({"links": [1]}, {"links": [1, 2]}, ("links", "[1]", "[1, 2]")),
    ],
)
def test_whatever_the_results_say_is_compared(
    base: dict[str, Any], head: dict[str, Any], difference: tuple[str, str, str] | None
) -> None:
    ours, theirs = (run(1, 1.0, content=content).tests["t"] for content in (base, head))
    assert first_difference(ours, theirs) == difference


def with_packets(*times_us: int, value: float = 1.0) -> Run:
    """A run with a packet at each of these times."""
    marks = tuple((time_us * 1000, time_us) for time_us in times_us)
    trail = Trail(packets=len(marks), size_bytes=0, digest=f"{times_us}", lost=0, every=1, marks=marks)
    return run(1, value, content={"packets": Passed(since_ns=0, ports={"server@lan": trail}).as_json()})


def test_where_packets_first_part_is_shown_with_those_around_it() -> None:
    comparison = compare([with_packets(1, 2, 3, 4, 5)], [with_packets(1, 2, 3, 9, value=2.0)])
    lines = list(words.notes(comparison))
    assert lines[0].startswith("t: differs under 1 of 1 seeds; first under seed 1, in metric answer: 1.0 in base")
    assert lines[1:6] == [
        "  server@lan: packet 4 differs, by 0.000004 s; the first 3 are the same",
        "    2: 0.000002000 s in base, 0.000002000 s in head",
        "    3: 0.000003000 s in base, 0.000003000 s in head",
        "  > 4: 0.000004000 s in base, 0.000009000 s in head",
        "    5: 0.000005000 s in base, none in head",
    ]
    html = page.render(compared.page(comparison, base="base", head="head"))
    assert "Where its packets first part, under seed 1" in html


def test_a_test_whose_packets_alone_differ_is_not_identical() -> None:
    comparison = compare([with_packets(1, 2)], [with_packets(1, 3)])
    assert comparison.identical == ()
    (parting,) = comparison.parted
    assert (parting.what, parting.base, parting.head) == ("packets", "2 in all", "2 in all")
    assert comparison.change is Change.SAME
    alike = compare([with_packets(1, 2)], [with_packets(1, 2)])
    assert (alike.identical, alike.parted) == (("t",), ())


def test_of_many_packets_the_last_of_each_few_is_shown() -> None:
    trails = [
        Trail(packets=8, size_bytes=0, digest=f"{last}", lost=0, every=every, marks=marks)
        for last, every, marks in ((8, 2, ((2, 2), (4, 4), (6, 6), (8, 8))), (9, 4, ((4, 4), (9, 9))))
    ]
    ours, theirs = (Passed(since_ns=0, ports={"a": trail}) for trail in trails)
    (parting,) = partings(ours, theirs)
    assert around(parting, ours, theirs) == [(4, False, 4, 4), (8, True, 8, 9)]
    assert around(parting, ours, Passed(since_ns=0, ports={}))[0] == (2, False, 2, None)
