"""A session on several engines: who is where, what becomes of the tests of one that dies; the engines are fakes."""

from __future__ import annotations

import json
import os
import re
import socketserver
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from xml.etree import ElementTree as Tree

import pytest

from testbed.errors import UserError
from testbed.evidence import stored
from testbed.judge.division import longest_first
from testbed.pytest import manymachines
from testbed.report import run as report
from testbed.report.page import Text
from tests.unit.test_results import FAKE, VALIDATOR

SUITE = """
import os, pathlib

ENGINE = os.environ.get("DOCKER_HOST", "unix:///none")

@pytest.fixture(scope="session", autouse=True)
def torn_down():
    yield
    with open("ends", "a") as file:
        file.write("end\\n")

@pytest.mark.parametrize("n", range(8))
def test_cell(fake, n):
    dies = pathlib.Path("dies").read_text() if os.path.exists("dies") else ""
    mine = pathlib.Path(ENGINE.removeprefix("unix://"))
    if dies in ("all", mine.name) and mine.exists():
        mine.unlink()
    assert mine.exists(), "the engine does not answer"
"""


class _Answers(BaseHTTPRequestHandler):
    """What an engine says of itself."""

    def do_GET(self) -> None:
        """Answer."""
        facts = {"Version": "20.10", "ApiVersion": "1.41", "MinAPIVersion": "1.12"}
        body = json.dumps(facts if self.path.endswith("/version") else {"SecurityOptions": []}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_words: object) -> None:
        """Print nothing."""


@contextmanager
def _engine(path: Path) -> Iterator[str]:
    with socketserver.ThreadingUnixStreamServer(str(path), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"unix://{path}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def engines() -> Iterator[list[str]]:
    """The URLs of three engines, ``a``, ``b`` and ``c``; a socket's path has 108 characters at most."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as undo:
        yield [undo.enter_context(_engine(Path(folder, name))) for name in "abc"]


def run(pytester: pytest.Pytester, engines: list[str], *options: str) -> pytest.RunResult:
    pytester.makepyfile(test_it=FAKE + SUITE)
    return pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "--lab", "compose", "--testbed-seed", "1", "--junitxml", "junit.xml",
        "--testbed-engines", ",".join(engines), *options,
    )  # fmt: skip


def results(pytester: pytest.Pytester) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (pytester.path / "report" / "results.jsonl").read_text().splitlines()]
    for line in lines:
        VALIDATOR.validate(line)
    return [line["test"] for line in lines if "test" in line]


def test_workers_are_spread_over_the_engines_and_results_say_which(
    pytester: pytest.Pytester, engines: list[str]
) -> None:
    run(pytester, engines, "-n", "3").assert_outcomes(passed=8)
    tests = results(pytester)
    assert {str(test["engine"]) for test in tests} == {*engines}
    assert {test["id"] for test in tests} == {f"test_it.py::test_cell[{n}]" for n in range(8)}
    assert [test["given_back_by"] for test in tests] == [[]] * 8


@pytest.mark.parametrize("workers", ["2", "3"])
def test_the_tests_of_an_engine_that_dies_run_on_others_and_have_one_result_each(
    pytester: pytest.Pytester, engines: list[str], workers: str
) -> None:
    (pytester.path / "dies").write_text("b")
    result = run(
        pytester, engines, "-n", workers, "--testbed-shard", "1/1"
    )  # which has each worker look to the results
    result.assert_outcomes(passed=8, warnings=1)
    assert result.ret == 0
    tests = results(pytester)
    assert Counter(test["id"] for test in tests) == {f"test_it.py::test_cell[{n}]": 1 for n in range(8)}
    assert engines[1] not in {test["engine"] for test in tests}
    back = [test for test in tests if test["given_back_by"]]
    assert back
    assert {engine for test in back for engine in test["given_back_by"]} == {engines[1]}  # type: ignore[attr-defined]
    page = report.page(stored.read((pytester.path / "report" / "results.jsonl").read_text().splitlines(), name="it"))
    assert (engines[1], f"tests: 0, gave back {len(back)}") in page.facts
    (of_it,) = [cell for cell in page.cells if cell.row == back[0]["id"]]
    assert Text(title="Engine", text=f"{engines[1]}: gave it back\n{back[0]['engine']}") in of_it.parts
    cases = [case.get("name") for case in Tree.parse(pytester.path / "junit.xml").iter("testcase")]  # noqa: S314  # ours
    assert sorted(map(str, cases)) == [f"test_cell[{n}]" for n in range(8)]
    result.stdout.fnmatch_lines([f"engine {engines[1]} does not answer any more (*); run on others: *test_cell*"])
    assert (pytester.path / "ends").read_text().count("end") == int(workers) + 1, "fixtures of the lost worker, too"


def test_if_no_engine_is_left_the_session_ends_and_says_so(pytester: pytest.Pytester, engines: list[str]) -> None:
    (pytester.path / "dies").write_text("all")
    result = run(pytester, engines[:2], "-n", "2")
    assert result.ret == 2
    assert "no engine of --testbed-engines answers any more" in result.stdout.str() + result.stderr.str()


def test_a_test_that_fails_on_an_engine_that_answers_fails(pytester: pytest.Pytester, engines: list[str]) -> None:
    pytester.makepyfile(test_it=FAKE + "def test_it(fake): assert 0\ndef test_other(fake): pass")
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "--lab", "compose", "-n", "1", "--testbed-engines", ",".join(engines)
    )
    result.assert_outcomes(passed=1, failed=1)


def test_every_engine_that_does_not_answer_is_told_before_anything_runs(
    pytester: pytest.Pytester, engines: list[str]
) -> None:
    result = run(pytester, [*engines, "unix:///nowhere/a", "no-context"], "-n", "2")
    assert result.ret == 2
    text = result.stdout.str() + result.stderr.str()
    assert "--testbed-engines: 'unix:///nowhere/a': no Docker engine answers" in text
    assert "--testbed-engines: 'no-context': " in text
    assert engines[0] not in text


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ((), "each worker of pytest-xdist has its lab on one of them; add -n NUMBER"),
        (("-n", "2", "--dist", "loadfile"), "with --dist loadfile: tests go to whichever engine is free"),
        (("-n", "2", "--lab", "local"), "with --lab local: a local lab needs no engine"),
    ],
    ids=["no workers", "groups", "local"],
)
def test_what_engines_do_not_go_with_is_refused(
    pytester: pytest.Pytester, options: tuple[str, ...], problem: str
) -> None:
    result = pytester.runpytest_subprocess("--testbed-engines", "unix:///a,unix:///a", *options)
    assert result.ret == 2
    text = result.stdout.str() + result.stderr.str()
    assert problem in text
    assert "'unix:///a' twice" in text


def test_engines_are_urls_contexts_or_a_file_of_them(tmp_path: Path) -> None:
    assert manymachines.engines("ssh://me@b, far", tmp_path) == {
        "ssh://me@b": {"DOCKER_HOST": "ssh://me@b"},
        "far": {"DOCKER_CONTEXT": "far"},
    }
    (tmp_path / "engines").write_text("# ours\nunix:///a  # here\n\nfar\n")
    assert list(manymachines.engines("engines", tmp_path)) == ["unix:///a", "far"]
    for text in ("", "a,,b", ","):
        with pytest.raises(UserError, match=re.escape(f"--testbed-engines='{text}': name engines")):
            manymachines.engines(text, tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert list(manymachines.engines("pipe", tmp_path)) == ["pipe"], "a context: no file is read without end"


def test_the_longest_test_is_first_stack_by_stack_and_without_records_the_order_stays() -> None:
    tests = ["a", "b", "c", "d", "new"]
    assert longest_first(tests, {}, {}) == [0, 1, 2, 3, 4]
    assert longest_first(tests, {"a": 1, "b": 5, "c": 3, "d": 3}, {}) == [1, 2, 3, 4, 0]
    of_stacks = {"a": "x", "d": "x", "b": None, "c": None}
    assert longest_first(tests[:4], {"a": 9, "b": 5, "c": 3, "d": 1}, of_stacks) == [0, 3, 1, 2]
