"""A session in parts: which tests are whose, and that the merged results are those of the whole."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Tree

import jsonschema
import pytest
from click.testing import CliRunner

from testbed.commands.cli import cli
from testbed.errors import InvalidValueError
from testbed.evidence import merging, stored
from testbed.evidence.stored import Session
from testbed.judge.division import Shard, divided, loads_ms
from testbed.report import junit
from testbed.report.files import is_results
from tests.unit.test_results import FAKE, SCHEMA

SUITE = """
import pathlib
@pytest.mark.parametrize("n", range(9))
def test_fake(fake, request, n):
    file = pathlib.Path(f"report/captures/n{n}/after.pcapng")
    file.parent.mkdir(parents=True)
    file.write_bytes(b"%d" % n)
    running.run_of(request.node).kept.append(str(file))
    assert n != 4
def test_plain(): pass
class TestTied:
    @pytest.mark.xdist_group("one")
    @pytest.mark.parametrize("n", range(3))
    def test_tied(self, fake, n): pass
"""
_TIMES = re.compile(r'"(started|duration_s|elapsed_s|stacks_s)": [^,}]+')


# --- pure ------------------------------------------------------------------------------------------


def test_each_load_has_one_part_and_no_part_is_more_than_the_mean_and_the_largest_load() -> None:
    draw = random.Random(1)  # noqa: S311  # no secret
    for _ in range(300):
        loads = [draw.choice([0, 1, draw.randrange(1000)]) for _ in range(draw.randrange(1, 60))]
        count = draw.randrange(1, 9)
        parts = divided(loads, count)
        assert parts == sorted(parts)
        assert {*parts} <= {*range(count)}
        work = [sum(load for load, part in zip(loads, parts, strict=True) if part == index) for index in range(count)]
        assert max(work) <= sum(loads) / count + max(loads)


def test_without_durations_tests_are_divided_by_their_number() -> None:
    assert divided([0] * 8, 4) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert divided([0] * 2, 4) == [1, 3]


def test_a_long_test_has_a_shard_for_itself() -> None:
    assert divided([1, 1, 90, 1, 1], 3) == [0, 0, 1, 2, 2]


def test_a_test_without_a_record_counts_as_the_mean_and_one_without_a_lab_as_nothing() -> None:
    tests = [("a", True), ("b", True), ("new", True), ("plain", False)]
    assert loads_ms(tests, {"a": 1.0, "b": 3.0, "of another suite": 50.0}) == [1000, 3000, 2000, 0]


# --- four processes --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each of four shards, and ``whole`` for the same tests in one process."""
    top = tmp_path_factory.mktemp("runs")
    processes = []
    for name, options in [(f"s{k}", ["--testbed-shard", f"{k}/4"]) for k in range(1, 5)] + [("whole", [])]:
        folder = top / name
        folder.mkdir()
        (folder / "test_it.py").write_text(FAKE + SUITE)
        (folder / "pytest.ini").write_text("[pytest]\n")
        argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--testbed-seed", "7", *options]
        argv += ["--junitxml", "report/junit.xml", "--lab", "compose", "--tb", "short"]  # without addresses
        processes.append(
            subprocess.Popen(argv, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert {process.returncode for process in processes} <= {0, 1}, outputs
    return top


def merge(*arguments: object) -> Any:
    return CliRunner().invoke(cli, ["merge", *map(str, arguments)], standalone_mode=False)


def names_in(junit_file: Path) -> list[str]:
    return [str(test.get("name")) for test in Tree.parse(junit_file).iter("testcase")]  # noqa: S314  # ours


def without_times(file: Path) -> list[str]:
    return [_TIMES.sub(r'"\1": 0', line) for line in file.read_text().splitlines()]


def test_the_union_of_the_shards_is_the_whole_and_no_test_is_in_two(runs: Path) -> None:
    shards = [names_in(runs / f"s{k}" / "report" / "junit.xml") for k in range(1, 5)]
    assert [test for shard in shards for test in shard] == names_in(runs / "whole" / "report" / "junit.xml")
    assert all(shards)


def test_what_must_stay_together_is_in_one_shard(runs: Path) -> None:
    tied = [k for k in range(1, 5) for test in names_in(runs / f"s{k}" / "report" / "junit.xml") if "tied" in test]
    assert len(tied) == 3
    assert len({*tied}) == 1


def test_what_is_merged_is_the_whole_but_for_times(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = merge(runs / "s3", runs / "s1", runs / "s4", runs / "s2")
    assert result.return_value == 0, result.output
    whole = runs / "whole" / "report"
    assert without_times(Path("report/results.jsonl")) == without_times(whole / "results.jsonl")
    files = {path.relative_to(folder) for folder in (whole, Path("report")) for path in folder.rglob("*")}
    assert files == {path.relative_to(whole) for path in whole.rglob("*")}
    assert (Path("report") / "captures" / "n8" / "after.pcapng").read_bytes() == b"8"
    ours, theirs = (Tree.parse(place / "junit.xml").getroot() for place in (Path("report"), whole))  # noqa: S314  # ours
    for element in (*ours.iter(), *theirs.iter()):
        for key in ("time", "timestamp"):
            element.attrib.pop(key, None)
    assert Tree.canonicalize(Tree.tostring(ours)) == Tree.canonicalize(Tree.tostring(theirs))
    page = Path("report/index.html").read_text()
    assert all(test.id in page for test in load(Path("report/results.jsonl")).tests)


def test_durations_of_the_whole_divide_the_same_tests_otherwise(pytester: pytest.Pytester, runs: Path) -> None:
    rows = (runs / "whole" / "report" / "results.jsonl").read_text().splitlines()
    for number, row in enumerate(rows):
        content = json.loads(row)
        if "test" in content:
            content["test"]["elapsed_s"] = 100.0 if "fake[0]" in content["test"]["id"] else 1.0
        rows[number] = json.dumps(content)
    pytester.path.joinpath("old.jsonl").write_text("\n".join(rows) + "\n")
    pytester.makepyfile(test_it=FAKE + SUITE)
    result = pytester.runpytest_inprocess(
        "-q", "--collect-only", "--testbed-seed=1", "--testbed-shard=1/2", "--testbed-durations=old.jsonl"
    )
    assert [line for line in result.outlines if "::" in line] == ["test_it.py::test_fake[0]"]


def test_with_workers_of_xdist_a_shard_is_the_same(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=FAKE + SUITE)
    options = ("-q", "-p", "no:cacheprovider", "--testbed-seed", "1", "--testbed-shard", "2/4")
    alone = [*map(json.loads, _lines(pytester, *options))]
    shared = [*map(json.loads, _lines(pytester, *options, "-n", "2"))]
    assert alone[0]["shard"] == shared[0]["shard"]
    ids = [sorted(line["test"]["id"] for line in lines if "test" in line) for lines in (alone, shared)]
    assert ids[0] == ids[1] != []


def _lines(pytester: pytest.Pytester, *options: str) -> list[str]:
    subprocess.run(["rm", "-rf", "report"], cwd=pytester.path, check=True)
    pytester.runpytest_subprocess(*options)
    return (pytester.path / "report" / "results.jsonl").read_text().splitlines()


def test_a_shard_without_tests_succeeds_and_its_results_can_be_merged(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): pass")
    options = ("-p", "no:cacheprovider", "--testbed-seed", "1")
    for number, status in ((1, 0), (2, 0)):
        result = pytester.runpytest_inprocess(
            *options, "--testbed-shard", f"{number}/2", "--testbed-results", f"r{number}/results.jsonl"
        )
        assert result.ret == status
    result = merge(pytester.path / "r1", pytester.path / "r2")
    assert result.return_value == 0, result.output
    assert pytester.runpytest_inprocess(*options, "--testbed-shard", "1/2", "-k", "none").ret == 5


# --- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["0/4", "5/4", "x/y", "1", "1/0", "-1/4", "1/4/2", " 1/4", ""])
def test_a_shard_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(InvalidValueError, match=re.escape(f"--testbed-shard='{text}': write NUMBER/COUNT, as in 3/8")):
        Shard.parse(text)


def test_all_that_is_wrong_with_the_options_is_told_at_once(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("--testbed-shard=0/4", "--testbed-durations", "none.jsonl")
    assert result.ret == 2
    result.stderr.fnmatch_lines(
        [
            "*--testbed-shard='0/4': write NUMBER/COUNT, as in 3/8*",
            "*--testbed-shard='0/4': without --testbed-seed N each shard draws its own losses*",
            "*--testbed-durations='*none.jsonl': cannot be read: No such file*",
        ]
    )


def test_durations_that_are_no_file_are_not_waited_for(pytester: pytest.Pytester) -> None:
    os.mkfifo(pytester.path / "pipe")
    words = ("--testbed-shard=1/1", "--testbed-seed=1", "--testbed-durations=pipe")
    result = pytester.runpytest_subprocess(*words, timeout=60)
    assert result.ret == 2
    result.stderr.fnmatch_lines(["*--testbed-durations='*pipe': is a FIFO, and no file*"])
    assert not is_results(pytester.path / "pipe")


def load(path: Path) -> Session:
    return stored.read(path.read_text().splitlines(keepends=True), name=str(path))


@pytest.fixture
def shards(runs: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of two of the shards, to be made worse."""
    return {
        name: [json.loads(line) for line in (runs / name / "report" / "results.jsonl").read_text().splitlines()]
        for name in ("s1", "s2")
    }


def _sessions(shards: dict[str, list[dict[str, Any]]]) -> list[Session]:
    return [stored.read([f"{json.dumps(line)}\n" for line in lines], name=name) for name, lines in shards.items()]


def _worse(shards: dict[str, list[dict[str, Any]]], what: str) -> None:
    head, other = shards["s1"][0], shards["s2"][0]
    match what:
        case "seed":
            head["seed"] = 8
        case "commit":
            head["machine"]["git"] = {"commit": "a" * 40, "dirty": False}
            other["machine"]["git"] = {"commit": "b" * 40, "dirty": False}
        case "version of testbed":
            head["machine"]["versions"]["testbed"] = "9"
        case "number of shards":
            head["shard"]["count"] = 5
        case "division":
            head["shard"]["digest"] = "0"
        case "shard 2 is in several inputs: s1, s2":
            head["shard"]["number"] = 2
        case "s1: no shard, and s2 is one":
            del head["shard"]
        case "test_it.py::test_plain: in several inputs":
            for lines in shards.values():
                lines[1]["test"]["id"] = "test_it.py::test_plain"


@pytest.mark.parametrize(
    "what",
    [
        "seed", "commit", "version of testbed", "number of shards", "division",
        "shard 2 is in several inputs: s1, s2", "s1: no shard, and s2 is one",
        "test_it.py::test_plain: in several inputs",
    ],
)  # fmt: skip
def test_what_does_not_belong_together_is_not_merged(shards: dict[str, list[dict[str, Any]]], what: str) -> None:
    merging.in_order(_sessions(shards))
    _worse(shards, what)
    for lines in shards.values():
        jsonschema.validate(lines[0], SCHEMA)
    with pytest.raises(InvalidValueError, match=re.escape(what)):
        merging.in_order(_sessions(shards))


def test_every_input_that_cannot_be_merged_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("hello")
    result = merge("nowhere", "empty", "text")
    message = f"{result.output}{result.exception}"
    assert "nowhere: no such file or folder" in message
    assert "empty: has no results of testbed" in message
    assert "text: is neither" in message
    assert not (tmp_path / "report").exists()


def test_an_input_is_not_overwritten(runs: Path) -> None:
    before = (runs / "s1" / "report" / "results.jsonl").read_bytes()
    result = merge(runs / "s1", runs / "s2", "--into", runs / "s1" / "report")
    assert "would be overwritten" in str(result.exception)
    assert (runs / "s1" / "report" / "results.jsonl").read_bytes() == before


def test_a_missing_shard_is_named_and_the_rest_is_merged(runs: Path, tmp_path: Path) -> None:
    result = merge(runs / "s1", runs / "s2", runs / "s4", "--into", tmp_path / "out")
    assert result.return_value == 1
    assert "missing: shard 3/4" in result.output
    assert load(tmp_path / "out" / "results.jsonl").incomplete


def test_junit_files_that_share_a_test_or_are_none_are_refused() -> None:
    one = '<testsuites><testsuite tests="1"><testcase classname="a" name="b"/></testsuite></testsuites>'
    with pytest.raises(InvalidValueError) as caught:
        junit.merged({"x.xml": one, "y.xml": one, "z.xml": "<html/>", "w.xml": "<a>"})
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["z.xml", "w.xml", "a"]
