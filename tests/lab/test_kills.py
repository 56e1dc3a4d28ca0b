"""kill -9 at random moments, on both labs: of pytest, of the command line, of agents and of carried kernels.

Some of each in every run; `-m by_hand` has forty or fifty. The moments are drawn from a seed that a failure prints;
KILLS_SEED gives it. A moment is how much had been done by then, and then some: the machine's speed changes little about
it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from testbed.backends.docker.connecting import NoEngineError
from testbed.backends.docker.engine import RUN_LABEL, Engine
from testbed.backends.docker.runs import StackRun, clear_stale, runs
from testbed.backends.local.images import cache
from testbed.lab.waiting import NotSeenError, await_condition
from testbed.report.files import load
from tests import archives
from tests.archives import entry, link
from tests.lab.conftest import ROOT, stack_from_anywhere
from tests.lab.test_kill import devices, kernels
from tests.lab.test_local_death import alive, mounts, named_after, named_namespaces, relatives

_WITHIN_S = 5.0
_ENDS_WITHIN_S = 15.0
"""A pytest that is not killed itself, and takes its stack down as at the end of any session."""
_MARK = "TESTBED_KILLS"
"""A variable of the environment of all that comes of a victim."""


def _counts(few: int, many: int = 40) -> pytest.MarkDecorator:
    by_hand = pytest.param(many, marks=[pytest.mark.by_hand, pytest.mark.timeout(7200)])
    return pytest.mark.parametrize("count", [pytest.param(few, marks=pytest.mark.timeout(600)), by_hand])


_CONFTEST = """
import os
from pathlib import Path
from testbed.pytest import state

def _note(name, text):
    with open(name, "a") as file:
        file.write(text + "\\n")

def pytest_configure(config):
    _note("run", state.lab_of(config).run_id)

def pytest_runtest_logfinish(nodeid):
    _note("ended", nodeid)
"""
_TESTS = """
import pytest

CONNECT = (
    "import socket, time; began = time.monotonic(); socket.create_connection(('server', 8888), 2); "
    "print(time.monotonic() - began)"
)

@pytest.mark.impair("client -> server", delay="30ms")
@pytest.mark.parametrize("number", range({tests}))
def test_of_many(lab, number):
    done = lab.host("client").run(["python3", "-c", CONNECT])
    assert done.ok, done.stderr
    assert float(done.stdout) >= 0.03
    {more}
"""


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> random.Random:
    """Draws the moments."""
    seed = int(os.environ.get("KILLS_SEED", secrets.randbits(32)))
    _tell(f"KILLS_SEED={seed}")
    return random.Random(f"{seed} {request.node.name}")  # noqa: S311  # to be drawn again


def _tell(text: str) -> None:
    """For whoever looks: pytest -s, or a failure's report."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Project:
    """A project with a Compose file and tests in a folder, and what is left of it on this machine."""

    def __init__(self, folder: Path, kind: str, *, tests: int, more: str = "pass") -> None:
        self.folder, self.kind, self.mark = folder, kind, secrets.token_hex(8)
        for name, text in {
            "compose.yaml": stack_from_anywhere(),
            "conftest.py": _CONFTEST,
            "test_it.py": _TESTS.format(tests=tests, more=more),
        }.items():
            (folder / name).write_text(text)
        (folder / "temporary").mkdir()
        self._mounted = mounts() | named_namespaces()

    def start(self, module: str, *arguments: str) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            _MARK: self.mark,
            "TMPDIR": str(self.folder / "temporary"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        }
        with (self.folder / "output").open("w") as output:
            return subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=self.folder,
                env=environment,
                text=True,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def pytest(self) -> subprocess.Popen[str]:
        for name in ("ended", "run"):
            (self.folder / name).unlink(missing_ok=True)
        return self.start(
            "pytest",
            "-p",
            "no:cacheprovider",
            "--rootdir=.",
            f"--basetemp={self.folder / 'base'}",
            "--lab",
            self.kind,
            "--netem=carried",
            "--testbed-lateness=warn",
            "--compose-file=compose.yaml",
        )

    def noted(self, name: str) -> list[str]:
        """What the inner pytest has noted."""
        path = self.folder / name
        return path.read_text().split() if path.exists() else []

    def came_to(self, ended: int) -> bool:
        """Whether so many tests have ended; -1: whether it has a lab that is not up yet; -2: always."""
        return ended == -2 or (len(self.noted("ended")) >= ended and bool(self.noted("run")))

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text()

    def runs(self) -> list[StackRun]:
        """The runs of its stack that have objects on the engine; none in a local lab."""
        if self.kind == "local":
            return []
        return [run for run in runs(Engine()) if run.stack == str(self.folder / "compose.yaml")]

    def left(self, everyone: set[int]) -> dict[str, object]:
        """What is left of it besides containers: processes, devices, kernels, mounts, temporary files."""
        ids = {*self.noted("run"), *(run.id for run in self.runs() if self.kind == "compose")}
        return {
            "processes": alive(everyone | _marked(self.mark)),
            "devices": [name for run_id in ids for name in (*devices(run_id), *named_after(run_id))],
            "kernels": [pid for run_id in ids for pid in kernels(run_id)],
            "mounts": (mounts() | named_namespaces()) - self._mounted if self.kind == "local" else (),
            "files": list((self.folder / "temporary").iterdir()),
        }

    def assert_nothing_is_left(self, everyone: set[int], within_s: float = _WITHIN_S) -> None:
        """Nothing but containers, which the next run removes, and the agents in them."""
        await_condition(lambda: self.left(everyone), lambda seen: not any(seen.values()), deadline_s=within_s)

    def assert_nothing_runs(self, everyone: set[int]) -> None:
        """Of its own processes."""
        await_condition(lambda: alive(everyone | _marked(self.mark)), lambda left: not left, deadline_s=_WITHIN_S)

    def assert_stale_is_cleared(self) -> None:
        """As `testbed down --stale` does it."""
        messages: list[str] = []
        if ids := [run.id for run in self.runs()]:
            clear_stale(engine := Engine(), messages.append)
            for run_id in ids:
                assert [one.name for one in engine.labelled(RUN_LABEL, run_id)] == [], messages
        assert self.runs() == []
        self.assert_nothing_is_left(set())


def _marked(mark: str) -> set[int]:
    """The processes that have this mark in their environment."""
    pids = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it ended, or is another's
            if f"{_MARK}={mark}".encode() in path.read_bytes():
                pids.add(int(path.parent.name))
    return pids


def _kill(process: subprocess.Popen[str]) -> set[int]:
    """Kill a process; every process that it had started until then."""
    process.send_signal(signal.SIGSTOP)  # it starts nothing more while we look
    everyone = relatives(process.pid) - {process.pid}
    process.kill()
    process.wait()
    return everyone


def _at(process: subprocess.Popen[str], reached: Callable[[], object], draw: random.Random, most_s: float) -> None:
    """Wait until a process has come so far or has ended, and then for a random time."""
    with contextlib.suppress(NotSeenError):  # a slow machine's moment is as good
        await_condition(lambda: reached() or process.poll() is not None, bool, deadline_s=60, every_s=0.01)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(draw.uniform(0, most_s))


_TESTS_EACH = 4


@_counts(2)
def test_of_a_killed_pytest_nothing_is_left_and_the_results_are_whole(
    kind: str, tmp_path: Path, draw: random.Random, count: int
) -> None:
    project = Project(tmp_path, kind, tests=_TESTS_EACH)
    for _ in range(count):
        ended = draw.choice([-2, -1, -1, *range(_TESTS_EACH + 1)])
        process = project.pytest()
        _at(process, partial(project.came_to, ended), draw, 4.0 if ended < 0 else 0.7)
        everyone = _kill(process)
        project.assert_nothing_is_left(everyone)
        ended = _assert_results_are_whole(project)
        _tell(f"killed when {ended} tests had ended")
    project.assert_stale_is_cleared()


def _assert_results_are_whole(project: Project) -> int:
    """Check that each test that had ended has a whole line; the number of lines."""
    ended, path = project.noted("ended"), project.folder / "report" / "results.jsonl"
    *lines, torn = path.read_text().split("\n") if path.exists() else [""]
    printed = [json.loads(line) for line in lines]
    outcomes = {line["test"]["id"]: line["test"]["outcome"] for line in printed if "test" in line}
    assert set(ended) <= set(outcomes), (outcomes, torn, project.output)
    path.unlink(missing_ok=True)  # of a run that is killed before its first test none is written
    return len(ended)


# --- the command line ------------------------------------------------------------------------------


@pytest.mark.timeout(240)
def test_a_killed_envelope_leaves_nothing_and_runs_no_more_tests(tmp_path: Path, draw: random.Random) -> None:
    """Its pytest ends the test that it is at, and not all of its tests, which take half a minute."""
    project = Project(tmp_path, "local", tests=60, more="import time; time.sleep(0.5)")
    process = project.start(
        "testbed.commands.cli", "envelope", "--vary", "delay=30..100ms", "--", "-p", "no:cacheprovider", "--rootdir=.",
        "--lab=local", "--netem=carried", "--testbed-lateness=warn", "--compose-file=compose.yaml", "test_it.py",
    )  # fmt: skip
    _at(process, partial(project.came_to, draw.choice([1, 3])), draw, 1.0)
    assert process.poll() is None, project.output
    project.assert_nothing_is_left(_kill(process), _ENDS_WITHIN_S)
    assert len(project.noted("ended")) < 30


_LINK = "client -> server"
_OWN = ("exec", "--netem=carried", "--impair", f"{_LINK}=delay=30ms", "client", "--", "sleep", "1")


@_counts(2)
def test_of_a_killed_command_nothing_is_left(kind: str, tmp_path: Path, draw: random.Random, count: int) -> None:
    project = Project(tmp_path, kind, tests=0)
    for _ in range(count):
        command = _next_command(project, draw) if kind == "compose" else _OWN
        argv = [*command[:1], *(["--lab", kind] if command is _OWN else []), *command[1:]]
        process = project.start("testbed.commands.cli", *argv)
        _at(process, lambda: True, draw, 2.0 if command[0] in ("impair", "heal") else 6.0)
        _tell(f"killed: {command[0]}{'' if process.poll() is None else ', which had ended'}")
        everyone = _kill(process)
        if command[0] in ("up", "down", "impair", "heal"):  # its agent goes with its containers
            project.assert_nothing_runs(everyone)
        else:
            project.assert_nothing_is_left(everyone)
    if kind == "compose":
        clear_stale(Engine(), _tell)
        for run in project.runs():
            assert run.stays, "only what was wholly up is there still"
            taken_down = project.start("testbed.commands.cli", "down")
            assert taken_down.wait(60) == 0, project.output
    project.assert_stale_is_cleared()


def _next_command(project: Project, draw: random.Random) -> tuple[str, ...]:
    """Random commands on a stack that is up, or one that brings it up."""
    clear_stale(Engine(), _tell)
    if not any(run.stays for run in project.runs()):
        if draw.random() < 0.5:
            return draw.choice([("up", "--netem=carried"), _OWN])
        assert project.start("testbed.commands.cli", "up", "--netem=carried").wait(100) == 0, project.output
    chosen = draw.choice(
        [("impair", _LINK, "delay=30ms"), ("impair", "server -> client", "loss=5%"), ("heal",), ("down",)]
    )
    if chosen[0] != "down":  # whoever was killed before, the stack can be used
        assert project.start("testbed.commands.cli", "impair", _LINK, "delay=5ms").wait(60) == 0, project.output
    return chosen


# --- unpacking ---------------------------------------------------------------------------------------

_FILES = 3000
_FINDS = ("exec", "--lab", "local", "a", "--", "/usr/bin/find", "/files", "-type", "f", "-size", "1000c")


@pytest.fixture
def image(tmp_path: Path) -> Iterator[str]:
    """An image of many files; its programs are this machine's."""
    try:
        engine = Engine()
    except NoEngineError as error:
        pytest.skip(f"an engine's image needs an engine: {error}")
    links = [link(name, f"usr/{name}") for name in ("bin", "lib", "lib64") if Path(f"/{name}").exists()]
    files = [entry(f"files/{number}", os.urandom(1000)) for number in range(_FILES)]
    (tmp_path / "image.tar").write_bytes(archives.layer(*links, entry("usr"), entry("files"), *files))
    repository = f"testbed/killed-{secrets.token_hex(4)}"
    engine.import_root(tmp_path / "image.tar", repository, "1", {"testbed.inputs": "killed"})
    yield f"{repository}:1"
    engine.remove_image(f"{repository}:1")


@_counts(3, 50)
def test_of_a_killed_unpacking_nothing_stays_and_nothing_half_done_is_used(
    image: str,
    tmp_path: Path,
    draw: random.Random,
    count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    unpacked = cache()
    project = Project(tmp_path, "local", tests=0)
    (tmp_path / "compose.yaml").write_text(
        f"services: {{a: {{image: '{image}', command: sleep infinity, volumes: ['/usr:/usr:ro']}}}}\n"
    )
    dead: list[int] = []
    half_done = 0

    def begun_since(before: set[Path]) -> set[Path]:
        return set(unpacked.folder.glob("new-*")) - before

    for _ in range(count):
        for whole in unpacked.images():
            assert unpacked.remove(whole)
        before = begun_since(set())
        process = project.start("testbed.commands.cli", *_FINDS)
        _at(process, partial(begun_since, before), draw, 1.5)
        everyone = _kill(process)
        dead.append(process.pid)
        half_done += bool(begun_since(before))
        _tell(f"killed when {len(unpacked.images())} images were unpacked")
        project.assert_nothing_is_left(everyone)
        assert [len(list((whole.root / "files").iterdir())) for whole in unpacked.images()] in ([], [_FILES])
    for whole in unpacked.images():
        assert unpacked.remove(whole)
    assert half_done, "no kill came while the image was unpacked"
    last = project.start("testbed.commands.cli", *_FINDS)
    assert last.wait(120) == 0, project.output
    assert len(project.output.split("\n/files/")) == _FILES + 1
    assert list(unpacked.folder.glob("new-*")) == []
    project.assert_nothing_is_left(set())
    owners = [run.owner for run in runs(Engine())]
    assert [owner for owner in owners for pid in dead if f":{pid}:" in owner] == []


# --- agents and kernels ----------------------------------------------------------------------------


@_counts(1)
@pytest.mark.parametrize("victim", ["agent", "kernel"])
def test_after_the_death_of_an_agent_or_a_kernel_the_session_goes_on(
    kind: str, tmp_path: Path, draw: random.Random, count: int, victim: str
) -> None:
    project = Project(tmp_path, kind, tests=_TESTS_EACH * count + 2, more="import time; time.sleep(0.1)")
    process, killed = project.pytest(), 0
    (run_id,) = await_condition(lambda: project.noted("run"), bool, deadline_s=60)
    deadline_s = 200 + 10 * count  # two minutes at a load of 25 on two processors
    with process:
        try:
            while killed < count:
                # Each time some tests were whole since the last one.
                _at(process, partial(project.came_to, _TESTS_EACH * killed + 1), draw, 0.6)
                assert process.poll() is None, project.output
                pids = _agents(process, run_id, kind) if victim == "agent" else [int(pid) for pid in kernels(run_id)]
                if pids:
                    with contextlib.suppress(ProcessLookupError):  # UML has several, which go together
                        os.kill(min(pids), signal.SIGKILL)
                    killed += 1
                    _tell(f"killed when {len(project.noted('ended'))} tests had ended")
            everyone = relatives(process.pid)
            process.wait(deadline_s)
        finally:
            process.kill()
    session = load(tmp_path / "report" / "results.jsonl")
    outcomes = [test.last.outcome.of("test") for test in session.tests]
    _tell(f"{victim}: {count} killed: {outcomes.count('passed')} passed, {outcomes.count('invalid')} invalid")
    assert set(outcomes) <= {"passed", "invalid"}, project.output
    assert len(outcomes) == _TESTS_EACH * count + 2, project.output
    assert outcomes.count("invalid") <= count, project.output
    project.assert_nothing_is_left(everyone)
    if kind == "compose":
        assert project.runs() == [], project.output


def _agents(process: subprocess.Popen[str], run_id: str, kind: str) -> list[int]:
    """The process of the agent that holds the ports: of a container, or the keeper's grandchild."""
    if kind == "compose":
        engine = Engine()
        containers_of_run = engine.containers(testbed_run=run_id, testbed_role="ports")
        return [pid for line in containers_of_run if (pid := engine.state(line).get("State", {}).get("Pid"))]
    with contextlib.suppress(OSError):
        keepers = [pid for pid in _children(process.pid) if b"testbed" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        return [agent for keeper in keepers for first in _children(keeper) for agent in _children(first)][:1]
    return []


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
