"""How a kernel to carry is fetched: with a fake apt-get that notes its calls and fetches nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.lab.waiting import await_condition

# As apt-get: a child talks to the mirror, and notices nothing while it waits.
_WAITS = "#!/bin/sh\nsleep 4711 &\necho $$ $! >{told}\nwait\n"
_FAILS = "#!/bin/sh\necho no mirror >&2\nexit 100\n"
_GET = """
import signal, sys
from testbed import kernel
from testbed.kernel import archive
from testbed.errors import EnvironmentUnfitError

signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs in the background inherits that it is ignored
archive._KEYRINGS = (sys.executable,)
try:
    kernel.ensure_root(print)
except EnvironmentUnfitError as error:
    sys.exit(str(error))
"""
_WITHIN_S = 2.0


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for programs that are found first."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


def put(tools: Path, name: str, text: str) -> None:
    (tools / name).write_text(text)
    (tools / name).chmod(0o755)


@pytest.fixture
def getting(tools: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that waits for a mirror to answer."""
    put(tools, "apt-get", _WAITS.format(told=tools / "told"))
    with get(tools) as process:
        try:
            yield process
        finally:
            process.kill()


def get(tools: Path) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PATH": f"{tools}:/usr/bin:/bin",
        "XDG_CACHE_HOME": str(tools.parent),
        "TESTBED_DEBIAN_MIRROR": "http://localhost:9/",
    }
    argv = [sys.executable, "-c", _GET]
    return subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def cached(tools: Path) -> set[str]:
    return {path.name.partition("-")[0] for path in (tools.parent / "testbed").iterdir()}


def alive(pids: list[int]) -> list[int]:
    def state(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return "X"

    return [pid for pid in pids if state(pid) not in "ZX"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_whoever_is_ended_while_a_kernel_is_got_ends_all_that_gets_it(
    tools: Path, getting: subprocess.Popen[str], number: signal.Signals
) -> None:
    notes = tools / "told"
    pids = await_condition(
        lambda: [int(word) for word in notes.read_text().split()] if notes.exists() else [], bool, deadline_s=20
    )
    assert alive(pids) == pids
    getting.send_signal(number)
    await_condition(lambda: alive(pids), lambda left: not left, deadline_s=_WITHIN_S)
    if number == signal.SIGKILL:  # it could not clear up
        assert cached(tools) == {"lock", "fetch"}

    put(tools, "apt-get", _FAILS)
    with get(tools) as again:
        assert "failed: no mirror" in again.communicate()[1]
    assert cached(tools) == {"lock"}


@pytest.mark.parametrize("lock", ["free", "another's", "closed"])
def test_who_has_a_kernel_neither_waits_nor_fails_for_what_another_left(tools: Path, lock: str) -> None:
    cache = tools.parent / "testbed"
    there = "import sys; from testbed import kernel; kernel.ensure_root(print)"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tools.parent)}
    name = "from testbed import kernel; print(kernel.root_folder())"
    root = Path(subprocess.check_output([sys.executable, "-c", name], env=environment, text=True).strip())
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/linux.uml").touch()
    (cache / "fetch-left").mkdir()
    # A folder can be opened for writing by nobody, be it root.
    (cache / "lock").mkdir() if lock == "closed" else (cache / "lock").touch()
    with contextlib.ExitStack() as held:
        if lock == "another's":
            fcntl.flock(held.enter_context((cache / "lock").open()), fcntl.LOCK_EX)
        subprocess.run([sys.executable, "-c", there], env=environment, check=True, timeout=30)
    assert (cache / "fetch-left").exists() == (lock != "free")
