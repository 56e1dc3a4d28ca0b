"""When a service that ended is started again, and what becomes of the time before it."""

from __future__ import annotations

import threading

import pytest

from testbed.backends.local.blueprint import Restart
from testbed.backends.local.restarting import Restarter, delay_s
from testbed.errors import LabError
from testbed.lab.waiting import await_condition


def test_the_delay_doubles_to_a_minute_and_begins_anew_after_ten_seconds() -> None:
    """moby: restartmanager_test.go."""
    delays = [0.0]
    for _ in range(12):
        delays.append(delay_s(delays[-1], 0.0))
    assert delays[1:6] == [0.1, 0.2, 0.4, 0.8, 1.6]
    assert delays[-1] == 60
    assert delay_s(60, 10.0) == 0.1


@pytest.mark.parametrize(
    ("when", "most", "exit_code", "restarts", "follows"),
    [
        ("no", 0, 1, 0, False),
        ("always", 0, 0, 99, True),
        ("unless-stopped", 0, 0, 99, True),
        ("on-failure", 0, 0, 0, False),
        ("on-failure", 0, 1, 99, True),
        ("on-failure", 2, 1, 1, True),
        ("on-failure", 2, 1, 2, False),
    ],
)
def test_what_follows_an_end(when: str, most: int, exit_code: int, restarts: int, follows: bool) -> None:
    assert Restart(when=when, most=most).follows(exit_code, restarts) is follows


def test_it_is_started_in_time_and_counted() -> None:
    started = threading.Event()
    restarter = Restarter(Restart(when="always"), started.set)
    restarter.began()
    restarter.ended(0)
    assert restarter.pending
    assert started.wait(10)
    await_condition(lambda: restarter.pending, lambda pending: not pending, deadline_s=10)
    assert restarter.restarts == 1


def test_one_that_was_stopped_stays_so_until_it_is_started() -> None:
    started = threading.Event()
    restarter = Restarter(Restart(when="always"), started.set)
    restarter.ended(1)
    restarter.cease()
    restarter.ended(1)
    assert not restarter.pending
    assert not started.wait(0.3)
    restarter.began()
    restarter.ended(1)
    assert restarter.pending
    assert started.wait(10)


def test_a_start_that_fails_is_the_last() -> None:
    def start() -> None:
        raise LabError("the agent is gone")

    restarter = Restarter(Restart(when="always"), start)
    restarter.ended(1)
    await_condition(lambda: restarter.pending, lambda pending: not pending, deadline_s=10)
    restarter.ended(1)
    assert not restarter.pending
