"""The host engine from end to end, by hand: an engine, a Compose stack and testbed inside a carried kernel.

This kernel may have no netem; a carried one has. So a container that may do nothing runs User-Mode Linux, which boots
with that container as its machine, starts dockerd there, and drives the paper's stack with ``netem="host"``. Takes
minutes, and room: 3 GiB of memory, a gigabyte each for the image and the archive; nothing of it stays.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest

from testbed import ComposeLab
from testbed.backends.docker.agents import ROLES
from testbed.backends.docker.engine import OWNER_LABEL, ROLE_LABEL, RUN_LABEL, Engine, tar_archive
from testbed.backends.docker.images import ensure_netem
from testbed.backends.docker.runs import owner
from testbed.backends.docker.streams import Demultiplexed
from tests.lab.conftest import HERE

LABS = ("compose",)

pytestmark = [pytest.mark.by_hand, pytest.mark.timeout(1800)]

_DEADLINE_S = 900.0
_CHECKOUT = HERE.parents[1]
# The agent's image has the kernel, its modules, tc and Python; the rest is Debian's. The modules' nf_tables cannot do
# IPv4, the old iptables can.
_MACHINE = """
FROM {netem}
RUN apt-get update \\
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \\
      docker.io docker-compose iptables procps \\
      python3-click python3-docker python3-pytest python3-rich python3-tenacity python3-yaml \\
 && rm -rf /var/lib/apt/lists/* \\
 && update-alternatives --set iptables /usr/sbin/iptables-legacy
"""
_KERNEL = [
    "mem=3G", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw", "quiet", "uml_dir=/dev/shm/",
    "con=null", "con0=null,fd:1", "init=/usr/bin/python3", "--",
    "/checkout/tests/lab/programs/compose_in_carried.py", "/checkout", "/given/images.tar",
]  # fmt: skip


@contextmanager
def _machine(engine: Engine, netem: str, run_id: str) -> Iterator[str]:
    """The image of a machine that can have an engine; gone afterwards."""
    tag = f"testbed/in-carried:{run_id}"
    context = tar_archive({"Dockerfile": _MACHINE.format(netem=netem).encode()})
    try:
        for _step in engine.build(context, tag=tag, dockerfile="Dockerfile", labels={RUN_LABEL: run_id}):
            pass
        yield tag
    finally:
        with closing(docker.from_env()) as client, suppress(docker.errors.ImageNotFound):  # it could not be built
            client.images.remove(tag, force=True)


def _save(images: list[str], path: Path) -> None:
    """As `docker save`: images with layers in common, in one archive."""
    with closing(docker.from_env(timeout=600).api) as api, path.open("wb") as archive:
        # docker-py saves one image at a time, with all its layers; the engine's interface knows better.
        answer = api.get(f"{api.base_url}/images/get", params={"names": images}, stream=True, timeout=600)
        answer.raise_for_status()
        for chunk in answer.iter_content(1 << 20):
            archive.write(chunk)


def _output(stream: Demultiplexed) -> str:
    """Everything that the kernel prints until it ends; shown as it comes by `pytest -s`."""
    output, deadline = b"", time.monotonic() + _DEADLINE_S
    while True:
        try:
            data = stream.receive(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            lines = output.decode(errors="replace").splitlines()[-20:]
            pytest.fail("\n".join([f"no end after {_DEADLINE_S:g} s; last seen:", *lines]), pytrace=False)
        if not data:
            return output.decode(errors="replace")
        output += data
        sys.stdout.write(data.decode(errors="replace"))
        sys.stdout.flush()


@pytest.fixture(scope="module")
def inside(stack: ComposeLab) -> Iterator[dict[str, Any]]:
    """What testbed reported on a machine whose own kernel has netem."""
    engine = stack.engine
    netem = ensure_netem(engine, lambda _text: None)
    images = [netem, *(str(host.container.attrs["Config"]["Image"]) for host in stack.hosts.values())]
    with ExitStack() as undo:
        folder = undo.enter_context(tempfile.TemporaryDirectory(prefix="testbed-in-carried-"))
        _save(images, Path(folder, "images.tar"))
        machine = undo.enter_context(_machine(engine, netem, stack.run_id))
        least = {key: ROLES["inside"].options()[key] for key in ("cap_drop", "security_opt")}
        options: dict[str, Any] = {
            **least,
            "labels": {RUN_LABEL: stack.run_id, OWNER_LABEL: owner(), ROLE_LABEL: "inside"},
            "entrypoint": ["linux.uml"],
            "network_mode": "none",
            "tmpfs": {"/dev/shm": "rw,exec,size=3500m"},
            "volumes": {
                str(_CHECKOUT): {"bind": "/checkout", "mode": "ro"},
                folder: {"bind": "/given", "mode": "ro"},
            },
        }
        container, stream = engine.attached(machine, _KERNEL, **options)
        try:
            output = _output(stream)
        finally:
            stream.close()
            if not engine.await_removed(container, 10):
                engine.remove(container)
        results = [line for line in output.splitlines() if line.startswith("RESULT ")]
        if not results:
            pytest.fail(f"no result; the kernel printed:\n{output}\n{stream.last_words()}", pytrace=False)
        seen: dict[str, Any] = json.loads(results[0].removeprefix("RESULT "))
        yield seen


def test_the_host_engine_carries_a_message(inside: dict[str, Any]) -> None:
    assert inside["netem_engine"] == "host"
    assert inside["message"]["exit_code"] == 0, inside["message"]["stderr"]
    assert "Message Test message" in inside["message"]["server_log"].splitlines()


def test_the_host_engine_delays_each_way(inside: dict[str, Any]) -> None:
    clean, delayed = inside["clean"]["round_trips_s"], inside["delay"]["round_trips_s"]
    assert statistics.median(clean) < 0.025
    assert min(delayed) >= 0.100
    assert statistics.median(delayed) < 0.150


def test_the_kernels_own_tc_shows_what_was_asked(inside: dict[str, Any]) -> None:
    assert inside["clean"]["netems"] == []
    assert [netem["options"]["delay"]["delay"] for netem in inside["delay"]["netems"]] == [0.05, 0.05]
    assert {netem["dev"] for netem in inside["delay"]["netems"]} == set(inside["veths"]["up"])
    for attempt in inside["loss"]:
        (netem,) = attempt["netems"]
        assert netem["options"]["loss-random"]["loss"] == pytest.approx(0.2, abs=1e-6)
        assert netem["options"]["seed"] == 7


def test_the_host_engine_loses_the_same_datagrams_for_the_same_seed(inside: dict[str, Any]) -> None:
    first, second = inside["loss"]
    assert first["arrived"] == second["arrived"]
    # 200 datagrams at 20 % loss: mean 160 arrive, σ = √(200·0.2·0.8) ≈ 5.7; ± 5σ.
    assert 131 <= len(first["arrived"]) <= 189
    for attempt in (first, second):
        # Each that is missing was dropped by netem; the word "end" may have been, too, and was sent again.
        assert 0 <= attempt["dropped"] - (200 - len(attempt["arrived"])) <= 30


def test_the_host_engine_heals_and_leaves_nothing(inside: dict[str, Any]) -> None:
    assert inside["healed"]["netems"] == []
    assert statistics.median(inside["healed"]["round_trips_s"]) < 0.025
    assert len(inside["veths"]["up"]) == 2
    assert inside["veths"]["down"] == []
    assert inside["left"] == []
