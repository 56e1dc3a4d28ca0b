"""The host engine: on the stack where this kernel has netem, and everywhere inside a carried kernel."""

from __future__ import annotations

import json
import statistics
import threading
from typing import Any

import pytest

from testbed import ComposeLab, EnvironmentUnfitError
from testbed.backends.docker.agents import ROLES
from testbed.backends.docker.engine import OWNER_LABEL, ROLE_LABEL, RUN_LABEL, Engine
from testbed.backends.docker.images import ensure_netem
from testbed.backends.docker.runs import owner
from testbed.netem import qdisc, readback, rejecting
from testbed.spec.impairment import Impairment
from tests.lab.conftest import HERE, Datagrams, prepare

LABS = ("compose",)

pytestmark = pytest.mark.slow

# Receives the program and the lines on stdin, boots the kernel with the program as its first, passes its output on.
_BOOT = """
import json, os, subprocess, sys
given = json.loads(sys.stdin.readline())
for name, text in given.items():
    with open("/tmp/" + name, "w") as file:
        file.write(text)
subprocess.run([
    "linux.uml", "mem=256M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet", "uml_dir=/dev/shm/",
    "con=null", "con0=null,fd:1", "init=/usr/bin/python3", "--", "/tmp/host_engine.py", "/tmp/lines.json",
], stdin=subprocess.DEVNULL)
"""
_DELAY = Impairment(delay_s=0.05)
(_WAY,) = qdisc.cut_filters(qdisc.FIRST_MINOR, ["10.9.0.1"])
_MARK = 4_042_322_161
"""Stands for the agent's own, which nobody knows before."""
_LOSS = Impairment(delay_s=0.01, loss_ratio=0.2, seed=7)


@pytest.fixture(scope="module")
def inside(stack: ComposeLab) -> dict[str, Any]:
    """What the host engine did in a kernel of its own."""
    engine = stack.engine
    image = ensure_netem(engine, lambda _text: None)
    device, minor = "vethb", qdisc.FIRST_MINOR
    lines: dict[str, list[str] | str] = {
        "delay": [
            *qdisc.root(device),
            qdisc.make_class(device, minor),
            *(filter_.put(device) for filter_ in qdisc.filters(minor, ["10.9.0.1"])),
            qdisc.leaf(device, minor, _DELAY),
            qdisc.show(device),
        ],
        "loss": [qdisc.leaf(device, minor, _LOSS), qdisc.show(device)],
        # Back from b everything is cut, too, at a's own port: answers to a must pass.
        "silent": [*qdisc.root("vetha"), *qdisc.cut("vetha", minor, qdisc.cut_filters(minor, ["10.9.0.2"]))],
        "reject": [rejecting.put(f"{device} egress", _WAY, "TAP", _MARK), rejecting.show(f"{device} egress")],
        "mark": str(_MARK),
    }
    given = {
        "host_engine.py": (HERE / "programs" / "host_engine.py").read_text(),
        "lines.json": json.dumps(lines),
    }
    options: dict[str, Any] = {
        **ROLES["inside"].options(),
        "labels": {RUN_LABEL: stack.run_id, OWNER_LABEL: owner(), ROLE_LABEL: "inside"},
        "entrypoint": ["python3"],
        "network_mode": "none",
    }
    container, stream = engine.attached(image, ["-c", _BOOT], **options)
    try:
        stream.send(json.dumps(given).encode() + b"\n", 10)
        output = b""
        while data := stream.receive(90):
            output += data
    finally:
        stream.close()
        if not engine.await_removed(container, 10):
            engine.remove(container)
    results = [line for line in output.decode(errors="replace").splitlines() if line.startswith("RESULT ")]
    assert results, f"no result; the kernel printed:\n{output.decode(errors='replace')}\n{stream.last_words()}"
    seen: dict[str, Any] = json.loads(results[0].removeprefix("RESULT "))
    return seen


def test_the_host_engine_is_found_by_trying(inside: dict[str, Any]) -> None:
    assert inside["capabilities"]["host_netem"] is None
    assert inside["capabilities"]["host_seed"] is True
    assert (inside["attached"]["device"], inside["attached"]["kernel"]) == ("vethb", None)


def test_the_host_engine_puts_what_was_asked(inside: dict[str, Any]) -> None:
    for name, impairment in (("delay", _DELAY), ("loss", _LOSS)):
        assert inside[name]["complaints"] == []
        netem = readback.find_netem(inside[name]["shown"][-1], qdisc.FIRST_MINOR)
        assert readback.differences(impairment, netem) == []


def test_the_host_engine_delays(inside: dict[str, Any]) -> None:
    assert min(inside["delayed"]) >= 0.050
    assert statistics.median(inside["delayed"]) - statistics.median(inside["clean"]) >= 0.045


def test_the_host_engine_loses_the_same_packets_for_the_same_seed(inside: dict[str, Any]) -> None:
    first, second = inside["lost"]
    assert first == second
    # 200 packets at 20 % loss: mean 160 heard, σ = √(200·0.2·0.8) ≈ 5.7; ± 5σ.
    assert 131 <= len(first) <= 189


def test_the_host_engine_rejects(inside: dict[str, Any]) -> None:
    tap, shown = inside["rejecting"]["tap"], inside["reject"]["shown"][-1]
    assert inside["rejecting"]["gate"] == "vethb egress"
    mark = inside["rejecting"]["mark"]
    assert rejecting.differences(shown, [_WAY], tap, mark) == []
    assert inside["knocked"] == ["ECONNREFUSED", "ECONNREFUSED"]
    assert inside["rejected"]["reset"] == inside["rejected"]["error"] == 1


def test_the_host_engine_heals_when_its_stdin_closes(inside: dict[str, Any]) -> None:
    assert [row["kind"] for row in inside["after"]] == ["noqueue"]
    assert inside["queue_length_after"] == 0
    assert [name for name in inside["devices_after"] if name.startswith("tb")] == []
    assert statistics.median(inside["healed"]) < 0.025


def test_the_host_engine_with_the_stack(stack: ComposeLab) -> None:
    """Where this kernel has netem; elsewhere ``--netem host`` is refused with the reason."""
    lab = ComposeLab(stack.composer.files, netem="host")
    able = stack.channel.call("capabilities")
    if able["host_netem"]:
        with pytest.raises(EnvironmentUnfitError, match=r"--netem host: this kernel .* has no usable netem.*carried"):
            lab.up()
        assert left_of(stack.engine, lab.run_id) == []
        return
    with lab:
        prepare(*lab.hosts.values())
        lab.link("client -> server").impair(delay="50ms")
        assert min(Datagrams(lab.hosts["client"], lab.hosts["server"]).round_trips(10)) >= 0.050


def left_of(engine: Engine, run_id: str) -> list[str]:
    """Objects with a run's label, and its threads."""
    threads = [thread.name for thread in threading.enumerate() if run_id in thread.name]
    containers = [str(container.name) for container in engine.containers(testbed_run=run_id)]
    return [*containers, *(str(network.name) for network in engine.networks(testbed_run=run_id)), *threads]
