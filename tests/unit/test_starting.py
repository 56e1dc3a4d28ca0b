"""Messages while a stack starts: when they come, and what they say."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from testbed.backends.starting import (
    StartProgress,
    Wellness,
    allowed_s,
    await_well,
    in_words,
    last_check,
    last_line,
    not_well_yet,
    said_while,
)
from testbed.errors import InvalidValueError, LabError, ServiceFailedError
from testbed.lab.waiting import await_condition


def test_a_line_comes_after_3_s_then_after_twice_as_long_each_time_and_every_30_s_in_the_end() -> None:
    now, lines_s = 0.0, list[float]()
    progress = StartProgress(lambda _text: lines_s.append(now), allowed_s=200, clock=lambda: now)
    for second in range(160):
        now = float(second)
        progress.tell(lambda: {"db": "is running and starting"})
    assert lines_s == [3, 6, 12, 24, 48, 78, 108, 138]
    assert progress.left_s == 200 - 159


def test_nothing_is_told_where_all_is_well_and_what_cannot_be_looked_at_is_told() -> None:
    now, lines = 4.0, list[str]()
    progress = StartProgress(lines.append, allowed_s=200, clock=lambda: now)
    now = 8.0
    progress.tell(dict)
    assert lines == []

    def gone() -> dict[str, str]:
        raise LabError("no engine " + "x" * 500)

    now = 12.0
    progress.tell(gone)
    assert lines[0].startswith("what is awaited is not known: no engine x")
    assert len(lines[0]) < 120


def test_what_a_block_waits_for_is_told_meanwhile_with_the_time() -> None:
    lines, times_s = list[str](), [0.0]
    printed = " 3/7 RUN make\n\n"
    with said_while(lines.append, lambda: f"building; last line: {last_line(printed)}", clock=lambda: times_s[-1]):
        times_s.append(5.0)
        await_condition(lambda: lines, bool, deadline_s=60)
    assert lines == ["5 s: building; last line: 3/7 RUN make"]
    assert last_line("\n") == ""


def test_a_line_stays_a_line_whatever_is_awaited() -> None:
    line = in_words({f"s{number}": "x" * 900 for number in range(50)}, since_s=12.4, allowed_s=180)
    assert line.startswith("starting, 12 s of 180 s (the up-deadline); not well yet: s0 (xxx")
    assert line.endswith(", 44 more")
    assert len(line) < 1200
    assert last_check("a\x1b[2J\nb" * 200) == "its last check said: " + last_check("a\x1b[2J\nb" * 200)[21:]
    assert "\x1b" not in last_check("a\x1b[2J\nb" * 200)
    assert len(last_check("a" * 9000)) < 250
    assert last_check(None) == "no check of it has ended yet"


@pytest.mark.parametrize("text", ["0s", "-1s", "soon"])
def test_a_deadline_is_a_time_above_0(text: str) -> None:
    with pytest.raises(InvalidValueError, match="up_deadline"):
        allowed_s(text)


@dataclass
class Made:
    """A host whose service becomes well as it is told."""

    name: str
    states: list[Wellness]
    """At each look, the last one from then on."""
    printed: str = ""

    @property
    def service_name(self) -> str:
        return self.name.partition("[")[0]

    def check_health(self) -> None:
        """A step on."""
        if len(self.states) > 1:
            del self.states[0]

    def wellness(self) -> Wellness:
        return self.states[0]

    def logs(self) -> str:
        return self.printed


WELL, WAITING = Wellness(state="well", words="is running"), Wellness(state="waiting", words="is running and starting")
IDLE = Wellness(state="waiting", words="was created and not started", began=False)


def failed(words: str, *, began: bool = True) -> Wellness:
    return Wellness(state="failed", words=words, began=began)


def test_what_failed_is_told_first_and_what_waited_for_it_by_name() -> None:
    hosts = [
        Made("client[1]", [IDLE]),
        Made("cache", [WAITING], "ready"),
        Made("web", [failed("was created and not started: port is already allocated", began=False)]),
        Made("client[2]", [IDLE]),
        Made("db", [failed("exited with status 3")]),
        Made("proxy", [WELL]),
    ]
    with pytest.raises(ServiceFailedError) as raised:
        await_well(hosts, deadline_s=60, late="late")
    assert str(raised.value).splitlines() == [
        "service `web` was created and not started: port is already allocated",
        "service `db` exited with status 3; its last lines:",
        "    (it printed nothing)",
        "service `cache` is running and starting; its last lines:",
        "    ready",
        "not started yet: `client`",
    ]
    assert not_well_yet(hosts) == {
        "client[1]": "was created and not started",
        "cache": "is running and starting; last line: 'ready'",
        "web": "was created and not started: port is already allocated",
        "client[2]": "was created and not started",
        "db": "exited with status 3",
    }


def test_hosts_are_awaited_until_all_are_well_or_one_has_failed_or_it_is_late() -> None:
    steps: list[str] = []
    slow = Made("slow", [IDLE, WAITING, WAITING, WELL])
    await_well([slow, Made("fast", [WELL])], deadline_s=60, late="late", step=lambda: steps.append("."), every_s=0)
    assert (slow.states, steps) == ([WELL], ["."] * 3)
    with pytest.raises(ServiceFailedError, match=r"^service `ill` is ill; .*\n.*\nservice `slow` is running and"):
        await_well(
            [Made("slow", [WAITING]), Made("ill", [WAITING, WAITING, failed("is ill")])],
            deadline_s=60,
            late="late",
            every_s=0,
        )
    with pytest.raises(ServiceFailedError, match=r"(?s)^service `slow` is running.*\nnot well after 0 s$"):
        await_well([Made("slow", [WAITING])], deadline_s=0, late="not well after 0 s", every_s=0.01)
