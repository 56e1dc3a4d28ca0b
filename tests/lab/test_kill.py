"""kill -9 of pytest in an impaired test leaves the network as it was; the next run clears the rest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from testbed import ComposeLab
from testbed.backends.docker.engine import OWNER_LABEL, RUN_LABEL, Engine
from testbed.backends.docker.runs import is_orphaned, runs
from testbed.lab.waiting import await_condition
from tests.lab.conftest import ROOT, cli
from tests.lab.test_local_death import alive, missing, relatives

LABS = ("compose",)

_TEST = """
import pathlib, pytest

@pytest.mark.impair("client <-> server", "awful")
def test_that_is_killed(lab):
    lab.cut("client -> server tcp/9", reject=True)
    pathlib.Path("impaired").write_text(lab.run_id)
    lab.host("client").run(["sleep", "120"], timeout="120s")
"""
_NEXT = """
def test_next(lab):
    assert lab.host("client").run(["true"]).ok
"""


@pytest.fixture
def killed(stack: ComposeLab, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A pytest run of its own that has impaired its links and sits in a test."""
    assert all(file.is_file() for file in stack.composer.files)
    (tmp_path / "test_killed.py").write_text(_TEST)
    (tmp_path / "test_next.py").write_text(_NEXT)
    process = _pytest(tmp_path, "test_killed.py")
    try:
        await_condition(lambda: (tmp_path / "impaired").exists() or process.poll() is not None, bool, deadline_s=60)
        assert process.poll() is None, process.communicate()[0]
        yield process
    finally:
        process.kill()
        process.wait()


def _pytest(folder: Path, name: str) -> subprocess.Popen[str]:
    compose_file = Path(__file__).parents[2] / "compose.yaml"
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--compose-file", str(compose_file), name]
    return subprocess.Popen(
        argv, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=_heed_interrupts
    )


def _heed_interrupts() -> None:
    """Ctrl-C is inherited as ignored where a shell without job control runs the suite in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _ids(engine: Engine) -> set[str]:
    return {run.id for run in runs(engine)}


def devices(run_id: str) -> list[str]:
    """Taps of a run's agent."""
    return sorted(name for name in os.listdir("/sys/class/net") if name.startswith(f"tb{run_id[:6]}"))


def kernels(run_id: str) -> list[str]:
    """Carried kernels of a run's agent."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue  # it ended while we looked
        if b"linux.uml" in command and f"umid=tb{run_id[:6]}".encode() in command:
            pids.append(path.parent.name)
    return pids


def _bridged(engine: Engine, run_id: str) -> int:
    """How many interfaces are on the bridges of a run's networks."""
    count = 0
    for network in engine.networks(testbed_run=run_id):
        shown = subprocess.run(
            ["ip", "-json", "link", "show", "master", f"br-{network.id[:12]}"],
            capture_output=True,
            text=True,
            check=True,
        )
        count += len(json.loads(shown.stdout or "[]"))
    return count


def test_a_killed_run_leaves_its_links_healed_and_the_next_run_clears_its_stack(
    killed: subprocess.Popen[str], stack: ComposeLab, tmp_path: Path
) -> None:
    engine = stack.engine
    run_id = (tmp_path / "impaired").read_text()
    carried = stack.netem_engine == "carried"
    if carried:
        assert len(devices(run_id)) == 6, "two taps a port, the kernel's clock, and where rejected packets end"
        assert kernels(run_id)
        assert _bridged(engine, run_id) == 2, "a tap in place of each veth"
    (label,) = (run.owner for run in runs(engine) if run.id == run_id)
    assert not is_orphaned(label)

    killed.send_signal(signal.SIGKILL)
    killed.communicate()

    def left() -> dict[str, object]:
        agents = [container.name for container in engine.labelled(RUN_LABEL, run_id) if container.is_agent]
        return {"taps": devices(run_id), "kernels": kernels(run_id), "agents": agents}

    await_condition(left, lambda seen: not any(seen.values()), deadline_s=5)
    assert is_orphaned(label)
    # The stack itself is left, for the next run to clear; that may be one of pytest-xdist's other workers.
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    assert len(engine.containers(testbed_run=run_id)) == 2 or not alone
    assert _bridged(engine, run_id) == 2 or not alone, "each veth is back on its bridge"

    following = _pytest(tmp_path, "test_next.py")
    output, _ = following.communicate(timeout=90)
    assert following.returncode == 0, output
    assert f"clearing up after run {run_id}" in output or not alone
    assert run_id not in _ids(engine)
    assert stack.run_id in _ids(engine), "a run whose owner lives is left alone"


def test_ctrl_c_takes_everything_down(killed: subprocess.Popen[str], stack: ComposeLab, tmp_path: Path) -> None:
    run_id = (tmp_path / "impaired").read_text()
    killed.send_signal(signal.SIGINT)
    output, _ = killed.communicate(timeout=60)
    assert killed.returncode == pytest.ExitCode.INTERRUPTED, output
    assert run_id not in _ids(stack.engine)
    assert devices(run_id) == []
    assert kernels(run_id) == []


def test_what_others_label_as_ours_is_left_alone_and_told(stack: ComposeLab) -> None:
    engine = stack.engine
    # No owner that is dead: a testbed from before this test would take the empty label for every run's.
    labels = {"empty": {RUN_LABEL: ""}, "named": {RUN_LABEL: "mine", OWNER_LABEL: "me"}}
    made = {
        name: docker.from_env().containers.create(stack.netem_image, labels=label) for name, label in labels.items()
    }
    try:
        assert [container.name for container in engine.labelled(RUN_LABEL, "")] == [made["empty"].name]
        assert {container.name for container in made.values()} < {
            container.name for container in engine.labelled(RUN_LABEL)
        }
        done = cli("down", "--stale")
        assert done.returncode in (0, 1), done.stderr  # 1: of somebody's run the engine does not let go of something
        assert f"left alone: container {made['empty'].name}: its label testbed.run='' names no run" in done.stderr
        assert f"left alone: container {made['named'].name}: its label testbed.run='mine' names no run" in done.stderr
        assert {engine.state(container).get("Id") for container in made.values()} == {
            container.id for container in made.values()
        }
        assert stack.run_id in _ids(engine)
    finally:
        for container in made.values():
            engine.remove(container)


_LAB = """
import sys
from testbed import ComposeLab

with ComposeLab(sys.argv[1]):
    pass
"""
# Compose waits for the server without a word: a pipe that nobody reads does not end it.
_NEVER_WELL = """
services:
  server:
    build: {{context: {images}, dockerfile: server/Dockerfile}}
    healthcheck: {{test: ["CMD", "false"], interval: 1s, retries: 1000}}
  client:
    build: {{context: {images}, dockerfile: client/Dockerfile}}
    depends_on: {{server: {{condition: service_healthy}}}}
"""


@pytest.mark.parametrize("command", [["-c", _LAB], ["-m", "testbed.commands.cli", "up", "-f"]], ids=["lab", "up"])
def test_a_stack_whose_owner_is_killed_as_it_starts_is_started_no_further_and_is_stale(
    stack: ComposeLab, tmp_path: Path, command: list[str]
) -> None:
    engine, file = stack.engine, tmp_path / "compose.yaml"
    file.write_text(_NEVER_WELL.format(images=ROOT / "images"))

    def running() -> list[str]:
        listed = engine.listing(testbed_stack=str(file))
        return [line["Labels"].get("com.docker.compose.service", "") for line in listed if line["State"] == "running"]

    with subprocess.Popen([sys.executable, *command, str(file)]) as owner:
        try:
            await_condition(running, lambda seen: "server" in seen, deadline_s=60)
            everyone = await_condition(
                lambda: relatives(owner.pid), lambda seen: not missing([b"--detach"], seen), deadline_s=5
            )
            (run,) = (run for run in runs(engine) if run.stack == str(file))
            assert not run.is_stale
            assert cli("down", "-f", str(file)).returncode == 2, "who brings it up may have it"
        finally:
            owner.kill()
    await_condition(lambda: alive(everyone), lambda left: not left, deadline_s=5)
    assert "client" not in running()
    done = cli("down", "--stale")
    assert f"run {run.id}: could not" not in done.stderr
    assert [container.name for container in engine.labelled(RUN_LABEL, run.id)] == []
    assert (devices(run.id), kernels(run.id)) == ([], [])
