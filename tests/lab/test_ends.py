"""The machine and the outside as ends of links: what this process sends to a service, and what a service sends out."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest
import requests

from testbed import ComposeLab, InvalidValueError, Lab, LabError
from testbed.lab.observer import PortCapture
from testbed.lab.waiting import NotSeenError, await_condition
from testbed.observe.packet import ip_of
from testbed.observe.passages import Passage
from tests.lab.conftest import FOREIGN, HERE, as_one_test, lab_of
from tests.lab.programs.bodies import PORT

_PROGRAM = "/tmp/bodies.py"
_ASKED_S, _EXACT_S = 0.04, 0.0005
_MB = 1_000_000
_FRAME_BYTES = 1514
_ASK = """
import socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5) as there:
    for _ in range(int(sys.argv[3])):
        began = time.perf_counter()
        there.sendall(b"?")
        assert there.recv(1) == b"!"
        print(time.perf_counter() - began)
"""
_CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)"
_ANSWER = """
import socket
with socket.create_server((\"\", 7000)) as here:
    print("ready", flush=True)
    while True:
        there, _ = here.accept()
        while there.recv(1):
            there.sendall(b"!")
"""


@pytest.fixture(scope="module")
def two(kind: str, pytestconfig: pytest.Config) -> Iterator[Lab]:
    with lab_of(kind, pytestconfig, HERE / "stacks" / "ends.yaml") as lab:
        for host in lab.hosts.values():
            _serve(lab, host.name)
        yield lab


@pytest.fixture
def lab(two: Lab) -> Iterator[Lab]:
    yield from as_one_test(two)


def _serve(lab: Lab, name: str) -> None:
    lab.host(name).put(_PROGRAM, (HERE / "programs" / "bodies.py").read_bytes())
    lab.host(name).start(["python3", _PROGRAM], ready=PORT)


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as kept:
        yield kept


def took(session: requests.Session, lab: Lab, name: str) -> float:
    """How long a request of this process takes over a connection that is kept; seconds.

    Programs that have waited are slower than those that have just run, so all wait first.
    """
    url = f"{lab.host(name).url('http', PORT)}/1"
    assert session.get(url, timeout=10).text == "x"
    time.sleep(_ASKED_S)
    began = time.perf_counter()
    assert session.get(url, timeout=10).text == "x"
    return time.perf_counter() - began


def least(session: requests.Session, lab: Lab, name: str, count: int = 10) -> float:
    return min(took(session, lab, name) for _ in range(count))


def test_a_request_of_this_process_is_late_by_what_is_asked_and_those_to_others_are_not(
    lab: Lab, session: requests.Session
) -> None:
    lab.impair("localhost -> api", "clean")
    before_s = least(session, lab, "api", count=20)
    lab.impair("localhost -> api", delay="40ms")
    seen: list[float] = []

    def added_s() -> float:
        seen.append(took(session, lab, "api"))
        return min(seen) - before_s

    # A busy machine is late now and then, and a very busy one each time. That of a carried kernel does not see what
    # loads the machine below it.
    try:
        await_condition(added_s, lambda added: added <= _ASKED_S + _EXACT_S, deadline_s=20, every_s=0)
    except NotSeenError:
        carried = "User Mode Linux" in Path("/proc/cpuinfo").read_text()
        assert carried or os.getloadavg()[0] > (os.cpu_count() or 1), "the machine was quiet"
        assert added_s() <= _ASKED_S + 10 * _EXACT_S
    assert min(seen) >= _ASKED_S
    assert least(session, lab, "other") < 0.02
    lab.verifier.verify()
    (evidence,) = lab.ledger.evidence
    assert (evidence.link, evidence.problems) == ("localhost -> api", [])
    assert (evidence.met_packets or 0) >= 2 * len(seen)
    lab.heal()
    assert least(session, lab, "api") < 0.02


def test_a_megabyte_is_late_once_packet_by_packet(lab: Lab, session: requests.Session) -> None:
    lab.impair("localhost -> api", delay="40ms")
    before = lab.link("localhost -> api").counters().sent_packets
    assert session.post(f"{lab.host('api').url('http', PORT)}/", b"x" * _MB, timeout=30).text == str(_MB)
    assert lab.link("localhost -> api").counters().sent_packets - before >= _MB / _FRAME_BYTES
    if not isinstance(lab, ComposeLab):
        return
    # No proxy, and no more of the network's bandwidth is found than is there: the window grows until all of it fits.
    there = http.client.HTTPConnection(lab.host("api").addresses()[0], PORT, timeout=30)
    there.connect()
    there.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    seen: list[float] = []

    def upload_s() -> float:
        began = time.perf_counter()
        there.request("POST", "/", b"x" * _MB)
        assert there.getresponse().read() == b"%d" % _MB
        seen.append(time.perf_counter() - began)
        return min(seen)

    await_condition(upload_s, lambda least_s: least_s < 0.08, deadline_s=30, every_s=0)
    there.close()
    assert min(seen) >= 0.04


def test_both_directions_by_the_services_own_port(lab: Lab, session: requests.Session) -> None:
    lab.impair("localhost <-> api", delay="100ms")  # which a part of the traffic comes before
    lab.impair(f"localhost <-> api tcp/{PORT}", delay="20ms")
    assert 0.04 <= least(session, lab, "api") < 0.1
    lab.link(f"localhost -> api tcp/{PORT}").heal()
    assert 0.12 <= least(session, lab, "api") < 0.2
    lab.verifier.verify()
    met = {evidence.link: evidence.met_packets for evidence in lab.ledger.evidence}
    assert all(met[f"{ends}{part}"] for ends, part in (("api -> localhost", f" tcp/{PORT}"), ("localhost -> api", "")))
    assert (met["api -> localhost"] or 0) < 5  # what answers a probe that came late, at the most


def test_probes_prove_both_directions_and_counters_what_was_lost(lab: Lab, session: requests.Session) -> None:
    lab.impair("localhost <-> api", delay="10ms", prove=True)
    lab.impair("localhost -> api", drop_every=4)
    for _ in range(10):
        session.get(f"{lab.host('api').url('http', PORT)}/100000", timeout=20)
    link, counts = lab.link("localhost -> api"), [-1]

    def last_two() -> list[int]:
        counts.append(link.dropped_by_number() + link.counters().sent_packets)
        return counts[-2:]

    # The last acknowledgements may be delayed.
    await_condition(last_two, lambda two: two[0] == two[1], deadline_s=20, every_s=0.3)
    lab.verifier.verify()
    evidence = next(evidence for evidence in lab.ledger.evidence if evidence.link == "localhost -> api")
    lost = link.dropped_by_number()
    assert lost == (evidence.met_packets or 0) // 4 > 0
    assert evidence.problems == []


def test_a_cut_lasts_until_it_is_mended_and_others_are_reached(lab: Lab, session: requests.Session) -> None:
    def reached(name: str) -> bool:
        try:
            session.get(f"{lab.host(name).url('http', PORT)}/1", timeout=0.5)
        except requests.RequestException:
            return False
        return True

    cuts: list[Callable[[], object]] = [
        lambda: lab.cut("localhost -> api"),
        lambda: lab.cut("api -> localhost"),
        lambda: lab.partition({"localhost"}, {"api"}),
    ]
    for cut in cuts:
        cut()
        assert (reached("api"), reached("other")) == (False, True)
        lab.mend()
        await_condition(lambda: reached("api"), bool, deadline_s=10)
        lab.verifier.verify()
    assert all(evidence.met_packets for evidence in lab.ledger.evidence if "cut" in evidence.asked)


def whole(capture: PortCapture) -> list[Passage]:
    """What passed, up to the last that arrived: what follows was lost, or under way as the capture ended."""
    passages = capture.passages()
    while passages[-1].lost:
        passages.pop()
    return passages


def test_captures_have_the_packets_of_their_link_alone_on_both_sides_of_it(lab: Lab, session: requests.Session) -> None:
    lab.impair("localhost -> api", drop_every=4)
    lab.impair("api -> localhost", delay="20ms")
    with (
        lab.capture("localhost -> api") as toward,
        lab.capture("api -> localhost") as back,
        lab.capture("api") as everything,
    ):
        lab.host("other").run(["python3", "-c", _CONNECT, "api", str(PORT)])
        session.get(f"{lab.host('api').url('http', PORT)}/100000", timeout=30)
    if lab.netem_engine == "host":
        with pytest.raises(LabError, match="use --netem carried"):
            toward.passages()
    else:
        passed = whole(toward)
        lost = [passage for passage in passed if passage.lost]
        assert abs(4 * len(lost) - len(passed)) < 4, "every fourth"
        assert 0 < len(lost) <= lab.link("localhost -> api").dropped_by_number(), "which goes on after a capture"
        delays_s = [passage.delay_s for passage in whole(back)]
        assert len(delays_s) > 10
        assert all(delay_s is not None and delay_s > 0.0195 for delay_s in delays_s)
    addresses = {ip_address(address).packed for address in lab.host("other").addresses()}

    def of_other(capture: PortCapture) -> bool:
        return any((ip := ip_of(packet.data)) and {ip.src, ip.dst} & addresses for packet in capture.packets)

    assert [of_other(capture) for capture in (toward, back, everything)] == [False, False, True]
    ends = [{flow.client.src.port, flow.server.src.port} for flow in back.flows("before")]
    assert ends, "earlier connections may end meanwhile"
    assert all(PORT in ports for ports in ends)


@pytest.mark.parametrize("ends", ["localhost -> api", "api -> localhost"])
def test_a_cut_that_rejects_is_answered_at_once_and_leaves_others(
    lab: Lab, session: requests.Session, ends: str
) -> None:
    """Not by the published port, whose proxy accepts for the service."""
    if not isinstance(lab, ComposeLab):
        pytest.skip("hosts of a local lab have no address on this machine")
    address = lab.host("api").addresses()[0], PORT
    socket.create_connection(address, timeout=5).close()
    lab.cut(ends, reject=True)
    with pytest.raises(ConnectionRefusedError if ends.startswith("localhost") else OSError):
        socket.create_connection(address, timeout=1)
    assert session.get(f"{lab.host('other').url('http', PORT)}/1", timeout=5).text == "x"
    lab.verifier.verify()
    (evidence,) = lab.ledger.evidence
    assert (evidence.link, evidence.problems) == (ends, [])
    assert evidence.met_packets
    lab.mend()
    socket.create_connection(address, timeout=5).close()


def test_the_steps_of_a_timeline(lab: Lab, session: requests.Session) -> None:
    lab.impair("localhost <-> api", [{"delay": "5ms"}, {"at": "200ms", "delay": "30ms"}])
    await_condition(lambda: took(session, lab, "api"), lambda seen_s: seen_s >= 0.06, deadline_s=10)

    def complaints() -> list[list[str | None]]:
        return [[step.complaint for step in lab.link(link).steps()] for link in _BOTH]

    # A busy machine alone may have made the request so late before the second step.
    assert await_condition(complaints, lambda links: min(map(len, links)) == 2, deadline_s=10) == [[None] * 2] * 2
    lab.verifier.verify()


_BOTH = ("localhost -> api", "api -> localhost")


def test_a_local_lab_has_no_outside(lab: Lab) -> None:
    if isinstance(lab, ComposeLab):
        assert lab.topology.links("api -> outside")
        return
    with pytest.raises(InvalidValueError, match="hosts of a local lab reach nothing outside: use --lab compose"):
        lab.impair("api -> outside", delay="1ms")


# --- outside -----------------------------------------------------------------------------------------


@dataclass
class Outside:
    """A network namespace behind this machine, where a program answers."""

    name: str
    address: str
    network: str

    def answered_s(self, lab: Lab, count: int = 5) -> float:
        """The least time that an answer took, asked from the service; seconds."""
        done = lab.host("api").run(["python3", "-c", _ASK, self.address, "7000", str(count)], timeout="20s")
        assert done.ok, done.stderr
        return min(map(float, done.stdout.split()))


@pytest.fixture
def outside(lab: Lab) -> Iterator[Outside]:
    """Beyond stack and machine: reached through the machine, which forwards."""
    if not isinstance(lab, ComposeLab):
        pytest.skip("hosts of a local lab reach nothing outside")
    number = os.getpid() % 64
    network, ours, theirs = (f"203.0.113.{4 * number + last}" for last in (0, 1, 2))  # RFC 5737
    name = f"{FOREIGN}{os.getpid()}"
    near = f"{name}n"[:15]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    ip("netns", "add", name)
    answering = None
    try:
        ip("link", "add", near, "type", "veth", "peer", "name", "far0", "netns", name)
        ip("address", "add", f"{ours}/30", "dev", near)
        ip("link", "set", near, "up")
        ip("-n", name, "address", "add", f"{theirs}/30", "dev", "far0")
        ip("-n", name, "link", "set", "far0", "up")
        ip("-n", name, "route", "add", "default", "via", ours)
        command = ["ip", "netns", "exec", name, "python3", "-c", _ANSWER]
        answering = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert answering.stdout is not None
        assert answering.stdout.readline() == "ready\n"
        yield Outside(name, theirs, f"{network}/30")
    finally:
        if answering is not None:
            answering.kill()
            answering.wait()
            answering.stdout.close() if answering.stdout else None
        ip("netns", "delete", name)


def test_what_a_service_sends_outside_and_not_what_it_answers_this_process(
    lab: Lab, outside: Outside, session: requests.Session
) -> None:
    assert outside.answered_s(lab) < 0.02
    for ends in ("api -> outside", f"api -> {outside.network} tcp/7000", f"{outside.address} -> api"):
        lab.impair(ends, delay="30ms")
        assert 0.03 <= outside.answered_s(lab) < 0.06, ends
        assert least(session, lab, "api", count=5) < 0.02
        lab.verifier.verify()
        assert next(seen.met_packets for seen in lab.ledger.evidence if seen.link == ends)
        lab.heal()
    lab.impair("api -> outside", delay="15ms")
    with lab.capture("api -> outside") as capture, lab.capture(f"{outside.network} -> api") as back:
        outside.answered_s(lab)
        took(session, lab, "api")
    pairs = [{flow.client.src.address, flow.server.src.address} for flow in capture.flows()]
    assert pairs, "some may have begun earlier"
    assert all(outside.address in pair for pair in pairs)
    assert len(capture.passages()) > 5
    assert all((passage.delay_s or 0) > 0.0145 for passage in capture.passages())
    assert back.passages()
    assert all(not passage.lost for passage in back.passages())
    lab.impair("api <-> outside", delay="15ms")
    lab.impair("api -> 198.51.100.0/24", delay="90ms")
    lab.impair("api -> localhost", delay="200ms")
    assert 0.03 <= outside.answered_s(lab) < 0.08
    assert least(session, lab, "api", count=3) >= 0.2
    with pytest.raises(InvalidValueError, match=r"some of its addresses are those of api -> 198\.51\.100\.0/24"):
        lab.impair("api -> 198.51.100.7", delay="1ms")


def test_an_outside_that_is_cut_off_leaves_the_service_to_this_process(
    lab: Lab, outside: Outside, session: requests.Session
) -> None:
    lab.impair("api -> localhost", delay="20ms")
    lab.cut("api -> outside")
    done = lab.host("api").run(["python3", "-c", _ASK.replace("=5)", "=1)"), outside.address, "7000", "1"])
    assert "timed out" in done.stderr
    assert 0.02 <= least(session, lab, "api", count=3) < 0.1
    lab.verifier.verify()
    assert {seen.link: bool(seen.met_packets) for seen in lab.ledger.evidence} == {
        "api -> outside": True,
        "api -> localhost": True,
    }
    lab.mend()
    assert outside.answered_s(lab, 1) < 0.1
    for refused in ("api -> outside", f"api -> {outside.network} tcp/7000"):
        lab.cut(refused, reject=True)
        done = lab.host("api").run(["python3", "-c", _ASK, outside.address, "7000", "1"])
        assert "ConnectionRefusedError" in done.stderr, refused
        assert least(session, lab, "api", count=3) < 0.1
        lab.mend()
    lab.verifier.verify()
    assert all(not seen.problems for seen in lab.ledger.evidence)
    with pytest.raises(InvalidValueError, match="testbed has no program outside the stack"):
        lab.prove("api -> outside")


def test_a_service_that_is_started_again_is_impaired_as_before(lab: Lab, session: requests.Session) -> None:
    """The last of the module: the program that answers from now on ends with the test."""
    lab.impair("localhost <-> api", delay="20ms")
    lab.host("api").restart()
    _serve(lab, "api")
    assert least(session, lab, "api", count=3) >= 0.04
    lab.verifier.verify()
