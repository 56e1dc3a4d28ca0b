"""How ports are named, and what an observation says; no engine."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import InvalidValueError, LabError
from testbed.lab import overtime
from testbed.lab.elsewhere import Elsewhere
from testbed.lab.impairer import Impairer
from testbed.lab.keeping import file_name
from testbed.lab.ledger import Ledger
from testbed.lab.observer import Observer, port_of
from testbed.lab.ports import Ports
from testbed.lab.wholeness import Wholeness
from testbed.observe.capture import Capture, Place
from testbed.observe.counters import Counters
from testbed.observe.observation import HostObservation, Observation, Sampling
from testbed.observe.tcp_info import Endpoint, TcpSocket
from testbed.spec.links import PortRef
from testbed.spec.topology import Topology
from tests.unit.frames import SERVER, Wire


@pytest.fixture
def lab() -> Any:
    """What a lab knows before it is up."""
    topology = Topology.from_compose(
        {
            "services": {
                "client": {"image": "x", "networks": {"lan": None}},
                "server": {"image": "x", "networks": {"lan": None}},
                "router": {"image": "x", "networks": {"lan": None, "wan": None}},
            },
            "networks": {"lan": {"name": "p_lan"}, "wan": {"name": "p_wan"}},
        }
    )
    return SimpleNamespace(topology=topology, hosts=dict.fromkeys(topology.hosts))


def observer(lab: Any) -> Observer:
    ports = Ports(lab)
    whole = Wholeness(lab, suspend=print, resume_links=print, say=print)
    return Observer(ports, Impairer(ports, Ledger(), Elsewhere(ports, whole, lab), lab), lab)


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("server", (PortRef("server", "lan"), None)),
        ("router on wan", (PortRef("router", "wan"), None)),
        ("router@wan", (PortRef("router", "wan"), None)),
        ("client -> server", (PortRef("server", "lan"), "client")),
    ],
)
def test_a_port_is_named_by_its_host_or_by_a_link(lab: Any, text: str, port: tuple[PortRef, str | None]) -> None:
    assert port_of(lab, text) == port


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("srver", "host 'srver': unknown; did you mean 'server'"),
        ("server on wan", "network 'wan': unknown"),
        ("router", "of which network"),
        ("client <-> server", "one port at a time"),
        ("client -> srver", "host 'srver': unknown; did you mean 'server'"),
    ],
)
def test_a_port_that_is_none_is_refused_with_what_was_written(lab: Any, text: str, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message) as refused:
        observer(lab).capture(text)
    assert text.partition(" ")[0] in str(refused.value)


@pytest.mark.parametrize("options", [{"limit_bytes": 0}, {"snap_bytes": 0}, {"snap_bytes": 1 << 20}])
def test_limits_that_keep_nothing_are_refused(lab: Any, options: dict[str, int]) -> None:
    with pytest.raises(InvalidValueError, match="both are numbers of bytes above 0"):
        observer(lab).capture("server", **options)


def test_a_capture_that_has_not_ended_has_no_packets_yet(lab: Any) -> None:
    with pytest.raises(LabError, match="server@lan: its packets can be read only once it has ended"):
        _ = observer(lab).capture("server").packets


@given(st.text(min_size=1, max_size=300), st.text(min_size=1, max_size=300))
def test_two_tests_have_two_folders_which_any_file_system_takes(one: str, other: str) -> None:
    name = file_name(one)
    assert 0 < len(name.encode()) < 255 * 3
    assert "/" not in name
    assert name not in (".", "..")
    assert (file_name(other) == name) == (one == other)


def host(name: str, *connections: TcpSocket) -> HostObservation:
    return HostObservation(
        name=name,
        addresses=(SERVER,),
        counters=Counters(changes={}, levels={}),
        sockets=connections,
        sampling=Sampling(samples=100, ran_s=2.0, cpu_s=0.02, left_out=0),
    )


def connection(port: int) -> TcpSocket:
    ends = Endpoint(address="10.0.0.1", port=40000), Endpoint(address="10.0.0.2", port=port)
    return TcpSocket(local=ends[0], remote=ends[1], cookie=port, states=[SimpleNamespace(state="ESTABLISHED")])  # type: ignore[list-item]  # all that is asked of it


def test_a_connection_is_found_by_its_ports_or_what_there_is_is_said() -> None:
    seen = host("client", connection(80), connection(81))
    assert seen.connection(remote_port=81).cookie == 81
    with pytest.raises(LabError, match=r"`client`: 2 connections with local_port=40000, remote_port=None.*:80; .*:81"):
        seen.connection(local_port=40000)
    assert (seen.sampling.every_s, seen.sampling.cpu_ratio) == (0.02, 0.01)


def test_what_was_not_observed_is_said_with_its_reason() -> None:
    seen = Observation(hosts={"client": host("client")}, missing={"server": "it was started again"})
    with pytest.raises(LabError, match="`server` was not observed: it was started again"):
        seen.host("server")
    with pytest.raises(LabError, match="port 'server': it was started again"):
        seen.capture("server")
    with pytest.raises(LabError, match="`other` was not observed: there are: client"):
        seen.host("other")


def test_a_port_without_impairment_has_one_side_that_is_both() -> None:
    wire = Wire()
    wire.handshake()
    seen = Observation(
        began_ns=1_000_000_000,
        captures={PortRef("server", "lan"): Capture(places=(Place(name="x"),), packets=tuple(wire.packets))},
    )
    assert seen.flows("server")[0].handshake == seen.flows("server@lan", "after")[0].handshake
    assert seen.seconds(1_500_000_000) == 0.5


@pytest.mark.parametrize(("ended_ms", "drops"), [(1000, [0.0, 1.0, 2.0]), (70, [0.0, 1.0]), (None, [0.0, 1.0, 2.0])])
def test_a_packet_that_may_still_be_under_way_at_the_end_is_not_drawn_as_lost(
    ended_ms: int | None, drops: list[float]
) -> None:
    """Of three packets the first takes 30 ms, the second is lost, and the third came 20 ms before the short end."""
    wire = Wire()
    for number, at_ms in enumerate((10, 20, 50)):
        wire.client(number, b"x", at_ms=at_ms)
    passed = replace(wire.packets[0], place=1, time_ns=40_000_000)
    capture = Capture(
        places=(Place(name="before", side="before"), Place(name="after")),
        packets=(*wire.packets[:2], passed, wire.packets[2]),
        ended_ns=None if ended_ms is None else ended_ms * 1_000_000,
    )
    seen = Observation(hosts={"server": host("server")}, captures={PortRef("server", "lan"): capture})
    lost = next(series for series in overtime.series(seen) if series.name == "server@lan: packets lost")
    assert list(lost.values) == drops
