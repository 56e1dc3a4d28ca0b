"""Signals to a program that the engine started: which processes are meant, by /proc."""

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
        assert (child.pid, os.getpid(), child.pid) in {row[:3] for row in processes.processes()}


def test_a_command_may_be_called_anything(tmp_path: Path) -> None:
    script = tmp_path / ") R 1 (x"
    script.write_text(f"#!{sys.executable}\n{WAITING}\n")
    script.chmod(0o755)
    with running(str(script)) as child:
        assert (child.pid, os.getpid(), child.pid) in {row[:3] for row in processes.processes()}


def test_we_are_not_among_those_we_look_at() -> None:
    assert os.getpid() not in {row[0] for row in processes.processes()}


# --- who is signalled ------------------------------------------------------------------------------

SERVER, SLEEP = "python3 server.py", "sleep 9"

# Process, parent, session, start, command line: a first process that looks like three of the programs started later,
# whose numbers have begun again since.
TABLE: list[tuple[int, int, int, int, str]] = [
    (1, 0, 1, 100, SERVER),
    (7, 1, 1, 110, SERVER),
    (90, 0, 90, 200, SERVER),
    (91, 90, 90, 201, SERVER),
    (40, 0, 40, 300, SERVER),
    (41, 40, 40, 301, "sh -c sleep 9"),
    (42, 41, 40, 302, SLEEP),
    (43, 1, 40, 303, "an orphan of the session"),
    (44, 40, 44, 304, "left the session"),
    (60, 0, 60, 250, "python3 server.py --other"),
]
ALIKE = 3


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    sent: list[tuple[int, int]] = []
    lines = {row[0]: row[4] for row in TABLE}
    monkeypatch.setattr(processes, "processes", lambda: [row[:4] for row in TABLE])
    monkeypatch.setattr(processes, "command_of", lines.__getitem__)
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    return sent


@pytest.mark.parametrize(
    ("args", "rank", "of", "reached"),
    [
        (SERVER, 1, ALIKE, [90, 91]),
        (SERVER, 2, ALIKE, [40, 41, 42, 43]),
        ("python3 server.py --other", 0, 1, [60]),
    ],
)
def test_the_one_of_that_age_and_its_session_are_signalled_and_nobody_else(
    killed: list[tuple[int, int]], args: str, rank: int, of: int, reached: list[int]
) -> None:
    assert processes.send(args=args, rank=rank, of=of, name="SIGTERM") == {"signalled": reached}
    assert killed == [(pid, signal.SIGTERM) for pid in reached]


@pytest.mark.parametrize(
    ("args", "rank", "of"), [(SERVER, 1, 2), (SERVER, 1, 4), (SERVER, 3, 3), (SERVER, -1, 3), (SLEEP, 0, 1)]
)
def test_nobody_is_signalled_where_the_counts_differ(
    killed: list[tuple[int, int]], args: str, rank: int, of: int
) -> None:
    assert processes.send(args=args, rank=rank, of=of, name="SIGTERM") == {"signalled": None}
    assert killed == []


def test_the_first_process_is_never_signalled(killed: list[tuple[int, int]]) -> None:
    assert processes.send(args=SERVER, rank=0, of=ALIKE, name="SIGKILL") == {"signalled": None}
    assert killed == []


def test_a_command_line_is_seen_as_ps_prints_it() -> None:
    with running(sys.executable, "-c", WAITING, "two words", "größe\n", "") as child:
        printed = subprocess.run(
            ["ps", "-ww", "-o", "args=", "-p", str(child.pid)], capture_output=True, text=True, check=True
        )
        assert processes.same(processes.command_of(child.pid), printed.stdout.strip())
        assert not processes.same(processes.command_of(child.pid), printed.stdout.strip() + " more")


def test_a_process_that_ended_has_no_command_line() -> None:
    with running(sys.executable, "-c", WAITING) as child:
        child.kill()
        child.wait()
        assert processes.command_of(child.pid) == ""


def test_the_signal_that_is_named_is_sent(killed: list[tuple[int, int]]) -> None:
    processes.send(args=SERVER, rank=1, of=ALIKE, name="SIGKILL")
    assert {number for _, number in killed} == {signal.SIGKILL}


def test_an_unknown_signal_is_refused_and_reaches_nobody(killed: list[tuple[int, int]]) -> None:
    with pytest.raises(Refused, match="unknown signal 'SIGFOO'; write it as SIGTERM"):
        processes.send(args=SERVER, rank=1, of=ALIKE, name="SIGFOO")
    assert killed == []


def test_who_ended_first_was_not_reached_and_keeps_nobody_else_alive(
    killed: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(pid: int, number: int) -> None:
        if pid == 41:
            raise ProcessLookupError
        killed.append((pid, number))

    monkeypatch.setattr(os, "kill", kill)
    assert processes.send(args=SERVER, rank=2, of=ALIKE, name="SIGTERM") == {"signalled": [40, 42, 43]}
    assert [pid for pid, _ in killed] == [40, 42, 43]
