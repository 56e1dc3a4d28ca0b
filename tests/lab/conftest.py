"""What tests on real labs share: parametrisation by kind of lab, programs in the hosts, waiting for closed sockets.

A test that uses ``lab``, ``stack`` or ``kind`` runs once on containers and once on namespaces; a module for which one
of them alone will do says so: ``LABS = ("compose",)``. One that asks what netem does, what is seen of it or how that is
judged, says ``BELOW_THE_LAB = True``: on containers it is ``slow``, and run in CI.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import pytest

from testbed import CommandTimeoutError, Host, Lab, LabError, Program, Result
from testbed.backends.choice import decide, make_lab
from testbed.lab.ports import Port, flat, show_entry
from testbed.lab.waiting import await_condition
from testbed.netem import qdisc

SomeLab = TypeVar("SomeLab", bound=Lab)
collect_ignore = ["repository", "identical"]  # test_ci_jobs.py and test_identical.py run them
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FOREIGN = "tbt"
"""Names of network namespaces that begin so are the tests' own, and no lab's."""
_PROGRAM = "/tmp/datagrams.py"
_PYTEST = "#!{}\nimport sys\nimport pytest\nsys.exit(pytest.main())\n"
_PORT = "9000"
# CLOSE, LISTEN, TIME_WAIT, FIN_WAIT2 of include/net/tcp_states.h: these send nothing. One whose peer's FIN was lost for
# good is in the last for a minute.
_CLOSED = {"07", "0A", "06", "05"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that needs a lab on every kind of lab."""
    if "kind" in metafunc.fixturenames:
        kinds = getattr(metafunc.module, "LABS", ("compose", "local"))
        if (lab := metafunc.config.getoption("--lab")) == "within" and "compose" in kinds:
            kinds = (lab,)
        below = getattr(metafunc.module, "BELOW_THE_LAB", False)
        marks = {"compose": pytest.mark.slow} if below and len(kinds) > 1 else {}
        params = [pytest.param(kind, marks=marks.get(kind, ())) for kind in kinds]
        metafunc.parametrize("kind", params, indirect=True, scope="session")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to a test that failed what its ports counted: where packets vanish cannot be seen afterwards."""
    report = yield
    if call.when == "call" and report.failed:
        labs = {lab.run_id: lab for lab in getattr(item, "funcargs", {}).values() if isinstance(lab, Lab)}
        for port in (port for lab in labs.values() for port in lab.ports):
            report.sections.append((f"port {port.name} of {port.ref}", "\n".join(map(json.dumps, _counted(port)))))
    return report


def _counted(port: Port) -> Iterator[object]:
    """A port's qdiscs, the redirects that feed it, and what passed its kernel."""
    lines = [qdisc.show(port.device), *show_entry(port)]
    try:
        qdiscs, *entry = port.channel.call("tc", port=port.name, lines=lines)["shown"]
        yield [{name: row.get(name) for name in ("kind", "parent", "packets", "drops", "qlen")} for row in qdiscs]
        yield [row["options"].get("rule_hit") for row in flat(entry) if "options" in row]
        yield port.channel.call("carried", ports=[port.name])
    except LabError as error:
        yield str(error)


@pytest.fixture(scope="session")
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of lab that this test runs on; skipped where it cannot be had."""
    wanted: str = getattr(request, "param", "compose")
    lab = request.config.getoption("--lab")
    if lab not in ("auto", wanted):
        pytest.skip(f"--lab {lab}")
    if wanted == "compose" and (choice := decide("auto"))[0] != "compose":
        pytest.skip(choice[1])
    return wanted


def cli(*arguments: str, cwd: Path | None = None, within_s: float = 250) -> subprocess.CompletedProcess[str]:
    """The command line, as its user types it."""
    return subprocess.run(
        [sys.executable, "-m", "testbed.commands.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd or ROOT,
        timeout=within_s,
    )


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of a venv with this checkout's wheel and its dependencies."""
    folder = tmp_path_factory.mktemp("installed")
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, env=os.environ)
    (wheel,) = folder.glob("*.whl")
    run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")])
    commands = folder / "venv" / "bin"
    python = commands / "python"
    install = ["install", "--no-deps", "--no-index", "--no-cache-dir", str(wheel)]
    run([sys.executable, "-m", "pip", "--python", str(python), *install], env=os.environ)
    # What the lock file pins is here already; a .pth file does not lead to this checkout, which is another one's.
    own = run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
    Path(own, "dependencies.pth").write_text(str(Path(pytest.__file__).parents[1]))
    (commands / "pytest").write_text(_PYTEST.format(python))
    (commands / "pytest").chmod(0o755)
    where = run([str(python), "-c", "import testbed; print(testbed.__file__)"], cwd=folder)
    assert Path(where).is_relative_to(folder), f"the wheel is what is tested, not {where}"
    return commands


def users_environment() -> dict[str, str]:
    """This environment without what pytest and this checkout put there."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHONPATH"))}


def run(
    argv: list[str], *, cwd: Path | None = None, may: tuple[int, ...] = (0,), env: Mapping[str, str] | None = None
) -> str:
    """The output of a program that must end with one of these statuses."""
    done = subprocess.run(
        argv,
        cwd=cwd,
        env=users_environment() if env is None else env,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode in may, f"{argv}: status {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the paper's Compose file: no other stack is meant, and none of it is up."""
    (tmp_path / "images").symlink_to(ROOT / "images")
    (tmp_path / "compose.yaml").write_text((ROOT / "compose.yaml").read_text())
    return tmp_path


def stack_from_anywhere() -> str:
    """The repository's Compose file, for a folder elsewhere: the folders that it names are absolute."""
    text = (ROOT / "compose.yaml").read_text().replace("context: images,", "context: images/,")
    return text.replace("images/", f"{ROOT}/images/")


def lab_of(kind: str, config: pytest.Config, file: Path) -> Lab:
    """A lab of this kind for a Compose file; not up yet."""
    return as_late_as_allowed(make_lab(kind, file, netem=config.getoption("--netem"), say=lambda _text: None), config)


def as_late_as_allowed(lab: SomeLab, config: pytest.Config) -> SomeLab:
    """A lab that a test made by itself, with this session's ``--testbed-lateness``."""
    lab.carriage.warn_only = config.getoption("--testbed-lateness") == "warn"
    return lab


@cache
def _claimed() -> tuple[int, socket.socket]:
    """A number below 512 that no other process here has claimed, and the socket that claims it while we run."""
    for offset in range(512):
        number, claim = (os.getpid() + offset) % 512, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0testbed-tests-subnet-{number}")  # abstract, unix(7): gone with us
        except OSError:
            claim.close()
        else:
            return number, claim
    raise LabError("512 runs at once: every subnet is taken")


def own_subnet() -> str:
    """The middle of the subnet of `stacks/three.yaml`, between ``198.`` and the last number, for this process alone.

    Two workers' stacks, or two runs', must not want the same subnet on one engine, nor one that the engine gives to
    others by itself. So they are in 198.18.0.0/15 (RFC 2544, for benchmarks); that of `stacks/scaled.yaml` in
    fd00::/16.
    """
    number, _ = _claimed()
    os.environ["SCALED"] = f"{number:x}"
    os.environ["THREE"] = f"{18 + number // 256}.{number % 256}"
    return os.environ["THREE"]


@pytest.fixture(scope="session")
def stack(kind: str, pytestconfig: pytest.Config) -> Iterator[Lab]:
    """The paper's stack, up as long as tests of this kind run."""
    with lab_of(kind, pytestconfig, HERE.parents[1] / "compose.yaml") as lab:
        yield lab


@dataclass
class Datagrams:
    """Numbered UDP datagrams from one host to another."""

    src: Host
    dst: Host
    network: str = "lan"
    port: int = int(_PORT)
    address: str = ""
    """Where to; the receiver's first address on the network if empty."""

    def _sending(self, count: int, attempts: int, pace_s: float) -> list[str]:
        return ["python3", _PROGRAM, "send", self._address, str(self.port), str(count), str(attempts), str(pace_s)]

    def _send(self, count: int, attempts: int = 30, pace_s: float = 0.002) -> Result:
        return self.src.run(self._sending(count, attempts, pace_s), timeout="60s")

    @property
    def _address(self) -> str:
        return self.address or self.dst.addresses(self.network)[0]

    def arrived(self, count: int, *, pace_s: float = 0.002, linger_s: float = 0.0) -> list[int]:
        """Send ``count`` datagrams; the numbers that arrived, in order of arrival.

        ``linger_s``: how much later than the word that ends it one may come that it has overtaken.
        """
        receiver = self.dst.start(["python3", _PROGRAM, "receive", str(self.port), str(linger_s)], ready="ready")
        sender = self._send(count, pace_s=pace_s)
        assert sender.ok, sender.stderr
        numbers: list[int] = json.loads(receiver.wait().stdout.splitlines()[1])
        return numbers

    def arrival_times_s(self, count: int, *, pace_s: float = 0.002) -> list[float]:
        """Send ``count`` datagrams; the arrival times by the receiver's monotonic clock, in seconds."""
        receiver = self.dst.start(["python3", _PROGRAM, "receive", str(self.port)], ready="ready")
        sender = self._send(count, pace_s=pace_s)
        assert sender.ok, sender.stderr
        times: list[float] = json.loads(receiver.wait().stdout.splitlines()[2])
        return times

    def begin(self, count: int, *, pace_s: float) -> Program:
        """Start to send ``count`` datagrams; the receiver, which prints their numbers when it has heard the end."""
        receiver = self.dst.start(["python3", _PROGRAM, "receive", str(self.port)], ready="ready")
        self.src.start(self._sending(count, 30, pace_s))
        return receiver

    def sent_into_nothing(self, count: int) -> str:
        """Send ``count`` datagrams without an answer; what the receiver printed after the sender gave up."""
        receiver = self.dst.start(["python3", _PROGRAM, "receive", str(self.port)], ready="ready")
        sender = self._send(count, attempts=1)
        assert "nobody heard the end" in sender.stderr
        return receiver.stop("SIGKILL").stdout

    def round_trips(self, count: int) -> list[float]:
        """The times of ``count`` exchanges, in seconds."""
        echo = self.dst.start(["python3", _PROGRAM, "echo", str(self.port)], ready="ready")
        try:
            done = self.src.run(
                ["python3", _PROGRAM, "round-trips", self._address, str(self.port), str(count)], timeout="60s"
            )
            assert done.ok, done.stderr
            times: list[float] = json.loads(done.stdout)
            return times
        finally:
            try:
                echo.wait("2s")
            except CommandTimeoutError:  # the word that this was all was lost on the way
                echo.stop("SIGKILL")


def as_one_test(lab: Lab) -> Iterator[Lab]:
    """Yield the lab within one test: begin before, and end after."""
    lab.lifecycle.begin(None)
    yield lab
    lab.lifecycle.end()


_OF_THE_MACHINE = (
    r"(carried kernel \w+|this machine's timer) was .+ late|packets waited in the queue before the carried "
)


def of_links(warnings: Sequence[str]) -> list[str]:
    """Warnings, without those of a busy machine: a carrier was late, or packets waited before it."""
    return [warning for warning in warnings if not re.match(_OF_THE_MACHINE, warning)]


@pytest.fixture(scope="module")
def three(kind: str, pytestconfig: pytest.Config) -> Iterator[Lab]:
    """Three hosts, of which `other` and `server` share two networks."""
    own_subnet()
    with lab_of(kind, pytestconfig, HERE / "stacks" / "three.yaml") as lab:
        prepare(*lab.hosts.values())
        yield lab


def prepare(*hosts: Host) -> None:
    """Put the program into the hosts."""
    for host in hosts:
        host.put(_PROGRAM, (HERE / "programs" / "datagrams.py").read_bytes())


def await_quiet(*hosts: Host) -> None:
    """Wait until no TCP socket of an earlier test has data left to send: they would change which packets are lost."""

    def talking() -> list[str]:
        tables = [host.run(["cat", "/proc/net/tcp"]).stdout.splitlines()[1:] for host in hosts]
        states = [line.split()[3] for table in tables for line in table]
        return [state for state in states if state not in _CLOSED]

    await_condition(talking, lambda states: not states, deadline_s=60)


@pytest.fixture
def datagrams(lab: Lab) -> Datagrams:
    """Datagrams from the client to the server."""
    client, server = lab.hosts["client"], lab.hosts["server"]
    prepare(client, server)
    return Datagrams(client, server)


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep the processors busy with ``count`` processes."""
    burning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in burning:
            process.kill()
            process.wait()
