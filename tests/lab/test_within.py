"""Links that are impaired from within the receivers' network namespaces, on the ordinary engine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import Lab
from testbed.backends.docker.engine import RUN_LABEL, Engine
from testbed.backends.docker.images import ensure_netem
from testbed.backends.docker.runs import remove_run, runs
from testbed.backends.docker.within import WithinLab
from testbed.errors import EnvironmentUnfitError
from testbed.lab.waiting import await_condition
from tests.lab.conftest import Datagrams, as_one_test, stack_from_anywhere

LABS = ("within",)

_KILLED = """
import pathlib, pytest

@pytest.mark.impair("client <-> server", delay="300ms")
def test_that_is_killed(lab):
    pathlib.Path("impaired").write_text(lab.run_id)
    lab.host("client").run(["sleep", "120"], timeout="120s")
"""
_LEFT = "ip -brief link; tc filter show dev eth0 ingress"


@pytest.fixture
def lab(stack: Lab) -> Iterator[Lab]:
    yield from as_one_test(stack)


def test_each_direction_is_impaired_alone_and_no_packet_passes_twice(lab: Lab, datagrams: Datagrams) -> None:
    lab.impair("client -> server", delay="100ms")
    assert 0.1 <= min(datagrams.round_trips(5)) < 0.2
    lab.impair("server -> client", delay="150ms")
    assert 0.25 <= min(datagrams.round_trips(5)) < 0.35
    lab.heal()
    lab.impair("server -> client", delay="150ms")
    assert 0.15 <= min(datagrams.round_trips(5)) < 0.25
    lab.impair("client -> server", delay="1ms")
    with lab.capture("client -> server") as seen:
        assert datagrams.arrived(20) == list(range(20))
    sides = {place.side: number for number, place in enumerate(seen.capture.places)}
    counts = {side: sum(packet.place == number for packet in seen.packets) for side, number in sides.items()}
    assert counts["before"] == counts["after"] > 20


def test_an_answer_to_what_is_cut_is_refused(lab: Lab) -> None:
    with pytest.raises(EnvironmentUnfitError, match="needs the switch, and this port is attached within its host"):
        lab.cut("client -> server", reject=True)
    with pytest.raises(EnvironmentUnfitError, match="nothing would stay impaired: use --lab compose"):
        WithinLab(outlives_us=True)


def test_a_killed_run_leaves_its_links_healed_and_a_stack_that_can_be_cleared(kind: str, tmp_path: Path) -> None:
    engine = Engine()
    (tmp_path / "compose.yaml").write_text(stack_from_anywhere())
    (tmp_path / "test_killed.py").write_text(_KILLED)
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--lab", kind, "--testbed-lateness=warn"]
    impaired = tmp_path / "impaired"
    with subprocess.Popen([*argv, "test_killed.py"], cwd=tmp_path, stdout=subprocess.PIPE) as running:
        try:
            await_condition(lambda: impaired.exists() or running.poll() is not None, bool, deadline_s=100)
            assert running.poll() is None, running.communicate()[0]
        finally:
            running.kill()
    run_id = impaired.read_text()

    def agents() -> list[str]:
        return [item.name for item in engine.labelled(RUN_LABEL, run_id) if item.is_agent]

    await_condition(agents, lambda left: not left, deadline_s=30)
    image = ensure_netem(engine, lambda _text: None)
    for host in engine.containers(testbed_run=run_id):  # none, if another worker's run has cleared them
        beside = ["docker", "run", "--rm", "--network", f"container:{host.id}", "--entrypoint", "sh"]
        done = subprocess.run([*beside, image, "-c", _LEFT], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            assert [line.split("@")[0].split()[0] for line in done.stdout.splitlines()] == ["lo", "eth0"]
    for run in (run for run in runs(engine) if run.id == run_id):
        assert run.is_stale
        remove_run(engine, run.id, run.owner)
    assert not engine.labelled(RUN_LABEL, run_id)
