"""What is written of tests as they end, at the close and after a re-run; and which attempt counts."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from testbed.evidence import results, stored
from testbed.evidence.hoststate import HostChange, HostState
from testbed.evidence.metric import Metric
from testbed.evidence.programs import ProgramRun
from testbed.evidence.proof import AtTaps, Check, LinkEvidence, Span, Tally
from testbed.evidence.series import Series
from testbed.evidence.stored import Session
from testbed.evidence.verdict import Verdict
from testbed.judge.lateness import Lateness
from testbed.resources import resource
from testbed.spec.impairment import CLEAN
from testbed.spec.timeline import Taken
from testbed.writing import LineFile, refuse_links, write_whole

RESULTS = "report/results.jsonl"
SCHEMA = json.loads(resource(f"testbed/evidence/{results.SCHEMA_FILE}").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
FAKE = """
import os, pytest, signal
from testbed import ImpairmentNotAppliedError
from testbed.lab.ledger import Ledger
from testbed.lab.measuring import Measuring
from testbed.pytest import running
from testbed.evidence.programs import ProgramRun
from testbed.evidence.proof import LinkEvidence

attempts = []

class Whole:
    changes = []

class Succession:
    def look(): return []

class Lab:
    seedable, netem_engine, whole = True, "carried", Whole
    lifecycle = verifier = property(lambda self: self)
    def facts(self): return {"lab": "local", "netem": "carried", "netem_kernel": "6.12.1", "offloads": None}
    succession = Succession
    def __init__(self): self.ledger, self.measuring = Ledger(), Measuring(None, None, None)
    def begin_body(self): pass
    def end_body(self): pass
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


def lines(project: pytest.Pytester) -> list[dict[str, Any]]:
    """The lines of the results file, each as the schema has it."""
    printed = [json.loads(line) for line in (project.path / RESULTS).read_text().splitlines()]
    for line in printed:
        VALIDATOR.validate(line)
    return printed


def written(project: pytest.Pytester) -> Session:
    lines(project)
    return stored.read((project.path / RESULTS).read_text().splitlines(keepends=True), name=RESULTS)


def outcomes(session: Session) -> list[tuple[str, str]]:
    return [(test.id.removeprefix("test_it.py::"), test.last.outcome.of("test")) for test in session.tests]


def old_results(project: pytest.Pytester) -> Path:
    file = project.mkdir("report") / "results.jsonl"
    head = {"schema": "testbed-results/2", "started": "", "seed": 1, "machine": {}}
    file.write_text(json.dumps(head) + "\n" + json.dumps({"end": {"exit_status": 0}}) + "\n")
    return file


# --- as tests end ------------------------------------------------------------------------------------


def test_what_had_ended_is_there_after_a_kill_and_no_old_file_says_passed(project: pytest.Pytester) -> None:
    old_results(project)
    project.makepyfile(
        test_it=FAKE + "def test_one(fake): pass\ndef test_two(fake): assert 0\n"
        "def test_three(fake): os.kill(os.getpid(), signal.SIGKILL)\ndef test_lab(lab): pass"
    )
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--lab", "compose", "--testbed-seed", "5"]
    done = subprocess.run(argv, cwd=project.path, capture_output=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    tests = written(project)
    assert outcomes(tests) == [("test_one", "passed"), ("test_two", "failed")]
    assert tests.seed == 5
    assert tests.end is None
    assert tests.incomplete == "report/results.jsonl: the session did not come to its end"


def test_the_head_has_the_machine_and_its_lab_and_a_line_tells_when_more_is_known(project: pytest.Pytester) -> None:
    commit = ["-c", "user.name=x", "-c", "user.email=x", "commit", "-qm", "x"]
    for argv in (["init", "-q"], ["add", "compose.yaml"], commit):
        subprocess.run(["git", "-C", str(project.path), *argv], check=True, timeout=30)
    (project.path / "compose.yaml").write_text("services: {a: {image: nobody/none}}")
    run(
        project,
        "def test_one(fake): pass\ndef test_two(fake): fake.facts = lambda: {'lab': 'local', 'tc': 'tc 6'}\n"
        "def test_three(fake): pass\ndef test_none(): pass",
    )
    head, *rest = lines(project)
    assert head["schema"] == "testbed-results/2"
    assert [next(iter(line)) for line in rest] == ["test", "machine", "test", "machine", "test", "end"]
    known = head["machine"]
    assert (known["lab"], known["netem"], known["netem_kernel"]) == ("local", "carried", "6.12.1")
    assert known["kernel"] == os.uname().release
    assert set(known["versions"]) == {"testbed", "python", "pytest"}
    assert known["git"]["dirty"] is True
    assert len(known["git"]["commit"]) == 40
    assert [test.machine.get("tc") for test in written(project).tests] == [None, "tc 6", None]


# --- exit status 2 -----------------------------------------------------------------------------------

WRONG = '@pytest.mark.impair("a -> nobody", "lossy")\ndef test_it(): pass'


@pytest.mark.parametrize("arguments", [(), ("-n", "1")], ids=" ".join)
def test_a_run_that_ends_with_2_leaves_no_old_file_that_says_passed(
    project: pytest.Pytester, arguments: tuple[str, ...]
) -> None:
    old_results(project)
    assert run(project, WRONG, *arguments).ret == 2
    tests = written(project)
    assert tests.end is not None
    assert (tests.tests, tests.end["exit_status"]) == ((), 2)
    assert "nobody" in tests.end["problems"][0]


def test_nor_does_one_that_collects_nothing(project: pytest.Pytester) -> None:
    old_results(project)
    assert run(project, "import nowhere_at_all").ret == 2
    tests = written(project)
    assert tests.end is not None
    assert (tests.tests, tests.end["exit_status"]) == ((), 2)


def test_a_file_that_is_none_of_ours_stays(project: pytest.Pytester) -> None:
    file = old_results(project)
    file.write_text('{"mine": 1}')
    assert run(project, "import nowhere_at_all").ret == 2
    assert file.read_text() == '{"mine": 1}'


def test_tests_that_fail_in_their_set_up_are_in_it_and_why_is_told_once(project: pytest.Pytester) -> None:
    marked = "@pytest.mark.impair('a -> b', 'lossy')\ndef test_three(): pass"
    body = f"def test_one(lab): pass\ndef test_two(lab): pass\n{marked}"
    result = run(project, body)
    assert result.ret == 2
    tests = written(project)
    assert [outcome for _, outcome in outcomes(tests)] == ["failed"] * 3
    assert tests.end is not None
    assert tests.end["not_up"].startswith("no Docker engine answers")
    output = result.stdout.str()
    assert output.count("at one that runs") == 1, "the whole of it, once"
    assert output.count("(in full at the end)") >= 3


# --- where it is written -----------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("-n", "1")], ids=" ".join)
def test_an_unwritable_path_is_told_with_q_too_and_before_anything_is_started(
    project: pytest.Pytester, arguments: tuple[str, ...]
) -> None:
    (project.path / "file").write_text("")
    result = run(project, "def test_one(lab): pass", "-q", "--testbed-results", "file/results.jsonl", *arguments)
    assert result.ret == 2
    result.stdout.fnmatch_lines(["*results cannot be written to *file/results.jsonl: Not a directory; say *"])
    assert "engine" not in result.stdout.str()


@pytest.mark.parametrize("link", ["report", "report/results.jsonl"])
def test_nothing_is_written_through_a_symbolic_link(project: pytest.Pytester, link: str) -> None:
    elsewhere = project.mkdir("elsewhere") / "target"
    (elsewhere.mkdir if link == "report" else elsewhere.touch)()
    (project.path / link).parent.mkdir(exist_ok=True)
    (project.path / link).symlink_to(elsewhere)
    result = run(project, "def test_one(lab): pass", "-q")
    assert result.ret == 2
    result.stdout.fnmatch_lines([f"*{link} is a symbolic link; testbed does not write through links*"])
    assert list(elsewhere.iterdir()) == [] if elsewhere.is_dir() else elsewhere.read_text() == ""


def test_what_cannot_be_written_any_more_is_an_error(project: pytest.Pytester) -> None:
    body = "def test_one(fake):\n    os.makedirs('report/results.jsonl')"
    result = run(project, body, "-q")
    assert result.ret == 2
    result.stdout.fnmatch_lines(["testbed: results are not written to *results.jsonl any more: Is a directory; say *"])


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "file"
    write_whole(file, "one", below=tmp_path)
    with file.open() as reader:
        write_whole(file, "two", below=tmp_path)
        assert (reader.read(), file.read_text()) == ("one", "two")
    assert [path.name for path in file.parent.iterdir()] == ["file"], "nothing temporary is left"
    file.unlink()
    file.symlink_to(tmp_path / "target")
    for attempt in (lambda: write_whole(file, "three", below=tmp_path), lambda: LineFile(file, below=tmp_path)):
        with pytest.raises(OSError, match="symbolic link"):
            attempt()
    assert not (tmp_path / "target").exists()
    refuse_links(file.parent / "other", tmp_path)


@pytest.mark.parametrize(("file", "page"), [("report/results.jsonl", "report/index.html"), ("a/b.jsonl", "a/b.html")])
def test_a_report_lies_beside_the_results_and_an_old_one_is_gone_at_once(
    project: pytest.Pytester, file: str, page: str
) -> None:
    place = project.path / page
    place.parent.mkdir()
    place.write_text("old")
    body = f"def test_one(fake): assert not os.path.exists({page!r})\ndef test_lab(lab): pass"
    run(project, body, "--testbed-results", file)
    assert "1 of 2 tests passed" in place.read_text()


def test_a_report_that_cannot_be_written_loses_no_result(project: pytest.Pytester) -> None:
    result = run(project, "def test_one(fake): os.makedirs('report/index.html')")
    assert result.ret == 2
    result.stdout.fnmatch_lines(["testbed: the report is not written to *index.html: Is a directory"])
    assert outcomes(written(project)) == [("test_one", "passed")]


def test_without_a_test_on_a_lab_there_is_no_report(project: pytest.Pytester) -> None:
    run(project, "def test_one(): pass")
    assert not (project.path / "report").exists()


# --- attempts ----------------------------------------------------------------------------------------

TWICE = """
def test_flaky(fake):
    print("seed", attempts)
    assert len(attempts) == 2
"""


@pytest.mark.parametrize("reseed", [False, True])
def test_a_test_that_is_run_again_is_one_test_with_its_attempts(project: pytest.Pytester, reseed: bool) -> None:
    reseeding = ["--testbed-reseed-reruns"] if reseed else []
    result = run(project, TWICE, "--testbed-seed", "5", "--reruns", "1", *reseeding)
    result.stdout.fnmatch_lines(["test_it.py::test_flaky: flaky: failed, then passed"])
    (test,) = written(project).tests
    earlier, last = test.attempts
    assert (last.outcome, last.reason, test.flaky) == (Verdict.HOLDS, None, True)
    assert (earlier.outcome, earlier.seed) == (Verdict.FAILS, 5)
    assert (last.seed == 5) is not reseed, "the same losses again, or others"
    assert f"--testbed-seed {last.seed} " in str(last.replay), "the line repeats the attempt"


LONG = """
def test_long(fake, request):
    running.run_of(request.node).lost.append("a -> b: lost 450 of 900 packets: drop_packets=" + "1, " * 450)
    assert 0
"""


def test_hundreds_of_lost_packets_are_one_short_line_on_the_terminal(project: pytest.Pytester) -> None:
    result = run(project, LONG)
    (line,) = (line for line in result.outlines if line.startswith("a -> b: lost 450 of 900 packets: drop_packets=1, "))
    assert len(line) == 200
    assert line.endswith("…")


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
    from testbed.pytest.markers import Wanted
    running.run_of(request.node).wanted = Wanted(by_marker={"impair('a -> b')": {("a -> b", "default")}})
    fake.ledger.evidence = [LinkEvidence(link="a -> b", network="default", asked={}, command="", met_packets=MET)]
def test_passes(unmet): pass
@pytest.mark.xfail
def test_expected(unmet): assert 0
def test_fails(unmet): assert 0
def test_skips(unmet): pytest.skip("so")
"""


@pytest.mark.parametrize(
    ("met", "arguments", "text"),
    [
        ("0", (), "*1 failed, 1 skipped, 2 invalid*"),
        ("0", ("--testbed-vacuous", "warn"), "*1 failed, 1 passed, 1 skipped, 1 xfailed*"),
        ("1", (), "*1 failed, 1 passed, 1 skipped, 1 xfailed*"),
        ("None", (), "*1 failed, 1 passed, 1 skipped, 1 xfailed*"),
    ],
)
def test_what_is_green_though_no_packet_met_the_marker_is_invalid(
    project: pytest.Pytester, met: str, arguments: tuple[str, ...], text: str
) -> None:
    result = run(project, VACUOUS.replace("MET", met), *arguments)
    result.stdout.fnmatch_lines([text])


def test_warnings_are_in_the_summary_one_line_each(project: pytest.Pytester) -> None:
    body = (
        "def test_it(fake): fake.ledger.evidence = [LinkEvidence(link='a -> b', network='n', asked={}, command='', "
        "warnings=['one', 'two\\nlines'])]"
    )
    result = run(project, body, "-q")
    result.stdout.fnmatch_lines(
        ["*testbed: warnings*", "test_it.py::test_it: a -> b: one", "test_it.py::test_it: a -> b: two lines"]
    )


def test_a_warning_of_many_links_is_one_line(project: pytest.Pytester) -> None:
    body = (
        "def test_it(fake): fake.ledger.evidence = [LinkEvidence(link=f'a -> b{n}', network='n', asked={}, command='', "
        "warnings=['late', f'own {n}'] if n == 2 else ['late']) for n in (1, 1, 2, 3, 4, 5)]"
    )
    lines = run(project, body).outlines
    assert [line for line in lines if line.startswith("test_it.py::test_it: a")] == [
        "test_it.py::test_it: a -> b1, a -> b2, a -> b3 and 2 more: late",
        "test_it.py::test_it: a -> b2: own 2",
    ]


def test_a_marker_whose_links_were_not_set_never_passes(project: pytest.Pytester) -> None:
    body = "@pytest.fixture\ndef _testbed_links(): pass\n@pytest.mark.impair('a -> b', 'lossy')\ndef test_it(): pass"
    run(project, body).stdout.fnmatch_lines(["*test_it: impair('a -> b', 'lossy'): not set: *", "*1 invalid*"])


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
    assert "is a symbolic link; testbed does not write through links; say --report FOLDER" in " ".join(
        done.stderr.split()
    )
    assert list((project.path / "elsewhere").iterdir()) == []


def test_all_that_can_be_written_is_as_the_schema_has_it() -> None:
    link = LinkEvidence(
        link="a -> b", network="n", asked={}, command="", checks=[Check(field="delay")],
        tally=Tally(sent_packets=1, dropped_packets=0, queued_packets=0, tail_drops=Span(0, 1, ""),
                    duplicated=Span(0, 0, ""), reordered=Span(0, 1, ""), corrupted=Span(0, 0, "")),
        at_taps=AtTaps(1, 0), steps=[Taken(planned_s=0, actual_s=0, monotonic_s=0, unix_s=0, impairment=CLEAN)],
        lateness=Lateness(carrier="", frames=1, median_s=0, worst_s=0, late=0, tolerance_s=0.005).as_json(),
    )  # fmt: skip
    state = HostState(status="exited")
    host = HostChange(host="a", what="ended", by_test=True, before=state, after=state)
    metric = Metric(name="t", values=(1.0,), unit="s", better="lower")
    program = ProgramRun(
        host="a", argv=("true",), exit_code=0, duration_s=1.0, cpu_s=None, stopped=False, output="", output_left_out=0
    )
    attempt = results.Attempt(
        seed=1,
        metrics=[metric],
        links=[link],
        hosts=[host],
        programs=[program],
        captures=["a.pcapng"],
        series=[Series.of("w", "s", [(0.0, 1.0)])],
    )
    VALIDATOR.validate({"test": json.loads(json.dumps(results.TestResult(id="t", attempts=[attempt] * 2).as_json()))})


def test_each_object_of_the_schema_is_closed_and_each_property_described() -> None:
    """So that a key that is written but not in the schema fails the tests, and the reference says what each one is."""
    for schema in objects(SCHEMA):
        assert "additionalProperties" in schema, schema
        assert [key for key, part in schema["properties"].items() if not {"description", "$ref"} & part.keys()] == []


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object with properties in a schema."""
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from objects(inner)
    if isinstance(value, dict) and isinstance(value.get("properties"), dict):
        yield value
