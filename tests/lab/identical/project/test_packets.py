"""What passes in each of these tests is the same on all machines: tests/lab/test_identical.py."""

import pytest

from testbed import Lab


def _exchange(lab: Lab, protocol: str, port: int, count: int, size: int) -> None:
    lab.host("server").start(["python3", "peer.py", "serve"], ready="listening")
    done = lab.host("client").run(["python3", "peer.py", protocol, *map(str, (port, count, size))], timeout="10min")
    assert done.ok, done.stderr


@pytest.mark.impair("client <-> server", delay="20ms")
def test_delay_udp(lab: Lab) -> None:
    _exchange(lab, "udp", 4001, 20, 100)


@pytest.mark.impair("client <-> server", delay="10ms", loss="5%")
def test_loss_tcp(lab: Lab) -> None:
    _exchange(lab, "tcp", 4002, 30, 3000)


@pytest.mark.impair("client -> server", delay="40ms", jitter="10ms", distribution="normal")
def test_jitter_udp(lab: Lab) -> None:
    _exchange(lab, "udp", 4003, 40, 800)


@pytest.mark.impair("client -> server", delay="300ms", reorder="25%")
def test_reordering_tcp(lab: Lab) -> None:
    _exchange(lab, "tcp", 4004, 40, 500)


@pytest.mark.impair("client -> server", [{"delay": "40ms", "rate": "1mbit"}, {"at": "3s", "outage": "2s"}])
def test_timeline_tcp(lab: Lab) -> None:
    _exchange(lab, "tcp", 4005, 20, 5000)
