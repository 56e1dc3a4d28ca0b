"""The engines of an ordinary user, Docker's and Podman's, started beside the machine's; by hand."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import ComposeLab
from tests.lab.conftest import HERE, run
from tests.lab.engines import engine_beside, findings, passes
from tests.lab.ownengines import ROOTLESS_DOCKER, ROOTLESS_PODMAN

LABS = ("compose",)

pytestmark = [pytest.mark.by_hand, pytest.mark.timeout(900)]

_NEEDS = ("newuidmap", "slirp4netns", "setpriv")
_STACK = """
services:
  server: {{image: {server}, command: [python3, paper_server.py]}}
  client: {{image: {client}, command: [sleep, infinity], init: true}}
"""
_TEST = """
import pytest

CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 8888), 20).close()"

@pytest.mark.impair("client -> server", delay="40ms", prove=True)
def test_connects(lab):
    assert lab.host("client").run(["python3", "-c", CONNECT, lab.host("server").addresses()[0]]).ok
"""
ENGINES = {
    "Docker": ("compose", ROOTLESS_DOCKER, ("dockerd", "rootlesskit")),
    "Podman": ("within", ROOTLESS_PODMAN, ("podman", "conmon", "catatonit")),
}


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, stack: ComposeLab) -> Iterator[tuple[str, dict[str, str]]]:
    """A name, and the environment for it."""
    _, start, programs = ENGINES[request.param]
    with engine_beside(stack, start, *_NEEDS, *programs) as environment:
        yield request.param, environment


def test_the_doctor_finds_nothing_missing_and_names_it(engine: tuple[str, dict[str, str]]) -> None:
    name, environment = engine
    found_there = findings(environment)
    assert f"found='{name} " in found_there["Docker engine"]
    assert "state='ok'" in found_there["carried kernel"]


def test_links_are_impaired_cut_observed_and_proven(engine: tuple[str, dict[str, str]]) -> None:
    name, environment = engine
    flows = "test_3 or test_5 or test_9 or test_10"
    passes(environment, f"{HERE}/test_flows_of_readme.py", "-k", flows, lab=ENGINES[name][0])


def test_its_lab_is_chosen_without_being_told(
    engine: tuple[str, dict[str, str]], stack: ComposeLab, tmp_path: Path
) -> None:
    name, environment = engine
    images = {host: str(one.container.attrs["Config"]["Image"]) for host, one in stack.hosts.items()}
    (tmp_path / "compose.yaml").write_text(_STACK.format(**images))
    (tmp_path / "test_connects.py").write_text(_TEST)
    output = run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider"], cwd=tmp_path, env=environment)
    assert f"lab {ENGINES[name][0]} ({name}" in output
    assert ", rootless)" in output
    assert "1 passed" in output
