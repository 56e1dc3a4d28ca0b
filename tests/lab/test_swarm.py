"""A Swarm of three engines, each as on a machine of its own: `pytest --lab swarm`, as its user runs it; by hand."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import ComposeLab
from testbed.lab.waiting import await_condition
from tests.lab.conftest import HERE, users_environment
from tests.lab.ownengines import OwnEngine, images_of, swarm

LABS = ("compose",)

pytestmark = [pytest.mark.by_hand, pytest.mark.timeout(900)]

_WITHIN_S = 400
_STACK = """
services:
  server:
    image: {server}
    command: [python3, paper_server.py]
    stop_signal: SIGINT
    restart: always
    networks: [lan]
    deploy: {{replicas: 3}}
  client:
    image: {client}
    command: [sleep, infinity]
    init: true
    networks: [lan]
networks:
  lan: {{driver: bridge}}
"""
_KILLED = """
import pathlib, pytest

@pytest.mark.impair("client -> server[*]", delay="300ms")
def test_that_is_killed(lab):
    machines = {lab.machine_of(name) for name in lab.hosts} - {lab.machine_of("client")}
    lab.machine(machines.pop()).drain()
    pathlib.Path("impaired").write_text(lab.run_id)
    lab.host("client").run(["sleep", "120"], timeout="120s")
"""


@pytest.fixture(scope="module")
def three(stack: ComposeLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[OwnEngine]]:
    """Three engines, the first of which has the images of the paper's stack."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("dockerd", "docker", "setpriv", "unshare", "nsenter"))):
        pytest.skip("needs root, dockerd, docker and util-linux")
    with swarm(tmp_path_factory.mktemp("swarm"), 3) as started:
        started[0].load(images_of(stack))
        yield started


@pytest.fixture(scope="module")
def folder(three: list[OwnEngine], stack: ComposeLab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose stack is the paper's, with three servers."""
    assert three
    place = tmp_path_factory.mktemp("project")
    names = {name: str(host.container.attrs["Config"]["Image"]) for name, host in stack.hosts.items()}
    (place / "compose.yaml").write_text(_STACK.format(**names))
    (place / "test_swarm.py").write_text((HERE / "programs" / "swarm_suite.py").read_text())
    (place / "test_killed.py").write_text(_KILLED)
    return place


def session(folder: Path, three: list[OwnEngine], *words: str) -> subprocess.Popen[str]:
    """A session of pytest on the Swarm, that has begun."""
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--lab", "swarm", "--testbed-seed", "1"]
    argv += ["--testbed-engines", ",".join(engine.url for engine in three), "--testbed-lateness", "warn", *words]
    return subprocess.Popen(argv, cwd=folder, env=users_environment(), stdout=subprocess.PIPE, text=True)


def left(three: list[OwnEngine], run_id: str = "") -> list[str]:
    """What engines have with a run's label."""
    label = ["--filter", f"label=testbed.run{run_id and '='}{run_id}"]
    names = [
        f"{engine.url} {kind} {name}"
        for engine in three
        for kind, words in (
            ("container", ["ps", "--all"]),
            ("network", ["network", "ls"]),
            ("volume", ["volume", "ls"]),
        )
        for name in engine.docker(*words, "--quiet", *label).split()
    ]
    return names + three[0].docker("service", "ls", "--quiet", *label).split()


def test_a_killed_run_leaves_nothing_after_the_next_runs_start(folder: Path, three: list[OwnEngine]) -> None:
    impaired = folder / "impaired"
    with session(folder, three, "test_killed.py") as running:
        try:
            await_condition(lambda: impaired.exists() or running.poll() is not None, bool, deadline_s=_WITHIN_S)
            assert running.poll() is None, running.communicate()[0]
        finally:
            running.send_signal(signal.SIGKILL)
    run_id = impaired.read_text()
    agents = ["ps", "--quiet", "--filter", f"label=testbed.run={run_id}", "--filter", "label=testbed.role"]
    await_condition(lambda: [engine.docker(*agents) for engine in three], lambda ids: not any(ids), deadline_s=60)
    assert left(three, run_id), "its services run on"
    availability = ["node", "ls", "--format", "{{.Availability}}"]
    assert sorted(three[0].docker(*availability).split()) == ["Active", "Active", "Drain"]
    with session(folder, three, "--collect-only", "test_swarm.py") as collecting:
        collecting.communicate(timeout=_WITHIN_S)
    assert left(three, run_id), "nothing was started"
    with session(folder, three, "test_swarm.py", "--testbed-results", "results.jsonl") as running:
        output = running.communicate(timeout=_WITHIN_S)[0]
    assert "5 passed, 1 invalid" in output, output[-6000:]
    assert "host `server[1]` was made anew during the test, and not by it" in output
    assert left(three) == [], "neither of the killed run nor of the next"
    assert three[0].docker(*availability).split() == ["Active"] * 3
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [line["test"]["outcome"] for line in lines if "test" in line].count("passed") == 5


def test_an_engine_that_is_not_named_is_told_before_anything_starts(folder: Path, three: list[OwnEngine]) -> None:
    with session(folder, three[:2], "test_swarm.py") as running:
        output = running.communicate(timeout=_WITHIN_S)[0]
    assert running.returncode == 2, output[-3000:]
    assert "no engine of machine222" in output, output[-3000:]
    with session(folder, three[1:], "test_swarm.py") as running:
        output = running.communicate(timeout=_WITHIN_S)[0]
    assert running.returncode == 2, output[-3000:]
    assert "manages no Swarm" in output, output[-3000:]
    assert left(three) == []
