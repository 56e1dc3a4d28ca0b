"""Several hosts, several networks, static addresses: an impairment touches its own link and no other."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator

import pytest

from testbed import InvalidValueError, Lab
from testbed.labs.compose import ComposeHost
from tests.lab.conftest import HERE, Datagrams, lab_of, prepare

STATIC = f"172.29.{os.getpid() % 250}.10"


@pytest.fixture(scope="module")
def three(kind: str, pytestconfig: pytest.Config) -> Iterator[Lab]:
    # Two runs on one engine must not want the same subnet.
    os.environ["THREE"] = str(os.getpid() % 250)
    with lab_of(kind, pytestconfig, HERE / "stacks" / "three.yaml") as lab:
        prepare(*lab.hosts.values())
        yield lab


def test_a_third_hosts_packets_to_the_same_port_are_untouched(three: Lab) -> None:
    client, other, server = (three.hosts[name] for name in ("client", "other", "server"))
    three.link("client -> server").impair(delay="80ms")
    try:
        assert min(Datagrams(client, server).round_trips(5)) >= 0.080
        assert statistics.median(Datagrams(other, server).round_trips(5)) < 0.040
        # A second source at the same port gets its own impairment, and the first keeps its own.
        three.link("other -> server on lan").impair(delay="20ms")
        assert 0.020 <= min(Datagrams(other, server).round_trips(5)) < 0.070
        assert min(Datagrams(client, server).round_trips(5)) >= 0.080
        three.link("client -> server").heal()
        assert statistics.median(Datagrams(client, server).round_trips(5)) < 0.040
        assert min(Datagrams(other, server).round_trips(5)) >= 0.020
    finally:
        three.heal()


def test_static_addresses_and_aliases_work_as_in_compose(three: Lab) -> None:
    assert three.hosts["server"].addresses("lan") == (STATIC,)
    resolved = three.hosts["client"].run(["getent", "hosts", "the-server"])
    assert resolved.stdout.split()[0] == STATIC


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
