"""What the engine's words mean, and which runs nobody owns any more."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pytest

from testbed.labs.compose import _describe, _nanoseconds, _wellness, is_orphaned, owner


def _inspected(status: str, **state: Any) -> dict[str, Any]:
    return {"Id": "c0ffee", "State": {"Status": status, **state}}


# --- a container's state ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inspected", "wellness", "described"),
    [
        (_inspected("running"), "well", "is running"),
        (_inspected("running", Health=None), "well", "is running"),
        (_inspected("running", Health={"Status": "none"}), "well", "is running"),
        (_inspected("running", Health={"Status": "healthy", "Log": []}), "well", "is running and healthy"),
        (_inspected("running", Health={"Status": "starting", "Log": None}), "waiting", "is running and starting"),
        (
            _inspected("running", Health={"Status": "unhealthy", "Log": [{"Output": "a"}, {"Output": "refused\n"}]}),
            "failed",
            "is running and unhealthy; its last check said: 'refused'",
        ),
        (
            _inspected("running", Health={"Status": "unhealthy", "Log": [{}]}),
            "failed",
            "is running and unhealthy; its last check said: ''",
        ),
        (_inspected("exited", ExitCode=0), "well", "exited with status 0"),
        (_inspected("exited", ExitCode=137), "failed", "exited with status 137"),
        # What it was before it ended does not count.
        (_inspected("exited", ExitCode=1, Health={"Status": "healthy"}), "failed", "exited with status 1"),
        (_inspected("created"), "waiting", "was created and not started"),
        (_inspected("created", Error="no such file"), "waiting", "was created and not started no such file"),
        (_inspected("restarting", ExitCode=1), "waiting", "is restarting"),
        (_inspected("paused"), "failed", "is paused"),
        (_inspected("removing"), "failed", "is removing"),
        (_inspected("dead"), "failed", "is dead"),
        ({}, "failed", "is gone"),
    ],
)
def test_a_container_is_well_waiting_or_failed_and_says_why(
    inspected: dict[str, Any], wellness: str, described: str
) -> None:
    assert _wellness(inspected) == wellness
    assert _describe(inspected) == described


# --- time stamps -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stamp", "nanoseconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.000000001Z", 1),
        ("1970-01-01T00:00:01.5Z", 1_500_000_000),
        ("1970-01-01T00:00:00.1234567891Z", 123_456_789),
        ("1970-01-02T00:00:00.0Z", 86_400_000_000_000),
        # 19,000 days and 0.1 s: more digits than a float holds.
        ("2022-01-08T00:00:00.100000001Z", 1_641_600_000_100_000_001),
    ],
)
def test_a_stamp_of_the_engine_is_read_to_the_nanosecond(stamp: str, nanoseconds: int) -> None:
    assert _nanoseconds(stamp) == nanoseconds


def test_a_stamp_is_read_in_utc_wherever_we_are() -> None:
    assert _nanoseconds("2024-07-01T12:00:00Z") == int(datetime(2024, 7, 1, 12, tzinfo=UTC).timestamp()) * 10**9


# --- owners ----------------------------------------------------------------------------------------

MACHINE, BOOT, NAMESPACE, PID, START = owner().split(":")


def _label(
    machine: str = MACHINE, boot: str = BOOT, namespace: str = NAMESPACE, pid: str = PID, start: str = START
) -> str:
    return ":".join((machine, boot, namespace, pid, start))


needs_machine_id = pytest.mark.usefixtures("machine_id")


@pytest.fixture
def machine_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has an id and a boot, whether or not this one does."""
    monkeypatch.setattr("testbed.labs.compose._here", lambda: ("0123456789ab", "01234567", "4026531836"))


HERE = {"machine": "0123456789ab", "boot": "01234567", "namespace": "4026531836"}


def test_an_owner_is_this_process() -> None:
    assert int(PID) == os.getpid()
    assert int(START) > 0


def test_we_are_alive() -> None:
    assert not is_orphaned(owner())


@needs_machine_id
def test_a_process_that_ended_is_dead_and_its_number_alone_does_not_revive_it() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with open(f"/proc/{child.pid}/stat") as stat:
            start = stat.read().rpartition(")")[2].split()[19]
        label = _label(**HERE, pid=str(child.pid), start=start)
        assert not is_orphaned(label)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert is_orphaned(label), "a zombie owns nothing"
    finally:
        child.kill()
        child.communicate()
    assert is_orphaned(label)
    assert is_orphaned(_label(**HERE, start="1")), "another process that was given our number"


@needs_machine_id
@pytest.mark.parametrize(
    ("label", "orphaned"),
    [
        (_label(**HERE), False),
        (_label(**{**HERE, "boot": "fffffff0"}), True),
        (_label(**{**HERE, "machine": "ba9876543210"}, start="1"), False),
        (_label(**{**HERE, "machine": "ba9876543210", "boot": "fffffff0"}), False),
        (_label(**{**HERE, "namespace": "4026539999"}, start="1"), False),
        # What either side could not read about itself proves nothing.
        (_label(**{**HERE, "machine": "-"}, start="1"), False),
        (_label(**{**HERE, "boot": "-"}, start="1"), False),
        (_label(**{**HERE, "namespace": "-"}, start="1"), False),
        (_label(**HERE, pid="x"), False),
        ("", False),
        ("detached", False),
        ("a:b", False),
        (_label(**HERE) + ":more", False),
    ],
    ids=["ours", "before a boot", "elsewhere", "elsewhere, a boot", "a namespace", "no machine", "no boot",
         "no namespace", "no number", "nothing", "detached", "two parts", "six parts"],
)  # fmt: skip
def test_only_what_is_surely_dead_is_orphaned(label: str, orphaned: bool) -> None:
    assert is_orphaned(label) is orphaned


@pytest.mark.parametrize("unknown", [0, 1, 2])
def test_a_place_that_knows_nothing_of_itself_judges_nobody(monkeypatch: pytest.MonkeyPatch, unknown: int) -> None:
    here = ["0123456789ab", "01234567", "4026531836"]
    here[unknown] = "-"
    monkeypatch.setattr("testbed.labs.compose._here", lambda: tuple(here))
    assert not is_orphaned(_label(**HERE, start="1"))
    assert not is_orphaned(":".join((*here, PID, "1")))
    assert not is_orphaned(_label(**{**HERE, "boot": "fffffff0"}))
