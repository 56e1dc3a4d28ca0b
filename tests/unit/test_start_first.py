"""A program with a scheduling policy has it from its first instruction, or the reason why not is known."""

import os
import sys
from pathlib import Path

import pytest

from testbed.agent.carried import start_first

SCHED_DEADLINE = 6  # linux/sched.h; Python has no name for it
POLICY = [sys.executable, "-I", "-S", "-c", "import os; print(os.sched_getscheduler(0))"]


def policy(runtimes_ns: tuple[int, ...], folder: Path) -> tuple[int, str]:
    """The policy that a program had as it began, and the reason that it was told."""
    output = folder / "policy"
    with output.open("wb") as file:
        process, why = start_first(POLICY, runtimes_ns=runtimes_ns, period_ns=2_000_000, stdout=file.fileno())
        assert process.wait(timeout=30) == 0
    return int(output.read_text()) & ~os.SCHED_RESET_ON_FORK, why


def test_nobody_sets_its_policy_while_it_runs(tmp_path: Path) -> None:
    chosen, why = policy((20_000,), tmp_path)
    if why:
        assert chosen == os.SCHED_OTHER
        pytest.skip(f"no program may run first here: {why}")
    assert chosen == SCHED_DEADLINE


def test_the_first_runtime_that_is_to_be_had_counts(tmp_path: Path) -> None:
    chosen, why = policy((3_000_000, 20_000), tmp_path)  # more than the period: EINVAL
    if why:
        pytest.skip(f"no program may run first here: {why}")
    assert chosen == SCHED_DEADLINE


def test_it_starts_all_the_same_where_it_may_not(tmp_path: Path) -> None:
    chosen, why = policy((3_000_000,), tmp_path)
    assert chosen == os.SCHED_OTHER
    assert why
