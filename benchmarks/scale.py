"""How many hosts a local lab brings up, how fast, and what each costs; beside Mininet where that is installed.

Hosts have nothing to run: a namespace, a cable, an address and a place on one bridge. Mininet's have a shell each.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks import common
from benchmarks.common import BenchmarkError, Check, Report, timed
from testbed.errors import EnvironmentUnfitError
from testbed.labs.local import LocalLab

PAIR_S = {"host": 0.5, "carried": 3.0}
"""Two hosts up, impaired, one message, down."""
SECOND_S = 0.05
"""The links of a session's second test impaired."""
BOUNDS_S = {100: 0.8, 1000: 10.0}
DOWN_S = 1.0
TIMES_MININET = 5.0
CONSTANT_WITHIN = 0.2

_ROUNDS, _QUICK_ROUNDS = 5, 3
_SIZES, _QUICK_SIZES = (10, 100, 400, 1000), (10, 100)
_DEADLINE_S = 120.0


def measure(report: Report) -> None:
    """All of it; raises EnvironmentUnfitError if no local lab can be had here."""
    _measure_pair(report)
    times: dict[int, float] = {}
    memory: dict[int, float] = {}
    for hosts in _QUICK_SIZES if report.quick else _SIZES:
        report.say(f"{hosts} hosts")
        with _stack(hosts) as file:
            rounds = [_up_and_down(file) for _ in range(_QUICK_ROUNDS if report.quick else _ROUNDS)]
        times[hosts] = up_s = median(up for up, _, _ in rounds)
        memory[hosts] = median(used for _, _, used in rounds)
        if hosts in BOUNDS_S:
            rivals = _mininet(report, hosts) if hosts == 100 else {}
            report.check(
                Check(
                    name=f"{hosts} hosts up, median of {len(rounds)}", value=up_s, bound=BOUNDS_S[hosts], unit="s",
                    rivals={name: f"{took_s:.2f} s" for name, took_s in rivals.items()},
                )
            )  # fmt: skip
            for name, took_s in rivals.items():
                report.check(
                    Check(name=f"times faster than {name}", value=took_s / up_s, bound=TIMES_MININET, unit="×",
                          at_least=True)
                )  # fmt: skip
        if hosts == 100:
            down_s = median(down for _, down, _ in rounds)
            report.check(Check(name="100 hosts down", value=down_s, bound=DOWN_S, unit="s"))
    _tell_constancy(report, times, memory)


def _measure_pair(report: Report) -> None:
    report.say("two hosts: up, impaired, one message, down")
    rounds, seconds_s, engine = [], [], ""
    for number in range(1 + (_QUICK_ROUNDS if report.quick else _ROUNDS)):
        started = time.perf_counter()
        with LocalLab(common.STACK, say=report.say) as lab:
            lab.impair("client <-> server", delay="1ms")
            if not lab.host("client").run(["python3", "paper_client.py", "server"]).ok:
                raise BenchmarkError("the message was not sent")
            before_second = time.perf_counter() - started
            lab.heal()
            again = timed(lambda lab=lab: lab.impair("client <-> server", delay="2ms"))  # type: ignore[misc]  # bound at once
            down_from, engine = time.perf_counter(), lab.netem_engine
        if number:  # the first does not count: it may fetch a kernel
            rounds.append(before_second + time.perf_counter() - down_from)
            seconds_s.append(again)
    name = f"two hosts up, impaired, one message, down, {engine} netem, median of {len(rounds)}"
    report.check(Check(name=name, value=median(rounds), bound=PAIR_S[engine], unit="s"))
    report.check(Check(name="the second test's links impaired", value=median(seconds_s), bound=SECOND_S, unit="s"))


@contextmanager
def _stack(hosts: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="testbed-scale-") as folder:
        path = Path(folder) / "compose.yaml"
        path.write_text(
            "services:\n  h:\n    image: none\n    networks: [lan]\n    x-testbed: {local: {python: true}}\n"
            f"    scale: {hosts}\nnetworks:\n  lan: {{}}\n",
            encoding="utf-8",
        )
        yield path


def _up_and_down(file: Path) -> tuple[float, float, float]:
    """Seconds up, seconds down, and bytes of memory that the machine has fewer while it is up."""
    before = _available()
    lab = LocalLab(file)
    up_s = timed(lab.up)
    try:
        used = before - _available()
    finally:
        down_s = timed(lab.down)
    return up_s, down_s, used


def _available() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024
    raise EnvironmentUnfitError("/proc/meminfo has no MemAvailable")


def _tell_constancy(report: Report, times: dict[int, float], memory: dict[int, float]) -> None:
    sizes = sorted(times)
    # What the agent itself costs is in every size: the slope between two sizes is a host's own.
    slopes = [
        (times[big] - times[small]) / (big - small) for small, big in pairwise(sizes)
    ]  # fmt: skip
    for hosts in sizes:
        report.note(f"{hosts} hosts: up in {times[hosts]:.3f} s, {memory[hosts] / hosts / 1024:.0f} KiB a host.")
    if len(slopes) > 1:
        spread = max(slopes) / min(slopes) - 1
        name = f"time a further host costs, {sizes[0]} to {sizes[-1]} hosts: largest over smallest, less 1"
        report.check(Check(name=name, value=spread, bound=CONSTANT_WITHIN, unit=""))


def _mininet(report: Report, hosts: int) -> dict[str, float]:
    """Mininet's own time for the same number of hosts on one Linux bridge; nothing where it is not here."""
    if shutil.which("mn") is None:
        report.note("Mininet is not here (apt-get install mininet): not compared.")
        return {}
    report.say("Mininet")
    argv = ["mn", "--switch", "lxbr", "--controller", "none", "--topo", f"single,{hosts}", "--test", "none"]
    started = time.perf_counter()
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_DEADLINE_S)
    took_s = time.perf_counter() - started
    if done.returncode:
        report.note(f"Mininet failed: {done.stderr.strip()[-200:]}")
        return {}
    return {"Mininet (up and down)": took_s}


if __name__ == "__main__":
    common.run("Scale of a local lab", measure)
