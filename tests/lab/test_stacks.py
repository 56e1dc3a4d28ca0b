"""Several stacks in a session; what markers of a module and a class impair for fixtures of their scope."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.conftest import users_environment

_SERVICE = "x-testbed: {local: {python: true}}, command: [sleep, infinity], environment: {VERSION: %s}"
_STACK = "services: {a: {" + _SERVICE + "}, b: {" + _SERVICE + "}}\n"
_SUITE = """
import time
import pytest

UP = []
VERSION = ["printenv", "VERSION"]
PING = (
    "import socket; s = socket.socket(2, 2); s.bind(('', 9)); print('up', flush=True)\\n"
    "while True: s.sendto(*s.recvfrom(9))"
)
ASK = (
    "import socket, time; s = socket.socket(2, 2); s.connect(('b', 9)); times = []\\n"
    "for _ in range(10): began = time.monotonic(); s.send(b'x'); s.recv(9); times.append(time.monotonic() - began)\\n"
    "print(min(times))"
)

def round_trip_s(lab):
    echo = lab.host("b").start(["python3", "-c", PING], ready="up")
    taken = float(lab.host("a").run(["python3", "-c", ASK], timeout="20s").stdout)
    echo.stop()
    return taken

def test_own(lab):
    UP.append(lab)
    assert lab.host("a").run(VERSION).stdout == "own\\n"

@pytest.mark.stack_each("v1/compose.yaml", "v2.yaml")
@pytest.mark.impair("a -> b", delay="60ms")
def test_versions(lab, request):
    if UP[-1] is not lab:
        assert not UP[-1].hosts, "the stack before is taken down first"
        UP.append(lab)
    assert lab.host("a").run(VERSION).stdout == request.node.callspec.id + "\\n"
    assert round_trip_s(lab) >= 0.06

def test_own_again(lab):
    assert lab is UP[-1] and len(UP) == 1, "tests of a stack are run one after the other"

@pytest.mark.stack("v2.yaml")
def test_up_together(stacks):
    one, two = stacks("v1/compose.yaml"), stacks("v2.yaml")
    assert one is stacks("v1/compose.yaml")
    assert [lab.host("a").run(VERSION).stdout for lab in (one, two)] == ["v1\\n", "v2\\n"]
    one.impair("a -> b", delay="60ms")
    assert round_trip_s(one) >= 0.06 > round_trip_s(two)
"""
_SCOPES = """
from pathlib import Path
import pytest
from test_suite import round_trip_s

pytestmark = pytest.mark.impair("a -> b", delay="60ms")
@pytest.fixture(scope="module")
def over_the_module(stack):
    taken = round_trip_s(stack)
    yield taken
    Path("torn_down").write_text(str(round_trip_s(stack)))

@pytest.fixture(scope="session")
def over_the_session(stack):
    return round_trip_s(stack)

@pytest.fixture(scope="class")
def over_the_class(stack):
    return round_trip_s(stack)

@pytest.mark.impair("b -> a", delay="80ms")
class TestClass:
    def test_class(self, over_the_session, over_the_module, over_the_class, lab):
        assert over_the_session < 0.06 <= over_the_module < 0.14 <= over_the_class
        assert round_trip_s(lab) >= 0.14

def test_module(over_the_module, lab):
    assert 0.06 <= round_trip_s(lab) < 0.14
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "v1").mkdir()
    for file, version in (("compose.yaml", "own"), ("v1/compose.yaml", "v1"), ("v2.yaml", "v2")):
        (tmp_path / file).write_text(_STACK % (version, version))
    (tmp_path / "test_suite.py").write_text(_SUITE)
    return tmp_path


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--lab", "local", *arguments]
    env = users_environment()
    return subprocess.run(argv, cwd=project, env=env, capture_output=True, text=True, timeout=300, check=False)


def test_stacks_come_one_after_the_other_each_once(project: Path) -> None:
    done = run(project, "-v", "--testbed-lateness", "warn", "test_suite.py")
    assert done.returncode == 0, done.stdout[-6000:]
    lines = [line for line in done.stdout.splitlines() if "PASSED" in line]
    names = [line.partition("::")[2].partition(" ")[0] for line in lines]
    assert names == ["test_own", "test_own_again", "test_versions[v1]", "test_versions[v2]", "test_up_together[v2]"]
    records = map(json.loads, (project / "report" / "results.jsonl").read_text().splitlines())
    tests = [record["test"] for record in records if "test" in record]
    assert [test["stack"] for test in tests] == [None, None, "v1", "v2", "v2"]
    assert "test_suite.py::test_versions[v1]" in tests[2]["replay"]


def test_fixtures_of_a_module_and_a_class_meet_what_its_markers_impair(project: Path) -> None:
    (project / "test_scopes.py").write_text(_SCOPES)
    done = run(project, "-v", "--testbed-lateness", "warn", "test_scopes.py")
    assert done.returncode == 0, done.stdout[-6000:]
    assert 0.06 <= float((project / "torn_down").read_text()) < 0.14, "over the module's link, the class's healed"
