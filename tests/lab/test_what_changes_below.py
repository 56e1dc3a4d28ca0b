"""Changes under a running lab: a host restarts, gets another address, or the carried kernel dies."""

from __future__ import annotations

import os
import signal
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import ComposeLab, ImpairmentNotAppliedError, InvalidValueError
from testbed.netem import qdisc
from tests.lab.conftest import HERE, Datagrams, as_late_as_allowed, prepare

LABS = ("compose",)

_RECEIVE = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", 9200)); s.settimeout(10)
print("ready", flush=True); print(len(s.recv(65535)))
"""
_SEND_WHOLE = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_PMTUDISC_DO
s.sendto(b"x" * int(sys.argv[2]), (sys.argv[1], 9200))
"""


@pytest.fixture(scope="module")
def jumbo(kind: str, pytestconfig: pytest.Config) -> Iterator[ComposeLab]:
    assert kind == "compose"
    with as_late_as_allowed(
        ComposeLab(HERE / "stacks" / "jumbo.yaml", netem=pytestconfig.getoption("--netem")), pytestconfig
    ) as lab:
        prepare(*lab.hosts.values())
        yield lab


@pytest.fixture
def lab(jumbo: ComposeLab) -> Iterator[ComposeLab]:
    yield jumbo
    jumbo.heal()


def round_trip(lab: ComposeLab, src: str) -> float:
    return min(Datagrams(lab.hosts[src], lab.hosts["server"]).round_trips(3))


def test_a_frame_of_9000_bytes_passes_whole(lab: ComposeLab) -> None:
    lab.impair("client -> server", delay="5ms")
    server = lab.hosts["server"]
    receiver = server.start(["python3", "-c", _RECEIVE], ready="ready")
    largest = 9000 - 20 - 8  # the headers of IP and UDP
    sent = lab.hosts["client"].run(["python3", "-c", _SEND_WHOLE, server.addresses("lan")[0], str(largest)])
    assert sent.ok, sent.stderr
    assert receiver.wait().stdout.split() == ["ready", str(largest)]


def test_a_bucket_that_no_full_size_packet_fits_is_refused(lab: ComposeLab) -> None:
    with pytest.raises(InvalidValueError, match=r"bucket='2kB': `lan` has an MTU of 9000 bytes.*at least 9014"):
        lab.impair("client -> server", rate="1mbit", bucket="2kB")
    lab.impair("client -> server", rate="1mbit", bucket="10kB")


def test_a_source_with_another_address_is_found_out_and_led_to_its_impairment_again(lab: ComposeLab) -> None:
    lab.impair("client -> server", delay="300ms")
    lab.impair("other -> server", delay="100ms")
    network = lab.engine.networks(testbed_run=lab.run_id)[0]
    network.disconnect(lab.hosts["client"].container)
    network.connect(lab.hosts["client"].container)
    with pytest.raises(ImpairmentNotAppliedError, match=r"client -> server.*asked delay=300ms.*left the network"):
        lab.verifier.verify()

    lab.impair("client -> server", delay="300ms")
    lab.verifier.verify()
    assert round_trip(lab, "client") >= 0.300
    assert 0.100 <= round_trip(lab, "other") < 0.300, "the other source kept its own"


def test_a_receiver_that_was_started_again_is_found_out_and_gets_every_impairment_back(lab: ComposeLab) -> None:
    lab.impair("client -> server", delay="300ms")
    lab.impair("other -> server", delay="100ms")
    lab.hosts["server"].container.restart(timeout=5)
    with pytest.raises(ImpairmentNotAppliedError, match=r"its veth .* no longer exists"):
        lab.verifier.verify()

    lab.impair("client -> server", delay="310ms")
    lab.verifier.verify()
    assert {str(ref): impairment.describe() for ref, impairment in lab.impairer.impairments().items()} == {
        "client -> server": "delay=310ms",
        "other -> server": "delay=100ms",
    }
    assert round_trip(lab, "client") >= 0.310
    assert 0.100 <= round_trip(lab, "other") < 0.310


def test_when_the_carried_kernel_dies_the_test_is_invalid_and_the_next_has_a_new_one(lab: ComposeLab) -> None:
    if lab.netem_engine != "carried":
        pytest.skip("no kernel is carried here")
    lab.impair("client -> server", delay="400ms")
    lab.impair("client -> server", delay="300ms")
    os.kill(kernel(lab.run_id), signal.SIGKILL)
    with pytest.raises(ImpairmentNotAppliedError, match=r"the carried kernel exited with status -9"):
        lab.verifier.verify()
    lab.heal()
    datagrams = Datagrams(lab.hosts["client"], lab.hosts["server"])
    assert statistics.median(datagrams.round_trips(5)) < 0.150, "the cables are whole again"
    lab.impair("client -> server", delay="30ms")
    assert round_trip(lab, "client") >= 0.030


def kernel(run_id: str) -> int:
    """The first process of the run's carried kernel."""
    kernels = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue  # it ended while we looked
        if words[0].endswith(b"linux.uml") and f"umid=tb{run_id[:6]}".encode() in words:
            kernels.append(int(path.parent.name))
    return min(kernels)


def test_a_source_whose_filter_is_missing_is_refused_each_time(
    lab: ComposeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.impair("client -> server", delay="1ms")
    port = lab.ports.attached("server", "lan")
    lab.ports.tc(port, [f"qdisc delete dev {port.device} root"])
    lab.ports.forget(port)
    with monkeypatch.context() as without_filters:
        without_filters.setattr(qdisc.Filter, "put", lambda _filter, device: qdisc.show(device))
        for _attempt in range(2):
            with pytest.raises(ImpairmentNotAppliedError, match=r"filter get"):
                lab.impair("client -> server", delay="20ms")
    lab.impair("client -> server", delay="20ms")
    assert round_trip(lab, "client") >= 0.020
