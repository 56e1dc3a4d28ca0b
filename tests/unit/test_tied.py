"""Compose's processes end with the process that started them, whichever thread that was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.compose import command, tied
from testbed.lab.waiting import await_condition

# As `docker compose` does: what works is a child, here with a session of its own.
_COMPOSE = """#!/bin/sh
setsid sleep 6543 &
echo $$ $! > {folder}/begun.part
mv {folder}/begun.part {folder}/begun
wait
"""
_OWNER = """
import sys, threading
from testbed.compose import command
command.find = lambda: (sys.argv[1],)
threading.Thread(target=lambda: command.Composer((), project="it").down(timeout_s=60)).start()
"""


@pytest.fixture
def compose(tmp_path: Path) -> Path:
    script = tmp_path / "compose"
    script.write_text(_COMPOSE.format(folder=tmp_path))
    script.chmod(0o755)
    return script


def _begun(folder: Path) -> list[int]:
    await_condition((folder / "begun").exists, bool, deadline_s=20)
    return [int(pid) for pid in (folder / "begun").read_text().split()]


def _alive(pids: list[int]) -> list[int]:
    def lives(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    return [pid for pid in pids if lives(pid)]


def test_composes_processes_end_with_an_owner_that_is_killed(compose: Path, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _OWNER, str(compose)]) as owner:
        pids = _begun(tmp_path)
        assert _alive(pids) == pids
        owner.kill()
    await_condition(lambda: _alive(pids), lambda left: not left, deadline_s=5)


def test_composes_processes_end_when_their_time_is_over(
    compose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "find", lambda: (str(compose),))
    failed = command.Composer((), project="it").up({}, timeout_s=3)
    assert failed is not None
    assert "no end after 3 s" in failed
    await_condition(lambda: _alive(_begun(tmp_path)), lambda left: not left, deadline_s=5)


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 17", 17), ("kill -TERM $$", 128 + signal.SIGTERM), ("kill -PIPE $$", 128 + signal.SIGPIPE)],
)
def test_the_exit_status_is_the_commands(script: str, status: int) -> None:
    assert _tied("sh", "-c", script).returncode == status


def test_what_cannot_be_started_is_told() -> None:
    done = _tied("/no/such/compose")
    assert (done.returncode, done.stderr) == (127, "/no/such/compose: No such file or directory\n")


def _tied(*argv: str) -> subprocess.CompletedProcess[str]:
    owner = os.pidfd_open(os.getpid())
    try:
        return subprocess.run(
            [sys.executable, "-I", "-S", tied.__file__, str(owner), *argv],
            pass_fds=(owner,),
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    finally:
        os.close(owner)
