"""One processor for a kernel and its programs: which one, and when another."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.kernel.processor import OneProcessor, quietest
from testbed.kernel.progress import Usage, family, usages
from testbed.lab.waiting import await_condition

_PARENT = "import subprocess, sys; sys.stdin.read(1); subprocess.run([sys.executable, '-c', 'input()'])"


def process(*, parent: int = 1, running: bool = True, on: int = 0, used_s: float = 0.0) -> Usage:
    return Usage(parent=parent, processor_s=used_s, ended_s=0.0, processor=on, running=running)


@given(
    allowed=st.lists(st.integers(0, 7), min_size=1, unique=True),
    others=st.lists(st.builds(process, running=st.booleans(), on=st.integers(0, 7))),
    turn=st.integers(0, 20),
)
def test_no_processor_that_is_allowed_has_fewer_that_run(allowed: list[int], others: list[Usage], turn: int) -> None:
    def running(number: int) -> int:
        return sum(usage.running and usage.processor == number for usage in others)

    chosen = quietest(allowed, dict(enumerate(others)), turn)
    assert chosen in allowed
    assert running(chosen) == min(map(running, allowed))


def test_kernels_that_begin_together_take_turns_on_an_idle_machine() -> None:
    assert [quietest((2, 5), {}, turn) for turn in range(4)] == [2, 5, 2, 5]


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", _PARENT], stdin=subprocess.PIPE) as parent:
        yield parent
        parent.kill()
    # Its child ends with the input of both.


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="this machine has one processor")
def test_a_family_is_on_one_processor_and_moves_as_a_whole_from_one_that_others_use(
    parent: subprocess.Popen[bytes],
) -> None:
    one = OneProcessor(parent.pid)
    assert parent.stdin is not None
    parent.stdin.write(b"x")
    parent.stdin.flush()
    own = await_condition(lambda: family(parent.pid, usages()), lambda pids: len(pids) == 2, deadline_s=30)
    own = {pid: replace(usage, processor_s=0.0, ended_s=0.0) for pid, usage in own.items()}

    def places() -> list[set[int]]:
        return [os.sched_getaffinity(pid) for pid in own]

    before = one.processor
    assert places() == [{before}, {before}]
    crowd = {10**9: process(on=before)}
    one.check({**crowd, **own})
    assert one.processor != before
    assert places() == [{one.processor}, {one.processor}]
    after = one.processor
    one.check({**crowd, **own})
    assert one.processor == after, "nobody else is there"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="this machine has one processor")
def test_a_family_that_has_its_processor_for_itself_stays(
    parent: subprocess.Popen[bytes],
) -> None:
    one = OneProcessor(parent.pid)
    crowd = {10**9: process(on=one.processor)}
    busy = {parent.pid: process(parent=os.getpid(), on=one.processor, used_s=10**6)}
    before = one.processor
    one.check({**crowd, **busy})
    assert one.processor == before
