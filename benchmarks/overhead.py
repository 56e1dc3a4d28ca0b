"""What a test with an impaired link costs beyond the same test by plain pytest and ``docker exec``.

One pytest session on the paper's stack runs tests of three kinds in turns: one that runs a program in a container by
``docker exec`` over the clean stack; one with `impair` that runs it by testbed, without captures; and one with the
packets captured, as they are by default. Of each the whole test counts: set-up, body, tear-down. What is judged is the
median difference within turns, so that what else the machine does meets all three.

Beside it, pytest-docker and testcontainers start the same containers and run the same program in a test of each, in
sessions of their own. They impair nothing: theirs is the time of a test without a link.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks import common
from benchmarks.common import ROOT, STACK, Check, Report
from benchmarks.rivals import called, programs
from testbed.compose import command
from testbed.errors import EnvironmentUnfitError

MOST_S, MOST_CAPTURED_S = 0.100, 0.050
_ROUNDS, _QUICK_ROUNDS = 60, 20
_RIVAL_ROUNDS = 10
_DEADLINE_S = 600.0
_TIMES = "TESTBED_BENCHMARK_TIMES"
_IMAGES = "images.json"
_PROGRAM = ["python3", "-c", "import socket; socket.create_connection(('server', 8888), 10).close()"]

_CONFTEST = """
import json, os, time
import pytest

TIMES = {}
CAPTURES = {"never": "never", "captured": "on-failure"}

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    kind = item.callspec.params.get("kind", "rival")
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
import json
import subprocess
import pytest

@pytest.fixture(scope="session")
def container(stack):
    with open(IMAGES, "w") as file:
        json.dump({name: stack.host(name).container.image.id for name in ("client", "server")}, file)
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

_RIVALS = {
    "pytest-docker": """
import shlex
import pytest

@pytest.fixture(scope="session")
def docker_compose_file():
    return "compose.yaml"

@pytest.fixture(scope="session")
def docker_compose_project_name():
    return PROJECT

@pytest.mark.parametrize("number", range(ROUNDS))
def test_turn(docker_services, number):
    docker_services._docker_compose.execute("exec -T client " + shlex.join(PROGRAM))
""",
    "testcontainers": """
import pytest
from testcontainers.compose import DockerCompose

@pytest.fixture(scope="session")
def compose():
    with DockerCompose(".", "compose.yaml", wait=True) as started:
        yield started

@pytest.mark.parametrize("number", range(ROUNDS))
def test_turn(compose, number):
    assert compose.exec_in_container(PROGRAM, "client")[2] == 0
""",
}


def measure(report: Report) -> None:
    """One session; the first turn fills caches, carries the kernel, and does not count."""
    rounds = _QUICK_ROUNDS if report.quick else _ROUNDS
    report.say(f"one stack, {rounds} turns of three tests")
    with tempfile.TemporaryDirectory(prefix="testbed-overhead-") as name:
        folder = Path(name)
        times = _session(folder, rounds + 1)
        rivals = _rivals(report, folder, json.loads((folder / _IMAGES).read_text(encoding="utf-8")))
    plain, never, captured = (times[kind][1:] for kind in ("plain", "never", "captured"))
    beyond = [ours - theirs for theirs, ours in zip(plain, never, strict=True)]
    of_captures = [more - less for less, more in zip(never, captured, strict=True)]
    in_all = {
        "pytest and docker exec": f"{1000 * median(plain):.0f} ms in all",
        "testbed": f"{1000 * median(never):.0f} ms in all, {1000 * median(captured):.0f} ms with captures",
        **rivals,
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
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--lab", "compose"]
    argv += ["--compose-file", str(STACK), "--testbed-lateness", "warn", "--rootdir", str(folder), str(folder)]
    return _times(argv, folder, _SUITE, rounds, {"PYTHONPATH": str(ROOT)})


def _rivals(report: Report, folder: Path, images: dict[str, str]) -> dict[str, str]:
    """What each rival's test costs, in words; its stack has our images, since it may not be able to build them here."""
    try:
        python = str(programs(report) / "python")
    except EnvironmentUnfitError as error:
        report.note(str(error))
        return {}
    variables = _docker_compose(folder)
    costs = {}
    for name, suite in _RIVALS.items():
        report.say(f"{name}: {_RIVAL_ROUNDS} tests on a stack of its own")
        own = folder / name
        own.mkdir()
        (own / "compose.yaml").write_text(json.dumps(_compose(images)), encoding="utf-8")
        project = f"testbed-overhead-{name}-{os.getpid()}"
        argv = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:testbed", "--rootdir=.", "."]
        began = time.perf_counter()
        try:
            text = f"PROJECT = {project!r}\n{suite}"
            ours = variables | {"COMPOSE_PROJECT_NAME": project}
            times = _times(argv, own, text, _RIVAL_ROUNDS + 1, ours)["rival"]
            whole_s = time.perf_counter() - began
        finally:  # whatever it left of its own stack
            called([*command.find(), "-p", project, "down", "--volumes", "--timeout=0"], cwd=own, timeout_s=60)
        costs[name] = f"{1000 * median(times[1:]):.0f} ms in all, no impairment; its session took {whole_s:.1f} s"
    return costs


def _docker_compose(folder: Path) -> dict[str, str]:
    """The environment in which ``docker compose`` is the Compose that testbed uses."""
    (program, *plugin) = command.find()
    if plugin:
        return {}
    plugins = folder / "docker" / "cli-plugins"
    plugins.mkdir(parents=True)
    (plugins / "docker-compose").symlink_to(program)
    return {"DOCKER_CONFIG": str(plugins.parent)}


def _compose(images: dict[str, str]) -> dict[str, Any]:
    """The paper's stack, of images that are there."""
    document: dict[str, Any] = yaml.safe_load(STACK.read_text(encoding="utf-8"))
    for name, service in document["services"].items():
        del service["build"]
        service["image"] = images[name]
    return document


def _times(argv: list[str], folder: Path, suite: str, rounds: int, variables: dict[str, str]) -> dict[str, list[float]]:
    (folder / "conftest.py").write_text(_CONFTEST, encoding="utf-8")
    given = f"ROUNDS, PROGRAM, IMAGES = {rounds}, {_PROGRAM}, {_IMAGES!r}\n"
    (folder / "test_overhead.py").write_text(given + suite, encoding="utf-8")
    times = folder / "times.json"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    called(argv, cwd=folder, env=environment | {_TIMES: str(times)} | variables, timeout_s=_DEADLINE_S)
    measured: dict[str, list[float]] = json.loads(times.read_text(encoding="utf-8"))
    return measured


if __name__ == "__main__":
    common.run("A test with an impaired link, beside pytest and docker exec", measure)
