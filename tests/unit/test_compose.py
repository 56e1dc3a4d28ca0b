"""The meaning of the engine's answers, and which runs have no owner any more."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from testbed.backends.docker import inspection
from testbed.backends.docker.programs import nanoseconds


def _inspected(status: str, **state: Any) -> dict[str, Any]:
    return {"Id": "c0ffee", "State": {"Status": status, **state}}


# --- a container's state ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inspected", "wellness", "described"),
    [
        (_inspected("running"), "well", "is running"),
        (_inspected("running", Health=None), "well", "is running"),
        (_inspected("running", Health={"Status": "none"}), "well", "is running"),
        (
            _inspected("running", Health={"Status": "healthy", "Log": []}),
            "well",
            "is running and healthy; no check of it has ended yet",
        ),
        (
            _inspected("running", Health={"Status": "starting", "Log": None}),
            "waiting",
            "is running and starting; no check of it has ended yet",
        ),
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
        (_inspected("created", Error="no such file"), "failed", "was created and not started: no such file"),
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
    seen = inspection.wellness(inspected)
    assert (seen.state, seen.words) == (wellness, described)
    assert seen.began == ("created" not in described)


# --- time stamps -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stamp", "expected"),
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
def test_a_stamp_of_the_engine_is_read_to_the_nanosecond(stamp: str, expected: int) -> None:
    assert nanoseconds(stamp) == expected


def test_a_stamp_is_read_in_utc_wherever_we_are() -> None:
    assert nanoseconds("2024-07-01T12:00:00Z") == int(datetime(2024, 7, 1, 12, tzinfo=UTC).timestamp()) * 10**9
