"""Which connections are over, and how many packets earlier ones sent on a link."""

from __future__ import annotations

from dataclasses import replace

import pytest

from testbed.observe.connections import Connection, ConnectionTable, Crossed, crossed, over
from testbed.observe.tcp_info import Endpoint
from testbed.spec.links import Traffic

A, B = Endpoint(address="10.0.0.1", port=40000), Endpoint(address="10.0.0.2", port=80)
HOSTS = {"10.0.0.1": "a", "10.0.0.2": "b"}


def end(host: str = "a", state: str = "ESTABLISHED", **words: object) -> Connection:
    local, remote = (A, B) if host == "a" else (B, A)
    known = {"id": f"{host}1", "local": local, "remote": remote, "owned": True, "unacknowledged_bytes": 0}
    return Connection(**{"host": host, "state": state, "segments_sent": 0, **known, **words})  # type: ignore[arg-type]


def tables(*connections: Connection, routes: str = "") -> dict[str, ConnectionTable]:
    return {
        host: ConnectionTable(
            connections=tuple(connection for connection in connections if connection.host == host),
            routes=host == routes,
        )
        for host in "ab"
    }


def ids(tables: dict[str, ConnectionTable], earlier: tuple[str, ...] = ()) -> dict[str, bool]:
    return {connection.connection.id: connection.unheard for connection in over(tables, earlier, HOSTS)}


@pytest.mark.parametrize("state", ["FIN_WAIT1", "CLOSING", "LAST_ACK", "SYN_RECV"])
def test_what_no_program_has_is_over_and_unheard_if_nobody_is_at_the_other_end(state: str) -> None:
    closed = end("a", state, owned=False)
    assert ids(tables(closed)) == {"a1": True}
    assert ids(tables(closed, end("b", "FIN_WAIT2", owned=False))) == {"a1": True}
    assert ids(tables(closed, end("b"))) == {"a1": False}, "a program reads there"
    assert ids({"a": tables(closed)["a"]}) == {"a1": False}, "who is there is not known"
    assert ids(tables(closed), ("a1",)) == {}, "it was there before the test"
    assert ids(tables(replace(closed, owned=True))) == {}, "closed in one direction alone"


def test_what_programs_have_at_both_ends_goes_on() -> None:
    assert ids(tables(end("a", unacknowledged_bytes=9), end("b"))) == {}


def test_what_is_sent_again_to_a_host_that_does_not_know_it_is_over() -> None:
    waiting = end("b", unacknowledged_bytes=9)
    assert ids(tables(waiting)) == {"b1": False}
    assert ids(tables(replace(waiting, unacknowledged_bytes=0))) == {}, "it sends nothing"
    assert ids(tables(waiting, routes="a")) == {}, "the other end may be behind it"
    assert ids({"b": tables(waiting)["b"]}) == {}, "what is not seen is not known to be gone"


@pytest.mark.parametrize("state", ["FIN_WAIT2", "ESTABLISHED"])
def test_what_waits_to_be_accepted_or_for_the_other_side_is_let_be(state: str) -> None:
    assert ids(tables(end("a", state, owned=False), end("b"))) == {}


def lately(*now: Connection, **words: object) -> Crossed | None:
    ends: dict[str, object] = {"sources": ["10.0.0.1"], "targets": ["10.0.0.2"], "traffic": Traffic.parse("")}
    return crossed([end(segments_sent=5)], now, **{**ends, **words})  # type: ignore[arg-type]


def test_what_earlier_connections_sent_on_a_link_is_the_difference_of_their_segments() -> None:
    seen = lately(end(segments_sent=12), end(id="later", segments_sent=99))
    assert seen is not None
    assert str(seen) == "7 packets of 10.0.0.1:40000 — 10.0.0.2:80"
    assert lately(end(segments_sent=5)) is None
    assert str(lately()) == "at least 0 packets of 10.0.0.1:40000 — 10.0.0.2:80", "it has ended meanwhile"


@pytest.mark.parametrize(
    ("words", "packets"),
    [
        ({"targets": ["10.0.0.9"]}, None),
        ({"sources": ["10.0.0.9"]}, None),
        ({"traffic": Traffic.parse("udp")}, None),
        ({"traffic": Traffic.parse("tcp/81")}, None),
        ({"traffic": Traffic.parse("tcp/80")}, 1),
        ({"traffic": Traffic.parse("tcp")}, 1),
    ],
)
def test_of_another_link_or_another_part_of_its_traffic_nothing_is_counted(
    words: dict[str, object], packets: int | None
) -> None:
    seen = lately(end(segments_sent=6), **words)
    assert (None if seen is None else seen.packets) == packets


def test_an_ipv4_address_is_one_also_in_a_socket_of_ipv6() -> None:
    row = {
        "id": "x",
        "local": ["::ffff:10.0.0.1", 1],
        "remote": ["fd00::2", 2],
        "state": "ESTABLISHED",
        "owned": True,
        "unacknowledged_bytes": 0,
        "segments_sent": None,
    }
    (read,) = ConnectionTable.read("a", {"connections": [row], "routes": False}).connections
    assert (read.local.address, read.remote.address) == ("10.0.0.1", "fd00::2")
