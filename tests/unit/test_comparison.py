"""Verdicts on two versions, from small results with known differences."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.errors import InvalidValueError
from testbed.evidence.metric import Metric
from testbed.evidence.verdict import Verdict
from testbed.judge import unpaired
from testbed.judge.cells import Kind, Run, TestRun, run_quantile
from testbed.judge.changes import Change, Judged
from testbed.judge.comparison import Comparison, compare

LINKS = (("client -> server", "loss 2%"),)


def metric(*values: float, name: str = "upload", unit: str = "s", better: str | None = "lower", **more: Any) -> Metric:
    return Metric(name=name, values=values, unit=unit, better=better, **more)


def run(seed: int, *metrics: Metric, test: str = "test_upload", **more: Any) -> Run:
    made = TestRun(id=test, links=LINKS, metrics={name.name: name for name in metrics}, **more)
    return Run(source=f"{seed}.jsonl", seed=seed, tests={test: made})


def noisy(seed: int, factor: float = 1.0, spread: float = 0.02) -> Callable[[int], Metric]:
    draw = random.Random(seed)  # noqa: S311  # data for a test
    return lambda _run: metric(factor * draw.lognormvariate(0, spread))


def sides(pairs: int, head: float = 1.0, spread: float = 0.02, offset: int = 0) -> tuple[list[Run], list[Run]]:
    ours, theirs = noisy(1, spread=spread), noisy(2, head, spread=spread)
    return [run(n, ours(n)) for n in range(pairs)], [run(n + offset, theirs(n)) for n in range(pairs)]


def cell(comparison: Comparison, name: str = "upload") -> Judged:
    (judgement,) = [candidate for candidate in comparison.judged if candidate.cell.name == name]
    return judgement


# --- verdicts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1000])
@pytest.mark.parametrize(
    ("factor", "change"),
    [(1.12, Change.REGRESSED), (0.85, Change.IMPROVED), (1.0, Change.SAME), (1.05, Change.UNDECIDED)],
)
def test_a_change_is_found_whether_the_runs_are_pairs_or_not(factor: float, change: Change, offset: int) -> None:
    comparison = compare(*sides(25, factor, offset=offset))
    assert comparison.paired == (offset == 0)
    assert cell(comparison).change is change
    assert cell(comparison).low < factor - 1 < cell(comparison).high
    assert cell(comparison).effect == pytest.approx(factor - 1, abs=0.02)


def test_more_is_worse_or_better_as_the_metric_says() -> None:
    base = [run(n, metric(100.0 + n % 3, unit="bit/s", better="higher")) for n in range(20)]
    head = [run(n, metric(80.0 + n % 3, unit="bit/s", better="higher")) for n in range(20)]
    assert cell(compare(base, head)).change is Change.REGRESSED
    assert cell(compare(base, head)).effect == pytest.approx(-0.2, abs=0.02)
    assert cell(compare(head, base)).change is Change.IMPROVED


def test_the_least_effect_is_the_metrics_own() -> None:
    def runs(size: float) -> list[Run]:
        return [run(n, metric(size, name="bytes", unit="bytes", least_effect=0.01)) for n in range(20)]

    assert cell(compare(runs(1000.0), runs(1030.0)), "bytes").change is Change.REGRESSED
    assert cell(compare(runs(1000.0), runs(1005.0)), "bytes").change is Change.SAME


def test_pairs_see_through_losses_that_both_have() -> None:
    """Each pair is ten times slower or faster than the next; head is 10 % slower in each."""
    base = [run(n, metric(10.0 ** (n % 5))) for n in range(20)]
    head = [run(n, metric(1.1 * 10.0 ** (n % 5))) for n in range(20)]
    assert cell(compare(base, head)).change is Change.REGRESSED
    apart = [run(n + 100, metric(1.1 * 10.0 ** (n % 5))) for n in range(20)]
    assert cell(compare(base, apart)).change is Change.UNDECIDED


@pytest.mark.parametrize("pairs", range(1, 13))
def test_few_pairs_decide_nothing_and_say_how_many_would(pairs: int) -> None:
    judgement = cell(compare(*sides(pairs, 2.0)))
    least = 12  # of two cells: the metric, and whether the test failed
    assert (judgement.change is Change.REGRESSED) == (pairs >= least)
    if pairs < least:
        assert judgement.more is not None
        assert judgement.more >= least - pairs
        assert judgement.findable is None


def test_what_an_undecided_cell_needs_is_about_what_it_then_takes() -> None:
    few = cell(compare(*sides(20, 1.08, spread=0.08)))
    assert few.change is Change.UNDECIDED
    assert few.more is not None
    more = cell(compare(*sides(20 + 3 * few.more, 1.08, spread=0.08)))
    assert more.change is Change.REGRESSED


def test_what_would_have_been_found_is_found() -> None:
    base, head = sides(30, 1.0, spread=0.1)
    same = cell(compare(base, head))
    assert same.findable is not None
    worse = [
        run(one.seed, metric(one.tests["test_upload"].metrics["upload"].values[0] * (1.02 + same.findable)))
        for one in head
    ]
    assert cell(compare(base, worse)).change is Change.REGRESSED


def test_the_alarm_rate_is_for_all_cells_together() -> None:
    def runs(value: float, cells: int) -> list[Run]:
        return [run(n, *(metric(value, name=f"m{k}") for k in range(cells))) for n in range(13)]

    assert cell(compare(runs(1.0, 2), runs(2.0, 2)), "m0").change is Change.REGRESSED
    assert cell(compare(runs(1.0, 60), runs(2.0, 60)), "m0").change is Change.UNDECIDED


def test_a_verdict_is_not_taken_back() -> None:
    """What was seen once may be said: the e-value that counts is the highest."""
    base, head = sides(20, 1.5)
    after = [run(n, metric(1.0)) for n in range(20, 30)]
    assert cell(compare(base + after, head + after)).change is Change.REGRESSED


# --- body and tail -----------------------------------------------------------------------------------


def with_tail(seed: int, *, late: int, of: int = 40) -> Run:
    draw = random.Random(seed)  # noqa: S311  # data for a test
    return run(seed, metric(*(draw.uniform(0.9, 1.1) * (1 if n >= late else 30) for n in range(of)), name="connect"))


def test_a_lost_syn_in_ten_is_in_the_tail_and_leaves_the_body() -> None:
    comparison = compare(
        [with_tail(n, late=n % 2) for n in range(20)], [with_tail(n, late=4 + n % 2) for n in range(20)]
    )
    body, tail = (judgement for judgement in comparison.judged if judgement.cell.metric == "connect")
    assert (body.cell.part, body.change) == ("median", Change.SAME)
    assert tail.cell.part.startswith("beyond 3")
    assert tail.change is Change.REGRESSED
    assert tail.effect == pytest.approx(0.1)


def test_the_same_tail_in_other_runs_is_no_regression() -> None:
    comparison = compare(
        [with_tail(n, late=n * 7 % 5) for n in range(40)], [with_tail(n, late=n * 3 % 5) for n in range(40)]
    )
    assert {judgement.change for judgement in comparison.judged} <= {Change.SAME, Change.UNDECIDED}
    assert comparison.change is Change.SAME, "a tail is not waited for"


def test_of_what_is_better_high_the_tail_is_below() -> None:
    def rates(low: int) -> list[Run]:
        return [run(n, metric(*([10.0] * low + [100.0] * 30), unit="bit/s", better="higher")) for n in range(20)]

    judgement = cell(compare(rates(0), rates(5)), "upload, below 33.3 bit/s")
    assert judgement.change is Change.REGRESSED


@pytest.mark.parametrize(("q", "needed"), [(0.5, 10), (0.9, 50), (0.99, 500)])
def test_a_quantile_needs_five_samples_beyond_it(q: float, needed: int) -> None:
    values = [float(n) for n in range(1, needed + 1)]
    assert sum(value > run_quantile(values, q) for value in values) == 5
    with pytest.raises(InvalidValueError, match=f"the {q:g}-quantile of {needed - 1} samples: needs {needed} a run"):
        run_quantile(values[1:], q)


def test_a_quantile_that_is_asked_for_is_a_cell() -> None:
    runs = [[run(n, metric(*(factor * (1 + k / 100) for k in range(50)))) for n in range(20)] for factor in (1.0, 1.3)]
    assert cell(compare(*runs, quantiles=[0.9]), "upload, quantile 0.9").change is Change.REGRESSED
    assert "needs 500 a run" in compare(*runs, quantiles=[0.99]).problems[0]


# --- counts, shares, failures ------------------------------------------------------------------------


def test_of_counts_and_shares_any_difference_counts() -> None:
    base = [run(n, metric(1.0, name="delivered", unit="share", better="higher")) for n in range(20)]
    head = [run(n, metric(0.98, name="delivered", unit="share", better="higher")) for n in range(20)]
    assert cell(compare(base, head), "delivered").change is Change.REGRESSED
    assert cell(compare(base, head), "delivered").effect == pytest.approx(-0.02)
    assert cell(compare(base, base), "delivered").change is Change.SAME


def test_whole_numbers_that_may_be_0_are_compared_by_difference() -> None:
    def runs(more: int) -> list[Run]:
        return [run(n, metric(float(n % 4 + more), name="retries", unit="retries")) for n in range(40)]

    judgement = cell(compare(runs(0), runs(3)), "retries")
    assert (judgement.cell.kind, judgement.change, judgement.effect) == (Kind.DIFFERENCE, Change.REGRESSED, 3)


def test_what_comes_by_itself_may_be_0_and_is_no_problem() -> None:
    def runs(ticks: int) -> list[Run]:
        return [run(n, metric((n % 2 + ticks) / 100, name="cpu: client", group="cpu")) for n in range(40)]

    comparison = compare(runs(0), runs(5))
    assert comparison.problems == ()
    assert (cell(comparison, "cpu: client").cell.kind, cell(comparison, "cpu: client").change) == (
        Kind.DIFFERENCE,
        Change.REGRESSED,
    )


@pytest.mark.parametrize("wrong", [0.0, -1.5])
def test_a_ratio_of_what_is_not_above_0_is_refused_and_the_rest_is_judged(wrong: float) -> None:
    base = [run(n, metric(1.0), metric(2.5, name="other")) for n in range(20)]
    head = [run(n, metric(wrong if n == 7 else 1.5), metric(2.5, name="other")) for n in range(20)]
    comparison = compare(base, head)
    assert comparison.problems == (
        f"test_upload: metric 'upload': {wrong:g} s in head: a ratio needs values above 0, and a count whole numbers "
        f"from 0 on; record what is never 0, or a count",
    )
    assert cell(comparison, "other").change is Change.SAME


def test_other_units_in_base_and_head_are_refused() -> None:
    base, head = [run(n, metric(1.0)) for n in range(20)], [run(n, metric(1000.0, unit="ms")) for n in range(20)]
    comparison = compare(base, head)
    assert comparison.problems == (
        "test_upload: metric 'upload': unit 's' in base, 'ms' in head: they cannot be compared; record the same in "
        "both",
    )
    assert [judgement.cell.name for judgement in comparison.judged] == ["failed"]


def test_a_test_that_fails_now_is_told_with_its_replay_and_judged_by_how_often() -> None:
    base = [run(n, metric(1.0)) for n in range(30)]
    head = [
        run(n, metric(9.0), outcome=Verdict.FAILS, reason="boom", replay=f"pytest --testbed-seed {n}")
        if n % 3
        else base[n]
        for n in range(30)
    ]
    comparison = compare(base, head)
    (broken,) = comparison.broken
    assert (broken.base_failed, broken.base_runs, broken.head_failed, broken.head_runs) == (0, 30, 20, 30)
    assert (broken.reason, broken.replay, broken.change) == ("boom", "pytest --testbed-seed 1", Change.REGRESSED)
    assert comparison.change is Change.REGRESSED
    assert len(cell(comparison).cell.base) == 10, "what a failed run measured does not count, nor does its pair"


def test_a_test_that_failed_once_is_told_and_not_called_a_regression() -> None:
    base = [run(n) for n in range(30)]
    head = [*base[:-1], run(29, outcome=Verdict.FAILS, reason="boom")]
    comparison = compare(base, head)
    assert (comparison.broken[0].change, comparison.change) == (Change.UNDECIDED, Change.UNDECIDED)
    assert compare(base, base).judged[0].change is Change.SAME


def test_failures_of_runs_that_are_no_pairs_are_judged_by_fishers_test() -> None:
    base, head = [run(n) for n in range(12)], [run(n + 50, outcome=Verdict.FAILS, reason="boom") for n in range(12)]
    assert compare(base, head).judged[0].change is Change.REGRESSED
    assert compare(base, head[:2]).judged[0].change is Change.UNDECIDED
    assert compare(head, base).judged[0].change is Change.IMPROVED


# --- runs --------------------------------------------------------------------------------------------


def test_a_pair_with_an_invalid_test_is_thrown_away_whole_and_counted() -> None:
    base, head = sides(20, 1.3)
    spoilt = [run(0, metric(50.0), outcome=Verdict.INVALID, reason="no packet met it"), *head[1:]]
    comparison = compare(base, spoilt)
    assert (comparison.base_runs, comparison.head_runs) == (19, 19)
    assert comparison.thrown_away == ("seed 0: test_upload: no packet met it",)
    assert len(cell(comparison).cell.base) == 19


def test_seeds_that_one_version_alone_has_are_counted() -> None:
    base, head = sides(20, 1.3)
    comparison = compare(base, head[5:])
    assert (comparison.paired, comparison.base_runs, comparison.unmatched) == (True, 15, 5)


def test_pairs_that_were_not_run_in_turns_are_told() -> None:
    base, head = sides(4, 1.0)

    def at(runs: list[Run], *hours: int) -> list[Run]:
        return [replace(one, started=f"2026-08-01T{hour:02}") for one, hour in zip(runs, hours, strict=True)]

    assert compare(at(base, 1, 2, 3, 4), at(head, 5, 6, 7, 8)).one_after_other
    assert compare(at(base, 5, 6, 7, 8), at(head, 1, 2, 3, 4)).one_after_other
    assert not compare(at(base, 1, 4, 5, 8), at(head, 2, 3, 6, 7)).one_after_other
    assert not compare(at(base[:1], 1), at(head[:1], 2)).one_after_other


def test_a_seed_that_is_there_twice_is_two_pairs() -> None:
    runs = [run(7, metric(1.0)) for _ in range(12)]
    assert compare(runs, runs).base_runs == 12


def test_what_one_version_alone_has_is_not_judged() -> None:
    base = [run(n, metric(1.0), metric(1.0, name="old")) for n in range(20)]
    head = [run(n, metric(1.0), metric(1.0, name="new")) for n in range(20)]
    assert [judgement.cell.name for judgement in compare(base, head).judged] == ["failed", "upload"]
    other = [run(n, metric(1.0), test="test_other") for n in range(20)]
    comparison = compare(base, other)
    assert comparison.only == {"base": ("test_upload",), "head": ("test_other",)}
    assert (comparison.judged, comparison.change) == ((), Change.UNDECIDED)


def test_what_is_neither_better_nor_worse_is_not_judged() -> None:
    runs = [run(n, metric(float(n), name="packets", better=None)) for n in range(20)]
    comparison = compare(runs, runs)
    assert comparison.not_judged == ("packets",)
    assert [judgement.cell.name for judgement in comparison.judged] == ["failed"]


def test_what_comes_by_itself_alarms_but_is_not_waited_for() -> None:
    def runs(seed: int, factor: float) -> list[Run]:
        draw = random.Random(seed)  # noqa: S311  # data for a test
        return [run(n, metric(factor * draw.lognormvariate(0, 0.3), name="cpu", group="cpu")) for n in range(20)]

    same, worse = compare(runs(1, 1), runs(2, 1)), compare(runs(1, 1), runs(2, 3))
    assert (cell(same, "cpu").change, same.change) == (Change.UNDECIDED, Change.SAME)
    assert (cell(worse, "cpu").change, worse.change) == (Change.REGRESSED, Change.REGRESSED)


@pytest.mark.parametrize(("own", "waited"), [(True, ["failed", "upload"]), (False, ["failed", "programs: a"])])
def test_durations_of_programs_are_waited_for_where_a_test_measures_nothing_itself(
    own: bool, waited: list[str]
) -> None:
    metrics = [metric(1.0, name="programs: a", group="programs"), *([metric(2.0)] if own else [])]
    runs = [run(n, *metrics) for n in range(20)]
    assert sorted(judgement.cell.name for judgement in compare(runs, runs).judged if judgement.cell.decides) == waited


def test_of_no_runs_nothing_is_said() -> None:
    comparison = compare([], [])
    assert (comparison.change, comparison.judged, comparison.base_runs) == (Change.UNDECIDED, (), 0)


# --- independent samples -----------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "runs"), [(0.5, 1), (0.01, 5), (0.0001, 8)])
def test_the_rank_test_needs_so_many_runs(alpha: float, runs: int) -> None:
    assert unpaired.least_runs(alpha) == runs
    assert math.comb(2 * runs, runs) >= 1 / alpha > math.comb(2 * runs - 2, runs - 1)


def test_one_run_of_each_decides_nothing_and_says_how_many_more() -> None:
    comparison = compare([run(1, metric(1.0))], [run(2, metric(5.0))])
    assert not comparison.paired
    assert (cell(comparison).change, cell(comparison).more) == (Change.UNDECIDED, 4)


@given(st.integers(0, 1000), st.integers(5, 30), st.integers(5, 30))
@settings(max_examples=30, deadline=None)
def test_of_samples_of_any_size_the_bounds_hold_the_estimate(seed: int, base: int, head: int) -> None:
    ours, theirs = noisy(seed), noisy(seed + 1, 1.2)
    runs: list[Sequence[Run]] = [[run(n, ours(n)) for n in range(base)], [run(n + 99, theirs(n)) for n in range(head)]]
    judgement = cell(compare(*runs))
    assert judgement.low <= judgement.effect + 0.01
    assert judgement.effect - 0.01 <= judgement.high
