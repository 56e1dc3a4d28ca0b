"""kill -9 of an agent in mid-test: that test is INVALID, and another agent serves the next."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.conftest import HERE

_KILL = {
    ("compose", "ports"): "lab._agent_container.kill()",
    ("local", "ports"): "end(lab._child.pid)",
    ("compose", "capture"): "lab.engine.containers(testbed_run=lab.run_id, testbed_role='capture')[0].kill()",
    ("local", "capture"): "end(capturing(lab))",
}
_TESTS = """
import os, pytest
from pathlib import Path
from testbed.labs.waiting import await_condition
from tests.lab.test_local_death import alive, relatives

ASK = {ask!r}

def capturing(lab):
    # The process at the other end of its pipe.
    pipe = f"pipe:[{{os.fstat(lab._capture_agent._stream._read).st_ino}}]"
    return next(pid for pid in relatives(lab._child.pid)
                if pipe in [os.readlink(fd) for fd in Path(f"/proc/{{pid}}/fd").iterdir()])

def end(pid):
    everyone = relatives(pid)
    os.kill(pid, 9)
    await_condition(lambda: alive(everyone), lambda left: not left, deadline_s=5)

def took_s(lab):
    done = lab.host("api").run(["python3", "-c", ASK])
    return float(done.stdout) if done.ok else None

@pytest.mark.impair("api <-> db", delay="30ms")
def test_in_which_it_dies(lab):
    assert took_s(lab) >= 0.06
    {kill}
    {after}

def test_without_an_impairment(lab):
    assert took_s(lab) < 2

@pytest.mark.impair("api -> db", delay="150ms")
def test_with_one(lab):
    assert took_s(lab) >= 0.3
    assert {{str(each) for each in lab.impaired}} == {{"api -> db"}}
"""
_ASK = """
import socket, time
began = time.monotonic()
with socket.create_connection(("db", 9100), 2) as peer:
    peer.settimeout(2)
    assert peer.recv(9) == b"hello"
print(time.monotonic() - began)
"""
_AFTER = {
    "passes": "pass",
    "fails": "assert False, 'for want of the agent'",
    "asks": "lab.impair('api -> other', delay='1ms')",
}


@pytest.mark.parametrize(("role", "after"), [("ports", "passes"), ("ports", "asks"), ("capture", "fails")])
def test_that_test_is_invalid_and_the_next_have_another_agent(kind: str, tmp_path: Path, role: str, after: str) -> None:
    (tmp_path / "test_it.py").write_text(_TESTS.format(kill=_KILL[kind, role], ask=_ASK, after=_AFTER[after]))
    results = tmp_path / "results.json"
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "--lab", kind, "--netem", "carried",
            "--compose-file", str(HERE / "stacks" / "hosts.yaml"), "--testbed-results", str(results),
            "--testbed-lateness=warn",
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), *sys.path])},
    )  # fmt: skip
    assert "2 passed, 1 invalid" in done.stdout, done.stdout + done.stderr
    assert "error" not in done.stdout.splitlines()[-1]
    said = {"ports": "the agent that holds the impairments", "capture": "the agent that captures"}[role]
    assert f"test_in_which_it_dies: {said}" in done.stdout, done.stdout
