"""Links from or to something beyond the stack: how their packets are told from those of other links."""

from __future__ import annotations

import socket
import threading
from ipaddress import ip_address
from itertools import pairwise

import pytest

from testbed.agent import devices, relay
from testbed.errors import InvalidValueError
from testbed.lab import beyond
from testbed.lab.channel import Channel
from testbed.lab.ports import Port, Source
from testbed.lab.wanted import notes
from testbed.netem import qdisc
from testbed.observe.packet import Ip
from testbed.spec.impairment import CLEAN, Impairment
from testbed.spec.links import ALL_TRAFFIC, LinkRef, PortRef, Traffic

MAC = "02:42:ac:12:00:01"
GATEWAY = {"ifindex": 7, "mac": MAC, "addresses": ["172.18.0.1"]}
OWN = ["192.0.2.2", "172.18.0.1", "fd00::1"]
PARTS = (ALL_TRAFFIC, Traffic("tcp"), Traffic("tcp", 443))


def source(far: str, *, outward: bool = False, ours: bool = True) -> Source:
    ref = LinkRef("api", far, "lan", beyond="dst") if outward else LinkRef(far, "api", "lan", beyond="src")
    return Source(minor=0x10, **beyond.ends(ref, GATEWAY, OWN, machine_is_ours=ours))


def ip(src: str, dst: str) -> Ip:
    ends = {"src": ip_address(src).packed, "dst": ip_address(dst).packed}
    version = ip_address(src).version
    return Ip(
        version=version, header_bytes=20, total_bytes=40, protocol=6, identification=0, first_fragment=True, **ends
    )


@pytest.mark.parametrize(
    ("far", "ours", "others"),
    [
        ("localhost", True, ["192.0.2.2", "172.18.0.1", "fd00::1"]),
        ("localhost", False, ["192.0.2.2", "172.18.0.1", "198.51.100.9", "203.0.113.9", "fd00::1", "2001:db8::9"]),
        ("outside", True, ["198.51.100.9", "203.0.113.9", "2001:db8::9"]),
        ("203.0.113.0/24", True, ["203.0.113.9"]),
    ],
)
def test_a_captured_packet_is_of_the_end_that_its_other_address_is_of(far: str, ours: bool, others: list[str]) -> None:
    def packed(*addresses: str) -> frozenset[bytes]:
        return frozenset(ip_address(address).packed for address in addresses)

    end = beyond.FarEnd(
        far=far,
        host=packed("172.18.0.2", "fd00::2"),
        members=packed("172.18.0.2", "172.18.0.3", "fd00::2"),
        machine=packed(*OWN),
        machine_is_ours=ours,
    )
    every = [*OWN, "198.51.100.9", "203.0.113.9", "2001:db8::9", "172.18.0.3", "224.0.0.251", "fe80::1"]
    own = {4: "172.18.0.2", 6: "fd00::2"}
    of_it = [there for there in every if end.has(ip(own[ip_address(there).version], there))]
    assert sorted(of_it) == sorted(others)
    assert [end.has(ip(there, own[ip_address(there).version])) for there in others] == [True] * len(others)
    assert not end.has(ip("172.18.0.3", others[0])), "of another host at the same port"
    assert not end.has(None)


def test_the_machine_is_its_own_addresses_behind_the_gateway() -> None:
    assert [flower.keys for flower in source("localhost").filters(ALL_TRAFFIC)] == [
        {"src_mac": MAC, "src_ip": address} for address in OWN
    ]
    assert [flower.keys for flower in source("localhost", outward=True).filters(Traffic("tcp"))][:2] == [
        {"dst_mac": MAC, "dst_ip": "192.0.2.2", "ip_proto": "tcp"},
        {"dst_mac": MAC, "dst_ip": "172.18.0.1", "ip_proto": "tcp"},
    ]
    assert source("localhost").spares() == []


def test_on_another_machine_it_is_all_that_comes_through() -> None:
    assert [flower.keys for flower in source("localhost", ours=False).filters(ALL_TRAFFIC)] == [{"src_mac": MAC}] * 3


def test_the_outside_is_the_rest_and_spares_the_machine() -> None:
    outside, part = source("outside", outward=True), source("203.0.113.0/24", outward=True)
    assert {str(dict(flower.keys)) for flower in outside.filters(ALL_TRAFFIC)} == {str({"dst_mac": MAC})}
    assert [dict(flower.keys) for flower in part.filters(ALL_TRAFFIC)] == [{"dst_mac": MAC, "dst_ip": "203.0.113.0/24"}]
    for known in (outside, part):
        assert [(flower.keys, flower.flow) for flower in known.spares()] == [
            ({"dst_mac": MAC, "dst_ip": address}, "1:") for address in OWN
        ]


def test_the_machines_filters_come_before_those_that_spare_it_and_these_before_the_outsides() -> None:
    """Whether it is cut, or impaired: an outside that is cut off must not cut off the machine."""

    def priorities(known: Source, how: str) -> list[int]:
        ways = [known.ways("drop", part) if how == "cut" else known.filters(part) for part in PARTS]
        return [flower.priority for flowers in ways for flower in flowers]

    machine, some, whole = source("localhost"), source("203.0.113.7"), source("outside")
    order = [
        *(priorities(machine, how) for how in ("cut", "impair")),
        [flower.priority for flower in whole.spares()],
        *(priorities(known, how) for how in ("cut", "impair") for known in (some, whole)),
    ]
    assert all(max(earlier) < min(later) for earlier, later in pairwise(order))
    last = Source(
        minor=0x10,
        part=qdisc.MOST_LAST_PARTS - 1,
        **beyond.ends(LinkRef("outside", "api", "lan", beyond="src"), GATEWAY, OWN, machine_is_ours=True),
    )
    own = [flower.priority for flower in last.filters(PARTS[2]) if "ip_flags" in flower.keys]
    assert max(own) < min(flower.priority for flower in whole.filters(PARTS[1])) < 2**16


def test_addresses_that_two_links_share_are_refused() -> None:
    wide, narrow = (LinkRef("api", far, "lan", beyond="dst") for far in ("203.0.113.0/24", "203.0.113.7"))
    others = [LinkRef("api", far, "lan", beyond="dst") for far in ("outside", "localhost", "2001:db8::/32")]
    beyond.refuse_overlap(narrow, [narrow, *others])
    beyond.refuse_overlap(others[0], [wide])
    for mine, other in ((narrow, wide), (wide, narrow)):
        with pytest.raises(InvalidValueError, match="some of its addresses are those of api -> 203"):
            beyond.refuse_overlap(mine, [*others, other])


def test_what_to_know_of_names_and_of_another_machine_is_told() -> None:
    names, machine = LinkRef("api", "db", "lan", Traffic("udp", 53)), LinkRef("localhost", "api", "lan", beyond="src")
    impairments = dict.fromkeys((names, machine), CLEAN)
    of_names = (
        "api -> db udp/53: the engine's resolver answers inside each container, so looking up a name crosses no link"
    )
    (note,) = notes(impairments, machine_is_ours=True)
    assert note.startswith(of_names)
    note, through = notes(impairments, machine_is_ours=False)
    assert note.startswith(of_names)
    assert through.startswith("localhost -> api: localhost is all that comes through the engine's machine")


def test_another_process_takes_up_such_a_link() -> None:
    ref = LinkRef("api", "outside", "lan", beyond="dst")
    known = source("outside", outward=True)
    known.impairment = Impairment(delay_s=0.04)
    port = Port(
        ref=PortRef("api", "lan", out=True), name="api@lan", channel=_NO_CHANNEL, device="vec1", sources={ref: known}
    )
    again = Port.from_state(port.ref, _NO_CHANNEL, port.state())
    assert (again.name, again.sources) == ("api@lan", {ref: known})


_NO_CHANNEL: Channel = None  # type: ignore[assignment]  # nothing is said to it


def test_the_machines_own_addresses_are_those_that_a_socket_can_be_bound_to() -> None:
    addresses = devices.own_addresses()
    assert len(set(addresses)) == len(addresses)
    assert not [address for address in addresses if ip_address(address).is_loopback]
    for address in addresses:
        if ip_address(address).version == 4:
            with socket.socket() as own:
                own.bind((address, 0))


def test_relayed_connections_do_not_wait_for_one_that_the_host_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """A link to a host may be cut, and others are reached meanwhile."""
    taken, free = threading.Event(), threading.Event()
    real = socket.create_connection

    def slow(target: tuple[str, int], **_: object) -> socket.socket:
        if target[1] == 1:
            taken.set()
            free.wait(10)
            raise OSError("nobody")
        return real(target)

    monkeypatch.setattr(socket, "create_connection", slow)
    here = ("127.0.0.1", 0)
    with socket.create_server(here) as cut, socket.create_server(here) as well, socket.create_server(here) as host:
        published = [(cut.dup(), ("127.0.0.1", 1)), (well.dup(), host.getsockname())]
        threading.Thread(target=relay.serve, args=[published], daemon=True).start()
        waiting = real(cut.getsockname(), timeout=10)
        assert taken.wait(10)
        with real(well.getsockname(), timeout=10) as client:
            host.settimeout(10)
            inner, _ = host.accept()
            with inner:
                client.sendall(b"word")
                assert inner.recv(9) == b"word"
                client.shutdown(socket.SHUT_WR)
                assert inner.recv(9) == b""
                inner.sendall(b"answer")
            assert client.recv(9) == b"answer"
        free.set()
        assert waiting.recv(9) == b""
        waiting.close()


def test_an_address_of_the_machine_keeps_its_filter_while_others_come_and_go() -> None:
    gateway = qdisc.Gateway(mac="02:00:00:00:00:01", outward=True, last=True)
    first, later = (
        {filter_.keys["dst_ip"]: filter_.handle for filter_ in qdisc.spared(gateway, addresses)}
        for addresses in (["192.0.2.1", "192.0.2.2", "fe80::1"], ["192.0.2.2", "192.0.2.3", "fe80::1"])
    )
    assert first["192.0.2.2"] == later["192.0.2.2"], "the kernel refuses it under another handle"
    assert first["fe80::1"] == later["fe80::1"]
    assert len({*first.values(), *later.values()}) == 4
