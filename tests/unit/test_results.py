"""What is written of tests: as they end, at the close, after a re-run; and what of it decides."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from testbed.backends.local.lab import LocalLab
from testbed.errors import InvalidValueError
from testbed.evidence import results
from testbed.evidence.hoststate import HostChange, HostState
from testbed.evidence.proof import AtTaps, Check, LinkEvidence, Span, Tally
from testbed.judge.lateness import Lateness
from testbed.spec import topologies
from testbed.spec.impairment import CLEAN
from testbed.spec.timeline import Taken
from testbed.writing import Lines, refuse_links, write_whole

FAKE = """
import os, pytest, signal
from testbed import ImpairmentNotAppliedError
from testbed.lab.ledger import Ledger
from testbed.pytest import running
from testbed.evidence.proof import LinkEvidence

attempts = []

class Whole:
    changes = []

class Succession:
    def look(): return []

class Lab:
    evidence, seedable, netem_engine, whole = [], True, "carried", Whole
    succession = Succession
    def __init__(self): self.ledger = Ledger()
    def begin_body(self): pass
    def verify(self): pass

@pytest.fixture
def fake(request):
    lab = running.run_of(request.node).lab = Lab()
    attempts.append(running.run_of(request.node).seed)
    yield lab
    running.keep(request.node, lab)
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A user's project, with a stack that no engine runs."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    pytester.makefile(".yaml", compose="services: {a: {image: nobody/none}, b: {image: nobody/none}}")
    return pytester


def run(project: pytest.Pytester, body: str, *arguments: str) -> pytest.RunResult:
    project.makepyfile(test_it=FAKE + body)
    return project.runpytest_inprocess("-p", "no:cacheprovider", "--lab", "compose", *arguments)


def written(project: pytest.Pytester, name: str = "report/results.json") -> Any:
    return json.loads((project.path / name).read_text())


OLD = json.dumps(
    {"schema": "testbed-results/1", "exit_status": 0, "tests": [{"id": "test_it.py::x", "outcome": "passed"}]}
)


def old_results(project: pytest.Pytester) -> Path:
    file = project.mkdir("report") / "results.json"
    file.write_text(OLD)
    return file


# --- as tests end ------------------------------------------------------------------------------------


def test_what_had_ended_is_there_after_a_kill_and_no_old_file_says_passed(project: pytest.Pytester) -> None:
    old = old_results(project)
    project.makepyfile(
        test_it=FAKE + "def test_one(fake): pass\ndef test_two(fake): assert 0\n"
        "def test_three(fake): os.kill(os.getpid(), signal.SIGKILL)\ndef test_lab(lab): pass"
    )
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--lab", "compose", "--testbed-seed", "5"]
    done = subprocess.run(argv, cwd=project.path, capture_output=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    with (project.path / "report/results.jsonl").open() as lines:
        found = results.merged(lines)
    assert [(each["id"], each["outcome"]) for each in found["tests"]] == [
        ("test_it.py::test_one", "passed"), ("test_it.py::test_two", "failed"),
    ]  # fmt: skip
    assert found["seed"] == 5
    assert "exit_status" not in found, "it did not come to its end"
    assert not old.exists()


def test_the_lines_say_what_the_file_says(project: pytest.Pytester) -> None:
    run(project, "def test_one(fake): pass\ndef test_two(fake): assert 0")
    with (project.path / "report/results.jsonl").open() as lines:
        assert results.merged(lines) == written(project)


def test_a_line_that_was_cut_off_is_left_out_and_a_later_one_takes_the_place_of_a_former() -> None:
    lines = [
        '{"schema": "testbed-results-lines/1", "seed": 1}\n', '{"test": {"id": "a", "outcome": "failed"}}\n',
        '{"test": {"id": "b", "outcome": "passed"}}\n', '{"test": {"id": "a", "outcome": "passed"}}\n',
        '{"test": {"id"',
    ]  # fmt: skip
    found = results.merged(lines)
    assert [(each["id"], each["outcome"]) for each in found["tests"]] == [("b", "passed"), ("a", "passed")]
    with pytest.raises(ValueError, match="schema 'other/1': must be testbed-results-lines/1"):
        results.merged(['{"schema": "other/1"}\n'])


# --- exit status 2 -----------------------------------------------------------------------------------

WRONG = '@pytest.mark.impair("a -> nobody", "lossy")\ndef test_it(): pass'


@pytest.mark.parametrize("arguments", [(), ("-n", "1")], ids=" ".join)
def test_a_run_that_ends_with_2_leaves_no_old_file_that_says_passed(
    project: pytest.Pytester, arguments: tuple[str, ...]
) -> None:
    old_results(project)
    assert run(project, WRONG, *arguments).ret == 2
    found = written(project)
    assert (found["tests"], found["exit_status"]) == ([], 2)
    assert "nobody" in found["problems"][0]


def test_nor_does_one_that_collects_nothing(project: pytest.Pytester) -> None:
    old_results(project)
    assert run(project, "import nowhere_at_all").ret == 2
    assert (written(project)["tests"], written(project)["exit_status"]) == ([], 2)


def test_a_file_that_is_none_of_ours_stays(project: pytest.Pytester) -> None:
    old_results(project).write_text('{"mine": 1}')
    assert run(project, "import nowhere_at_all").ret == 2
    assert written(project) == {"mine": 1}


def test_tests_that_fail_in_their_set_up_are_in_it_and_why_is_told_once(project: pytest.Pytester) -> None:
    marked = "@pytest.mark.impair('a -> b', 'lossy')\ndef test_three(): pass"
    body = f"def test_one(lab): pass\ndef test_two(lab): pass\n{marked}"
    result = run(project, body)
    assert result.ret == 2
    found = written(project)
    assert [each["outcome"] for each in found["tests"]] == ["failed"] * 3
    assert found["not_up"].startswith("no Docker engine answers")
    output = result.stdout.str()
    assert output.count("at one that runs") == 1, "the whole of it, once"
    assert output.count("(told in full at the end)") >= 3


# --- where it is written -----------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("-n", "1")], ids=" ".join)
def test_an_unwritable_path_is_told_with_q_too_and_before_anything_is_started(
    project: pytest.Pytester, arguments: tuple[str, ...]
) -> None:
    (project.path / "file").write_text("")
    result = run(project, "def test_one(lab): pass", "-q", "--testbed-results", "file/results.json", *arguments)
    assert result.ret == 2
    result.stdout.fnmatch_lines(["*results cannot be written to *file/results.json: Not a directory; say *"])
    assert "engine" not in result.stdout.str()


@pytest.mark.parametrize("link", ["report", "report/results.json", "report/results.jsonl"])
def test_nothing_is_written_through_a_symbolic_link(project: pytest.Pytester, link: str) -> None:
    elsewhere = project.mkdir("elsewhere") / "target"
    (elsewhere.mkdir if link == "report" else elsewhere.touch)()
    (project.path / link).parent.mkdir(exist_ok=True)
    (project.path / link).symlink_to(elsewhere)
    result = run(project, "def test_one(lab): pass", "-q")
    assert result.ret == 2
    result.stdout.fnmatch_lines([f"*{link} is a symbolic link, and nothing is written through one*"])
    assert list(elsewhere.iterdir()) == [] if elsewhere.is_dir() else elsewhere.read_text() == ""


def test_what_cannot_be_written_at_the_close_is_an_error(project: pytest.Pytester) -> None:
    body = "def test_one(fake):\n    os.makedirs('report/results.json')"
    result = run(project, body, "-q")
    assert result.ret == 2
    result.stdout.fnmatch_lines(["testbed: results are not written to *results.json: Is a directory; say *"])


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "file"
    write_whole(file, "one", below=tmp_path)
    with file.open() as reader:
        write_whole(file, "two", below=tmp_path)
        assert (reader.read(), file.read_text()) == ("one", "two")
    assert [each.name for each in file.parent.iterdir()] == ["file"], "nothing temporary is left"
    file.unlink()
    file.symlink_to(tmp_path / "target")
    for attempt in (lambda: write_whole(file, "three", below=tmp_path), lambda: Lines(file, below=tmp_path)):
        with pytest.raises(OSError, match="symbolic link"):
            attempt()
    assert not (tmp_path / "target").exists()
    refuse_links(file.parent / "other", tmp_path)


# --- attempts ----------------------------------------------------------------------------------------

FLAKY = """
from _pytest.runner import runtestprotocol

def pytest_runtest_protocol(item, nextitem):  # as re-run plugins do
    for last in (False, True):
        for report in runtestprotocol(item, nextitem=nextitem, log=False):
            if report.failed and not last:
                report.outcome = "rerun"
            item.ihook.pytest_runtest_logreport(report=report)
        item._initrequest()
    return True
"""
TWICE = """
def test_flaky(fake):
    print("seed", attempts)
    assert len(attempts) == 2
"""


@pytest.mark.parametrize("reseed", [False, True])
def test_a_test_that_is_run_again_is_one_test_with_its_attempts(project: pytest.Pytester, reseed: bool) -> None:
    project.makeconftest(FLAKY)
    result = run(project, TWICE, "--testbed-seed", "5", *(["--testbed-reseed-reruns"] if reseed else []))
    result.stdout.fnmatch_lines(["test_it.py::test_flaky: flaky: failed, then passed"])
    (test,) = written(project)["tests"]
    (earlier,) = test["earlier_attempts"]
    assert (test["outcome"], test["reason"], test["flaky"]) == ("passed", None, True)
    assert (earlier["outcome"], earlier["seed"]) == ("failed", 5)
    assert (test["seed"] == 5) is not reseed, "the same losses again, or others"
    assert f"--testbed-seed {test['seed']} " in test["replay"], "the line repeats the attempt"


# --- verdicts are values -----------------------------------------------------------------------------


def test_a_text_that_says_invalid_makes_no_failure_an_error(project: pytest.Pytester) -> None:
    body = (
        "def test_product(fake): assert 0, 'INVALID: certificate'\ndef test_plain(): assert 'INVALID: x' == ''\n"
        "def test_machine(fake): raise ImpairmentNotAppliedError('not there')"
    )
    result = run(project, body, "--junitxml", "found.xml")
    text = (project.path / "found.xml").read_text()
    assert 'errors="1" failures="2"' in text
    assert text.count('type="testbed.invalid"') == 1
    result.stdout.fnmatch_lines(["*2 failed, 1 invalid*"])


def test_one_of_several_errors_that_says_so_is_enough(project: pytest.Pytester) -> None:
    body = "def test_it(fake): raise ExceptionGroup('two', [ValueError(), ImpairmentNotAppliedError('not there')])"
    result = run(project, body)
    result.stdout.fnmatch_lines(["test_it.py::test_it: not there", "*1 invalid*"])


VACUOUS = """
@pytest.fixture
def unmet(fake, request):
    ref = request.config.stash
    from testbed.pytest.markers import Wanted
    from testbed.spec.topology import LinkRef
    ref = LinkRef(src="a", dst="b", network="default")
    running.run_of(request.node).wanted = Wanted(by_marker={"impair('a -> b')": (ref,)})
    fake.evidence = [LinkEvidence(link="a -> b", network="default", asked={}, command="", met_packets=MET)]
def test_passes(unmet): pass
@pytest.mark.xfail
def test_expected(unmet): assert 0
def test_fails(unmet): assert 0
def test_skips(unmet): pytest.skip("so")
"""


@pytest.mark.parametrize(
    ("met", "arguments", "told"),
    [
        ("0", (), "*1 failed, 1 skipped, 2 invalid*"),
        ("0", ("--testbed-vacuous", "warn"), "*1 failed, 1 passed, 1 skipped, 1 xfailed*"),
        ("1", (), "*1 failed, 1 passed, 1 skipped, 1 xfailed*"),
        ("None", (), "*1 failed, 1 passed, 1 skipped, 1 xfailed*"),
    ],
)
def test_what_is_green_though_no_packet_met_the_marker_is_invalid(
    project: pytest.Pytester, met: str, arguments: tuple[str, ...], told: str
) -> None:
    result = run(project, VACUOUS.replace("MET", met), *arguments)
    result.stdout.fnmatch_lines([told])


def test_warnings_are_in_the_summary_one_line_each(project: pytest.Pytester) -> None:
    body = (
        "def test_it(fake): fake.evidence = [LinkEvidence(link='a -> b', network='n', asked={}, command='', "
        "warnings=['one', 'two\\nlines'])]"
    )
    result = run(project, body, "-q")
    result.stdout.fnmatch_lines(["*testbed: warnings*", "test_it.py::test_it: a -> b: one",
                                 "test_it.py::test_it: a -> b: two lines"])  # fmt: skip


def test_a_warning_of_many_links_is_one_line(project: pytest.Pytester) -> None:
    body = (
        "def test_it(fake): fake.evidence = [LinkEvidence(link=f'a -> b{n}', network='n', asked={}, command='', "
        "warnings=['late', f'own {n}'] if n == 2 else ['late']) for n in (1, 1, 2, 3, 4, 5)]"
    )
    lines = run(project, body).outlines
    assert [line for line in lines if line.startswith("test_it.py::test_it: a")] == [
        "test_it.py::test_it: a -> b1, a -> b2, a -> b3 and 2 more: late", "test_it.py::test_it: a -> b2: own 2",
    ]  # fmt: skip


def test_a_marker_whose_links_were_not_set_never_passes(project: pytest.Pytester) -> None:
    body = "@pytest.fixture\ndef _testbed_links(): pass\n@pytest.mark.impair('a -> b', 'lossy')\ndef test_it(): pass"
    run(project, body).stdout.fnmatch_lines(["*test_it: impair('a -> b', 'lossy'): not set: *", "*1 invalid*"])


# --- numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "fast", None, True])
def test_a_record_is_a_finite_number(value: Any) -> None:
    lab = LocalLab(topologies.star(2))
    with pytest.raises(InvalidValueError, match="must be a finite number"):
        lab.record("speed", value, unit="s", better="lower")
    assert lab.ledger.records == []


def test_what_is_not_finite_is_null_in_a_file() -> None:
    assert json.loads(results.as_text({"a": [math.nan, 1.5], "b": {"c": math.inf}})) == {
        "a": [None, 1.5],
        "b": {"c": None},
    }


@pytest.mark.parametrize("link", ["report", "report/index.html", "report/demo.json"])
def test_a_demo_that_cannot_write_its_report_starts_nothing(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, link: str
) -> None:
    (project.path / link).parent.mkdir(exist_ok=True)
    (project.path / link).symlink_to(project.mkdir("elsewhere"))
    monkeypatch.chdir(project.path)
    argv = ["demo", "--lab", "local", "-f", str(Path(__file__).parents[2] / "compose.yaml")]
    done = subprocess.run(
        [sys.executable, "-m", "testbed.commands.cli", *argv], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert "is a symbolic link, and nothing is written through one; say --report FOLDER" in " ".join(
        done.stderr.split()
    )
    assert list((project.path / "elsewhere").iterdir()) == []


def test_the_schema_in_its_docstring_has_every_key_that_is_written() -> None:
    link = LinkEvidence(
        link="a -> b", network="n", asked={}, command="", checks=[Check(field="delay")],
        tally=Tally(sent_packets=1, dropped_packets=0, queued_packets=0, tail_drops=(0, 1), tail_drops_from="",
                    duplicated=Span(0, 0, ""), reordered=Span(0, 1, ""), corrupted=Span(0, 0, "")),
        at_taps=AtTaps(1, 0), steps=[Taken(planned_s=0, actual_s=0, monotonic_s=0, unix_s=0, impairment=CLEAN)],
        lateness=Lateness(carrier="", frames=1, median_s=0, worst_s=0, late=0, tolerance_s=0.005).as_json(),
    )  # fmt: skip
    state = HostState(status="exited")
    host = HostChange(host="a", what="ended", by_test=True, before=state, after=state)
    attempt = results.Attempt(
        seed=1, records=[{"name": "t", "value": 1.0, "unit": "s", "better": "lower"}], links=[link], hosts=[host]
    )
    test = results.TestResult(id="t", attempts=[attempt, attempt]).as_json()
    session = results.session_json([test], started="", duration_s=1, seed=1, netem=None, exit_status=0)
    words = set(re.findall(r"\w+", results.__doc__ or ""))
    assert set(keys(session)) <= words


def keys(value: Any) -> Iterator[str]:
    """Every key of what is to become JSON."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield key
            yield from keys(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from keys(each)
