"""A project of three senders and a receiver behind one bottleneck, for pytest in virtual time: its stack, its tests."""

from __future__ import annotations

from pathlib import Path

_COMPOSE = """
services:
  a: &host
    image: none
    x-testbed: {local: {path: programs, python: true}}
    command: sleep infinity
    sysctls: {net.ipv4.tcp_ecn: 1}
  b: *host
  c: *host
  d: *host
"""
# Prints how long a connection took to open, in seconds.
_CABLE = """
forward: {delay: 10ms, shape: {rate: 8mbit, queue: 200kB, qdisc: fq_codel}}
reverse: {delay: 10ms}
"""
_CONNECT = """
import socket, time
began = time.monotonic()
socket.create_connection(("d", 7000), timeout=60).close()
print(time.monotonic() - began)
"""
_LISTEN = """
import socket
listener = socket.create_server(("", 7000))
print("listening", flush=True)
while True:
    listener.accept()[0].close()
"""
TESTS = '''
import time

import pytest

from testbed import EnvironmentUnfitError, InvalidValueError
from testbed.lab.waiting import await_condition
from testbed.observe.passages import crossing


def passed(bottleneck, count_bytes):
    """The bytes that a bottleneck has sent, once they are so many more than now."""
    least = bottleneck.counters().sent_bytes + count_bytes
    return await_condition(bottleneck.counters, lambda now: now.sent_bytes >= least, deadline_s=60).sent_bytes


def rate_bps(bottleneck, *, of_bytes):
    """What a bottleneck passes per second, once a fifth of these bytes have filled its queue."""
    before, began_s = passed(bottleneck, of_bytes // 5), time.monotonic()
    return (passed(bottleneck, of_bytes) - before) * 8 / (time.monotonic() - began_s)


def await_drops(bottleneck, count=1):
    """Wait until the queue has dropped packets: it is full."""
    await_condition(bottleneck.counters, lambda now: now.dropped_packets >= count, deadline_s=60)


def await_received(lab, protocol="Udp", counter="InDatagrams", count=10):
    """Wait until the receiver has got datagrams, or segments."""
    before = lab.host("d").counters()[protocol][counter]
    await_condition(
        lambda: lab.host("d").counters()[protocol][counter], lambda now: now > before + count, deadline_s=60
    )


def shares(traffic):
    flows = [flow.goodput_bps for flow in traffic.stop()]
    assert len(flows) == 3
    return [flow / sum(flows) for flow in flows]


@pytest.mark.parametrize("qdisc", ["fifo", "codel", "fq_codel", "cake"])
def test_rate(lab, qdisc):
    (bottleneck,) = lab.shape("* -> d", rate="8mbit", queue="200kB", qdisc=qdisc)
    with lab.traffic("* -> d", tcp=1) as traffic:
        rate = rate_bps(bottleneck, of_bytes=5_000_000)
    assert rate == pytest.approx(8e6, rel=0.02)
    if qdisc in ("fq_codel", "cake"):
        assert all(abs(share * 3 - 1) < 0.2 for share in shares(traffic))


def test_drops(lab):
    lab.impair("b -> d", delay="40ms")
    (bottleneck,) = lab.shape("* -> d", rate="8mbit", queue="200kB")
    with lab.capture("d", snap_bytes=64) as capture:
        with lab.traffic("* -> d", udp="4mbit") as traffic:
            await_drops(bottleneck, 300)
    counts, flows = bottleneck.counters(), traffic.flows
    lost = sum(flow.sent_packets - flow.received_packets for flow in flows)
    assert lost - counts.dropped_packets in range(0, 160), "beside those that wait as it ends"
    assert counts.dropped_packets > 0.1 * sum(flow.sent_packets for flow in flows)
    crossed = crossing(capture.capture, lab.host("d").addresses())
    assert sum(passage.lost for passage in crossed) == counts.dropped_packets


def test_standing_queue(lab):
    listener = lab.host("d").start(["python3", "listen.py"], ready="listening")
    def connect():
        return float(lab.host("a").run(["python3", "connect.py"], timeout="60s").stdout)
    assert connect() < 0.01
    for qdisc, least, most in (("fifo", 0.15, 0.25), ("fq_codel", 0, 0.03)):
        (bottleneck,) = lab.shape("* -> d", rate="8mbit", queue="200kB", qdisc=qdisc)
        with lab.traffic("b -> d", udp="12mbit"):
            await_drops(bottleneck)
            assert least <= connect() <= most, qdisc
    lab.heal()
    with lab.traffic("b -> d", udp="12mbit"):
        await_received(lab)
        assert connect() < 0.01


@pytest.mark.parametrize("ecn", [True, False])
def test_marks(lab, ecn):
    (bottleneck,) = lab.shape("* -> d", rate="8mbit", qdisc="codel", ecn=ecn)
    with lab.traffic("* -> d", tcp=1):
        passed(bottleneck, 3_000_000)
    counts = bottleneck.counters()
    assert (counts.marked_packets > 20, counts.marked_packets > 0) == (ecn, ecn)


@pytest.mark.parametrize("host", ["a", "d"])
def test_restart(lab, host):
    lab.impair("a -> d", delay="5ms")
    (bottleneck,) = lab.shape("a,b -> d", rate="2mbit", queue="20kB")
    with pytest.raises(InvalidValueError, match="a -> d: shaped with others"):
        lab.shape("a -> d", rate="8mbit")
    (bottleneck,) = lab.shape("a,b -> d", rate="1mbit", queue="20kB")
    lab.host(host).restart()
    with lab.traffic("a,b -> d", udp="2mbit"):
        assert rate_bps(bottleneck, of_bytes=250_000) == pytest.approx(1e6, rel=0.02)
    assert lab.link("a -> d").counters().sent_packets > 100


@pytest.mark.shape("* -> d", rate="8mbit")
def test_marker(lab):
    with lab.traffic("a -> d", udp="1mbit"):
        await_received(lab)


@pytest.mark.shape("a -> d", rate="8mbit")
def test_vacuous(lab):
    with lab.traffic("b -> d", udp="1mbit"):
        await_received(lab)


@pytest.mark.impair("* <-> d", "cable")
def test_profile(lab):
    """Its rate is the bottleneck's: each link alone would have all of it. Another profile takes its place."""
    with lab.traffic("* -> d", tcp=1) as traffic:
        await_received(lab, "Tcp", "InSegs", 2000)
    assert sum(flow.goodput_bps for flow in traffic.flows) == pytest.approx(1448 / 1514 * 8e6, rel=0.05)
    lab.impair("* <-> d", delay="10ms")
    with lab.traffic("* -> d", udp="8mbit") as traffic:
        await_received(lab, count=3000)
    assert sum(flow.received_bytes for flow in traffic.flows) > 0.9 * sum(flow.sent_bytes for flow in traffic.flows)


def test_gone(lab):
    """What removes the bottleneck behind our back is seen."""
    lab.shape("* -> d", rate="8mbit", queue="200kB", qdisc="fq_codel")
    port = next(iter(lab.ports))
    lab.ports.tc(port, [f"qdisc replace dev {port.last} parent 10:1 handle 2010: fq_codel limit 7"])


def test_unknown_qdisc(lab):
    with pytest.raises(EnvironmentUnfitError, match="has no sch_red; it has fifo, codel, fq_codel, cake"):
        lab.shape("* -> d", rate="8mbit", qdisc="red")
'''


def lay_out(folder: Path) -> None:
    """Write the stack, its programs and its tests."""
    (folder / "programs").mkdir()
    (folder / "netem").mkdir()
    files = {
        "netem/cable.yaml": _CABLE,
        "compose.yaml": _COMPOSE,
        "programs/connect.py": _CONNECT,
        "programs/listen.py": _LISTEN,
        "test_bottleneck.py": TESTS,
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
