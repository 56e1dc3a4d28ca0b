"""Several hosts, several networks, static addresses: an impairment touches its own link and no other."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator

import pytest

from testbed import ComposeLab, InvalidValueError
from tests.lab.conftest import HERE, Datagrams, prepare

STATIC = f"172.29.{os.getpid() % 250}.10"


@pytest.fixture(scope="module")
def three(pytestconfig: pytest.Config) -> Iterator[ComposeLab]:
    # Two runs on one engine must not want the same subnet.
    os.environ["THREE"] = str(os.getpid() % 250)
    with ComposeLab(HERE / "stacks" / "three.yaml", netem=pytestconfig.getoption("--netem")) as lab:
        prepare(*lab.hosts.values())
        yield lab


def test_a_third_hosts_packets_to_the_same_port_are_untouched(three: ComposeLab) -> None:
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


def test_static_addresses_and_aliases_work_as_in_compose(three: ComposeLab) -> None:
    assert three.hosts["server"].addresses("lan") == (STATIC,)
    resolved = three.hosts["client"].run(["getent", "hosts", "the-server"])
    assert resolved.stdout.split()[0] == STATIC


def test_a_link_between_hosts_that_share_two_networks_must_name_one(three: ComposeLab) -> None:
    with pytest.raises(InvalidValueError, match=r'share several networks; add " on NETWORK": back, lan'):
        three.link("other -> server")
    three.link("other -> server on back").impair(delay="1ms")
    three.heal()


def test_a_restarted_host_is_impaired_again_at_its_new_port(three: ComposeLab) -> None:
    link = three.link("other -> client")
    link.impair(delay="60ms")
    client = three.hosts["client"]
    client.container.restart(timeout=1)
    link.impair(delay="60ms")
    try:
        prepare(client)
        assert min(Datagrams(three.hosts["other"], client).round_trips(5)) >= 0.060
    finally:
        three.heal()
