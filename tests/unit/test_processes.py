"""Signalling a program that the engine started: which processes are meant, and what /proc says of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from testbed.agent import processes
from testbed.agent.protocol import Refused

# It says that it is there: between the kernel's first step of an exec and its last, it has no argv.
WAITING = "print(flush=True); input()"


@contextmanager
def running(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """A child that leads a session of its own and ends when we are done."""
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == b"\n"
        yield child
    finally:
        child.kill()
        child.communicate()


# --- what /proc says -------------------------------------------------------------------------------


def test_a_process_is_seen_with_its_parent_and_its_session() -> None:
    with running(sys.executable, "-c", WAITING) as child:
        assert (child.pid, os.getpid(), child.pid) in processes._processes()


def test_a_command_may_be_called_anything(tmp_path: Path) -> None:
    script = tmp_path / ") R 1 (x"
    script.write_text(f"#!{sys.executable}\n{WAITING}\n")
    script.chmod(0o755)
    with running(str(script)) as child:
        assert (child.pid, os.getpid(), child.pid) in processes._processes()


def test_we_are_not_among_those_we_look_at() -> None:
    assert os.getpid() not in {pid for pid, _, _ in processes._processes()}


# --- who is signalled ------------------------------------------------------------------------------

# Process, parent, session: a container's first process and its child, and three programs that were started.
TABLE: list[tuple[int, int, int]] = [
    (1, 0, 1),
    (7, 1, 1),
    (90, 0, 90),
    (40, 0, 40),
    (41, 40, 40),
    (42, 41, 40),
    (43, 1, 40),  # an orphan of the session
    (44, 40, 44),  # left the session
    (91, 90, 90),
    (60, 0, 60),
]
LEADERS = 4


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(processes, "_processes", lambda: TABLE)
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    return sent


@pytest.mark.parametrize(("rank", "reached"), [(1, [40, 41, 42, 43]), (2, [60]), (3, [90, 91])])
def test_the_leader_of_a_rank_and_its_session_are_signalled_and_nobody_else(
    killed: list[tuple[int, int]], rank: int, reached: list[int]
) -> None:
    assert processes.send(rank=rank, of=LEADERS, name="SIGTERM") == {"signalled": reached}
    assert killed == [(pid, signal.SIGTERM) for pid in reached]


@pytest.mark.parametrize(("rank", "of"), [(1, 3), (1, 5), (4, 4), (-1, 4)])
def test_nobody_is_signalled_where_the_counts_differ(killed: list[tuple[int, int]], rank: int, of: int) -> None:
    assert processes.send(rank=rank, of=of, name="SIGTERM") == {"signalled": None}
    assert killed == []


def test_the_signal_that_is_named_is_sent(killed: list[tuple[int, int]]) -> None:
    processes.send(rank=3, of=LEADERS, name="SIGKILL")
    assert {number for _, number in killed} == {signal.SIGKILL}


def test_an_unknown_signal_is_refused_and_reaches_nobody(killed: list[tuple[int, int]]) -> None:
    with pytest.raises(Refused, match="unknown signal 'SIGFOO'; write it as SIGTERM"):
        processes.send(rank=1, of=LEADERS, name="SIGFOO")
    assert killed == []


def test_who_ended_first_was_not_reached_and_keeps_nobody_else_alive(
    killed: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(pid: int, number: int) -> None:
        if pid == 41:
            raise ProcessLookupError
        killed.append((pid, number))

    monkeypatch.setattr(os, "kill", kill)
    assert processes.send(rank=1, of=LEADERS, name="SIGTERM") == {"signalled": [40, 42, 43]}
    assert [pid for pid, _ in killed] == [40, 42, 43]
