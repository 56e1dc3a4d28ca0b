"""What became of a host between two looks, and which hosts are whole; on states written by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from testbed.evidence.hoststate import (
    EXITED,
    GONE,
    PAUSED,
    RUNNING,
    HostChange,
    HostState,
    change,
    is_whole,
    meant_to_end,
)

UP = HostState(status=RUNNING, id="c1", started="10:00", endpoints={"lan": "e1", "wan": "e2"})


def now(**changed: Any) -> HostState:
    return replace(UP, **changed)


DOWN = now(status=EXITED, exit_code=1, endpoints={"lan": "", "wan": ""})


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        (UP, UP, ""),
        (UP, now(status=GONE, id="", endpoints={}), "is gone"),
        (UP, DOWN, "ended (exit status 1)"),
        (UP, now(status=EXITED, exit_code=0), "ended (exit status 0)"),
        (UP, now(status=PAUSED), "was paused"),
        (UP, now(id="c2", started="10:01"), "was made anew"),
        (UP, now(started="10:01"), "was started again"),
        (UP, now(restarts=1), "was started again"),
        (UP, now(status="restarting"), "is restarting; it was running"),
        (now(status=PAUSED), UP, "is running; it was paused"),
        (UP, now(endpoints={"lan": "e1"}), "was disconnected from wan"),
        (UP, now(endpoints={}), "was disconnected from lan, wan"),
        (UP, now(endpoints={"lan": "e3", "wan": "e2"}), "was connected anew to lan"),
        (UP, now(endpoints={"lan": "e1", "wan": "e2", "third": "e4"}), "was connected anew to third"),
        # Told once: what was so before has become of nothing.
        (DOWN, DOWN, ""),
        (now(status=GONE), now(status=GONE), ""),
        (now(status=PAUSED), now(status=PAUSED), ""),
        # One that comes up again after the end: another start, whatever its container is.
        (DOWN, now(started="10:02"), "was started again"),
        # Of a host of which nothing was known there is no "anew".
        (HostState(status=RUNNING), now(endpoints={}), "was started again"),
    ],
)
def test_what_became_of_a_host(before: HostState, after: HostState, what: str) -> None:
    assert change(before, after) == what


@pytest.mark.parametrize(("status", "what"), [(0, ""), (None, ""), (1, "ended (exit status 1)")])
def test_a_program_that_is_meant_to_end_has_done_its_work_with_status_0_alone(status: int | None, what: str) -> None:
    assert change(UP, now(status=EXITED, exit_code=status), may_end=True) == what


@pytest.mark.parametrize(
    ("home", "seen", "whole"),
    [
        (UP, UP, True),
        (UP, now(id="c2", started="later", endpoints={"lan": "e8", "wan": "e9"}), True),  # made anew, and all there
        (UP, now(endpoints={"lan": "e1", "wan": "e2", "more": "e3"}), True),
        (UP, now(endpoints={"lan": "e1"}), False),
        (UP, now(status=PAUSED), False),
        (UP, DOWN, False),
        (UP, now(status=GONE, endpoints={}), False),
        (DOWN, DOWN, True),  # it had ended when the stack was up: a migration
        (DOWN, now(status=GONE), True),
    ],
)
def test_whole_is_what_runs_on_all_networks_that_it_was_on(home: HostState, seen: HostState, whole: bool) -> None:
    assert is_whole(home, seen) is whole


# --- which programs are meant to end -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("services", "ending"),
    [
        ({"job": {}}, {"job"}),
        ({"web": {"ports": ["80"]}}, set()),
        ({"web": {"healthcheck": {"test": ["CMD", "true"]}}}, set()),
        ({"db": {}, "app": {"depends_on": ["db"]}}, {"app"}),
        ({"db": {}, "app": {"depends_on": {"db": {"condition": "service_healthy"}}}}, {"app"}),
        ({"db": {}, "app": {"depends_on": {"db": None}}}, {"app"}),
        (
            {
                "migrate": {},
                "app": {"ports": ["80"], "depends_on": {"migrate": {"condition": "service_completed_successfully"}}},
            },
            {"migrate"},
        ),
        # One awaits its end, another its start: the end is asked.
        (
            {
                "migrate": {},
                "app": {"ports": ["80"], "depends_on": {"migrate": {"condition": "service_completed_successfully"}}},
                "log": {"ports": ["81"], "depends_on": ["migrate"]},
            },
            {"migrate"},
        ),
        # Ports of its own do not change what others await.
        (
            {
                "seed": {"ports": ["80"]},
                "app": {"ports": ["81"], "depends_on": {"seed": {"condition": "service_completed_successfully"}}},
            },
            {"seed"},
        ),
    ],
)
def test_which_programs_may_end(services: dict[str, Any], ending: set[str]) -> None:
    assert meant_to_end(services) == ending


# --- how it is told ----------------------------------------------------------------------------------


def test_a_crash_is_told_with_the_programs_last_lines_visibly_and_in_short() -> None:
    lines = ("Traceback", "\x1b[31mKeyError: 'x'\x1b[0m", "y" * 500)
    text = str(
        HostChange(host="db", what="ended (exit status 1)", by_test=False, before=UP, after=DOWN, last_lines=lines)
    )
    assert text.startswith(
        'host `db` ended (exit status 1) during the test, and not by it; it printed last: "Traceback | \\x1b[31mKey'
    )
    assert "\x1b" not in text
    assert len(text) < 300
    assert text.endswith("…")


def test_what_a_test_did_and_what_printed_nothing_is_told_without() -> None:
    done = HostChange(host="db", what="ended (exit status 0)", by_test=True, before=UP, after=DOWN)
    assert str(done) == "host `db` ended (exit status 0) during the test"
