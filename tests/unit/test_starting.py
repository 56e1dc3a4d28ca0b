"""What is told while a stack starts: when, and in which words."""

from __future__ import annotations

import pytest

from testbed.backends.starting import Progress, Unwell, allowed_s, in_words, last_check, unwell_in_words
from testbed.errors import InvalidValueError, LabError


def test_a_line_comes_after_3_s_then_after_twice_as_long_each_time_and_every_30_s_in_the_end() -> None:
    now, told = 0.0, list[float]()
    progress = Progress(lambda _text: told.append(now), allowed_s=200, clock=lambda: now)
    for second in range(160):
        now = float(second)
        progress.tell(lambda: {"db": "is running and starting"})
    assert told == [3, 6, 12, 24, 48, 78, 108, 138]
    assert progress.left_s == 200 - 159


def test_nothing_is_told_where_all_is_well_and_what_cannot_be_looked_at_is_told() -> None:
    now, told = 4.0, list[str]()
    progress = Progress(told.append, allowed_s=200, clock=lambda: now)
    now = 8.0
    progress.tell(dict)
    assert told == []

    def gone() -> dict[str, str]:
        raise LabError("no engine " + "x" * 500)

    now = 12.0
    progress.tell(gone)
    assert told[0].startswith("what is awaited is not known: no engine x")
    assert len(told[0]) < 120


def test_a_line_stays_a_line_whatever_is_awaited() -> None:
    said = in_words({f"s{number}": "x" * 900 for number in range(50)}, since_s=12.4, allowed_s=180)
    assert said.startswith("starting, 12 s of 180 s (the up-deadline); not well yet: s0 (xxx")
    assert said.endswith(", 44 more")
    assert len(said) < 700
    assert last_check("a\x1b[2J\nb" * 200) == "its last check said: " + last_check("a\x1b[2J\nb" * 200)[21:]
    assert "\x1b" not in last_check("a\x1b[2J\nb" * 200)
    assert len(last_check("a" * 9000)) < 250
    assert last_check(None) == "no check of it has ended yet"


@pytest.mark.parametrize("text", ["0s", "-1s", "soon"])
def test_a_deadline_is_a_time_above_0(text: str) -> None:
    with pytest.raises(InvalidValueError, match="up_deadline"):
        allowed_s(text)


def test_what_failed_is_told_first_and_what_waited_for_it_by_name() -> None:
    def unwell(service: str, state: str, *, failed: bool = False, began: bool = False, log: str = "") -> Unwell:
        return Unwell(service=service, state=state, failed=failed, began=began, last_lines=log.splitlines())

    found = [
        unwell("client", "was created and not started"),
        unwell("cache", "is running and starting", began=True, log="ready"),
        unwell("web", "was created and not started: port is already allocated", failed=True),
        unwell("client", "was created and not started"),
        unwell("db", "exited with status 3", failed=True, began=True),
    ]
    assert list(unwell_in_words(found)) == [
        "service `web` was created and not started: port is already allocated",
        "service `db` exited with status 3; its last lines:\n    (it printed nothing)",
        "service `cache` is running and starting; its last lines:\n    ready",
        "not started yet: `client`",
    ]
