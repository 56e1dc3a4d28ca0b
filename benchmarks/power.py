"""How often `testbed ab` is wrong: faults that it misses, and false alarms.

On the local lab: six faults planted together in a small shop, each with a metric of its own, on four links; and the
same version against itself. Simulated: ten thousand comparisons of a version with itself, drawn from what was recorded,
with stalls, looked at after each pair. Beside it, on the same runs, what a threshold on means (10 %) and an unpaired
Mann-Whitney test (p < 0.05) say. With ``--quick`` the faults once on one link, and fewer simulated.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import common
from benchmarks.common import BenchmarkError, Check, Report
from testbed.judge import cells as cells_
from testbed.judge.changes import Change
from testbed.judge.paired import change_of

FAULTS = {
    "more bytes": ("bytes", "5 % more bytes on the wire"),
    "slow sender": ("goodput", "10 % less goodput (a sleep in the sender)"),
    "slow server": ("response", "10 ms in the server"),
    "Nagle": ("two writes", "Nagle left on (write, write, read)"),
    "not acknowledged": ("acknowledged", "2 % of messages never acknowledged"),
    "truncated": ("received", "recv(1024) truncates a message"),
}
"""Each fault, the metric that shows it, and what it is."""
_SHOP = Path(__file__).parent / "shop"
_RUNS, _AGAINST_ITSELF, _SIMULATED, _SIMULATED_QUICK = 20, 100, 10_000, 300
_OF_CONNECTS = 20
_PAIRS_AGAINST_ITSELF, _SIMULATED_PAIRS = 20, 48
_BUDGET = "3min"
_STALL_S, _STALLS = 1.0, 0.05
_ALPHA, _MEANS, _P = 0.01, 0.10, 0.05
_WITHIN_S = 1200

Cell = Mapping[str, Any]


def measure(report: Report) -> None:
    """Run everything. Raises BenchmarkError if a comparison does not come about."""
    runs, against_itself = (1, 0) if report.quick else (_RUNS, _AGAINST_ITSELF)
    tests = ["test_links.py::test_delay"] if report.quick else ["test_links.py"]
    with tempfile.TemporaryDirectory(prefix="testbed-power-") as name:
        shop = _repository(Path(name) / "shop")
        planted = [_ab(shop, ["--base", "base", "--budget", _BUDGET], tests, report) for _ in range(runs)]
        _faults(report, planted)
        pairs = str(_PAIRS_AGAINST_ITSELF)
        same = [_ab(shop, ["--aa", "--pairs", pairs], tests, report) for _ in range(against_itself)]
        connects = (
            []
            if report.quick
            else [
                _ab(shop, ["--aa", "--pairs", str(_PAIRS_AGAINST_ITSELF)], ["test_connects.py"], report)
                for _ in range(_OF_CONNECTS)
            ]
        )
    if not report.quick:
        _false_alarms(report, "the same version twice", same)
        _false_alarms(report, "many short connections over a lossy link, twice", connects)
    recorded = [cell for campaign in same for cell in campaign["cells"]]
    recorded += [{**cell, "head": []} for campaign in planted for cell in campaign["cells"]]
    _simulated(report, recorded)


def _repository(folder: Path) -> Path:
    """The shop as it is, tagged ``base``; checked out with all faults planted."""
    shutil.copytree(_SHOP, folder, ignore=shutil.ignore_patterns("__pycache__", "report"))

    def git(*words: str) -> None:
        who = ["-c", "user.name=power", "-c", "user.email=power@localhost"]
        subprocess.run(["git", *who, "-C", str(folder), *words], check=True, capture_output=True)

    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "base")
    git("tag", "base")
    file = folder / "faults.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("= ()", f"= {tuple(FAULTS)!r}"), encoding="utf-8")
    git("commit", "-q", "-a", "-m", "faults")
    return folder


def _ab(shop: Path, words: Sequence[str], tests: Sequence[str], report: Report) -> dict[str, Any]:
    """The verdict of `testbed ab` on one comparison."""
    pytest = ["--lab", "local", "--testbed-lateness", "warn", "-p", "no:cacheprovider", *tests]
    argv = [sys.executable, "-m", "testbed.commands.cli", "ab", *words, "--json", "--", *pytest]
    environment = {key: value for key, value in os.environ.items() if key != "GITHUB_STEP_SUMMARY"}
    done = subprocess.run(
        argv, cwd=shop, capture_output=True, text=True, timeout=_WITHIN_S, env=environment, check=False
    )
    if done.returncode not in (0, 1, 3):
        raise BenchmarkError(f"testbed ab: exit status {done.returncode}: {done.stderr[-2000:]}")
    shutil.rmtree(shop / "report", ignore_errors=True)
    document: dict[str, Any] = json.loads(done.stdout)
    report.say(f"{' '.join(words)}: {document['change']} in {document['base_runs']} pairs")
    return document


# --- the three judges --------------------------------------------------------------------------------


def ours(cell: Cell) -> bool:
    """Whether `testbed ab` says that it regressed."""
    return bool(cell["change"] == "regressed")


def by_means(cell: Cell) -> bool:
    """Whether the mean of head is worse by more than a tenth."""
    base, head = fmean(cell["base"]), fmean(cell["head"])
    return _worse(cell, head - base) > _MEANS * abs(base)


def by_ranks(cell: Cell) -> bool:
    """Whether an unpaired Mann-Whitney test says so, for the worse."""
    from scipy.stats import mannwhitneyu

    if len({*cell["base"], *cell["head"]}) == 1:
        return False
    worse = _worse(cell, fmean(cell["head"]) - fmean(cell["base"])) > 0
    return worse and float(mannwhitneyu(cell["head"], cell["base"]).pvalue) < _P


def _worse(cell: Cell, difference: float) -> float:
    return difference if cell["better"] == "lower" else -difference


JUDGES: Mapping[str, Callable[[Cell], bool]] = {
    "testbed ab": ours,
    "means, 10 %": by_means,
    "Mann-Whitney, p < 0.05": by_ranks,
}


# --- what is found -----------------------------------------------------------------------------------


def _faults(report: Report, planted: Sequence[Mapping[str, Any]]) -> None:
    for metric, what in FAULTS.values():
        cells = [
            cell
            for campaign in planted
            for cell in campaign["cells"]
            if cell["metric"] == metric and cell["part"] in ("", "median")
        ]
        shares = {name: sum(map(judge, cells)) / len(cells) for name, judge in JUDGES.items()}
        named = [cell for cell in cells if ours(cell) and "client" in cell["links"]]
        report.check(
            Check(
                name=f"{what}: found, of {len(cells)} (runs × links), with metric and link",
                value=len(named) / len(cells),
                bound=0.95,
                unit="",
                at_least=True,
                rivals=_told(shares),
            )
        )
    pairs = [campaign["base_runs"] for campaign in planted]
    report.note(f"pairs until all was decided, or {_BUDGET} were spent: {min(pairs)} to {max(pairs)}")


def _false_alarms(report: Report, what: str, same: Sequence[Mapping[str, Any]]) -> None:
    shares = {name: fmean(any(map(judge, campaign["cells"])) for campaign in same) for name, judge in JUDGES.items()}
    cells = fmean(len(campaign["cells"]) for campaign in same)
    report.check(
        Check(
            name=f"{what}: {len(same)} comparisons of {cells:.0f} cells, with a false alarm",
            value=shares["testbed ab"],
            bound=_ALPHA,
            unit="",
            rivals=_told(shares),
        )
    )


def _told(shares: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{share:.1%}" for name, share in shares.items() if name != "testbed ab"}


# --- simulated ---------------------------------------------------------------------------------------


def _simulated(report: Report, recorded: Sequence[Cell]) -> None:
    """A version against itself, drawn from measured values of each metric."""
    values: dict[tuple[str, str, str], list[float]] = {}
    kinds: dict[tuple[str, str, str], Cell] = {}
    for cell in recorded:
        key = (cell["test"], cell["metric"], cell["part"])
        values.setdefault(key, []).extend((*cell["base"], *cell["head"]))
        kinds[key] = cell
    rounds = _SIMULATED_QUICK if report.quick else _SIMULATED
    draw = random.Random(1)  # noqa: S311  # a simulation, the same each time
    alarms: dict[str, int] = dict.fromkeys(JUDGES, 0)
    for number in range(rounds):
        stalls = _STALLS if number % 2 else 0.0
        cells = [_drawn(kinds[key], known, draw, stalls) for key, known in values.items()]
        alarms["testbed ab"] += any(watched(cell, len(cells)) for cell in cells)
        for name in ("means, 10 %", "Mann-Whitney, p < 0.05"):
            alarms[name] += any(map(JUDGES[name], cells))
    report.check(
        Check(
            name=f"the same version twice, {rounds} simulated comparisons of {len(values)} cells, half with 5 % stalls "
            f"of 1 s, watched after each of {_SIMULATED_PAIRS} pairs: with a false alarm",
            value=alarms["testbed ab"] / rounds,
            bound=_ALPHA,
            unit="",
            rivals=_told({name: count / rounds for name, count in alarms.items()}),
        )
    )


def _drawn(cell: Cell, known: Sequence[float], draw: random.Random, stalls: float) -> dict[str, Any]:
    def sample() -> float:
        stalled = cell["unit"] == "s" and draw.random() < stalls
        return draw.choice(known) + (_STALL_S if stalled else 0.0)

    sides = {side: [sample() for _ in range(_SIMULATED_PAIRS)] for side in ("base", "head")}
    return {**cell, **sides}


def watched(cell: Cell, cells: int) -> bool:
    """Whether any number of pairs would give "regressed": what the stopping rule can lead to."""
    known = {key: cell[key] for key in ("test", "metric", "links", "unit", "better", "least_effect", "decides")}
    made = cells_.Cell(**known, kind=cells_.Kind(cell["kind"]), base=tuple(cell["base"]), head=tuple(cell["head"]))
    return change_of(made, math.log(cells / _ALPHA)) is Change.REGRESSED


if __name__ == "__main__":
    common.run("How often testbed ab is wrong", measure)
