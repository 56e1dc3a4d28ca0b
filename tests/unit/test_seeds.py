"""Tests under many seeds in one session: each seed is the test's, and the failing ones are told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from testbed.pytest.seeds import Outcomes, summary

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


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_suite.py").write_text(SUITE)
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


def test_what_is_no_range_of_seeds_is_refused(tmp_path: Path) -> None:
    for text in ("5", "5..4", "a..b", "1.."):
        done = run(tmp_path, "--testbed-seeds", text)
        assert done.returncode == 2
        assert f"--testbed-seeds={text!r}: write FIRST..LAST, as in 1..1000" in done.stdout + done.stderr
    done = run(tmp_path, "--testbed-seeds", "1..2", "--testbed-seed", "7")
    assert "--testbed-seeds with --testbed-seed 7: leave --testbed-seed out" in done.stdout + done.stderr


def test_runs_that_do_not_count_are_told_apart_and_many_are_cut_short() -> None:
    outcomes = Outcomes(failed=list(range(30)), invalid=[77], runs=999, replay="pytest a --testbed-seed 0")
    head, failing, invalid, replay = summary("a", outcomes)
    assert head.startswith("a: 30 of 999 seeds fail; 95% interval 2.0")
    assert failing.endswith("18, 19 and 10 more")
    assert (invalid, replay) == ("  INVALID seeds: 77", "  pytest a --testbed-seed 0")
