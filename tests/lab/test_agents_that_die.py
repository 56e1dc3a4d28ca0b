"""An agent that is killed, or hangs, in mid-test: that test is INVALID, and another agent serves the next."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from testbed import Lab
from testbed.lab.waiting import await_condition
from testbed.report.files import load
from tests.lab import truth
from tests.lab.conftest import HERE
from tests.lab.test_hosts_that_go import ASK

_HELPERS = """
import os, pytest
from pathlib import Path
import testbed.lab.channel
from testbed.lab.waiting import await_condition
from tests.lab.test_local_death import alive, relatives

HIT = set()
ASK = {ask!r}

def process_of(lab, role):
    if role == "inside":
        lab.host("api").inside()
    if hasattr(lab, "engine"):
        (container, *_) = lab.engine.containers(testbed_run=lab.run_id, testbed_role=role)
        return lab.engine.state(container)["State"]["Pid"]
    # The process at the other end of its pipe.
    streams = {{"ports": lambda: lab.agent.child.fileno(), "capture": lambda: lab.capture_agent().stream.fileno(),
               "inside": lambda: lab.host("api").inside().stream.fileno()}}
    pipe = f"pipe:[{{os.fstat(streams[role]()).st_ino}}]"
    return next(pid for pid in relatives(lab.agent.child.pid)
                if pipe in [os.readlink(fd) for fd in Path(f"/proc/{{pid}}/fd").iterdir()])

def hit(lab, role, number):
    pid = process_of(lab, role)
    HIT.add(pid)
    testbed.lab.channel.ANSWERS_WITHIN_S = 3.0
    everyone = relatives(pid)
    os.kill(pid, number)
    if number == 9:
        await_condition(lambda: alive(everyone), lambda left: not left, deadline_s=5)

def took_s(lab):
    done = lab.host("api").run(["python3", "-c", ASK])
    return float(done.stdout) if done.ok else None
"""
_CONFTEST = """
import testbed.lab.channel

USUAL_S = testbed.lab.channel.ANSWERS_WITHIN_S

def pytest_runtest_setup():
    testbed.lab.channel.ANSWERS_WITHIN_S = USUAL_S
"""
_TESTS = """
@pytest.mark.impair("api <-> db", delay="30ms")
def test_{name}_in_which_it_is(lab):
    assert took_s(lab) >= 0.06
    hit(lab, {role!r}, {number})
    {after}

def test_{name}_then_without_an_impairment(lab):
    await_condition(lambda: alive(HIT), lambda left: not left, deadline_s=5)  # it was killed
    assert took_s(lab) < 2

@pytest.mark.impair("api -> db", delay="150ms")
def test_{name}_then_with_one(lab):
    assert took_s(lab) >= 0.3
    assert {{str(each) for each in lab.ports.impaired}} == {{"api -> db"}}
    assert lab.host("api").inside().call("interfaces")
"""
_IN_SETUP = """
@pytest.mark.impair("api -> db", delay="7ms")
def test_before_it(lab):
    assert took_s(lab) >= 0.007
    begin = lab.carriage.begin
    def begin_late():
        lab.carriage.begin = begin
        hit(lab, "ports", 9)
        begin()
    lab.carriage.begin = begin_late

@pytest.mark.impair("api <-> db", delay="30ms")
def test_in_whose_setup_it_is(lab):
    assert False, "not reached"

@pytest.mark.impair("api <-> db", delay="30ms")
def test_after_it(lab):
    assert took_s(lab) >= 0.06
"""
_AND_THE_NEXT = """
@pytest.mark.impair("api <-> db", delay="30ms")
def test_next_killed_in_which_it_is(lab):
    assert took_s(lab) >= 0.06
    hit(lab, "ports", 9)
    choose = lab.choose_engine
    def choose_late(channel):
        lab.choose_engine = choose
        os.kill(process_of(lab, "ports"), 9)
        return choose(channel)
    lab.choose_engine = choose_late

def test_next_in_whose_setup_it_is(lab):
    assert False, "not reached"

@pytest.mark.impair("api -> db", delay="150ms")
def test_next_after_it(lab):
    assert took_s(lab) >= 0.3
"""
_PASSES, _FAILS, _ASKS = "pass", "assert False, 'for want of it'", "lab.impair('api -> other', delay='1ms')"
_SAID = {
    "ports": "the agent that holds the impairments",
    "capture": "the agent that captures",
    "inside": "the agent in the network of `",
    "within": "the agent that holds the impairments toward `",
}
_FAULTS = (
    ("ports", "killed", _ASKS),
    ("ports", "hung", _PASSES),
    ("capture", "killed", _FAILS),
    ("capture", "hung", _PASSES),
    ("inside", "killed", _PASSES),
    ("inside", "hung", _FAILS),
)
_WITHIN = (("within", "killed", _PASSES), ("within", "hung", _FAILS))
_SIGNALS = {"killed": 9, "hung": 19}


@pytest.mark.timeout(600)
def test_that_test_is_invalid_and_the_next_have_another_agent(kind: str, tmp_path: Path) -> None:
    text, hit = _HELPERS.format(ask=ASK), dict[str, tuple[str, str]]()
    for role, how, after in (*_FAULTS, *(_WITHIN if kind == "within" else ())):
        hit[f"test_it.py::test_{role}_{how}_in_which_it_is"] = role, how
        text += _TESTS.format(name=f"{role}_{how}", role=role, number=_SIGNALS[how], after=after)
    for name in ("in_whose_setup_it_is", "next_killed_in_which_it_is", "next_in_whose_setup_it_is"):
        hit[f"test_it.py::test_{name}"] = "ports", "killed"
    text += _IN_SETUP + _AND_THE_NEXT
    (tmp_path / "conftest.py").write_text(_CONFTEST)
    (tmp_path / "test_it.py").write_text(text)
    results = tmp_path / "results.jsonl"
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "--rootdir=.", "--lab", kind,
            "--compose-file", str(HERE / "stacks" / "hosts.yaml"), "--testbed-results", str(results),
            "--netem=carried", "--testbed-lateness=warn",
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=590,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), *sys.path])},
    )  # fmt: skip
    contents = {test.id: test.last.content for test in load(results).tests}
    assert len(contents) == text.count("\ndef test_")
    for name, content in contents.items():
        assert content["outcome"] == ("invalid" if name in hit else "passed"), done.stdout + done.stderr
    assert contents["test_it.py::test_in_whose_setup_it_is"]["links"] == [], "nothing of the test before"
    for name, (role, how) in hit.items():
        (reason,) = [line for line in contents[name]["reason"].splitlines() if _SAID[role] in line]
        assert (" hung: it did not answer for " in reason) == (how == "hung")


def test_of_a_kernel_that_died_no_process_is_left_to_its_agent(stack: Lab) -> None:
    """Unreaped processes count toward a container's limit of tasks: forty dead kernels would reach it."""
    if stack.netem_engine != "carried":
        pytest.skip("no kernel is carried")
    stack.lifecycle.begin("kernel dies")
    stack.impair(truth.LINK, delay="1ms")
    kernel, *others = truth.place(stack).kernel
    agent = int(_stat(kernel)[1])
    assert others, "it has processes of its own"
    os.kill(kernel, signal.SIGKILL)
    stack.lifecycle.end()
    stack.lifecycle.begin("next")
    try:
        stack.impair(truth.LINK, delay="1ms")
        assert truth.place(stack).kernel[0] != kernel
        await_condition(lambda: _dead(agent), lambda pids: not pids, deadline_s=5)
    finally:
        stack.lifecycle.end()


def _dead(parent: int) -> list[int]:
    """The children of a process that ended and were not reaped."""
    pids = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended while we looked
            if _stat(int(path.name))[:2] == ["Z", str(parent)]:
                pids.append(int(path.name))
    return pids


def _stat(pid: int) -> list[str]:
    """Its state, its parent, and more (proc_pid_stat(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
