"""Parts of a link: a protocol, a port, one replica of many, either address family; the rest is untouched."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator

import pytest

from testbed import Host, Lab
from tests.lab.conftest import HERE, Datagrams, lab_of, prepare

BELOW_THE_LAB = True


@pytest.fixture(scope="module")
def stack_of_replicas(kind: str, pytestconfig: pytest.Config) -> Iterator[Lab]:
    os.environ["SCALED"] = f"{os.getpid() % 0xFFFF:x}"  # two runs on one engine must not want the same subnet
    with lab_of(kind, pytestconfig, HERE / "stacks" / "scaled.yaml") as lab:
        prepare(*lab.hosts.values())
        yield lab


@pytest.fixture
def scaled(stack_of_replicas: Lab) -> Iterator[Lab]:
    yield stack_of_replicas
    stack_of_replicas.verify()
    stack_of_replicas.heal()


def least(src: Host, dst: Host, *, port: int = 9000, address: str = "") -> float:
    return min(Datagrams(src, dst, port=port, address=address).round_trips(4))


def usual(src: Host, dst: Host, *, port: int = 9000) -> float:
    return statistics.median(Datagrams(src, dst, port=port).round_trips(5))


@pytest.mark.parametrize("link", ["client[1] -> server udp/9001", "server -> client[1] udp/9001"])
def test_one_port_is_impaired_whichever_end_has_it_and_no_other(scaled: Lab, link: str) -> None:
    client, server = scaled.hosts["client[1]"], scaled.hosts["server"]
    scaled.link(link).impair(delay="90ms")
    assert least(client, server, port=9001) >= 0.090
    assert usual(client, server, port=9000) < 0.045
    assert scaled.link(link).counters().sent_packets >= 5


def test_a_part_of_the_traffic_goes_before_the_whole_and_joins_it_when_healed(scaled: Lab) -> None:
    client, server = scaled.hosts["client[1]"], scaled.hosts["server"]
    scaled.link("client[1] -> server").impair(delay="30ms")
    scaled.link("client[1] -> server udp/9001").impair(delay="120ms")
    scaled.link("client[1] -> server tcp").impair(delay="1s")
    assert least(client, server, port=9001) >= 0.120
    assert 0.030 <= least(client, server, port=9000) < 0.120
    scaled.link("client[1] -> server udp/9001").heal()
    assert 0.030 <= least(client, server, port=9001) < 0.120


def test_one_port_is_cut_and_no_other(scaled: Lab) -> None:
    client, server = scaled.hosts["client[1]"], scaled.hosts["server"]
    scaled.cut("client[1] -> server udp/9001")
    assert Datagrams(client, server, port=9001).sent_into_nothing(20) == "ready\n"
    assert scaled.link("client[1] -> server udp/9001").lost_in_cut() == 21
    assert Datagrams(client, server, port=9000).arrived(20) == list(range(20))
    scaled.mend("client[1] -> server udp/9001")
    assert Datagrams(client, server, port=9001).arrived(20) == list(range(20))


def test_every_replica_is_impaired_by_one_word_and_each_for_itself(scaled: Lab) -> None:
    server = scaled.hosts["server"]
    assert len(scaled.impair("client[*] -> server", delay="40ms")) == 3
    scaled.impair("client[2..2] -> server", delay="120ms")
    assert least(scaled.hosts["client[1]"], server) >= 0.040
    assert least(scaled.hosts["client[2]"], server) >= 0.120
    assert 0.040 <= least(scaled.hosts["client[3]"], server) < 0.120


def addresses_by_family(lab: Lab, host: str) -> dict[str, str]:
    old, new, link_local = lab.source_addresses(host, "lan")
    return {"IPv4": old, "IPv6": new, "link-local": f"{link_local}%eth0"}


@pytest.mark.parametrize("family", ["IPv4", "IPv6", "link-local"])
def test_a_link_is_impaired_in_each_address_family(scaled: Lab, family: str) -> None:
    client, server = scaled.hosts["client[1]"], scaled.hosts["server"]
    address = addresses_by_family(scaled, "server")[family]
    link = scaled.link("client[1] -> server")
    link.impair(delay="70ms", loss="30%", seed=3)
    numbers = Datagrams(client, server, address=address).arrived(200)
    assert 0 < len(numbers) < 200
    link.impair(delay="70ms")
    assert least(client, server, address=address) >= 0.070
    assert usual(scaled.hosts["client[2]"], server) < 0.035


def test_the_same_seed_loses_the_same_packets_in_both_families(scaled: Lab) -> None:
    client, server = scaled.hosts["client[1]"], scaled.hosts["server"]
    arrived = []
    for family in ("IPv4", "IPv6"):
        scaled.link("client[1] -> server").impair(loss="10%", seed=11)
        address = addresses_by_family(scaled, "server")[family]
        arrived.append(Datagrams(client, server, address=address).arrived(300))
        scaled.heal()
    # Neighbour discovery took no number from the seeded sequence, as ARP takes none.
    assert arrived[0] == arrived[1] != list(range(300))


def test_a_cut_link_needs_no_new_neighbour_when_it_is_mended(scaled: Lab) -> None:
    client, server = scaled.hosts["client[1]"], scaled.hosts["server"]
    address = addresses_by_family(scaled, "server")["IPv6"]
    scaled.cut("client[1] <-> server")
    assert Datagrams(client, server, address=address).sent_into_nothing(5) == "ready\n"
    # 5 numbers and the end: not one more, so no solicitation was swallowed.
    assert scaled.link("client[1] -> server").lost_in_cut() == 6
    scaled.mend()
    assert Datagrams(client, server, address=address).arrived(5) == list(range(5))
