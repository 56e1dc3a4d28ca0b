"""Every example of README and of docs/ works, from an installed wheel, in an empty folder."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from testbed.backends.choice import decide
from tests.lab import documents
from tests.lab.conftest import HERE, ROOT, run, users_environment
from tests.lab.documents import Command, File, NotRun, Page, Script, Test

_SITE = sorted(path for path in (ROOT / "docs").rglob("*.md") if "generated" not in path.parts)
PAGES = [documents.read(path, ROOT) for path in (ROOT / "README.md", *_SITE)]


def _has_a_stack(page: Page) -> bool:
    """Whether a page has a Compose file of its own."""
    return any(isinstance(step, File) and step.path == "compose.yaml" for step in page.steps)


WITH_TESTS = [page for page in PAGES if any(isinstance(step, Test) for step in page.steps)]
assert not any(map(_has_a_stack, WITH_TESTS)), "they share one"
WITH_COMMANDS = [page for page in PAGES if any(isinstance(step, Command | Script) for step in page.steps)]

REASONS = {
    "CI runs make test; tests/lab/test_demo.py runs the demo": r"make demo\n\$ make test",
    "building a kernel takes minutes; tests/lab/test_virtual_time.py runs in virtual time": r"^\$ testbed kernel build",
    "it takes a minute; tests/lab/test_virtual_time.py runs ten seeds": r"^\$ pytest --virtual-time --testbed-seeds",
    "it takes a minute; tests/lab/test_virtual_time.py compares versions": r"^\$ testbed ab --virtual-time",
    "it takes a minute; tests/lab/test_virtual_replay.py runs such replays": r"^\$ testbed replay",
    "it takes a minute; tests/lab/test_virtual_replay.py runs such a test": r"^\$ pytest --virtual-time",
    "it asks for another machine, which tests do not have": "DOCKER_HOST=ssh://",
    "tests/lab/test_podman.py starts that service in a place of its own": "podman system service",
    "it needs a session that runs meanwhile; tests/lab/test_watch.py watches one": "testbed watch",
    "a part of a file; tests/lab/test_resolver.py runs such a stack": "ipv4_address: 10.53.0.53",
    "it is for Windows": "usermod",
    "it is for macOS": "limactl",
    "it wants a terminal; tests/lab/test_shell.py gives it one": "testbed shell",
    "it takes minutes; tests/paper runs every claim": "testbed paper",
    "it takes minutes; tests/lab/test_envelope.py runs one": "testbed envelope --vary",
    "it installs packages; these tests run from the wheel that it would install": "pip install",
    "it compares two revisions of your repository": "testbed ab --base main",
    "it needs two images of yours": "testbed ab --base-image",
    "it runs your tests for a minute": "testbed doctor --noise",
    "tests/lab/test_stacks.py runs such tests": r"pytest\.mark\.stack",
    "the files are of two runs of yours": "testbed compare",
    "its shards are of several machines; tests/unit/test_shards.py runs and merges four": "--testbed-shard",
    "the file is of a run of yours": "benchmarks/matrix.py",
    "its engines are of several machines; tests/unit/test_engines.py has fakes": "--testbed-engines",
    "its engines are of several machines; tests/lab/test_swarm.py makes a Swarm of three": "--lab swarm",
    "its engines are of several machines; tests/lab/test_swarm.py runs such tests": r"lab\.machine",
    "it repeats a failure, which these examples have none of": "--testbed-seed",
}
"""Why a block may be left out, and what it has in it then."""

_APP = HERE / "programs" / "documents"
_HOST = {
    "build": {"context": str(ROOT / "images"), "dockerfile": "client/Dockerfile"},
    "x-testbed": {"local": {}},
    "command": ["sleep", "infinity"],
    "working_dir": "/srv",
    "volumes": ["./app:/srv:ro"],
    "networks": ["lan"],
    "init": True,
}
_SERVER = {
    **_HOST,
    "command": ["python3", "server.py"],
    "ports": ["127.0.0.1::8888"],
    "healthcheck": {
        "test": ["CMD", "python3", "-c", "import socket; socket.create_connection(('localhost', 8888), 5)"],
        "interval": "1s",
        "timeout": "10s",
        "retries": 30,
    },
}
_NAMES = ("client", "a", "b", "c")
# This machine may be busy; and whether a program ends in time at 30 % loss is not left to chance.
_PYTEST_OPTIONS = "-p no:cacheprovider --testbed-lateness=warn --testbed-seed=1"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]  # some sixty commands, each a start of Python, on a machine that may be busy


def project(page: Page, folder: Path) -> Iterator[Command | Script]:
    """Make a reader's project; yield each command or script once the files above it are written.

    Where the page has no Compose file of its own, that is a stack of a server, a client and three hosts more.
    """
    if not _has_a_stack(page):
        services: Mapping[str, object] = {"server": _SERVER, **dict.fromkeys(_NAMES, _HOST)}
        (folder / "compose.yaml").write_text(json.dumps({"services": services, "networks": {"lan": {}}}))
        (folder / "app").mkdir(mode=0o755, exist_ok=True)
        for path in _APP.glob("*.py"):
            (folder / "app" / path.name).write_bytes(path.read_bytes())
    for step in page.steps:
        if isinstance(step, File):
            path = folder / step.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.text)
        elif isinstance(step, Command | Script):
            yield step


def test_tests_run(installed: Path, tmp_path: Path, kind: str) -> None:
    """The tests of all pages, on one stack."""
    for page in WITH_TESTS:
        for _ in project(page, tmp_path):
            pass  # its files alone
        for number, text in enumerate(step.text for step in page.steps if isinstance(step, Test)):
            path = tmp_path / "examples" / f"test_{Path(page.name).stem}_{number}.py".replace("-", "_")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    _shell(f"pytest -rA --lab {kind} --durations=5 examples", cwd=tmp_path, commands=installed)


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=str)
def test_commands_run_one_after_the_other(installed: Path, tmp_path: Path, page: Page) -> None:
    if (chosen := decide("auto"))[0] != "compose":
        pytest.skip(f"stacks that stay up are an engine's: {chosen[1]}")
    try:
        for step in project(page, tmp_path):
            if isinstance(step, Script):
                if "ping" in step.text and shutil.which("ping") is None:
                    pytest.skip("the example runs ping, which this machine lacks")
                run([str(installed / "python"), "-c", step.text], cwd=tmp_path)
            else:
                printed = _shell(step.line, cwd=tmp_path, commands=installed, may=(step.status,))
                missing = step.missing(printed)
                assert missing is None, f"`{step.line}` does not print {missing!r}; it prints:\n{printed}"
    finally:
        _shell("testbed down", cwd=tmp_path, commands=installed, may=(0, 1, 2))


def test_what_is_not_run_says_why() -> None:
    not_run = [step for page in PAGES for step in page.steps if isinstance(step, NotRun)]
    assert {step.reason for step in not_run} == set(REASONS), "a reason that no block has, or that nobody knows"
    assert not [step for step in not_run if not re.search(REASONS[step.reason], step.text)], (
        "not what the reason is for"
    )


def test_there_are_examples_of_each_kind() -> None:
    kinds = {type(step) for page in PAGES for step in page.steps}
    assert kinds == {File, Test, Script, Command, NotRun}, "or whoever reads the pages passes over some"


def _shell(line: str, *, cwd: Path, commands: Path, may: tuple[int, ...] = (0,)) -> str:
    """The output of a line that the reader types."""
    env = {
        **users_environment(),
        "PYTEST_ADDOPTS": _PYTEST_OPTIONS,
        "COLUMNS": "120",
        "PATH": f"{commands}:{os.environ['PATH']}",
    }
    return run(["bash", "-c", f"exec 2>&1; {line}"], cwd=cwd, may=may, env=env)
