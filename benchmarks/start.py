"""The plugin's cost at each start of pytest in a project without a stack: CPU time with it and without, in turns.

Of each the least counts: what else the machine does can only add to it.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import common
from benchmarks.common import BenchmarkError, Check, Report

MORE_S = 0.05

_ROUNDS, _QUICK_ROUNDS = 30, 12
_DEADLINE_S = 60.0


def measure(report: Report) -> None:
    """Both in turns; the first pair fills the caches and does not count."""
    rounds = _QUICK_ROUNDS if report.quick else _ROUNDS
    report.say(f"{rounds} pytest starts with the plugin, and as many without")
    with tempfile.TemporaryDirectory(prefix="testbed-start-") as name:
        folder = Path(name)
        (folder / "test_nothing.py").write_text("def test_nothing(): pass\n", encoding="utf-8")
        pairs = [(_cpu_s(folder, ["-p", "no:testbed"]), _cpu_s(folder, [])) for _ in range(rounds + 1)][1:]
    without_s, ours_s = (min(times_s) for times_s in zip(*pairs, strict=True))
    report.check(
        Check(
            name=f"CPU of a start that the plugin adds, least of {rounds} each",
            value=ours_s - without_s,
            bound=MORE_S,
            unit="s",
            rivals={"pytest -p no:testbed": f"{without_s:.3f} s in all"},
        )
    )


def _cpu_s(folder: Path, arguments: Sequence[str]) -> float:
    """CPU time of one pytest, with its children; seconds."""
    environment = {name: value for name, value in os.environ.items() if name != "COMPOSE_FILE"}
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        argv, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=_DEADLINE_S
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise BenchmarkError(f"`{' '.join(argv)}` failed with status {done.returncode}:\n{done.stdout.strip()}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    common.run("A pytest start in a project without a stack", measure)
