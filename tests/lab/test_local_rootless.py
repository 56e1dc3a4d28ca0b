"""An ordinary user gets the whole local lab, impairments included."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import kernel
from tests.lab.conftest import HERE

LABS = ("local",)
ROOT = HERE.parents[1]
_UID = 12345  # nobody's


class Ordinary:
    """An ordinary user's account: a home, and a Python that sees this checkout and its packages."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder = folder
        self._python = python

    def run(self, *arguments: str, timeout_s: float = 110.0) -> subprocess.CompletedProcess[str]:
        """Python with these arguments, as the user."""
        cache = self.folder / "cache" / "testbed"
        environment = {
            "HOME": str(self.folder), "XDG_CACHE_HOME": str(cache.parent), "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")]), "PYTHONDONTWRITEBYTECODE": "1",
            "DOCKER_HOST": "unix:///nowhere/docker.sock",
        }  # fmt: skip
        program = str(HERE / "programs" / "as_ordinary.py")
        shown = [str(kernel.cache()), str(cache)] if kernel.present() else []
        argv = [sys.executable, program, str(_UID), str(self.folder), *shown, "--", self._python, *arguments]
        return subprocess.run(
            argv, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
        )


@pytest.fixture
def ordinary(kind: str) -> Iterator[Ordinary]:
    assert kind == "local"
    if os.geteuid() != 0:
        pytest.skip("this run is an ordinary user's already")
    if kernel.present():
        kernel.ensure_root(lambda _text: None)  # up to date, as the user may not write there
    with tempfile.TemporaryDirectory(prefix="ordinary-", dir="/var/tmp") as name:
        folder = Path(name)
        minor = f"python3.{sys.version_info.minor}"
        candidates = [sys.executable, shutil.which(minor, path="/usr/local/bin:/usr/bin"), "/usr/bin/python3"]
        for python in filter(None, candidates):
            user = Ordinary(folder, python)
            (folder / "tun").unlink(missing_ok=True)
            found = user.run(
                "-c", f"import sys, testbed, pytest; assert sys.version_info[1] == {sys.version_info.minor}"
            )
            (folder / "tun").unlink(missing_ok=True)
            if found.returncode == 0:
                yield user
                return
        pytest.skip(f"no Python here that an ordinary user may run on this checkout: {found.stderr[-300:]}")


def test_the_impairments_are_real_without_root(ordinary: Ordinary) -> None:
    tests = [str(HERE / name) for name in ("test_impairments_are_real.py", "test_programs.py")]
    options = ["-q", "-p", "no:cacheprovider", "--lab", "auto", "--netem", "carried"]
    results = f"--testbed-results={ordinary.folder}/results.json"
    done = ordinary.run("-m", "pytest", *options, results, *tests)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "testbed: local lab (no Docker engine answers" in done.stdout
    assert " passed" in done.stdout.splitlines()[-1]


def test_a_host_is_root_in_its_own_namespaces_and_nobody_else(ordinary: Ordinary) -> None:
    script = (
        "from testbed import LocalLab\n"
        f"with LocalLab({str(ROOT / 'compose.yaml')!r}) as lab:\n"
        "    client = lab.host('client')\n"
        "    print(client.run(['id', '-u']).stdout.strip(), client.run(['touch', '/etc/hosts']).exit_code)\n"
        "    print(client.run(['id'], user='nobody').stderr.strip())\n"
    )
    done = ordinary.run("-c", script)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "0 1"
    assert "without root" in second
