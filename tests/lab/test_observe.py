"""Observation of real programs over a real impairment: packets, sockets and counters tell the same story."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from testbed import ComposeLab, Lab, LabError
from testbed.lab.waiting import await_condition
from testbed.observe import pcapng
from testbed.observe.packet import layers
from testbed.observe.wire import flows
from testbed.spec.links import PortRef

BELOW_THE_LAB = True

ROOT = Path(__file__).parents[2]
PORT = 9400

SINK = """
import socket, sys
heard = socket.create_server(("", int(sys.argv[1]))); print("ready", flush=True)
taken, _ = heard.accept(); count = 0
while data := taken.recv(65536): count += len(data)
print(count)
"""
SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as s:
    s.sendall(b"x" * int(sys.argv[3])); s.shutdown(socket.SHUT_WR); s.recv(1)
"""
# Takes the connection and reads nothing until a line comes on the other port; with a small buffer.
SLOW = """
import socket, sys
port = int(sys.argv[1])
heard = socket.socket(); heard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
heard.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192); heard.bind(("", port)); heard.listen()
word = socket.create_server(("", port + 1)); print("ready", flush=True)
taken, _ = heard.accept(); word.accept(); count = 0
while data := taken.recv(65536): count += len(data)
print(count)
"""


@pytest.fixture
def address(lab: ComposeLab) -> str:
    return lab.host("server").addresses("lan")[0]


def transfer(lab: Lab, address: str, count: int) -> None:
    """Send so many bytes from the client to the server."""
    sink = lab.host("server").start(["python3", "-c", SINK, str(PORT)], ready="ready")
    sent = lab.host("client").run(["python3", "-c", SEND, address, str(PORT), str(count)], timeout="60s")
    assert sent.ok, sent.stderr
    assert sink.wait().stdout.split() == ["ready", str(count)]


@pytest.mark.parametrize("delay_ms", [0, 30, 100])
def test_a_handshake_takes_one_round_trip_and_not_two(lab: ComposeLab, address: str, delay_ms: int) -> None:
    if delay_ms:
        lab.impair("client <-> server", delay=f"{delay_ms / 2}ms")
    with lab.observe(captures=["client -> server"], snap_bytes=None) as seen:
        transfer(lab, address, 1000)
    (flow,) = seen.flows("server")
    handshake = flow.handshake
    assert (handshake.complete, handshake.syns) == (True, 1)
    assert handshake.round_trip_s is not None
    assert delay_ms / 1e3 <= handshake.round_trip_s < max(2 * delay_ms, 30) / 1e3
    assert len(flow.client.fins) == len(flow.server.fins) == 1
    connection = seen.host("client").connection(remote_port=PORT)
    assert delay_ms / 1e3 <= connection.final.srtt_s < max(2 * delay_ms, 30) / 1e3
    # One time axis: what the kernel said when it began to connect is no later than its SYN, give or take a sample.
    assert handshake.syn_ns is not None
    assert connection.states[0].time_ns <= handshake.syn_ns + 100_000_000 + delay_ms * 1_000_000
    assert seen.began_ns <= handshake.syn_ns <= seen.ended_ns


@pytest.mark.impair("client -> server", delay="5ms", loss="3%", seed=7)
def test_what_netem_dropped_was_seen_before_it_and_not_after_and_was_sent_again(lab: ComposeLab, address: str) -> None:
    before = lab.link("client -> server").counters()
    with lab.observe(captures=["client -> server"], snap_bytes=None) as seen:
        transfer(lab, address, 600_000)
    after = lab.link("client -> server").counters()
    capture = seen.capture("server")
    assert capture.complete
    passages = seen.passages("server@lan")
    lost = [passage for passage in passages if passage.lost]
    assert len(lost) == after.dropped_packets - before.dropped_packets > 0
    assert all(passage.delay_s is None or passage.delay_s >= 0.005 for passage in passages)

    (flow,) = seen.flows("server", "before")
    sent_again = flow.client.retransmissions
    assert len(sent_again) == seen.host("client").counters.retransmitted_segments > 0
    assert len(sent_again) == seen.host("client").connection(remote_port=PORT).final.total_retransmissions
    assert flow.client.payload() == b"x" * 600_000
    again = {segment.seq for segment in sent_again}
    lost_data = {
        segment.seq
        for segment in flow.client.segments
        if segment.payload_bytes and segment.packet in {passage.before for passage in lost}
    }
    assert lost_data <= again
    (arrived,) = seen.flows("server", "after")
    assert arrived.client.payload() == b"x" * 600_000
    assert len(arrived.client.segments) == len(flow.client.segments) - len(lost)
    assert len(arrived.client.out_of_order) > 0
    assert seen.host("server").counters.out_of_order_segments > 0
    assert flow.server.with_sack


def test_the_same_transfer_over_a_clean_link_shows_none_of_it(lab: ComposeLab, address: str) -> None:
    lab.impair("client -> server", delay="5ms")
    with lab.observe(captures=["client -> server"], snap_bytes=None) as seen:
        transfer(lab, address, 600_000)
    assert not [passage for passage in seen.passages("server@lan") if passage.lost]
    (flow,) = seen.flows("server", "after")
    assert (flow.client.out_of_order, flow.client.copies, flow.server.with_sack) == ([], [], [])
    assert flow.client.payload() == b"x" * 600_000


@pytest.mark.impair("client -> server", duplicate="20%", seed=5)
def test_what_netem_doubled_is_told_from_what_tcp_sent_again(lab: ComposeLab, address: str) -> None:
    with lab.observe(captures=["client -> server"], snap_bytes=None) as seen:
        transfer(lab, address, 300_000)
    (before,) = seen.flows("server", "before")
    (after,) = seen.flows("server", "after")
    doubled = [passage for passage in seen.passages("server@lan") if len(passage.after) == 2]
    assert len(doubled) > 10
    assert before.client.copies == []
    data = [segment for segment in doubled if before.client.segments[0].packet != segment.before]
    assert 0 < len(after.client.copies) <= len(data) + 1
    assert len(after.client.retransmissions) <= len(before.client.retransmissions)


@pytest.mark.impair("client -> server", delay="2ms")
def test_of_a_reader_that_does_not_read_packets_sockets_and_counters_tell_alike(lab: ComposeLab, address: str) -> None:
    client, server = lab.host("client"), lab.host("server")

    def probes() -> int:
        return client.counters()["TcpExt"]["TCPWinProbe"]

    before = probes()
    with lab.observe(captures=["client -> server"], snap_bytes=None) as seen:
        reader = server.start(["python3", "-c", SLOW, str(PORT)], ready="ready")
        sender = client.start(["python3", "-c", SEND, address, str(PORT), "200000"])
        # The sender's kernel asks whether the window is open no sooner than after 200 ms: long enough for a look at it.
        await_condition(probes, lambda count: count > before, deadline_s=20)
        assert not sender.ended
        word = client.run(["python3", "-c", f"import socket; socket.create_connection(({address!r}, {PORT + 1}))"])
        assert word.ok, word.stderr
        assert sender.wait("60s").ok
        assert reader.wait("60s").stdout.split() == ["ready", "200000"]
    flow = next(flow for flow in seen.flows("server") if flow.server.src.port == PORT)
    assert flow.server.zero_windows
    assert flow.server.window_updates
    assert not [passage for passage in seen.passages("server@lan") if passage.lost]
    connection = seen.host("client").connection(remote_port=PORT)
    held = [state for state in connection.states if state.send_window_bytes == 0 and state.state == "ESTABLISHED"]
    assert held
    assert max(connection.send_queue_bytes for connection in held) > 0
    assert connection.final.window_limited_s > 0
    # One time axis: the kernel knew of the closed window after the segment that told it had passed.
    assert flow.server.zero_windows[0].time_ns <= held[-1].time_ns
    assert seen.host("server").counters.zero_windows_announced >= 1
    assert seen.host("server").counters.windows_reopened >= 1
    # The last segments that fit the window are acknowledged late (RFC 9293 3.8.6.3), which the sender may take for
    # their loss and probe: sent again for the window's sake, though nothing was lost, and never for a time-out.
    counted = seen.host("client").counters
    assert counted.retransmitted_segments == len(flow.client.retransmissions) <= counted.loss_probes
    assert counted.timeouts == 0


def test_a_capture_is_a_file_that_is_read_back_and_a_packet_of_it_comes_apart(
    lab: ComposeLab, address: str, tmp_path: Path
) -> None:
    lab.impair("client -> server", delay="1ms")
    with lab.capture("client -> server") as capture:
        done = lab.host("client").run(["python3", "paper_client.py", "server"])
        assert done.ok, done.stderr
    path = capture.save(tmp_path / "deep" / "server.pcapng")
    assert pcapng.read(path.read_bytes()) == capture.capture
    (flow,) = capture.flows()
    (message,) = [original for original in flow.client.originals if original.payload_bytes]
    taken = layers(message.packet)
    assert [step.name for step in taken] == ["Ethernet", "IPv4", "TCP", "payload"]
    assert taken[-1].data == b"Test message"
    assert b"".join(step.data for step in taken) == message.packet.data
    assert dict(taken[1].fields)["destination"] == address


def test_a_capture_keeps_the_last_packets_and_says_how_many_gave_way(lab: ComposeLab, address: str) -> None:
    lab.impair("client -> server", delay="1ms", rate="100mbit")  # no faster than a busy machine can keep
    with lab.capture("client -> server", limit_bytes=2 << 20) as capture:
        transfer(lab, address, 12_000_000)
    assert not capture.capture.complete
    assert all(place.overwritten > 0 and place.lost == 0 for place in capture.capture.places)
    assert sum(packet.length_bytes for packet in capture.packets) < 2 << 20
    with pytest.raises(LabError, match=r"gave way to later ones.*limit_bytes"):
        capture.flows()
    with pytest.raises(LabError, match=r"gave way to later ones.*limit_bytes"):
        capture.passages()  # those of which one record alone was overwritten would count as lost
    assert any(flow.client.fins for flow in capture.flows(partial=True)), "the end is there"


def test_a_capture_of_a_link_has_none_of_other_hosts_packets_and_cut_ones_if_asked(
    lab: ComposeLab, address: str
) -> None:
    lab.impair("client -> server", delay="1ms")
    with lab.capture("client -> server", snap_bytes=134) as capture:
        transfer(lab, address, 20_000)
    assert max(len(packet.data) for packet in capture.packets) == 134
    (flow,) = capture.flows()
    assert flow.client.payload_bytes == 20_000, "headers say it, though the payload is cut off"
    with pytest.raises(LabError, match=r"20000 bytes passed, and byte \d+ was not kept.*snap_bytes=None"):
        flow.client.payload()


def test_sockets_are_watched_at_the_price_that_was_said(lab: ComposeLab, address: str) -> None:
    with lab.observe() as seen:
        transfer(lab, address, 1_000_000)
        time.sleep(1.0)  # the figure is of a while, and one of 1 s has few outliers in it
    for host in seen.hosts.values():
        assert host.sampling.samples > 10
        assert host.sampling.cpu_ratio <= 0.03, "2 %, and what a look began before it was known costs"
    assert seen.missing == {}


def test_a_host_that_was_started_again_is_missing_and_the_others_are_not(lab: Lab) -> None:
    if not isinstance(lab, ComposeLab):
        pytest.skip("a namespace outlives its programs, and is observed on")
    with lab.observe() as seen:
        lab.host("server").restart()
    assert set(seen.hosts) == {"client"}
    assert set(seen.missing) == {"server"}


def test_what_was_captured_before_a_port_vanished_is_kept(lab: Lab, address: str) -> None:
    lab.impair("client -> server", delay="1ms")
    with lab.capture("client -> server") as capture:
        transfer(lab, address, 1000)
        lab.host("server").restart()
        lab.impair("client -> server", delay="2ms")
    assert [flow.client.payload() for flow in capture.flows()] == [b"x" * 1000]
    transfer(lab, lab.host("server").addresses("lan")[0], 1000)


def test_with_the_host_engine_packets_are_seen_at_the_senders_port_and_at_the_receivers(
    lab: ComposeLab, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a carried kernel has the netem between the two veths at which the host engine captures."""
    lab.impair("client -> server", delay="5ms", loss="3%", seed=7)
    for name in ("client", "server"):  # as that engine has it
        lab.ports.per_packet.want(lab.hosts[name], PortRef(name, "lan"), 1)
    call = lab.channel.call
    with monkeypatch.context() as as_on_a_host:
        as_on_a_host.setattr(
            lab.channel,
            "call",
            lambda name, **words: {"before": None, "after": "veth"} if name == "sides" else call(name, **words),
        )
        with lab.capture("client -> server") as link, lab.capture("server") as port:
            transfer(lab, address, 300_000)
    dropped = lab.link("client -> server").counters().dropped_packets
    for capture in (link, port):
        assert [place.side for place in capture.capture.places] == ["after", "before"]
        passages = capture.passages()
        assert sum(passage.lost for passage in passages) == dropped > 0
        assert all(passage.delay_s is None or passage.delay_s >= 0.005 for passage in passages)
        (flow,) = capture.flows("after")
        assert flow.client.payload() == b"x" * 300_000


_SUITE = """
import pytest

@pytest.mark.impair("client -> server", delay="1ms")
@pytest.mark.parametrize("fine", [True, False])
def test_it(lab, fine):
    lab.host("client").run(["python3", "paper_client.py", "server"])
    assert fine

def test_impaired_by_hand(lab):
    lab.impair("client -> server", delay="1ms")
    lab.host("client").run(["python3", "paper_client.py", "server"])
    lab.impair("server -> client", delay="1ms")
    assert False

def test_not_impaired(lab):
    assert False
"""


@pytest.mark.parametrize("mode", ["on-failure", "always", "never"])
def test_the_packets_of_a_failed_test_are_kept_and_its_report_names_the_file(
    kind: str, tmp_path: Path, mode: str
) -> None:
    (tmp_path / "test_kept.py").write_text(_SUITE)
    started_in = tmp_path / "below"  # beside the other files of the report, which is not where the tests are
    started_in.mkdir()
    argv = ["..", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "--compose-file", str(ROOT / "compose.yaml")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *argv, "--lab", kind, "--testbed-capture", mode, "--testbed-lateness=warn"],
        cwd=started_in,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 1, done.stdout
    assert "1 passed" in done.stdout
    kept = sorted(started_in.glob("report/captures/*/*.pcapng"))
    tests = [path.parent.name.rpartition("-")[0].removeprefix("test_kept.py_") for path in kept]
    by_hand = ["test_impaired_by_hand"] * 2
    assert (
        tests
        == {
            "on-failure": [*by_hand, "test_it_False"],
            "always": [*by_hand, "test_it_False", "test_it_True"],
            "never": [],
        }[mode]
    )
    assert {path.name for path in kept} <= {"server@lan.pcapng", "client@lan.pcapng"}
    for path in kept:
        assert (str(path) in done.stdout) == (path.parent.name.find("True") < 0)
        capture = pcapng.read(path.read_bytes())
        assert [place.side for place in capture.places].count("before") >= 1
        if path.name == "server@lan.pcapng":
            assert b"Test message" in [flow.client.payload() for flow in flows(capture.at("before"))]
