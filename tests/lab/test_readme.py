"""Every example of README works from an installed wheel, in an empty folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from testbed.labs.choice import decide
from tests.lab import readme
from tests.lab.conftest import HERE, ROOT

EXAMPLES = readme.read((ROOT / "README.md").read_text(encoding="utf-8"))
_APP = HERE / "programs" / "readme"
_HOST = {
    "build": {"context": str(ROOT / "images"), "dockerfile": "client/Dockerfile"},
    "command": ["sleep", "infinity"],
    "working_dir": "/srv",
    "volumes": ["./app:/srv:ro"],
    "networks": ["lan"],
    "init": True,
}
_SERVER = {
    **_HOST,
    "command": ["python3", "server.py"],
    "healthcheck": {
        "test": ["CMD", "python3", "-c", "import socket; socket.create_connection(('localhost', 8888), 5)"],
        "interval": "1s", "timeout": "10s", "retries": 30,
    },
}  # fmt: skip


pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # a dozen commands, each a start of Python


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A venv's folder of commands, with the wheel of this checkout and with what the wheel needs."""
    folder = tmp_path_factory.mktemp("installed")
    _run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, env=os.environ)
    (wheel,) = folder.glob("*.whl")
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")])
    python = folder / "venv" / "bin" / "python"
    install = ["install", "--no-deps", "--no-index", "--no-cache-dir", str(wheel)]
    _run([sys.executable, "-m", "pip", "--python", str(python), *install], env=os.environ)
    # What the lock file pins is here already; a .pth file does not lead to this checkout, which is another one's.
    own = _run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
    Path(own, "dependencies.pth").write_text(str(Path(pytest.__file__).parents[1]))
    where = _run([str(python), "-c", "import testbed; print(testbed.__file__)"], cwd=folder)
    assert Path(where).is_relative_to(folder), f"the wheel is what is tested, not {where}"
    return python.parent


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's folder: a Compose file, and what its services run."""
    services: Mapping[str, object] = {"server": _SERVER, **dict.fromkeys(("client", "a", "b", "c"), _HOST)}
    (tmp_path / "compose.yaml").write_text(json.dumps({"services": services, "networks": {"lan": {}}}))
    (tmp_path / "app").mkdir(mode=0o755)
    for path in _APP.glob("*.py"):
        (tmp_path / "app" / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_tests_run(installed: Path, project: Path, kind: str) -> None:
    (project / "tests").mkdir()
    for number, text in enumerate(EXAMPLES.tests):
        (project / "tests" / f"test_example_{number}.py").write_text(text)
    # This machine may be busy; and whether 30 % loss lets a program end in time is not left to chance.
    options = ["-rA", "--lab", kind, "-p", "no:cacheprovider", "--testbed-lateness=warn", "--testbed-seed=1"]
    _run([str(installed / "python"), "-m", "pytest", *options], cwd=project)


def test_commands_run_one_after_the_other(installed: Path, project: Path) -> None:
    if (chosen := decide("auto"))[0] != "compose":
        pytest.skip(f"stacks that stay up are an engine's: {chosen[1]}")
    profiles = project / "netem"
    profiles.mkdir()
    for number, text in enumerate(EXAMPLES.profiles):
        # A list of steps alone is a profile's sides, without what a profile says of itself.
        (profiles / f"example{number}.yaml").write_text(text if "description:" in text else f"description: x\n{text}")
        _run([str(installed / "testbed"), "profiles", f"example{number}"], cwd=project)
    try:
        for argv in EXAMPLES.commands:
            _run([str(installed / "testbed"), *argv], cwd=project)
    finally:
        _run([str(installed / "testbed"), "down"], cwd=project, may=(0, 1, 2))


@pytest.mark.skipif(shutil.which("ping") is None, reason="the example runs ping, which this machine lacks")
@pytest.mark.parametrize("script", EXAMPLES.scripts)
def test_scripts_run(installed: Path, project: Path, script: str) -> None:
    _run([str(installed / "python"), "-c", script], cwd=project)


def _run(
    argv: list[str], *, cwd: Path | None = None, may: tuple[int, ...] = (0,), env: Mapping[str, str] | None = None
) -> str:
    users = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHONPATH"))}
    done = subprocess.run(
        argv, cwd=cwd, env=users if env is None else env, capture_output=True, text=True, check=False, timeout=110,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode in may, f"{argv}: status {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    return done.stdout
