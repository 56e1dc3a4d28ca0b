"""The control: what iperf3 measures of a link is what the link was asked to be."""

import json

import pytest


def iperf3(lab, *options):
    done = lab.host("client").run(["iperf3", "--client", "server", "--json", *options], timeout="60s")
    assert done.ok, done.stdout
    return json.loads(done.stdout)["end"]


@pytest.mark.impair("client -> server", rate="20mbit")
def test_tcp_gets_the_rate(lab):
    received_bps = iperf3(lab, "--time", "4")["sum_received"]["bits_per_second"]
    lab.record("goodput, of the rate", 100 * received_bps / 20e6, unit="%", better="higher")
    assert 0.85 * 20e6 < received_bps < 20e6, "netem counts Ethernet, IP and TCP headers, too: 5 % of each packet"


@pytest.mark.impair("client -> server tcp", delay="1ms")  # the control connection is whole
@pytest.mark.impair("client -> server udp", loss="5%", seed=1)  # which spares the first, iperf3's greeting
def test_udp_misses_what_netem_dropped(lab):
    udp = iperf3(lab, "--udp", "--bitrate", "8M", "--length", "1000", "--time", "2")["sum"]
    dropped = lab.link("client -> server udp").counters().dropped_packets
    lab.record("lost datagrams", udp["lost_percent"], unit="%", better="lower")
    assert dropped - 5 <= udp["lost_packets"] <= dropped, "iperf3 cannot see the loss of its last datagrams"
    assert dropped > 0
