"""Hosts that are stopped, started and watched: messages and links; on made-up hosts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from testbed.errors import LabError, ServiceFailedError
from testbed.evidence.hoststate import EXITED, GONE, PAUSED, RUNNING, HostState
from testbed.lab.wholeness import HostControl, Wholeness
from testbed.spec.links import LinkRef


class Hosts(HostControl):
    """A database, and a migration that may end; whatever is done to them is noted."""

    def __init__(self) -> None:
        self.states = {
            name: HostState(status=RUNNING, id=name, started="1", endpoints={"lan": f"{name}1"})
            for name in ("db", "migrate")
        }
        self.done: list[str] = []
        self.refuses = ""
        self.lines: list[str] = []
        """What was said."""

    def become(self, host: str, status: str = RUNNING, exit_code: int | None = None) -> None:
        """By others, or by what is done below; a start gives other endpoints."""
        was = self.states[host]
        if status == RUNNING and was.status in (EXITED, GONE):
            start = str(int(was.started) + 1)
            was = replace(was, started=start, endpoints={"lan": f"{host}{start}"})
        self.states[host] = replace(was, status=status, exit_code=exit_code)

    def _do(self, what: str, host: str, status: str, exit_code: int | None = None) -> None:
        self.done.append(f"{what} {host}")
        if self.refuses == what:
            raise ServiceFailedError(f"`{host}` does not {what}")
        self.become(host, status, exit_code)

    def host_states(self) -> Mapping[str, HostState]:
        return dict(self.states)

    def may_end(self, host: str) -> bool:
        return host == "migrate"

    def last_lines(self, host: str) -> tuple[str, ...]:
        return (f"{host} says goodbye",)

    def halt(self, host: str, _grace: str | None) -> None:
        self._do("halt", host, EXITED, 0)

    def kill_host(self, host: str, signal: str) -> None:
        if signal == "SIGKILL":
            self._do("kill", host, EXITED, 137)
        else:
            self.done.append(f"{signal} {host}")

    def needed(self, host: str) -> Sequence[str]:
        return ["migrate"] if host == "db" else []

    def revive(self, host: str, _timeout: str | None) -> None:
        self._do("revive", host, RUNNING)

    def freeze(self, host: str) -> None:
        self._do("freeze", host, PAUSED)

    def thaw(self, host: str) -> None:
        self._do("thaw", host, RUNNING)

    def bring_back(self, wrong: Mapping[str, HostState]) -> None:
        for host in wrong:
            self._do("bring back", host, RUNNING)

    def await_healthy(self) -> None:
        self.done.append("await")

    def suspend(self, host: str) -> None:
        self.done.append(f"suspend {host}")

    def resume_links(self) -> None:
        self.done.append("links")


@pytest.fixture
def hosts() -> Hosts:
    return Hosts()


@pytest.fixture
def whole(hosts: Hosts) -> Wholeness:
    whole = Wholeness(hosts, suspend=hosts.suspend, resume_links=hosts.resume_links, say=hosts.lines.append)
    whole.up()
    whole.begin()
    hosts.done.clear()
    return whole


def test_a_host_that_others_end_is_told_once_with_its_last_lines(hosts: Hosts, whole: Wholeness) -> None:
    hosts.become("db", EXITED, 1)
    (change,) = whole.look()
    assert (change.host, change.what, change.by_test) == ("db", "ended (exit status 1)", False)
    assert change.last_lines == ("db says goodbye",)
    assert whole.look() == []
    assert whole.changes == [change]
    assert not whole.running("db")


def test_of_a_host_that_did_not_end_no_lines_are_told(hosts: Hosts, whole: Wholeness) -> None:
    hosts.become("db", PAUSED)
    assert [(change.what, change.last_lines) for change in whole.look()] == [("was paused", ())]


def test_the_next_test_finds_it_running_and_its_links_are_put_back(hosts: Hosts, whole: Wholeness) -> None:
    hosts.become("db", EXITED, 1)
    whole.look()
    whole.begin()
    assert hosts.done == ["bring back db", "await", "links"]
    assert whole.changes == []
    assert whole.look() == []


def test_what_cannot_be_brought_back_is_told(hosts: Hosts, whole: Wholeness) -> None:
    hosts.become("db", EXITED, 1)
    hosts.refuses = "bring back"
    with pytest.raises(ServiceFailedError, match="`db` does not bring back"):
        whole.begin()


def test_where_nothing_is_wrong_nothing_is_touched(hosts: Hosts, whole: Wholeness) -> None:
    whole.begin()
    assert hosts.done == ["await"]


def test_a_job_that_has_done_its_work_is_left_in_peace(hosts: Hosts, whole: Wholeness) -> None:
    hosts.become("migrate", EXITED, 0)
    assert whole.look() == []
    whole.begin()
    assert hosts.done == ["await"]
    assert whole.ended("migrate") == hosts.states["migrate"]
    assert whole.ended("db") is None
    refs = [LinkRef("api", "db", "lan"), LinkRef("api", "migrate", "lan")]
    assert [whole.there(refs) for _ in range(2)] == [(refs[0],)] * 2
    assert hosts.lines == ["`migrate` has ended (exit status 0): its links are left out"]
    with pytest.raises(LabError, match=r"api -> migrate: `migrate` has ended \(exit status 0\): no link is left"):
        whole.there(refs[1:])


def test_a_job_that_failed_is_told_and_run_again(hosts: Hosts, whole: Wholeness) -> None:
    hosts.become("migrate", EXITED, 3)
    assert [change.what for change in whole.look()] == ["ended (exit status 3)"]
    whole.begin()
    assert hosts.done[0] == "bring back migrate"


def test_what_the_test_does_is_no_fault_and_its_links_are_suspended_meanwhile(hosts: Hosts, whole: Wholeness) -> None:
    whole.stop("db", None)
    assert whole.look() == []
    whole.start("db", None)
    assert whole.look() == []
    assert hosts.done == ["suspend db", "halt db", "revive db", "links"]
    assert [(change.what, change.by_test, change.last_lines) for change in whole.changes] == [
        ("ended (exit status 0)", True, ()),
        ("was started again", True, ()),
    ]


def test_hosts_that_a_test_moves_are_made_anew_by_it_and_their_links_are_suspended_meanwhile(
    hosts: Hosts, whole: Wholeness
) -> None:
    def move() -> None:
        hosts.done.append("moved")
        hosts.states["db"] = replace(hosts.states["db"], id="another")

    whole.move(["db"], move)
    assert whole.look() == []
    assert hosts.done == ["suspend db", "moved", "links"]
    assert [(change.host, change.what, change.by_test) for change in whole.changes] == [("db", "was made anew", True)]


def test_a_start_that_fails_is_the_tests_own_and_says_why(hosts: Hosts, whole: Wholeness) -> None:
    whole.kill("db", "SIGKILL")
    hosts.refuses = "revive"
    with pytest.raises(ServiceFailedError, match="`db` does not revive"):
        whole.start("db", None)
    assert whole.look() == []
    assert "links" not in hosts.done


def test_after_another_signal_its_end_is_the_tests_own(hosts: Hosts, whole: Wholeness) -> None:
    whole.kill("db", "SIGTERM")
    hosts.become("db", EXITED, 143)
    assert whole.look() == []
    assert [change.by_test for change in whole.changes] == [True]
    whole.begin()
    hosts.become("db", EXITED, 143)
    assert [change.by_test for change in whole.look()] == [False], "but not in the next test"


def test_what_makes_no_sense_is_refused_and_nothing_is_done(hosts: Hosts, whole: Wholeness) -> None:
    whole.kill("migrate", "SIGKILL")
    hosts.done.clear()
    with pytest.raises(LabError, match="`migrate` is exited, not paused"):
        whole.resume("migrate")
    whole.start("db", None)  # it runs
    whole.resume("db")
    assert hosts.done == []
    whole.pause("db")
    with pytest.raises(LabError, match="`db` is paused; resume it"):
        whole.start("db", None)
    with pytest.raises(LabError, match="`db` is paused, not running"):
        whole.pause("db")
    assert hosts.done == ["freeze db"]


def test_a_paused_host_goes_on_before_it_is_stopped_and_when_the_test_ends(hosts: Hosts, whole: Wholeness) -> None:
    whole.pause("db")
    whole.stop("db", None)
    assert hosts.done == ["freeze db", "thaw db", "suspend db", "halt db"]
    whole.start("db", None)
    whole.pause("db")
    whole.resume_all()
    assert hosts.done[-1] == "thaw db"
    assert whole.running("db")


def test_what_a_host_does_by_itself_in_a_test_is_known_before_something_is_done_to_it(
    hosts: Hosts, whole: Wholeness
) -> None:
    hosts.become("db", EXITED, 1)
    whole.look()
    hosts.become("db")  # as its `restart:` asks
    whole.stop("db", None)
    assert hosts.done == ["suspend db", "halt db"]
    whole.start("db", None)
    hosts.become("db", EXITED, 1)
    whole.start("db", None)
    assert hosts.done[-2:] == ["revive db", "links"]


def test_a_host_starts_only_if_those_run_that_it_depends_on_whatever_they_did_before(
    hosts: Hosts, whole: Wholeness
) -> None:
    whole.stop("db", None)
    hosts.become("migrate", EXITED, 1)
    with pytest.raises(LabError, match="`db` depends on `migrate`, which does not run; start that first"):
        whole.start("db", None)
    whole.look()
    hosts.become("migrate")
    whole.start("db", None)
    assert hosts.done[-2:] == ["revive db", "links"]
