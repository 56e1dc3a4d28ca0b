"""What is found in virtual time: planted faults between two versions, a version against itself, a bug of few seeds.

Part of `benchmarks.virtual_time`. The faults are those of `benchmarks.power`, the bug is in
`tests.lab.programs.farewell_project`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import power
from benchmarks.common import BenchmarkError, Check, Report
from tests.lab.programs import farewell_project

_WITHIN_S = 60.0
"""Of wall time, for the faults of one test."""
_LINKS = ("test_delay", "test_loss", "test_rate", "test_jitter")
_PAIRS, _PAIRS_QUICK = 20, 12
"""Of the comparison that finds the faults: of twelve seeds, all must be worse."""
_ALIKE_SEEDS, _ALIKE_SEEDS_QUICK = 20, 2
_SEARCHED, _SEARCHED_QUICK = (1, 250), (farewell_project.FAILING_SEED - 1, farewell_project.FAILING_SEED)
_REPLAYS, _REPLAYS_QUICK = 10, 1
_MOST_LOST = 2
_DEADLINE_S = 1800.0


def measure(report: Report) -> None:
    """All of it; with --quick one link, and few seeds."""
    with tempfile.TemporaryDirectory(prefix="testbed-versions-") as name:
        shop = power.repository(Path(name) / "shop")
        for link in _LINKS[:1] if report.quick else _LINKS:
            _faults(report, shop, link)
        _alike(report, shop)
        project = Path(name) / "farewell"
        project.mkdir()
        farewell_project.lay_out(project)
        _bug(report, project)


def _faults(report: Report, shop: Path, link: str) -> None:
    report.say(f"six faults, {link}")
    began = time.monotonic()
    pairs = _PAIRS_QUICK if report.quick else _PAIRS
    compared = _ab(shop, "--base", "base", "--pairs", str(pairs), "--", f"test_links.py::{link}")
    wall_s = time.monotonic() - began
    bodies = {cell["metric"]: cell for cell in compared["cells"] if cell["part"] in ("", "median")}
    regressed = [metric for metric, _ in power.FAULTS.values() if bodies[metric]["change"] == "regressed"]
    name = f"faults of {len(power.FAULTS)} that are found, {link}"
    report.check(Check(name=name, value=len(regressed), bound=len(power.FAULTS), unit="", at_least=True))
    report.check(Check(name=f"wall time for them, {link}", value=wall_s, bound=_WITHIN_S, unit="s"))


def _alike(report: Report, shop: Path) -> None:
    report.say("a version against itself")
    seeds = _ALIKE_SEEDS_QUICK if report.quick else _ALIKE_SEEDS
    links = _LINKS[1:2] if report.quick else _LINKS
    tests = [f"test_links.py::{link}" for link in links]
    compared = _ab(shop, "--aa", "--pairs", str(seeds), "--", *tests)
    name = f"tests of {len(tests)} that differ from themselves under {seeds} seeds"
    report.check(Check(name=name, value=len(tests) - len(compared["identical"]), bound=0, unit=""))


def _ab(folder: Path, *words: str) -> dict[str, Any]:
    done = _run(folder, [sys.executable, "-m", "testbed.commands.cli", "ab", "--virtual-time", "--json", *words])
    try:
        compared: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise BenchmarkError(f"`testbed ab {' '.join(words)}` failed:\n{done.stdout}\n{done.stderr}") from None
    return compared


def _bug(report: Report, project: Path) -> None:
    first, last = _SEARCHED_QUICK if report.quick else _SEARCHED
    replays = _REPLAYS_QUICK if report.quick else _REPLAYS
    report.say(f"a bug of one seed in two hundred: seeds {first} to {last}")
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "--virtual-time", "--testbed-replays", "0"]
    pytest = [sys.executable, "-m", "pytest", *options, "test_bye.py"]
    done = _run(project, [*pytest, "--testbed-seeds", f"{first}..{last}"])
    try:
        (test,) = json.loads((project / "report" / "seeds.json").read_text(encoding="utf-8"))["tests"].values()
    except (OSError, ValueError):
        raise BenchmarkError(f"the search failed:\n{done.stdout}\n{done.stderr}") from None
    report.note(f"{len(test['failed'])} of {test['runs']} seeds fail: {test['failed']}")
    report.check(Check(name="seeds that fail", value=len(test["failed"]), bound=1, unit="", at_least=True))
    if not test["failed"]:
        return  # which its bound tells
    if test["shrunk"] is None:
        raise BenchmarkError(f"the failure was not made smaller:\n{done.stdout}\n{done.stderr}")
    lost, tries = test["shrunk"]["lost_packets"], test["shrunk"]["tries"]
    report.note(
        f"made smaller by {tries} tries: {lost['found']} lost packets, then {lost['by_number']}; {test['shrunk']}"
    )
    report.check(Check(name="lost packets that are left", value=lost["by_number"], bound=_MOST_LOST, unit=""))
    alone = [*pytest, "--testbed-seed", str(test["failed"][0])]
    failing = sum(_run(project, alone).returncode == 1 for _ in range(replays))
    name = f"replays of {replays} that fail, too"
    report.check(Check(name=name, value=failing, bound=replays, unit="", at_least=True))


def _run(folder: Path, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("COMPOSE_FILE", "PYTEST_ADDOPTS")}
    return subprocess.run(
        argv, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=_DEADLINE_S
    )
