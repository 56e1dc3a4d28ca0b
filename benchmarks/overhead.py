"""What a test with an impaired link costs beyond the same test by plain pytest and ``docker exec``.

One pytest session on the paper's stack runs tests of three kinds in turns: one that runs a program in a container by
``docker exec`` over the clean stack; one with `impair` that runs it by testbed, without captures; and one with the
packets captured, as they are by default. Of each the whole test counts: set-up, body, tear-down. What is judged is the
median difference within turns, so that what else the machine does meets all three.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks import common
from benchmarks.common import ROOT, STACK, BenchmarkError, Check, Report

MOST_S, MOST_CAPTURED_S = 0.100, 0.050
_ROUNDS, _QUICK_ROUNDS = 60, 20
_DEADLINE_S = 600.0
_TIMES = "TESTBED_BENCHMARK_TIMES"

_CONFTEST = """
import json, os, time
import pytest

TIMES = {}
CAPTURES = {"never": "never", "captured": "on-failure"}

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    kind = item.callspec.params["kind"]
    item.config.option.testbed_capture = CAPTURES.get(kind, "never")
    began = time.perf_counter()
    result = yield
    TIMES.setdefault(kind, []).append(time.perf_counter() - began)
    return result

def pytest_sessionfinish():
    with open(os.environ["TESTBED_BENCHMARK_TIMES"], "w") as file:
        json.dump(TIMES, file)
"""
_SUITE = """
import subprocess
import pytest

PROGRAM = ["python3", "-c", "import socket; socket.create_connection(('server', 8888), 10).close()"]

@pytest.fixture(scope="session")
def container(stack):
    return stack.host("client").container.id

def pytest_generate_tests(metafunc):
    if "kind" in metafunc.fixturenames:
        turns = [(number, kind) for number in range(ROUNDS) for kind in ("plain", "never", "captured")]
        marks = {kind: pytest.mark.impair("client -> server", delay="1ms") for kind in ("never", "captured")}
        metafunc.parametrize("number, kind", [
            pytest.param(number, kind, marks=[marks[kind]] if kind in marks else []) for number, kind in turns])

def test_turn(container, number, kind, request):
    if kind == "plain":
        subprocess.run(["docker", "exec", container, *PROGRAM], check=True)
    else:
        assert request.getfixturevalue("lab").host("client").run(PROGRAM).ok
"""


def measure(report: Report) -> None:
    """One session; the first turn fills caches, carries the kernel, and does not count."""
    rounds = _QUICK_ROUNDS if report.quick else _ROUNDS
    report.say(f"one stack, {rounds} turns of three tests")
    with tempfile.TemporaryDirectory(prefix="testbed-overhead-") as name:
        times = _session(Path(name), rounds + 1)
    plain, never, captured = (times[kind][1:] for kind in ("plain", "never", "captured"))
    beyond = [ours - theirs for theirs, ours in zip(plain, never, strict=True)]
    of_captures = [more - less for less, more in zip(never, captured, strict=True)]
    in_all = {
        "pytest and docker exec": f"{1000 * median(plain):.0f} ms in all",
        "testbed": f"{1000 * median(never):.0f} ms in all, {1000 * median(captured):.0f} ms with captures",
    }
    report.check(
        Check(
            name=f"a test with an impaired link, beyond the same by docker exec; median of {rounds} turns",
            value=median(beyond),
            bound=MOST_S,
            unit="s",
            rivals=in_all,
        )
    )
    report.check(
        Check(
            name=f"captures on failure, beyond that; median of {rounds} turns",
            value=median(of_captures),
            bound=MOST_CAPTURED_S,
            unit="s",
        )
    )


def _session(folder: Path, rounds: int) -> dict[str, list[float]]:
    """The time of each test by kind, in order; seconds."""
    (folder / "conftest.py").write_text(_CONFTEST, encoding="utf-8")
    (folder / "test_overhead.py").write_text(f"ROUNDS = {rounds}\n{_SUITE}", encoding="utf-8")
    times = folder / "times.json"
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--lab", "compose"]
    argv += ["--compose-file", str(STACK), "--testbed-lateness", "warn", "--rootdir", str(folder), str(folder)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    environment |= {_TIMES: str(times), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        argv, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=_DEADLINE_S
    )
    if done.returncode:
        raise BenchmarkError(f"`{' '.join(argv)}` failed with status {done.returncode}:\n{done.stdout[-3000:]}")
    measured: dict[str, list[float]] = json.loads(times.read_text(encoding="utf-8"))
    return measured


if __name__ == "__main__":
    common.run("A test with an impaired link, beside pytest and docker exec", measure)
