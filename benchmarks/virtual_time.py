"""pytest in virtual time: wall time of whole processes, start included, and whether two runs are the same.

The suites wait for an idle day; exchange a message every two seconds over a bad link, for an hour and for a day; and
exchange 20 messages under a thousand seeds, on two kernels; 20 hosts gossip for an hour over links that change; and
Redis, nginx and PostgreSQL are an hour without their clients, five times. With ``--quick`` under twenty seeds, without
the day, the gossip and the services. Times are of this machine as it is: beside other work they grow, processor time
less than wall time.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import common, virtual_versions
from benchmarks.common import BenchmarkError, Check, Report
from testbed.kernel import building, bytecode
from tests.lab.programs import exchange_project

IDLE_DAY_S, HOUR_S, DAY_S, GOSSIP_S, SERVICES_S = 2.0, 5.0, 60.0, 60.0, 30.0
"""Bounds: wall time."""

SEEDS_S, QUICK_SEEDS_S = 300.0, 10.0
"""Bounds: wall time of a thousand seeds, and with ``--quick`` of twenty, where two starts are a third of it."""

_SEEDS, _QUICK_SEEDS, _JOBS = 1000, 20, 2
_DEADLINE_S = 900.0
_EVERY_S = 2
_IDLE = """
import time

def test_idle_day():
    time.sleep(86400)
"""
_GOSSIP_STACK = """
services:
  peer:
    image: none
    x-testbed: {{local: {{path: {programs}, python: true}}}}
    command: sleep infinity
    deploy: {{replicas: 20}}
    networks: [lan]
    volumes: ["begin:/begin"]
networks: {{lan: {{}}}}
volumes: {{begin: {{}}}}
"""
_GOSSIP = """
from benchmarks import gossip

CHANGES = [{{"delay": "20ms", "jitter": "4ms", "loss": "1%"}}, {{"at": "60s", "loss": "10%"}},
           {{"at": "90s", "outage": "20s"}}, {{"at": "120s", "delay": "200ms"}}, {{"repeat": "150s"}}]

def test_gossip(lab):
    amount = {{"messages": {messages}, "rate_per_s": 0.1, "deadline_s": {most_s}}}
    talked = gossip.talk(lab, neighbours=4, impairment=CHANGES, **amount)
    assert talked.complete
    assert not talked.unexplained, talked.unexplained[:3]
    assert talked.causes
"""
_GOSSIP_LASTING_S, _GOSSIP_EVERY_S = 3600, 10
_SERVICES_RUNS = 5


def measure(report: Report) -> None:
    """Each suite, and the hour's twice with one seed."""
    kernel = building.find()
    if kernel is None:
        raise BenchmarkError("there is no kernel with a simulated clock: `testbed kernel build`")
    bytecode.ensure(report.say)
    report.note(f"kernel: {kernel.source}; load of the machine at the start: {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="testbed-virtual-bench-") as name:
        folder = Path(name)
        exchange_project.lay_out(folder)
        days = () if report.quick else ((24, DAY_S),)
        (folder / "test_idle.py").write_text(_IDLE, encoding="utf-8")
        for hours, _ in ((1, HOUR_S), *days):
            text = exchange_project.test_of(count=hours * 3600 // _EVERY_S, every_s=_EVERY_S)
            (folder / f"test_{hours}h.py").write_text(text, encoding="utf-8")
        _measure_seeds(report, folder)
        report.say("an idle day")
        report.check(
            Check(name="an idle day", value=_run(report, folder, "test_idle.py")[0], bound=IDLE_DAY_S, unit="s")
        )
        report.say("an hour, twice")
        first, second = (_run(report, folder, "test_1h.py") for _ in range(2))
        for hours, wall_s, bound_s in ((1, min(first[0], second[0]), HOUR_S), *_days(report, folder, days)):
            name = f"{hours} h of two hosts, a message every 2 s over lossy-latency"
            report.check(Check(name=name, value=wall_s, bound=bound_s, unit="s"))
        _check_identical(report, "two runs", first[1], second[1])
        if not report.quick:
            _measure_gossip(report, folder / "gossip")
            _measure_services(report, folder / "services")
    virtual_versions.measure(report)


def _measure_gossip(report: Report, folder: Path) -> None:
    """20 hosts that send each of four neighbours a message every 10 s, over links that change all the time."""
    folder.mkdir()
    stack = _GOSSIP_STACK.format(programs=common.ROOT / "images" / "common")
    (folder / "compose.yaml").write_text(stack, encoding="utf-8")
    text = _GOSSIP.format(messages=_GOSSIP_LASTING_S // _GOSSIP_EVERY_S, most_s=2 * _GOSSIP_LASTING_S)
    (folder / "test_gossip.py").write_text(text, encoding="utf-8")
    report.say("an hour of gossip of 20 hosts")
    wall_s = _run(report, folder, "test_gossip.py")[0]
    report.check(Check(name="1 h of gossip of 20 hosts over links that change", value=wall_s, bound=GOSSIP_S, unit="s"))


def _measure_services(report: Report, folder: Path) -> None:
    """Redis, nginx and PostgreSQL in their images, each with its usual client, for an hour without links."""
    source = common.ROOT / "benchmarks" / "services"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__", "report"))
    stack = ("--compose-file", "outage.compose.yaml")
    runs = []
    for number in range(_SERVICES_RUNS):
        report.say(f"an hour's outage of three services, {number + 1} of {_SERVICES_RUNS}")
        runs.append(_run(report, folder, *stack, "outage.py"))
    wall_s = statistics.median(wall_s for wall_s, _ in runs)
    name = f"1 h without links: Redis, nginx, PostgreSQL and their clients, which reconnect, median of {len(runs)}"
    report.check(Check(name=name, value=wall_s, bound=SERVICES_S, unit="s"))
    _check_identical(report, f"{len(runs)} runs of the services", *(written for _, written in runs))


def _check_identical(report: Report, runs: str, *written: dict[str, bytes]) -> None:
    paths = {path for files in written for path in files}
    differing = sum(len({files.get(path) for files in written}) > 1 for path in paths)
    report.check(Check(name=f"files that differ between {runs} of one seed", value=differing, bound=0, unit="files"))


def _measure_seeds(report: Report, folder: Path) -> None:
    """A two-host test under many seeds; each must have been run."""
    seeds, bound_s = (_QUICK_SEEDS, QUICK_SEEDS_S) if report.quick else (_SEEDS, SEEDS_S)
    text = exchange_project.test_of(count=20, every_s=0.5).replace('"lossy-latency"', 'loss="5%", delay="60ms"')
    (folder / "test_seeds.py").write_text(text, encoding="utf-8")
    report.say(f"{seeds} seeds on {_JOBS} kernels")
    began = time.monotonic()
    words = ("--testbed-seeds", f"1..{seeds}", "--testbed-jobs", str(_JOBS))
    output = _pytest(report, folder, *words, "test_seeds.py")
    name = f"{seeds} seeds of 20 messages, 5 % loss, 60 ms"
    report.check(Check(name=name, value=time.monotonic() - began, bound=bound_s, unit="s"))
    if f" of {seeds} seeds fail" not in output:
        raise BenchmarkError(f"not every seed was run:\n{output}")
    shutil.rmtree(folder / "report", ignore_errors=True)


def _days(report: Report, folder: Path, days: tuple[tuple[int, float], ...]) -> list[tuple[int, float, float]]:
    measured = []
    for hours, bound_s in days:
        report.say(f"{hours} hours")
        measured.append((hours, _run(report, folder, f"test_{hours}h.py")[0], bound_s))
    return measured


def _run(report: Report, folder: Path, *words: str) -> tuple[float, dict[str, bytes]]:
    """Wall time of a run, and what it wrote."""
    began = time.monotonic()
    _pytest(report, folder, "--testbed-seed", "7", "--testbed-capture", "always", *words)
    wall_s = time.monotonic() - began
    written = {
        str(path.relative_to(folder)): path.read_bytes() for path in (folder / "report").rglob("*") if path.is_file()
    }
    shutil.rmtree(folder / "report", ignore_errors=True)  # an idle test writes none
    return wall_s, written


def _pytest(report: Report, folder: Path, *words: str) -> str:
    """Run pytest in virtual time; returns its output. Raises BenchmarkError if a test fails."""
    environment = {name: value for name, value in os.environ.items() if name not in ("COMPOSE_FILE", "PYTEST_ADDOPTS")}
    # Hypothesis's plugin, which its users alone have, imports half of Hypothesis at the end of each session.
    usual = ("-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest")
    argv = [sys.executable, "-m", "pytest", *usual, "--virtual-time", *words]
    began, before_s = time.monotonic(), _processor_s()
    done = subprocess.run(
        argv, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=_DEADLINE_S
    )
    wall_s = time.monotonic() - began
    report.note(f"{words[-1]}: {wall_s:.2f} s of wall time, {_processor_s() - before_s:.2f} s of processor time")
    if done.returncode:
        raise BenchmarkError(f"`{' '.join(argv)}` failed with status {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def _processor_s() -> float:
    """Processor time of all children that have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    common.run("pytest in virtual time", measure)
