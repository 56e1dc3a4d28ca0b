"""Parts of a link: a protocol, a port, one replica of many, either address family; the rest is untouched."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator

import pytest

from testbed import Host, InvalidValueError, Lab
from testbed.lab.host import Program
from tests.exact import quantile_interval
from tests.lab.conftest import HERE, Datagrams, lab_of, own_subnet, prepare

BELOW_THE_LAB = True


@pytest.fixture(scope="module")
def stack_of_replicas(kind: str, pytestconfig: pytest.Config) -> Iterator[Lab]:
    own_subnet()
    with lab_of(kind, pytestconfig, HERE / "stacks" / "scaled.yaml") as lab:
        prepare(*lab.hosts.values())
        for host in lab.hosts.values():
            host.put("/tmp/knock.py", (HERE / "programs" / "knock.py").read_bytes())
        lab.hosts["server"].start(["python3", "/tmp/knock.py", "open", "9003", "9004"], ready="ready")
        yield lab


@pytest.fixture
def scaled(stack_of_replicas: Lab) -> Iterator[Lab]:
    stack_of_replicas.lifecycle.begin(None)
    yield stack_of_replicas
    stack_of_replicas.verifier.verify()
    stack_of_replicas.heal()


def least(src: Host, dst: Host, *, port: int = 9000, address: str = "") -> float:
    return min(Datagrams(src, dst, port=port, address=address).round_trips(3))


def usual(src: Host, dst: Host, *, port: int = 9000) -> float:
    return statistics.median(Datagrams(src, dst, port=port).round_trips(5))


@pytest.mark.parametrize("link", ["client[1] -> server udp/9001", "server -> client[1] udp/9001"])
def test_one_port_is_impaired_whichever_end_has_it_and_no_other(scaled: Lab, link: str) -> None:
    client, server = scaled.hosts["client[1]"], scaled.hosts["server"]
    scaled.link(link).impair(delay="300ms")
    assert least(client, server, port=9001) >= 0.300
    assert usual(client, server, port=9000) < 0.150
    assert scaled.link(link).counters().sent_packets >= 4


def test_what_is_not_impaired_keeps_its_latency_within_200_us(scaled: Lab) -> None:
    link = scaled.link("client[1] -> server udp/9001")
    flow = Datagrams(scaled.hosts["client[1]"], scaled.hosts["server"])
    link.impair(delay="300ms")  # the first time takes the port's cable up
    added_s = []
    for number in range(12):
        seen = {}
        # In turns, and each first as often as the other: what the machine does meanwhile falls on both.
        for impaired in (True, False) if number % 2 else (False, True):
            if impaired:
                link.impair(delay="300ms")
            else:
                link.heal()
            seen[impaired] = statistics.median(flow.round_trips(25))
        added_s.append(seen[True] - seen[False])
    least_s, most_s = quantile_interval(added_s, 0.5, alpha=0.02)
    assert least_s <= 0.0002, (least_s, most_s, added_s)


def test_a_part_of_the_traffic_goes_before_the_whole_and_joins_it_when_healed(scaled: Lab) -> None:
    client, server = scaled.hosts["client[1]"], scaled.hosts["server"]
    scaled.link("client[1] -> server").impair(delay="100ms")
    scaled.link("client[1] -> server udp/9001").impair(delay="300ms")
    scaled.link("client[1] -> server tcp").impair(delay="1s")
    assert least(client, server, port=9001) >= 0.300
    assert 0.100 <= least(client, server, port=9000) < 0.300
    scaled.link("client[1] -> server udp/9001").heal()
    assert 0.100 <= least(client, server, port=9001) < 0.300


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
    assert len(scaled.impair("client[*] -> server", delay="100ms")) == 3
    scaled.impair("client[2..2] -> server", delay="300ms")
    assert least(scaled.hosts["client[1]"], server) >= 0.100
    assert least(scaled.hosts["client[2]"], server) >= 0.300
    assert 0.100 <= least(scaled.hosts["client[3]"], server) < 0.300


def addresses_by_family(lab: Lab, host: str) -> dict[str, str]:
    old, new, link_local = lab.host(host).source_addresses("lan")
    return {"IPv4": old, "IPv6": new, "link-local": f"{link_local}%eth0"}


@pytest.mark.parametrize("family", ["IPv4", "IPv6", "link-local"])
def test_a_link_is_impaired_in_each_address_family(scaled: Lab, family: str) -> None:
    client, server = scaled.hosts["client[1]"], scaled.hosts["server"]
    address = addresses_by_family(scaled, "server")[family]
    link = scaled.link("client[1] -> server")
    link.impair(delay="300ms", loss="30%", seed=3)
    numbers = Datagrams(client, server, address=address).arrived(200)
    assert 0 < len(numbers) < 200
    link.impair(delay="300ms")
    assert least(client, server, address=address) >= 0.300
    assert usual(scaled.hosts["client[2]"], server) < 0.150


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


_JOIN = """
import socket, struct, sys, time
def reports():
    return sum(int(line.split()[1]) for line in open("/proc/net/snmp6") if line.startswith("Icmp6OutMLDv2Reports"))
before, deadline = reports(), time.monotonic() + 10
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as member:
    index = next(index for index, name in socket.if_nameindex() if name != "lo")
    group = socket.inet_pton(socket.AF_INET6, "ff02::1:2345")
    member.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + struct.pack("@I", index))
    while reports() == before and time.monotonic() < deadline:
        time.sleep(0.01)
print(reports() - before)
"""


@pytest.mark.parametrize("reject", [False, True])
def test_reports_of_multicast_groups_are_no_packets_of_a_link(scaled: Lab, reject: bool) -> None:
    scaled.cut("client[1] -> server", reject=reject)
    before = scaled.link("client[1] -> server").lost_in_cut()
    joined = scaled.hosts["client[1]"].run(["python3", "-c", _JOIN])
    assert int(joined.stdout) > 0, joined.stderr
    assert scaled.link("client[1] -> server").lost_in_cut() == before
    scaled.mend()


# --- cuts that reject ------------------------------------------------------------------------------


def knocked(lab: Lab, client: str = "client[1]") -> dict[str, str]:
    """The error of the client's kernel for each kind of socket, family and port; each within half a second.

    Both protocols at both ports; and pings.
    """
    families = addresses_by_family(lab, "server")
    doors = {
        f"{kind} {family}{f' {port}' if port else ''}": f"{kind}/{families[family]}/{port}"
        for family in ("IPv4", "IPv6")
        for kind, port in (("tcp", 9003), ("tcp", 9004), ("udp", 9003), ("udp", 9004), ("icmp", 0))
    }
    done = lab.hosts[client].run(["python3", "/tmp/knock.py", "at", *doors.values()])
    assert done.ok, done.stderr
    outcomes = dict(zip(doors, json.loads(done.stdout), strict=True))
    # A TCP that hears nothing asks again after a second: what was told was told by the cut.
    assert all(took_s < 0.5 for outcome, took_s in outcomes.values() if outcome != "silence"), outcomes
    return {door: outcome for door, (outcome, _) in outcomes.items()}


# RFC 9293 3.10.7.3; for the rest Linux' icmp_err_convert (net/ipv4/icmp.c) and icmpv6_err_convert.
TOLD = {"tcp": "ECONNREFUSED", "udp": "ECONNREFUSED", "icmp IPv4": "EHOSTUNREACH", "icmp IPv6": "EACCES"}


def error_of(door: str) -> str:
    return next(error for begin, error in TOLD.items() if door.startswith(begin))


def test_a_cut_that_rejects_tells_its_sender_at_once_and_no_other(scaled: Lab) -> None:
    assert set(knocked(scaled).values()) == {"ok"}
    link = scaled.link("client[1] -> server")
    before = link.lost_in_cut()
    scaled.cut("client[1] -> server", reject=True)
    seen = knocked(scaled)
    assert seen == {door: error_of(door) for door in seen}
    assert set(knocked(scaled, "client[2]").values()) == {"ok"}
    assert link.lost_in_cut() - before == 10  # one packet each: nobody asked again
    scaled.verifier.verify()
    (told_of,) = scaled.ledger.evidence
    assert told_of.checks[0].seen == ("10 packets rejected; its sender was told by 4 resets and 6 ICMP errors")
    scaled.mend()
    assert set(knocked(scaled).values()) == {"ok"}


def test_one_port_rejects_and_no_other(scaled: Lab) -> None:
    scaled.cut("client[1] -> server tcp/9003", reject=True)
    seen = knocked(scaled)
    assert {door for door, outcome in seen.items() if outcome != "ok"} == {"tcp IPv4 9003", "tcp IPv6 9003"}
    assert {seen["tcp IPv4 9003"], seen["tcp IPv6 9003"]} == {"ECONNREFUSED"}


def held(lab: Lab, family: str) -> Program:
    address = addresses_by_family(lab, "server")[family]
    return lab.hosts["client[1]"].start(["python3", "/tmp/knock.py", "hold", address, "9003"], ready="held")


def test_a_connection_that_stands_is_reset(scaled: Lab) -> None:
    connections = {family: held(scaled, family) for family in ("IPv4", "IPv6")}
    scaled.cut("client[1] -> server", reject=True)
    scaled.hosts["client[1]"].put("/tmp/go", "")
    assert {family: program.wait("5s").stdout.split() for family, program in connections.items()} == {
        "IPv4": ["held", "ECONNRESET"],
        "IPv6": ["held", "ECONNRESET"],
    }


def test_the_answer_passes_whatever_else_is_cut_or_impaired(scaled: Lab) -> None:
    scaled.impair("server -> client[1]", delay="2s")
    scaled.cut("client[1] <-> server", reject=True)
    seen = knocked(scaled)
    assert seen == {door: error_of(door) for door in seen}
    scaled.cut("server -> client[1]")
    seen = knocked(scaled)
    assert seen == {door: error_of(door) for door in seen}


def test_a_part_that_is_lost_silently_cannot_be_within_what_rejects(scaled: Lab) -> None:
    scaled.cut("client[1] -> server", reject=True)
    with pytest.raises(InvalidValueError, match=r"tcp/9003 cannot be cut silently while client\[1\] -> server rejects"):
        scaled.cut("client[1] -> server tcp/9003")
    scaled.mend()
    scaled.cut("client[1] -> server tcp/9003")
    with pytest.raises(InvalidValueError, match=r"cannot reject while client\[1\] -> server tcp/9003 is cut silently"):
        scaled.cut("client[1] -> server", reject=True)
    scaled.cut("client[1] -> server udp", reject=True)  # beside it
    seen = knocked(scaled)
    assert seen["tcp IPv4 9003"] == "silence"
    assert {outcome for door, outcome in seen.items() if door.startswith("udp")} == {"ECONNREFUSED"}
    assert {seen[door] for door in ("tcp IPv4 9004", "tcp IPv6 9004", "icmp IPv4", "icmp IPv6")} == {"ok"}
