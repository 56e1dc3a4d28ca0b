"""kill -9 of the owner of a local lab, at any moment: within two seconds nothing is left of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.lab.waiting import await_condition
from tests.lab.conftest import FOREIGN, HERE

LABS = ("local",)

# The program in the host leaves its session and its parent, as a daemon does.
_OWNER = """
import sys
from testbed import LocalLab

lab = LocalLab(sys.argv[1], netem="carried")
print(f"begins {lab.run_id}", flush=True)
lab.up()
print(f"up {lab.run_id}", flush=True)
if sys.argv[2] == "impaired":
    lab.impair("client <-> server", delay="10ms")
    lab.host("client").start(["setsid", "--fork", "sleep", "98765"]).wait()
    print(f"impaired {lab.run_id}", flush=True)
sys.stdin.read()
"""
_WITHIN_S = 2.0
_STACK = HERE.parents[1] / "compose.yaml"


def relatives(pid: int) -> set[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended while we looked
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    family, new = set(), [pid]
    while new:
        family.update(new)
        new = [child for parent in new for child in children.get(parent, [])]
    return family


def missing(words: list[bytes], pids: set[int]) -> list[bytes]:
    """The words that are in no process's command line."""
    commands = []
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            commands.append(Path(f"/proc/{pid}/cmdline").read_bytes())
    return [word for word in words if not any(word in command for command in commands)]


def alive(pids: set[int]) -> set[int]:
    def lives(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    return {pid for pid in pids if lives(pid)}


def mounts() -> set[str]:
    """Every mount of testbed outside containers; engines have other users, and other tests run meanwhile."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    foreign = ("docker", "/containers/storage", f"/netns/{FOREIGN}")
    return {line for line in lines if not any(words in line for words in foreign)}


def named_after(run_id: str) -> list[str]:
    """Devices and temporary files that carry a lab's tag in their name."""
    return [
        name
        for folder in ("/sys/class/net", tempfile.gettempdir(), "/dev/shm", "/run")
        for name in os.listdir(folder)
        if run_id[:6] in name
    ]


def named_namespaces() -> set[str]:
    """The network namespaces of `ip netns`."""
    folder = Path("/run/netns")
    return {name for name in os.listdir(folder) if not name.startswith(FOREIGN)} if folder.is_dir() else set()


@pytest.fixture
def owner(request: pytest.FixtureRequest, kind: str) -> Iterator[subprocess.Popen[str]]:
    assert kind == "local"
    argv = [sys.executable, "-c", _OWNER, str(_STACK), request.param]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("owner", ["up", "impaired"], indirect=True)
@pytest.mark.parametrize("victim", ["owner", "keeper"])
def test_whoever_is_killed_nothing_is_left(owner: subprocess.Popen[str], victim: str) -> None:
    before = mounts()
    assert owner.stdout is not None
    wanted = owner.args[-1]  # type: ignore[index]  # a list of ours
    state, run_id = "", ""
    while state != wanted:
        state, _, run_id = owner.stdout.readline().strip().partition(" ")
        assert state, "the owner ended"
    seen = [b"paper_server.py", *([b"linux.uml", b"98765"] if wanted == "impaired" else [])]  # the last is a daemon
    # One that is given another parent while we look is on neither's list.
    everyone = await_condition(
        lambda: relatives(owner.pid) - {owner.pid}, lambda pids: not missing(seen, pids), deadline_s=5
    )

    (keeper,) = (int(pid) for pid in Path(f"/proc/{owner.pid}/task/{owner.pid}/children").read_text().split())
    os.kill(owner.pid if victim == "owner" else keeper, signal.SIGKILL)
    await_condition(lambda: alive(everyone), lambda left: not left, deadline_s=_WITHIN_S)
    assert mounts() - before == set()
    assert named_after(run_id) == []


def test_a_lab_that_is_killed_at_whatever_moment_leaves_nothing(kind: str) -> None:
    """At its start, while it comes up, while a kernel boots and a link is impaired, and afterwards."""
    assert kind == "local"
    argv = [sys.executable, "-c", _OWNER, str(_STACK), "impaired"]
    before, reached = mounts(), set[int]()
    for after_s in (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6):
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
            assert owner.stdout is not None
            word, _, run_id = owner.stdout.readline().strip().partition(" ")
            assert word == "begins"
            time.sleep(after_s)  # the moment is what is tried
            everyone = relatives(owner.pid) - {owner.pid}
            owner.kill()
        reached.add(len(everyone))
        await_condition(lambda pids=everyone: alive(pids), lambda left: not left, deadline_s=_WITHIN_S)  # type: ignore[misc]  # bound at once
        assert named_after(run_id) == []
    assert mounts() - before == set()
    assert len(reached) >= 3, f"the moments were different ones: {reached}"


_TESTS = """
import pathlib, pytest

@pytest.mark.impair("client <-> server", delay="10ms")
@pytest.mark.parametrize("number", [0, 1])
def test_leaves_a_daemon(lab, number):
    assert lab.host("client").run(["setsid", "--fork", "sleep", "98765"]).ok
    pathlib.Path(f"begun{number}").touch()
    pathlib.Path("held").read_text()
"""


def pytest_on(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """A pytest with these tests, each of which waits until ``held`` is written; its temporary files are in a folder."""
    (folder / "test_it.py").write_text(_TESTS)
    os.mkfifo(folder / "held")
    (folder / "temporary").mkdir()
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--lab=local", "--netem=carried",
            f"--basetemp={folder / 'base'}", f"--compose-file={_STACK}",
            "--testbed-vacuous=warn", "--testbed-lateness=warn", *options]  # fmt: skip
    environment = {**os.environ, "TMPDIR": str(folder / "temporary"), "PYTHONDONTWRITEBYTECODE": "1"}
    with (folder / "output").open("wb") as output:
        return subprocess.Popen(argv, cwd=folder, env=environment, stdout=output)


def once_begun(folder: Path, run: subprocess.Popen[bytes], tests: int) -> set[int]:
    """All processes of a pytest, once so many of these tests run and their daemons are there."""
    await_condition(lambda: list(folder.glob("begun*")), lambda files: len(files) == tests, deadline_s=60)
    seen = [b"paper_server.py", b"linux.uml", b"98765"]
    return await_condition(lambda: relatives(run.pid) - {run.pid}, lambda pids: not missing(seen, pids), deadline_s=5)


@pytest.mark.parametrize("workers", [0, 2])
def test_pytest_that_is_killed_during_a_test_leaves_nothing(kind: str, tmp_path: Path, workers: int) -> None:
    """pytest itself, or the controller of pytest-xdist's workers: they go with it, and their labs with them."""
    assert kind == "local"
    before = mounts() | named_namespaces()
    with pytest_on(tmp_path, f"-n{workers}") as run:
        try:
            everyone = once_begun(tmp_path, run, workers or 1)
        finally:
            run.kill()
    await_condition(lambda: alive(everyone), lambda left: not left, deadline_s=_WITHIN_S)
    assert (mounts() | named_namespaces()) - before == set()
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_daemon_that_a_test_started_ends_with_pytest(kind: str, tmp_path: Path) -> None:
    assert kind == "local"
    with pytest_on(tmp_path, "-k0") as run:
        try:
            everyone = once_begun(tmp_path, run, 1)
            (tmp_path / "held").write_text("")
            assert run.wait(60) == 0, (tmp_path / "output").read_text()
        finally:
            run.kill()
    await_condition(lambda: alive(everyone), lambda left: not left, deadline_s=_WITHIN_S)
    assert list((tmp_path / "temporary").iterdir()) == []
