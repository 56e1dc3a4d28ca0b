"""Podman's service in place of Docker's engine, as root and without systemd, started beside the machine's; by hand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import ComposeLab
from tests.lab.conftest import HERE
from tests.lab.engines import engine_beside, findings, passes
from tests.lab.ownengines import PODMAN

LABS = ("compose",)

pytestmark = [pytest.mark.by_hand, pytest.mark.timeout(900)]

_CHECKED = """
services:
  db:
    image: {image}
    entrypoint: ["sh", "-c", "sleep 1; touch /tmp/ready; exec sleep 600"]
    healthcheck: {{test: ["CMD", "test", "-e", "{file}"], interval: 500ms, retries: 4}}
  app:
    image: {image}
    entrypoint: ["sleep", "600"]
    depends_on: {{db: {{condition: service_healthy}}}}
"""


_COMES_BACK = """
import pytest

CONNECT = '''
import socket, sys, time
began = time.monotonic()
try:
    socket.create_connection((sys.argv[1], 9), 20)
except ConnectionRefusedError:
    print(time.monotonic() - began)
'''

@pytest.mark.parametrize("number", range(3))
def test_app(lab, number):
    db = lab.host("db")
    lab.impair("app -> db", delay="150ms")
    db.kill()
    db.start()
    took = lab.host("app").run(["python3", "-c", CONNECT, db.addresses("default")[0]])
    assert float(took.stdout) > 0.15, took
"""


@pytest.fixture(scope="module")
def podman(stack: ComposeLab) -> Iterator[dict[str, str]]:
    with engine_beside(stack, PODMAN, "podman", "conmon", "catatonit") as environment:
        yield environment


def run_there(environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the tests of a folder on that engine."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--lab", "compose", "-p", "no:cacheprovider", "--up-deadline", "200s"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_doctor_finds_nothing_missing_and_names_it(podman: dict[str, str]) -> None:
    found_there = findings(podman)
    assert "found='Podman " in found_there["Docker engine"]
    assert "state='ok'" in found_there["carried kernel"]


def test_links_are_impaired_cut_observed_and_proven(podman: dict[str, str]) -> None:
    flows = "test_3 or test_5 or test_9 or test_10"
    passes(podman, f"{HERE}/test_flows_of_readme.py", f"{HERE}/test_impairments_are_real.py", "-k", f"{flows} or real")
    passes(podman, f"{HERE}/test_flows_of_readme.py", "-k", "test_7")  # after it, names are not resolved for a while


def test_the_demonstration_measures_by_our_clock_what_podman_stamps_by_the_second(podman: dict[str, str]) -> None:
    passes(podman, f"{HERE}/test_flows_of_readme.py", "-k", "test_12")


def test_the_name_of_a_device_that_has_gone_is_that_of_the_next(
    podman: dict[str, str], stack: ComposeLab, tmp_path: Path
) -> None:
    """By addresses: Podman's resolver may not know a host that came back."""
    image = str(stack.hosts["client"].container.attrs["Config"]["Image"])
    (tmp_path / "compose.yaml").write_text(_CHECKED.format(image=image, file="/tmp/ready"))
    (tmp_path / "test_app.py").write_text(_COMES_BACK)
    done = run_there(podman, tmp_path)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


@pytest.mark.parametrize(("file", "status", "words"), [
    ("/tmp/ready", 0, "1 passed"),
    ("/tmp/never", 2, "service `db` is running and unhealthy"),
])  # fmt: skip
def test_health_checks_are_run_without_systemd(
    podman: dict[str, str], stack: ComposeLab, tmp_path: Path, file: str, status: int, words: str
) -> None:
    image = str(stack.hosts["client"].container.attrs["Config"]["Image"])
    (tmp_path / "compose.yaml").write_text(_CHECKED.format(image=image, file=file))
    (tmp_path / "test_app.py").write_text("def test_app(lab):\n    assert lab.host('app').run(['true']).ok\n")
    done = run_there(podman, tmp_path)
    assert done.returncode == status, done.stdout
    assert words in done.stdout
