"""Datagrams see what netem is told to do. Each test fails if the impairment is silently missing."""

from __future__ import annotations

import statistics

import pytest

from testbed import Impairment, ImpairmentNotAppliedError, Lab
from tests.lab.conftest import Datagrams, await_quiet


def test_200_ms_one_way_add_200_ms_to_every_round_trip(lab: Lab, datagrams: Datagrams) -> None:
    nothing = datagrams.round_trips(20)
    lab.link("client -> server").impair(delay="200ms")
    delayed = datagrams.round_trips(10)
    lab.heal()
    healed = datagrams.round_trips(20)

    assert min(delayed) >= 0.200 + min(nothing) * 0.5, "faster than the delay and half of a round trip without it"
    assert min(delayed) - min(nothing) < 0.300, "nearer to no delay, or to one both ways, than to the asked one"
    assert statistics.median(healed) < 0.100


def test_of_100_percent_loss_nothing_arrives(lab: Lab, datagrams: Datagrams) -> None:
    link = lab.link("client -> server")
    link.impair(loss="100%")
    assert datagrams.sent_into_nothing(50).splitlines() == ["ready"]
    seen = link.counters()
    assert seen.sent_packets == 0
    assert seen.dropped_packets >= 50 + 1  # the numbers, and each attempt to say that this was all
    lab.heal()
    assert datagrams.arrived(50) == list(range(50))


def test_the_same_seed_loses_the_same_packets_and_healing_loses_none(lab: Lab, datagrams: Datagrams) -> None:
    await_quiet(datagrams.src, datagrams.dst)
    missing = []
    for _attempt in range(2):
        lab.link("client -> server").impair(loss="20%", seed=7)
        missing.append(set(range(500)) - set(datagrams.arrived(500, pace_s=0.001)))
    assert missing[0] == missing[1]
    # 500 packets at 20 %: mean 100, σ = √(500·0.2·0.8) ≈ 8.9; 5σ accepts all but one honest seed in a million.
    assert 55 <= len(missing[0]) <= 145

    lab.link("client -> server").impair(loss="20%", seed=8)
    assert set(range(500)) - set(datagrams.arrived(500, pace_s=0.001)) != missing[0], "another seed, other packets"

    lab.heal()
    assert datagrams.arrived(500, pace_s=0.001) == list(range(500))


def test_jitter_keeps_order_by_default_and_reorders_when_asked(lab: Lab, datagrams: Datagrams) -> None:
    await_quiet(datagrams.src, datagrams.dst)
    lab.link("client -> server").impair(delay="30ms", jitter="20ms", distribution="normal", seed=1)
    assert datagrams.arrived(300) == list(range(300))

    lab.link("client -> server").impair(
        delay="30ms", jitter="20ms", distribution="normal", seed=1, reorder_by_jitter=True
    )
    arrived = datagrams.arrived(300, linger_s=0.5)  # "end" overtakes some
    assert sorted(arrived) == list(range(300))
    assert arrived != sorted(arrived)


def test_a_rate_holds_datagrams_back(lab: Lab, datagrams: Datagrams) -> None:
    # A datagram of one digit is 43 bytes with its Ethernet, IP and UDP headers: 344 bits, so 17.2 ms at 20 kbit/s.
    lab.link("client -> server").impair(rate="20kbit")
    assert min(datagrams.round_trips(8)) >= 344 / 20_000
    # A change that drops the rate must not leave the old one behind.
    lab.link("client -> server").impair(delay="1ms")
    assert statistics.median(datagrams.round_trips(8)) < 344 / 20_000


def test_a_queue_of_one_packet_drops_what_comes_while_it_is_full(lab: Lab, datagrams: Datagrams) -> None:
    link = lab.link("client -> server")
    link.impair(delay="100ms", limit=1)
    arrived = datagrams.arrived(100)  # 2 ms apart: about 50 come while one is under way
    assert len(arrived) < 10
    assert link.counters().dropped_packets >= 90


def test_an_impairment_changed_behind_our_back_is_found(lab: Lab) -> None:
    lab.link("client -> server").impair(Impairment(loss_ratio=0.02))
    port = lab.ports.attached("server", "lan")
    line = f"qdisc replace dev {port.device} parent 1:10 netem limit 1000"
    assert port.channel.call("tc", port=port.name, lines=[line])["complaints"] == []
    with pytest.raises(ImpairmentNotAppliedError, match=r"client -> server.*asked loss 2%, the kernel reports 0%"):
        lab.verifier.verify()
    lab.heal()  # or this test would be INVALID itself


def test_what_tc_refuses_is_reported_with_its_line(lab: Lab) -> None:
    link = lab.link("client -> server")
    link.impair(delay="1ms")
    port = lab.ports.attached("server", "lan")
    port.device, kept = "no-such-device", port.device
    try:
        with pytest.raises(
            ImpairmentNotAppliedError, match=r"Cannot find device.*Command: tc qdisc replace dev no-such"
        ):
            link.impair(delay="2ms")
    finally:
        port.device = kept
    assert datagram_delay(lab) == pytest.approx(0.001)


def datagram_delay(lab: Lab) -> float:
    """The delay that the kernel holds now."""
    netem = lab.ports.netem(lab.link("client -> server").ref)
    assert netem is not None
    delay: float = netem["options"]["delay"]["delay"]
    return delay


def test_the_seed_and_the_limit_are_read_back_from_the_kernel(lab: Lab) -> None:
    applied = lab.link("server -> client").impair(delay="250us", loss="0.1%", limit=77, seed=2**64 - 1, rate="1.5mbit")
    options = applied.kernel["options"]
    assert (options["limit"], options["seed"], options["rate"]["rate"]) == (77, 2**64 - 1, 187_500)
    assert options["loss-random"]["loss"] == pytest.approx(0.001)


def test_offloads_are_off_on_impaired_hosts(lab: Lab) -> None:
    """One netem drop is one packet: 300 kB in one write leave the sender as packets, none larger than the MTU."""
    link = lab.link("client -> server")
    link.impair(delay="1ms")
    server, client = lab.hosts["server"], lab.hosts["client"]
    sink = server.start(["python3", "-c", _SINK], ready=9100)
    script = "import socket; s = socket.create_connection(('server', 9100)); s.sendall(b'x' * 300_000); s.close()"
    assert client.run(["python3", "-c", script]).ok
    assert sink.wait().stdout.strip() == "300000"
    # 300,000 bytes in segments of at most 1460 bytes are at least 206 packets.
    assert link.counters().sent_packets >= 300_000 // 1460


_SINK = """
import socket
with socket.create_server(("", 9100)) as listener:
    peer, _ = listener.accept()
    print(sum(iter(lambda: len(peer.recv(65536)), 0)))
"""
