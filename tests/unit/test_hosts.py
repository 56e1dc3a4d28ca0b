"""What the local lab's agent does to files and to itself when something is wrong; without namespaces."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn, cast

import pytest

from testbed.agent import processes, programs, rootfs, users
from testbed.agent.hosts import Hosts, NamespaceHost
from testbed.agent.protocol import Refused
from testbed.agent.tickets import Tickets


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host's root, with a file for a device of the machine and links that lead to it."""
    folder = tmp_path / "root"
    for name in ("dev", "proc", "app"):
        (folder / name).mkdir(parents=True)
    (folder / "dev/null").write_text("device")
    (folder / "dev/null").chmod(0o666)
    (folder / "app/n").symlink_to("/dev/null")
    (folder / "app/d").symlink_to("/dev")
    return folder


def test_no_link_leads_an_image_to_the_machines_devices(root: Path) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: rootfs.place_for(root, "/app/d/null", a_file=True),
        lambda: rootfs.place_for(root, "/app/d/new"),
        lambda: rootfs.place_for(root, "/app/d"),
    ]
    for attempt in attempts:
        with pytest.raises(Refused, match=r"/app/d.* leads to /dev"):
            attempt()
    assert os.listdir(root / "dev") == ["null"]
    assert (root / "dev/null").read_text() == "device"
    assert rootfs.place_for(root, "/dev/shm") == root / "dev/shm", "this is what was written"


def test_a_number_has_the_groups_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[int]] = []
    monkeypatch.setattr(users, "setgroups", given.append)
    monkeypatch.setattr(users, "setgid", lambda _: None)
    monkeypatch.setattr(users, "setuid", lambda _: None)
    for name, line in (("_PASSWD", "ann:x:4711:4711::/:/bin/sh\n"), ("_GROUP", "plugdev:x:46:ann\n")):
        (tmp_path / name).write_text(line)
        monkeypatch.setattr(users, name, str(tmp_path / name))
    for user in ("4711", "4712", "4711:5"):
        users.become(user)
    assert given == [[46], [], []]


def test_a_limit_beyond_all_numbers_is_refused() -> None:
    with pytest.raises(Refused, match="ulimit nofile 10000000000000000000"):
        programs.set_limit("RLIMIT_NOFILE", 10**19, 10**19)


def test_a_program_that_cannot_be_forked_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> NoReturn:
        raise OSError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    hosts = cast("Hosts", SimpleNamespace(ready=lambda _name: None, fork_into=fail))
    tickets = cast("Tickets", SimpleNamespace(take=lambda _ticket: []))
    agent = programs.Programs(hosts, tickets, may_change_user=True)
    program = {"host": "a", "argv": ["true"], "env": {}, "workdir": "/", "user": "", "ticket": "t", "tty": False}
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="no more processes"):
        agent.start(programs=[program])
    assert os.listdir("/proc/self/fd") == before


def test_hosts_get_their_files_at_once_but_for_those_whose_order_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = object.__new__(Hosts)
    uses = {"a": ["own"], "b": ["shared"], "c": ["shared"], "d": [], "e": [], "f": []}
    known = {
        name: NamespaceHost(
            name=name,
            net=-1,
            settings={"volumes": [(volume, "/v", False) for volume in volumes], "ipc_of": "a" if name == "d" else ""},
            init=7 if name == "e" else 0,
        )
        for name, volumes in uses.items()
    }
    steps: list[str] = []

    def begin(host: NamespaceHost) -> tuple[int, int]:
        steps.append(f"begin {host.name}")
        return 0, 0

    def settled(host: NamespaceHost, _pid: int, _pipe: int) -> str:
        steps.append(f"end {host.name}")
        return f"{host.name} failed"

    monkeypatch.setattr(hosts, "_hosts", known, raising=False)
    monkeypatch.setattr(hosts, "_begin", begin)
    monkeypatch.setattr(hosts, "_settled", settled)
    with pytest.raises(Refused, match=r"^a failed\nf failed$"):
        hosts.furnish(hosts=list(uses))
    assert steps == ["begin a", "begin f", "end a", "end f"]


def test_a_program_that_was_killed_has_a_shells_exit_status() -> None:
    other = os.fork()
    if other == 0:
        os._exit(3)
    os.waitid(os.P_PID, other, os.WEXITED | os.WNOWAIT)
    pid = os.fork()
    if pid == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    assert processes.reap_until(pid) == 128 + signal.SIGKILL
    with pytest.raises(ChildProcessError):
        os.waitpid(other, os.WNOHANG)
