"""Tests under many seeds in one session: each seed is the test's, and the failing ones are told."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from testbed.pytest.seeds import Outcomes, Spread, summary

SUITE = """
import pytest
from testbed.pytest.state import SEED

torn_down = []

@pytest.fixture
def own(pytestconfig):
    yield pytestconfig.stash[SEED]
    torn_down.append(pytestconfig.stash[SEED])

@pytest.fixture(scope="session")
def once():
    print("set up once")

def test_seed(own, once):
    assert torn_down == list(range(3, own)), "what has function scope is set up anew for each seed"
    assert own % 4

def test_another():
    pass
"""


SHRINKABLE = """
import pytest

ran = []

def test_messages(at_most):
    ran.append(at_most(20, "messages"))
    if len(ran) == 4 and ran[-1] > 1:
        raise ValueError("another failure, of a try")
    assert ran[-1] < 3, ran
    with pytest.raises(Exception, match="at_most\\('many', ''\\): write a whole number"):
        at_most("many")

def test_another_failure():
    assert False
"""


def run(folder: Path, *arguments: str, suite: str = SUITE) -> subprocess.CompletedProcess[str]:
    (folder / "test_suite.py").write_text(suite)
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--tb=line", *arguments]
    return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_each_test_runs_under_each_seed_and_the_failing_ones_are_told(tmp_path: Path) -> None:
    done = run(tmp_path, "-s", "--testbed-seeds", "3..12")
    assert done.returncode == 1
    assert "3 failed, 17 passed" in done.stdout
    assert "test_suite.py::test_seed: 3 of 10 seeds fail; 95% interval 6.67% to 65.25%" in done.stdout
    assert "  failing seeds: 4, 8, 12\n" in done.stdout
    assert "test_suite.py::test_another: 0 of 10 seeds fail; 95% interval 0.00% to 30.85%" in done.stdout
    assert done.stdout.count("set up once") == 1


def test_the_search_ends_at_the_most_failures(tmp_path: Path) -> None:
    done = run(tmp_path, "-x", "--testbed-seeds", "3..12")
    assert "test_suite.py::test_seed: 1 of 2 seeds fail" in done.stdout
    assert "  failing seeds: 4\n" in done.stdout


def test_a_failure_is_made_smaller_and_tries_are_told_to_nobody(tmp_path: Path) -> None:
    """A try that fails in another way, the third of 4 messages, does not count."""
    arguments = ("--testbed-seeds", "5..5", "--testbed-shrink", "30", "--junitxml", "junit.xml")
    done = run(tmp_path, *arguments, suite=SHRINKABLE)
    assert done.returncode == 1
    assert "2 failed" in done.stdout
    assert (tmp_path / "junit.xml").read_text().count("<testcase ") == 2
    assert re.search(r"  made smaller by \d+ tries: fewer words; the same failure comes of\n", done.stdout)
    assert "    at_most(3, 'messages'), not 20\n" in done.stdout
    tests = json.loads((tmp_path / "report" / "seeds.json").read_text())["tests"]
    assert tests["test_suite.py::test_messages"]["shrunk"]["at_most"] == {"messages": 3}
    assert tests["test_suite.py::test_another_failure"]["shrunk"] is None, "there is nothing to make smaller"


def test_as_many_tries_are_made_as_allowed_also_after_the_most_failures(tmp_path: Path) -> None:
    done = run(tmp_path, "-x", "--testbed-seeds", "5..9", "--testbed-shrink", "3", suite=SHRINKABLE)
    assert "test_suite.py::test_messages: 1 of 1 seeds fail" in done.stdout
    assert "made smaller by 3 tries; the most tries were made" in done.stdout or "not made smaller by 3 tries" in (
        done.stdout
    )
    done = run(tmp_path, "--testbed-seeds", "5..9", suite=SHRINKABLE)
    assert "smaller" not in done.stdout, "in real time it is only done when it is asked for"


def test_a_metric_is_told_by_its_spread_over_the_seeds() -> None:
    spread = Spread(unit="s", group="recorded", by_seed={seed: seed / 1000 for seed in range(101)})
    outcomes = Outcomes(runs=101, metrics={"answer": spread, "wire: b": Spread(unit="B", group="wire", by_seed={1: 1})})
    assert summary("a", outcomes)[1:] == ["  answer: median 50 ms, 5 to 95% of seeds 5 ms to 95 ms, all 0 ns to 100 ms"]
    assert outcomes.as_json()["metrics"]["wire: b"]["by_seed"] == {1: 1}


def test_what_is_no_range_of_seeds_is_refused(tmp_path: Path) -> None:
    for text in ("5", "5..4", "a..b", "1.."):
        done = run(tmp_path, "--testbed-seeds", text)
        assert done.returncode == 2
        assert f"--testbed-seeds={text!r}: write FIRST..LAST, as in 1..1000" in done.stdout + done.stderr
    done = run(tmp_path, "--testbed-seeds", "1..2", "--testbed-seed", "7")
    assert "--testbed-seeds with --testbed-seed 7: leave --testbed-seed out" in done.stdout + done.stderr
    done = run(tmp_path, "--testbed-seeds", "1..2", "--testbed-shrink", "some")
    assert (done.returncode, "--testbed-shrink='some': write a number" in done.stdout + done.stderr) == (2, True)
    done = run(tmp_path, "--testbed-shrink", "5")
    assert (done.returncode, "belongs to --testbed-seeds FIRST" in done.stdout + done.stderr) == (2, True)


def test_runs_that_do_not_count_are_told_apart_and_many_are_cut_short() -> None:
    outcomes = Outcomes(failed=list(range(30)), invalid=[77], runs=999, replay="pytest a --testbed-seed 0")
    head, failing, invalid, replay = summary("a", outcomes)
    assert head.startswith("a: 30 of 999 seeds fail; 95% interval 2.0")
    assert failing.endswith("18, 19 and 10 more")
    assert (invalid, replay) == ("  INVALID seeds: 77", "  pytest a --testbed-seed 0")
