"""The plugin in a project: fixtures with our names, several Compose files, own traces, loadgroup."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from testbed.report.files import load
from tests.lab.conftest import ROOT

_HOST = (
    "build: {{context: {images}, dockerfile: client/Dockerfile}}, x-testbed: {{local: {{}}}}, working_dir: /srv, "
    "init: true"
)
_BASE = f"""
services:
  a: {{{{{_HOST}, command: [sleep, infinity], volumes: ["./srv:/srv:ro"]}}}}
  b: {{{{{_HOST}, command: [python3, serve.py], volumes: ["./srv:/srv:ro"]}}}}
"""
_EXTRA = "services: {a: {environment: {MODE: test}}}\n"
_SERVE = """
import socket
heard = socket.create_server(("", 9400))
while True: heard.accept()[0].close()
"""
# How long the handshake takes: what is asked of a -> b meets its first packet.
_ASK = """
import socket, time
until = time.monotonic() + 30
while True:
    began = time.monotonic()
    try:
        socket.create_connection(("b", 9400), 20).close()
    except ConnectionRefusedError:  # it starts just now
        assert began < until
    else:
        break
print(time.monotonic() - began)
"""
_CONFTEST = """
import pytest

@pytest.fixture(scope="session")
def delay_s():
    return lambda lab: float(lab.host("a").run(["python3", "ask.py"], timeout="60s").stdout)
"""
_MARKED = """
@pytest.mark.impair("a -> b", delay="80ms")
def test_marked({fixtures}, delay_s):
    assert delay_s({lab}) >= 0.08

def test_unmarked({fixtures}):
    assert not {lab}.impairer.impairments()
"""
_OWN = {
    "session": ("@pytest.fixture\ndef lab(stack): yield stack", "lab", "lab"),
    "other": ("@pytest.fixture\ndef lab(): return ['my', 'lab']", "lab, stack", "stack"),
    "over": ("@pytest.fixture\ndef lab(lab): return lab", "lab", "lab"),
    "auto": ("@pytest.fixture(autouse=True)\ndef lab(): return None", "stack", "stack"),
    "stack": ("@pytest.fixture(scope='session')\ndef stack(): return ['my', 'stack']", "lab", "lab"),
    "made": (
        "from testbed.backends.choice import make_lab\n@pytest.fixture(scope='module')\ndef lab():\n"
        "    with make_lab('local', 'base.yaml', netem='auto', say=print) as made: yield made",
        "lab",
        "lab",
    ),
}
"""Fixtures that users have; what a test asks for, and which of it is the lab."""
_REST = """
import pytest

def test_both_files_are_read(lab):
    assert lab.host("a").run(["printenv", "MODE"]).stdout == "test\\n"

@pytest.mark.impair("a -> b", trace="traces/mine.csv")
def test_own_trace(lab, delay_s):
    assert delay_s(lab) >= 0.06

@pytest.mark.impair_each("a -> b", "clean", "latency")
def test_each(lab, profile, delay_s):
    delay_s(lab)

@pytest.mark.impair("a -> b", delay="1ms")
def test_fails(lab, delay_s):
    delay_s(lab)
    assert False
"""
_GROUP = """
import pytest

@pytest.mark.impair("a -> b", loss="30%")
@pytest.mark.xdist_group("g1")
def test_group(lab):
    assert False, f"seeded {lab.link('a -> b').impairment.seed}"
"""

# What pytest-xdist adds to the ids of tests in a group; to pytest's own since 9.2 it cannot any more.
_SUFFIX = """
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    for item in items:
        item._nodeid = f"{item.nodeid}@g1"
        if hasattr(item, "_id"):
            from _pytest.nodeid import coerce_node_id
            item._id = coerce_node_id(item._nodeid)
"""
_GIVEN = """
import pytest
from hypothesis import HealthCheck, given, settings, strategies

ECHO = (
    "import socket; s = socket.socket(2, 2); s.bind(('', 9)); print('up', flush=True)\\n"
    "while True: s.sendto(*s.recvfrom(9))"
)
FLING = (
    "import socket; s = socket.socket(2, 2); s.connect(('b', 9)); s.settimeout(1)\\n"
    "for n in range(40): s.send(b'%d' % n)\\n"
    "while True:\\n"
    "  try: print(s.recv(9).decode())\\n"
    "  except TimeoutError: break"
)
LOST = {}

@pytest.mark.impair("a -> b", loss="30%")
@settings(max_examples=4, database=None, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=strategies.integers(0, 999))
def test_given(lab, number):
    echo = lab.host("b").start(["python3", "-c", ECHO], ready="up")
    lab.impair("a -> b", loss="30%", seed=7)
    came = lab.host("a").run(["python3", "-c", FLING]).stdout
    LOST[number] = sorted(set(range(40)) - set(map(int, came.split())))
    echo.stop()
    assert 1 <= len(LOST[number]) and LOST[number] == next(iter(LOST.values()))

def test_fails(lab):
    assert False, f"lost {LOST}"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's folder, with two Compose files and a trace."""
    (tmp_path / "srv").mkdir(mode=0o755)
    (tmp_path / "netem" / "traces").mkdir(parents=True)
    files = {
        "base.yaml": _BASE.format(images=ROOT / "images"),
        "extra.yaml": _EXTRA,
        "srv/serve.py": _SERVE,
        "srv/ask.py": _ASK,
        "netem/traces/mine.csv": "time_s,delay_ms\n0,60\n500,61\n",
        "conftest.py": _CONFTEST,
        "pytest.ini": "[pytest]\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def run(project: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=project,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
        stdin=subprocess.DEVNULL,
    )


def run_pytest(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    options = ["-p", "no:cacheprovider", "--testbed-lateness=warn", "--lab", "local"]
    return run(project, "pytest", *options, *words)


def outcomes(project: Path) -> dict[str, Any]:
    session = load(project / "report" / "results.jsonl")
    return {test.id: test.last.content for test in session.tests}


LABS = ("local",)
_TWO = ("--compose-file", "base.yaml", "--compose-file", "extra.yaml")


def test_markers_hold_whatever_fixtures_are_called(project: Path, kind: str) -> None:
    for name, (own, fixtures, lab) in _OWN.items():
        text = f"import pytest\n{own}\n{_MARKED.format(fixtures=fixtures, lab=lab)}"
        (project / f"test_{name}.py").write_text(text)
    done = run_pytest(project, "-v", "--compose-file", "base.yaml")
    assert f"== {2 * len(_OWN)} passed" in done.stdout, done.stdout
    tests = outcomes(project)
    for name in _OWN:
        (link,) = tests[f"test_{name}.py::test_marked"]["links"]
        assert (link["link"], link["asked"]["delay"], link["proof"]["read_back"]) == ("a -> b", "80ms", "holds")
        assert link["met_packets"], "as far as it is known"


def test_two_compose_files_an_own_trace_profiles_and_a_capture_that_would_go_through_a_link(
    project: Path, kind: str
) -> None:
    (project / "test_rest.py").write_text(_REST)
    elsewhere = project / "elsewhere" / "test_rest.py_test_fails"
    elsewhere.mkdir(parents=True)
    (project / "report").mkdir()
    (project / "report" / "captures").symlink_to(project / "elsewhere")
    (elsewhere / "precious.pcapng").touch()
    done = run_pytest(project, *_TWO)
    assert "== 1 failed, 4 passed" in done.stdout, done.stdout
    tests = outcomes(project)
    assert {name.partition("::")[2]: (test["outcome"], test["profile"]) for name, test in tests.items()} == {
        "test_both_files_are_read": ("passed", None),
        "test_own_trace": ("passed", None),
        "test_each[clean]": ("passed", "clean"),
        "test_each[latency]": ("passed", "latency"),
        "test_fails": ("failed", None),
    }
    assert (
        f"not kept: {project / 'report' / 'captures'} is a symbolic link; testbed does not write through links"
        in done.stdout
    )
    assert [path.name for path in (project / "elsewhere").rglob("*") if path.is_file()] == ["precious.pcapng"]


def test_with_loadgroup_the_seed_is_the_same_and_the_line_that_repeats_it_works(project: Path, kind: str) -> None:
    (project / "test_group.py").write_text(_GROUP)
    (project / "conftest.py").write_text(_CONFTEST + _SUFFIX)
    options = ("--compose-file", "base.yaml", "--testbed-vacuous", "warn", "--testbed-capture", "never")
    grouped = run_pytest(project, "-n", "2", "--dist", "loadgroup", "--testbed-seed", "7", *options)

    def commands_and_seeds(done: subprocess.CompletedProcess[str]) -> tuple[list[str], list[str]]:
        lines = [line for line in done.stdout.splitlines() if line.startswith("pytest ")]
        return lines, re.findall(r"^E +AssertionError: (seeded \d+)", done.stdout, re.MULTILINE)

    (line,), (seeded,) = commands_and_seeds(grouped)
    assert line.startswith("pytest test_group.py::test_group --testbed-seed 7 "), "without the group's name"
    assert list(outcomes(project)) == ["test_group.py::test_group"]
    again = run(project, *shlex.split(line), "-p", "no:cacheprovider")
    assert commands_and_seeds(again) == ([line], [seeded]), again.stdout


def test_each_example_of_hypothesis_loses_the_same_packets_where_it_impairs_with_a_seed(
    project: Path, kind: str
) -> None:
    (project / "test_given.py").write_text(_GIVEN)
    options = ("test_given.py", "--compose-file", "base.yaml", "--testbed-capture", "never", "--hypothesis-seed", "3")
    losses = []
    for _ in range(2):
        done = run_pytest(project, *options)
        assert "== 1 failed, 1 passed" in done.stdout, done.stdout
        losses += re.findall(r"^E +AssertionError: lost (.*)", done.stdout, re.MULTILINE)
        (link,) = outcomes(project)["test_given.py::test_given"]["links"]
        assert (link["link"], link["proof"]["read_back"]) == ("a -> b", "holds"), "one evidence"
    assert losses[0] == losses[1] != "{}", "the same examples, the same losses"
