"""What the tests on real containers share: programs put into the hosts, and the sockets of earlier tests gone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed import CommandTimeoutError, ComposeLab, Result
from testbed.labs.compose import ComposeHost
from testbed.labs.waiting import await_condition

HERE = Path(__file__).parent
_PROGRAM = "/tmp/datagrams.py"
_PORT = "9000"
_CLOSED = {"07", "0A", "06"}  # CLOSE, LISTEN, TIME_WAIT of include/net/tcp_states.h: these send nothing


@dataclass
class Datagrams:
    """Numbered UDP datagrams from one host to another."""

    src: ComposeHost
    dst: ComposeHost
    network: str = "lan"
    port: int = int(_PORT)
    address: str = ""
    """Where to; the receiver's first address on the network if empty."""

    def _send(self, count: int, attempts: int = 30, pace_s: float = 0.002) -> Result:
        argv = ["python3", _PROGRAM, "send", self._address, str(self.port), str(count), str(attempts), str(pace_s)]
        return self.src.run(argv, timeout="60s")

    @property
    def _address(self) -> str:
        return self.address or self.dst.addresses(self.network)[0]

    def arrived(self, count: int, *, pace_s: float = 0.002) -> list[int]:
        """Send ``count`` datagrams; the numbers that arrived, in order of arrival."""
        receiver = self.dst.start(["python3", _PROGRAM, "receive", str(self.port)], ready="ready")
        sender = self._send(count, pace_s=pace_s)
        assert sender.ok, sender.stderr
        numbers: list[int] = json.loads(receiver.wait().stdout.splitlines()[1])
        return numbers

    def sent_into_nothing(self, count: int) -> str:
        """Send where nothing comes back; what the receiver has printed after the sender gave up."""
        receiver = self.dst.start(["python3", _PROGRAM, "receive", str(self.port)], ready="ready")
        sender = self._send(count, attempts=1)
        assert "nobody heard the end" in sender.stderr
        return receiver.stop("SIGKILL").stdout

    def round_trips(self, count: int) -> list[float]:
        """Times of that many exchanges, in seconds."""
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


def prepare(*hosts: ComposeHost) -> None:
    """Put the program into the hosts."""
    for host in hosts:
        host.put(_PROGRAM, (HERE / "programs" / "datagrams.py").read_bytes())


def await_quiet(*hosts: ComposeHost) -> None:
    """Wait until no TCP socket of an earlier test has anything left to send: it would take its place in the loss."""

    def talking() -> list[str]:
        tables = [host.run(["cat", "/proc/net/tcp"]).stdout.splitlines()[1:] for host in hosts]
        states = [line.split()[3] for table in tables for line in table]
        return [state for state in states if state not in _CLOSED]

    await_condition(talking, lambda states: not states, deadline_s=60)


@pytest.fixture
def datagrams(lab: ComposeLab) -> Datagrams:
    """Datagrams from the client to the server."""
    client, server = lab.hosts["client"], lab.hosts["server"]
    prepare(client, server)
    return Datagrams(client, server)
