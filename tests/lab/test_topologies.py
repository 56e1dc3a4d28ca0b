"""Several hosts, several networks, static addresses: an impairment touches its own link and no other."""

from __future__ import annotations

import statistics

import pytest

from testbed import InvalidValueError, Lab
from testbed.backends.docker.hosts import ComposeHost
from tests.lab.conftest import Datagrams, own_subnet, prepare


def test_a_third_hosts_packets_to_the_same_port_are_untouched(three: Lab) -> None:
    client, other, server = (three.hosts[name] for name in ("client", "other", "server"))
    three.link("client -> server").impair(delay="300ms")
    try:
        assert min(Datagrams(client, server).round_trips(2)) >= 0.300
        assert statistics.median(Datagrams(other, server).round_trips(5)) < 0.150
        # A second source at the same port gets its own impairment, and the first keeps its own.
        three.link("other -> server on lan").impair(delay="100ms")
        assert 0.100 <= min(Datagrams(other, server).round_trips(5)) < 0.300
        assert min(Datagrams(client, server).round_trips(2)) >= 0.300
        three.link("client -> server").heal()
        assert statistics.median(Datagrams(client, server).round_trips(5)) < 0.150
        assert min(Datagrams(other, server).round_trips(5)) >= 0.100
    finally:
        three.heal()


def test_static_addresses_and_aliases_work_as_in_compose(three: Lab) -> None:
    static = f"198.{own_subnet()}.10"
    assert three.hosts["server"].addresses("lan") == (static,)
    resolved = three.hosts["client"].run(["getent", "hosts", "the-server"])
    assert resolved.stdout.split()[0] == static


def test_a_link_between_hosts_that_share_two_networks_must_name_one(three: Lab) -> None:
    with pytest.raises(InvalidValueError, match=r'share several networks; add " on NETWORK": back, lan'):
        three.link("other -> server")
    three.link("other -> server on back").impair(delay="1ms")
    three.heal()


def test_a_restarted_host_is_impaired_again_at_its_new_port(three: Lab) -> None:
    link = three.link("other -> client")
    link.impair(delay="60ms")
    client = three.hosts["client"]
    if not isinstance(client, ComposeHost):
        pytest.skip("a namespace is not restarted, nor is its cable")
    client.container.restart(timeout=1)
    link.impair(delay="60ms")
    try:
        prepare(client)
        assert min(Datagrams(three.hosts["other"], client).round_trips(5)) >= 0.060
    finally:
        three.heal()
