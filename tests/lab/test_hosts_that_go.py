"""Hosts that the test stops, kills or pauses have their links impaired again; other causes make the test INVALID."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testbed import ComposeLab, ImpairmentNotAppliedError, Lab, LabError, LocalLab
from testbed.lab.waiting import await_condition
from tests.lab.conftest import HERE, lab_of

ASK = """
import socket, sys, time
began = time.monotonic()
with socket.create_connection(("db", 9100), 2) as peer:
    peer.settimeout(2)
    assert peer.recv(9) == b"hello"
print(time.monotonic() - began)
"""
_DELAY_S = 0.15
_ASKED_S = 2 * _DELAY_S
"""The server hears of a connection with the third packet, the second from here."""


@pytest.fixture(scope="module")
def stack(kind: str, pytestconfig: pytest.Config) -> Iterator[Lab]:
    with lab_of(kind, pytestconfig, HERE / "stacks" / "hosts.yaml") as lab:
        yield lab


@pytest.fixture
def announced(stack: Lab, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    messages: list[str] = []
    monkeypatch.setattr(stack.whole, "say", messages.append)
    return messages


@pytest.fixture
def lab(stack: Lab) -> Iterator[Lab]:
    begin(stack)
    yield stack
    stack.lifecycle.end()


def begin(lab: Lab) -> None:
    """Begin a test in which lateness does not count: other processes keep the machine busy."""
    lab.lifecycle.begin(None)
    lab.carriage.end()


def answer_s(lab: Lab) -> float | None:
    """How long an answer from the database takes; None if none comes within 2 s."""
    done = lab.host("api").run(["python3", "-c", ASK])
    return float(done.stdout) if done.ok else None


def starts(lab: Lab) -> int:
    return int(lab.host("db").get("/var/lib/db/starts"))


def assert_impaired(lab: Lab) -> None:
    took_s = answer_s(lab)
    assert took_s is not None
    assert took_s >= _ASKED_S
    lab.verifier.verify()
    assert {link.read_back for link in lab.ledger.evidence} == {"holds"}


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_host_that_the_test_ends_and_starts_is_ready_and_its_links_are_impaired_again(lab: Lab, how: str) -> None:
    before, db = starts(lab), lab.host("db")
    lab.impair("api -> db", delay=f"{_DELAY_S}s")
    lab.impair("other -> db", loss="100%")
    lab.impair("db -> api", [{"at": "0s", "delay": "1ms"}, {"at": "60s", "delay": "2ms"}])
    db.stop() if how == "stop" else db.kill()
    assert answer_s(lab) is None
    with pytest.raises(LabError, match="db"):
        db.run(["true"])
    lab.verifier.verify()
    assert lab.suspensions.links
    db.start()
    assert starts(lab) == before + 1
    assert_impaired(lab)
    assert {str(ref) for ref in lab.ports.impaired} == {"api -> db", "other -> db", "db -> api"}
    assert [change.by_test for change in lab.whole.changes] == [True, True]
    assert lab.host("other").run(["python3", "-c", ASK]).exit_code == 1, "all of its packets are lost again"


def test_a_host_that_was_cut_off_is_cut_off_again_when_it_has_been_restarted(lab: Lab) -> None:
    lab.cut("api -> db")
    lab.flap("other -> db", up="10s", down="50ms")
    lab.host("db").restart()
    assert answer_s(lab) is None
    lab.verifier.verify()
    lab.mend()
    assert answer_s(lab) is not None
    lab.verifier.verify()


_CLOSES_FIRST = """
import socket
with socket.socket() as listener:  # no SO_REUSEADDR
    listener.bind(("", 9300))
    listener.listen()
    print("listening", flush=True)
    peer, _ = listener.accept()
    peer.close()
"""
_READ_TO_ITS_END = """
import socket
with socket.create_connection(("db", 9300), 10) as peer:
    assert peer.recv(1) == b""
"""


def test_a_host_that_was_restarted_has_no_connection_of_before_on_its_ports(lab: Lab) -> None:
    for _ in range(2):
        server = lab.host("db").start(["python3", "-c", _CLOSES_FIRST], ready="listening")
        assert lab.host("api").run(["python3", "-c", _READ_TO_ITS_END]).ok
        assert server.wait().ok
        lab.host("db").restart()


def test_a_paused_host_stands_still_and_goes_on_and_what_was_sent_to_it_is_heard(lab: Lab) -> None:
    before = starts(lab)
    lab.impair("api -> db", delay=f"{_DELAY_S}s")
    lab.host("db").start(["sleep", "100"])  # an engine hangs that is to begin it in a paused container
    lab.host("db").pause()
    assert answer_s(lab) is None
    lab.host("db").resume()
    assert_impaired(lab)
    assert starts(lab) == before
    lab.host("db").pause()
    with pytest.raises(LabError, match="`db` is paused; resume it"):
        lab.host("db").start()


@pytest.mark.parametrize("left", ["stop", "pause", "kill"])
def test_what_a_test_leaves_stopped_runs_again_in_the_next(stack: Lab, left: str) -> None:
    begin(stack)
    getattr(stack.host("db"), left)()
    stack.lifecycle.end()
    begin(stack)
    assert answer_s(stack) is not None
    stack.verifier.verify()
    assert stack.whole.changes == []
    stack.lifecycle.end()


def test_after_another_signal_the_host_may_end(lab: Lab) -> None:
    lab.host("db").kill("SIGTERM")
    await_condition(lambda: lab.host_states()["db"].status, lambda status: status == "exited", deadline_s=10)
    lab.verifier.verify()
    lab.host("db").start()
    assert answer_s(lab) is not None
    lab.verifier.verify()


def recreate(lab: ComposeLab) -> None:
    """As `docker compose up --force-recreate db`, in another process."""
    assert lab.stack.config_up is not None
    words = ["up", "--detach", "--force-recreate", "--no-build", "--no-deps", "db"]
    assert lab.composer.with_config(lab.stack.config_up, words, 60) is None


def disconnect(lab: ComposeLab) -> None:
    network = next(network for network in lab.engine.networks(testbed_run=lab.run_id) if "lan" in network.name)
    network.disconnect(lab.hosts["db"].container)


_CONTAINER: dict[str, Callable[[ComposeLab], object]] = {
    "paused": lambda lab: lab.hosts["db"].container.pause(),
    "stopped": lambda lab: lab.hosts["db"].container.stop(timeout=1),
    "killed": lambda lab: lab.hosts["db"].container.kill(),
    "restarted": lambda lab: lab.hosts["db"].container.restart(timeout=1),
    "removed": lambda lab: lab.hosts["db"].container.remove(force=True),
    "recreated": recreate,
    "disconnected": disconnect,
}


_NAMESPACES: dict[str, Callable[[LocalLab], object]] = {
    "paused": lambda lab: lab.channel.call("freeze_host", host="db"),
    "killed": lambda lab: lab.kill_host("db", "SIGKILL"),
    "gone": lambda lab: lab.channel.call("halt_host", host="db"),
}


@pytest.mark.parametrize("what", list(dict.fromkeys([*_CONTAINER, *_NAMESPACES])))
def test_what_others_do_to_a_host_makes_the_test_invalid_and_the_next_has_it_back(stack: Lab, what: str) -> None:
    ways = _CONTAINER if isinstance(stack, ComposeLab) else _NAMESPACES
    if what not in ways:
        pytest.skip("this cannot become of a host of this kind of lab")
    begin(stack)
    try:
        stack.impair("other -> api", delay="1ms")
        # Once it runs: an engine cannot pause a container while a program is being started in it.
        program = stack.host("db").start(["sh", "-c", "echo up; exec sleep 60"], ready="up")
        ways[what](stack)  # type: ignore[arg-type]  # the ways of this kind of lab
        if what in ("removed", "recreated"):
            with pytest.raises(LabError, match="sleep 60: its container was removed, and how it ended is not known"):
                program.stop("SIGKILL")
        with pytest.raises(ImpairmentNotAppliedError, match=r"host `db` .* during the test, and not by it"):
            stack.verifier.verify()
        stack.verifier.verify()  # told once
        assert [change.host for change in stack.whole.changes] == ["db"]
    finally:
        stack.lifecycle.end()
    begin(stack)
    try:
        stack.impair("api -> db", delay=f"{_DELAY_S}s")
        assert_impaired(stack)
        assert stack.whole.changes == []
    finally:
        stack.lifecycle.end()


def test_a_host_that_has_done_its_work_is_left_out_and_that_is_said_once(lab: Lab, announced: list[str]) -> None:
    lab.whole.announced.clear()
    cut = lab.isolate("db")
    assert {ref.src for ref in cut} == {"db", "api", "other"}
    assert answer_s(lab) is None
    lab.mend()
    assert {str(applied.link) for applied in lab.impair("* -> db", delay="1ms")} == {"api -> db", "other -> db"}
    assert len(lab.impair("* -> *", delay="1ms")) == 6
    lab.verifier.verify()
    assert announced == ["`migrate` has ended (exit status 0): its links are left out"]
    with pytest.raises(LabError, match=r"api -> migrate: `migrate` has ended \(exit status 0\): no link is left"):
        lab.impair("api -> migrate", delay="1ms")


_TESTS = """
import os, subprocess, pytest
def test_one(lab):
    {kill}
@pytest.mark.impair("* -> db", delay="1ms")
def test_two(lab):
    assert lab.host("api").run(["python3", "-c", {ask!r}]).ok
"""


def test_in_pytest_the_one_is_invalid_and_the_other_runs_on_a_whole_stack(kind: str, tmp_path: Path) -> None:
    kill = {
        "compose": "lab.host('db').container.kill()",
        "within": "lab.host('db').container.kill()",
        "local": "lab.channel.call('halt_host', host='db')",
    }[kind]
    (tmp_path / "test_it.py").write_text(_TESTS.format(kill=kill, ask=ASK))
    results = tmp_path / "results.jsonl"
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "--lab", kind,
            "--compose-file", str(HERE / "stacks" / "hosts.yaml"), "--testbed-results", str(results),
            "--testbed-lateness=warn",
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=250,
    )  # fmt: skip
    assert "1 passed, 1 invalid" in done.stdout, done.stdout
    assert (
        "host `db` ended (exit status 137) during the test, and not by it; it printed last: 'listening'" in done.stdout
    )
    written = results.read_text()
    assert '"outcome": "invalid"' in written
    assert '"exit_code": 137' in written
