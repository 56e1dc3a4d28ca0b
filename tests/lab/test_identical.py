"""In virtual time a seed fixes every packet: in each run, and on every machine that has the same kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from testbed.kernel import building
from tests.lab import identical
from tests.lab.programs import exchange_project

KERNEL = building.find()
pytestmark = [
    pytest.mark.skipif(KERNEL is None, reason="no kernel with a simulated clock: `testbed kernel build` builds one"),
    pytest.mark.timeout(800),
]
MOST_S = 3600
WORDS: tuple[dict[str, object], ...] = (
    {"loss": "5%"},
    {"jitter": "4ms"},
    {"reorder": "25%"},
    {"duplicate": "10%"},
    {"rate": "1mbit"},
    {"corrupt": "3%"},
    {"loss": "10%", "burst": 3},
    {"jitter": "4ms", "distribution": "pareto"},
    {"gemodel": "2% 25%"},
    {},
)
MANY = [{"delay": f"{delay}ms", **words} for words, delay in product(WORDS, (60, 5, 20, 110, 300))]
EXCHANGE = """
import pytest

@pytest.mark.parametrize("words", {words!r}, ids=str)
def test_messages(lab, words):
    lab.impair("client <-> server", **words)
    lab.host("server").start(["python3", "server.py"], ready="listening")
    assert lab.host("client").run(["python3", "client.py", "6", "0.3"], timeout="10min").ok
"""


def test_packets_are_those_that_are_committed(tmp_path: Path) -> None:
    """On whatever machine this is, and in other folders, with other variables and one processor."""
    committed = json.loads(identical.COMMITTED.read_text())
    assert KERNEL is not None
    if KERNEL.source != committed["kernel"]:
        pytest.skip(
            f"the digests are of {committed['kernel']}, and the kernel here is of {KERNEL.source}, which is not to be "
            "compared: `python -m tests.lab.identical` writes those of this kernel"
        )
    processor = min(os.sched_getaffinity(0))
    python = ["taskset", "--cpu-list", f"{processor}", sys.executable]
    others = {f"ANOTHER_VARIABLE_{number}": "value" * number for number in range(len(tmp_path.name))}
    seen = identical.run(tmp_path / "project", python=python, environment={**os.environ, **others, "LANG": "C"})
    expected = {place: identical.OneWay.read(one_way) for place, one_way in committed["digests"].items()}
    assert [*identical.differences(expected, seen)] == []


@pytest.mark.parametrize(
    ("tests", "runs", "seeds"),
    [(4, 2, 2), pytest.param(50, 3, 3, marks=[pytest.mark.by_hand, pytest.mark.timeout(MOST_S)])],
)
def test_packets_are_identical_within_a_seed_and_others_between_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tests: int, runs: int, seeds: int
) -> None:
    """To the last bit: times, bytes and directions, random numbers included."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    exchange_project.lay_out(tmp_path)
    (tmp_path / "test_many.py").write_text(EXCHANGE.format(words=MANY[:: len(MANY) // tests][:tests]))
    seen = {
        (seed, run): digests_of(tmp_path, seed, within_s=MOST_S / runs / seeds)
        for seed, run in product(range(1, seeds + 1), range(runs))
    }
    assert {len(digests) for digests in seen.values()} == {2 * tests}, "two ports"
    for seed in range(1, seeds + 1):
        assert all(seen[seed, run] == seen[seed, 0] for run in range(runs))
    for place in seen[1, 0]:
        assert len({seen[seed, 0][place] for seed in range(1, seeds + 1)}) == seeds, place


def digests_of(folder: Path, seed: int, *, within_s: float) -> dict[str, str]:
    """Of a run, by test and port."""
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--virtual-time"]
    done = subprocess.run(
        [*argv, f"--testbed-seed={seed}", "--testbed-replays=0", "test_many.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=within_s,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    lines = map(json.loads, (folder / "report" / "results.jsonl").read_text().splitlines())
    return {
        f"{line['test']['id']} {port}": trail["digest"]
        for line in lines
        if "test" in line
        for port, trail in line["test"]["packets"]["ports"].items()
    }
