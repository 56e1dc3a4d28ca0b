"""`testbed compare` on files, and how it prints a comparison."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from testbed.commands.compare import compare
from testbed.errors import InvalidValueError, UserError
from testbed.evidence.metric import Metric
from testbed.evidence.proof import LinkEvidence
from testbed.evidence.results import Attempt, TestResult, as_text
from testbed.evidence.verdict import Verdict
from testbed.judge import comparison
from testbed.judge.cells import Run, TestRun
from testbed.report import compared
from testbed.report import comparison as words

MACHINE = {"kernel": "6.12", "lab": "local", "netem": "carried", "offloads": {"tso": False}}
LINK = LinkEvidence(
    link="client -> server", network="lan", asked={"loss": "2%", "seed": 5}, command="tc …", profile="", met_packets=9
).as_json()

Write = Callable[..., Path]


def test_line(value: float, **more: Any) -> dict[str, Any]:
    metric = Metric(name="upload", values=(value,), unit="s", better="lower")
    result = TestResult(id="t.py::test_it", attempts=[Attempt(seed=1, metrics=[metric])]).as_json() | {"links": [LINK]}
    return {**result, **more}


test_line.__test__ = False  # type: ignore[attr-defined]  # it makes what pytest would write


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes runs of one version: a file a value, with the seeds 0, 1, …"""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)

    def files(side: str, *values: float, first: int = 0, machine: dict[str, Any] | None = None, **more: Any) -> Path:
        (tmp_path / side).mkdir()
        for seed, value in enumerate(values, start=first):
            head = {"schema": "testbed-results/2", "started": f"2026-08-01T12:00:{seed:02}+00:00", "seed": seed}
            lines = [{**head, "machine": {**MACHINE, **(machine or {})}}, {"test": test_line(value, **more)}]
            lines.append({"end": {"duration_s": 1.0, "exit_status": 0, "problems": [], "not_up": None}})
            text = "".join(f"{json.dumps(line)}\n" for line in lines)
            (tmp_path / side / f"{seed:04}.jsonl").write_text(text)
        return tmp_path / side

    return files


def judge(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(compare, list(map(str, words)), standalone_mode=False, catch_exceptions=False)
    status: int = done.return_value
    return status, done.output


SLOW, FAST, MIXED = [1.2] * 20, [1.0] * 20, [1.0, 1.4, 0.8, 1.1] * 5


def test_where_no_test_is_in_both_nothing_is_compared_and_no_gate_passes(write: Write) -> None:
    base, head = write("a", *FAST), write("b", *FAST, id="t.py::test_other")
    results = [judge(base, head, "--fail-on", word) for word in ("undecided", "regressed", "never")]
    assert [status for status, _ in results] == [2, 2, 0]
    assert results[0][1].startswith("UNDECIDED: nothing could be judged (20 pairs)\n")
    assert "only in head, and not compared: t.py::test_other" in results[0][1]


def test_folders_are_paired_by_seed_and_the_status_is_the_verdicts(write: Write) -> None:
    base, slow, fast, mixed = (write(*run) for run in (("a", *FAST), ("b", *SLOW), ("c", *FAST), ("d", *MIXED)))
    assert [judge(base, other)[0] for other in (slow, fast, mixed)] == [1, 0, 3]
    assert judge(slow, base)[0] == 0, "an improvement"
    statuses = [judge(base, mixed, "--fail-on", word)[0] for word in ("undecided", "regressed", "never")]
    assert statuses == [3, 0, 0]
    assert judge(base, slow, "--fail-on", "never")[0] == 0
    _, out = judge(base, slow)
    lines = out.splitlines()
    assert lines[0] == "REGRESSED: 1 regressed, 1 same (20 pairs)"
    assert lines[1] == (
        "t.py::test_it: upload (client -> server loss 2%): regressed: +20.0% [+20.0% to +20.0%], 1 s to 1.2 s"
    )
    assert lines[2] == "paired by seed, false alarms at most 1% over 2 cells"


def test_other_seeds_are_two_independent_samples_and_that_is_said(write: Write) -> None:
    base = write("a", *(1 + n / 1000 for n in range(20)))
    head = write("b", *(1.2 + n / 1000 for n in range(20)), first=100)
    status, out = judge(base, head)
    assert status == 1
    assert "two independent samples: no seed is in both" in out


def test_one_file_of_each_is_undecided_and_it_says_how_many_more(write: Write) -> None:
    status, out = judge(write("a", 1.0) / "0000.jsonl", write("b", 9.0, first=7) / "0007.jsonl")
    assert status == 3
    assert "upload (client -> server loss 2%): undecided: +800.0%, 1 s to 9 s; about 4 more decide it" in out


@pytest.mark.parametrize(
    ("machine", "what", "how"),
    [
        ({"kernel": "6.1"}, "kernel", "6.12 and 6.1"),
        ({"netem": "host"}, "netem engine", "carried and host"),
        ({"lab": "compose"}, "lab", "local and compose"),
        ({"offloads": {"tso": True}}, "offloads", "tso off and tso on"),
    ],
)
def test_other_machines_are_not_compared_unless_it_is_asked_for(
    machine: Any, what: str, how: str, write: Write
) -> None:
    base, head = write("a", *FAST), write("b", *SLOW, machine=machine)
    with pytest.raises(UserError, match=f"not compared, unless --across is given: {what} {how}: "):
        judge(base, head)
    status, out = judge(base, head, "--across")
    assert status == 1
    assert out.startswith(f"REGRESSED, across different {what}: 1 regressed")


def test_links_that_were_asked_to_be_something_else_are_not_compared(write: Write) -> None:
    base = write("a", *FAST)
    head = write("b", *FAST, links=[{**LINK, "asked": {"loss": "5%"}}])
    message = "links of t.py::test_it: client -> server loss 2% in base, client -> server loss 5% in head"
    with pytest.raises(UserError, match=message):
        judge(base, head)
    assert judge(base, head, "--across")[0] == 0
    other_seed = write("c", *FAST, links=[{**LINK, "asked": {"loss": "2%", "seed": 99}}])
    assert judge(base, other_seed)[0] == 0


def test_what_cannot_be_read_is_told_of_both_sides_at_once(write: Write, tmp_path: Path) -> None:
    base, head = write("a", *FAST), write("b", *FAST)
    (base / "0003.jsonl").write_text('{"schema": "testbed-results/1"}\n')
    (head / "0004.jsonl").write_text("not JSON\n")
    with pytest.raises(InvalidValueError) as caught:
        judge(base, head)
    assert [problem.partition(": ")[0] for problem in caught.value.problems] == [
        f"{base}/0003.jsonl:1",
        f"{head}/0004.jsonl:1",
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidValueError, match=r"no \.jsonl file in this folder"):
        judge(tmp_path / "empty", head)


def test_a_line_that_breaks_off_is_told_and_the_rest_is_judged(write: Write) -> None:
    base, head = write("a", *FAST), write("b", *FAST)
    file = head / "0003.jsonl"
    file.write_text(file.read_text()[:-200])
    status, out = judge(base, head)
    assert status == 2
    assert f"cannot be compared: {file}:2: breaks off after " in out
    assert "SAME: 2 same (20 pairs)" in out


def test_a_metric_with_other_units_is_told_and_the_rest_is_judged(write: Write) -> None:
    line = test_line(1000.0)
    other = [{**line["metrics"][0], "unit": "ms"}]
    status, out = judge(write("a", *FAST), write("b", *FAST, metrics=other))
    assert status == 2
    assert "cannot be compared: t.py::test_it: metric 'upload': unit 's' in base, 'ms' in head" in out


def test_a_summary_for_a_pull_request_has_what_matters_first(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Path("step.md").absolute()
    step.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(step))
    judge(write("a", *FAST), write("b", *SLOW), "--markdown", "out.md")
    text = Path("out.md").read_text()
    assert step.read_text() == f"before\n{text}\n"
    lines = text.splitlines()
    assert lines[2] == "* REGRESSED: 1 regressed, 1 same (20 pairs)"
    assert lines[3].startswith("* t.py::test\\_it: upload (client -\\> server loss 2%): regressed: +20.0%")
    assert len([line for line in lines[2 : lines.index("", 2)] if line.startswith("* ")]) <= 5
    assert text.count("<details>") == text.count("</details>") == 2
    table = [line for line in lines if line.startswith("|")]
    assert {line.count(" | ") for line in table if "---" not in line} == {8}
    assert "| regressed | t.py::test\\_it |" in text


def test_as_json_there_is_everything(write: Write) -> None:
    _, out = judge(write("a", *FAST), write("b", *SLOW), "--json")
    document = json.loads(out)
    assert (document["change"], document["paired"], document["base_runs"]) == ("regressed", True, 20)
    assert (Path(document["base"]).name, Path(document["head"]).name) == ("a", "b")
    cell = next(cell for cell in document["cells"] if cell["metric"] == "upload")
    assert (cell["change"], cell["links"], cell["base"], cell["head"]) == (
        "regressed",
        "client -> server loss 2%",
        FAST,
        SLOW,
    )
    assert cell["effect"] == pytest.approx(0.2)


def test_a_test_that_fails_in_both_is_told_although_nothing_regressed(write: Write) -> None:
    runs = [write(side, *FAST, outcome="failed", reason="boom") for side in "ab"]
    status, out = judge(*runs)
    assert (status, out.splitlines()[0]) == (0, "SAME: 1 same (20 pairs)")
    assert "t.py::test_it: failed in every run of both, so nothing else of it was compared" in out


def test_what_a_test_prints_acts_on_no_terminal_and_on_no_page(write: Write) -> None:
    evil = "\x1b[31m<script>|*boom*"
    head = write("b", *FAST, outcome="failed", reason=evil, replay="pytest x")
    _, out = judge(write("a", *FAST), head, "--markdown", "out.md")
    assert "\x1b[31m" not in out
    text = Path("out.md").read_text()
    assert "<script>" not in text
    assert "\\<script\\>\\|\\*boom\\*" in text


def test_a_report_is_written_as_a_page(write: Write, tmp_path: Path) -> None:
    judge(write("base", *FAST), write("head", *SLOW), "--report", "out/page.html")
    page = (tmp_path / "out" / "page.html").read_text()
    assert "REGRESSED" in page
    assert "t.py::test_it" in page
    (tmp_path / "plain").touch()
    with pytest.raises(UserError, match="the summary cannot be written"):
        judge(tmp_path / "base", tmp_path / "head", "--report", "plain/page.html")


VALUES = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(0, 3).map(float),
    st.sampled_from([0.0, 5e-324, 1e308]),
)
METRICS = st.lists(
    st.builds(
        Metric,
        name=st.sampled_from("abc"),
        values=st.lists(VALUES, min_size=1, max_size=25).map(tuple),
        unit=st.sampled_from(["s", "ms", "count", "share"]),
        better=st.sampled_from(["lower", "higher", None]),
        least_effect=st.sampled_from([1e-9, 0.05, 10.0]),
        group=st.sampled_from(["recorded", "programs", "wire"]),
    ),
    max_size=3,
)
TESTS = st.builds(
    TestRun,
    id=st.sampled_from(["t::one", "t::two"]),
    reason=st.none() | st.text(),
    replay=st.none() | st.text(),
    outcome=st.sampled_from([Verdict.HOLDS, Verdict.FAILS, Verdict.INVALID, Verdict.SKIPPED]),
    metrics=METRICS.map(lambda metrics: {metric.name: metric for metric in metrics}),
)
RUNS = st.lists(
    st.builds(
        Run,
        source=st.text(max_size=5),
        seed=st.integers(0, 4),
        started=st.sampled_from(["", "2026", "2027"]),
        tests=st.lists(TESTS, max_size=2).map(lambda tests: {test.id: test for test in tests}),
    ),
    max_size=14,
)


@given(RUNS, RUNS, st.sampled_from([(), (0.5,)]), st.booleans())
def test_of_any_results_there_is_a_verdict_that_can_be_told(
    base: list[Run], head: list[Run], quantiles: tuple[float, ...], brief: bool
) -> None:
    outcome = comparison.compare(base, head, quantiles=quantiles, brief=brief)
    assert outcome.paired == bool({run.seed for run in base} & {run.seed for run in head})
    assert json.loads(as_text(words.as_json(outcome)))["change"] == outcome.change
    assert words.exit_status(outcome) in (0, 1, 2, 3)
    assert words.markdown(outcome, base="base", head="head").startswith("### testbed: head against base")
    words.print_comparison(Console(file=io.StringIO(), width=80), outcome)
    page = compared.page(outcome, base="base", head="head", base_runs=base, head_runs=head)
    assert len({(judged.cell.test, judged.cell.links) for judged in outcome.judged}) == len(page.cells)
    for judged in outcome.judged:
        assert not math.isnan(judged.effect)
        assert judged.low <= judged.high
