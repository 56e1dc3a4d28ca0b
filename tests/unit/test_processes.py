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


def test_an_argv_is_seen_word_by_word_empty_ones_included() -> None:
    argv = [sys.executable, "-c", WAITING, "", "two words", "größe", ""]
    with running(*argv) as child:
        assert processes._argv(child.pid) == argv


def test_a_process_that_ended_has_no_argv() -> None:
    with running(sys.executable, "-c", WAITING) as child:
        child.kill()
        child.wait()
        assert processes._argv(child.pid) == []


# --- who is signalled ------------------------------------------------------------------------------

ARGV = ["python3", "server.py"]

# Process, parent, session, argv: a container whose main program has the same argv as the two that were started.
TABLE: list[tuple[int, int, int, list[str]]] = [
    (1, 0, 1, ARGV),
    (7, 1, 1, ARGV),
    (90, 0, 90, ARGV),
    (40, 0, 40, ARGV),
    (41, 40, 40, ["sh", "-c", "sleep 9"]),
    (42, 41, 40, ["sleep", "9"]),
    (43, 1, 40, ["orphan", "of", "the", "session"]),
    (44, 40, 44, ["left", "the", "session"]),
    (91, 90, 90, ARGV),
    (60, 0, 60, ["python3", "server.py", "--other"]),
]


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    sent: list[tuple[int, int]] = []
    argvs = {pid: argv for pid, _, _, argv in TABLE}
    monkeypatch.setattr(processes, "_processes", lambda: [row[:3] for row in TABLE])
    monkeypatch.setattr(processes, "_argv", argvs.__getitem__)
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    return sent


@pytest.mark.parametrize(
    ("argv", "rank", "reached"),
    [
        (ARGV, 0, [40, 41, 42, 43]),
        (ARGV, 1, [90, 91]),
        (ARGV, 2, []),
        (["python3", "server.py", "--other"], 0, [60]),
        (["sleep", "9"], 0, []),
        ([], 0, []),
    ],
)
def test_the_oldest_of_a_rank_and_its_session_are_signalled_and_nobody_else(
    killed: list[tuple[int, int]], argv: list[str], rank: int, reached: list[int]
) -> None:
    assert processes.send(argv=argv, rank=rank, name="SIGTERM") == {"signalled": reached}
    assert killed == [(pid, signal.SIGTERM) for pid in reached]


def test_the_signal_that_is_named_is_sent(killed: list[tuple[int, int]]) -> None:
    processes.send(argv=ARGV, rank=1, name="SIGKILL")
    assert {number for _, number in killed} == {signal.SIGKILL}


def test_an_unknown_signal_reaches_nobody(killed: list[tuple[int, int]]) -> None:
    with pytest.raises(KeyError, match="SIGFOO"):
        processes.send(argv=ARGV, rank=0, name="SIGFOO")
    assert killed == []


def test_who_ended_first_was_not_reached_and_keeps_nobody_else_alive(
    killed: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(pid: int, number: int) -> None:
        if pid == 41:
            raise ProcessLookupError
        killed.append((pid, number))

    monkeypatch.setattr(os, "kill", kill)
    assert processes.send(argv=ARGV, rank=0, name="SIGTERM") == {"signalled": [40, 42, 43]}
    assert [pid for pid, _ in killed] == [40, 42, 43]
