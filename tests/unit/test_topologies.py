"""Stars, chains and dumbbells: networks, routes, and refusals."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from testbed.backends.local import localplan
from testbed.backends.local.blueprint import LabPlan
from testbed.backends.local.routing import Routing
from testbed.compose import composefile
from testbed.errors import InvalidComposeError, InvalidValueError
from testbed.spec import drawings
from testbed.spec.drawings import Drawing
from testbed.spec.topology import Topology
from tests.unit.fakes import FakeImages


def plan_of(drawing: Drawing) -> LabPlan:
    file = composefile.of_drawing(drawing, environment={})
    return localplan.make(file, Topology.from_compose(file.config), FakeImages())


def read(folder: Path, text: str) -> LabPlan:
    path = folder / "compose.yaml"
    path.write_text(text, encoding="utf-8")
    file = composefile.read(path, environment={})
    return localplan.make(file, Topology.from_compose(file.config), FakeImages())


def routes(plan: LabPlan) -> dict[str, dict[str, str]]:
    return {host.name: dict(host.routes) for host in plan.hosts}


# --- shapes ----------------------------------------------------------------------------------------


def test_a_star_is_one_network() -> None:
    plan = plan_of(drawings.star(300))
    assert [host.name for host in plan.hosts][::299] == ["host[1]", "host[300]"]
    (network,) = plan.networks
    assert str(network.subnets[0]) == "10.0.0.0/23", "254 addresses would not do"
    assert len({address for host in plan.hosts for address in host.interfaces[0].plain}) == 300


def test_a_chain_has_a_network_a_hop() -> None:
    plan = plan_of(drawings.chain(2))
    assert {host.name: [interface.network for interface in host.interfaces] for host in plan.hosts} == {
        "left": ["left-r1"],
        "r1": ["left-r1", "r1-r2"],
        "r2": ["r1-r2", "r2-right"],
        "right": ["r2-right"],
    }
    assert [host.name for host in plan.hosts if host.router] == ["r1", "r2"]
    assert plan.services["r1"].sysctls["net.ipv4.ip_forward"] == "1"
    assert "net.ipv4.ip_forward" not in plan.services["left"].sysctls


def test_the_routes_of_a_chain_lead_along_it_and_back() -> None:
    # 10.0.0: left .2, r1 .3; 10.0.1: r1 .2, r2 .3; 10.0.2: r2 .2, right .3
    assert routes(plan_of(drawings.chain(2))) == {
        "left": {"0.0.0.0/0": "10.0.0.3"},
        "r1": {"10.0.2.0/24": "10.0.1.3"},
        "r2": {"10.0.0.0/24": "10.0.1.2"},
        "right": {"0.0.0.0/0": "10.0.2.2"},
    }


def test_a_dumbbells_sides_meet_at_the_bottleneck() -> None:
    plan = plan_of(drawings.dumbbell(2, 1, ends=["client", "server"]))
    assert [host.name for host in plan.hosts] == ["client[1]", "client[2]", "r1", "r2", "server"]
    assert routes(plan)["client[2]"] == {"0.0.0.0/0": "10.0.0.4"}
    assert routes(plan)["r1"] == {"10.0.2.0/24": "10.0.1.3"}
    names = plan.hosts_file(plan.hosts[0])
    assert "10.0.2.3 server" in names, "names are known beyond the routers"
    assert names.index("10.0.0.4 r1") < names.index("10.0.1.2 r1"), "the nearest address comes first"


def test_ipv6_has_its_routes_where_the_networks_have_it() -> None:
    assert routes(plan_of(drawings.chain(1, ipv6=True)))["left"] == {"0.0.0.0/0": "10.0.0.3", "::/0": "fd10::3"}


def test_the_services_of_the_ends_are_given_in_composes_words(tmp_path: Path) -> None:
    plan = plan_of(
        drawings.chain(
            1, services={"left": {"command": ["sleep", "9"], "x-testbed": {"local": {"path": str(tmp_path)}}}}
        )
    )
    assert plan.services["left"].argv == ("sleep", "9")
    assert plan.services["right"].argv == ()


def test_a_compose_file_says_the_same(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    plan = read(
        tmp_path,
        """
x-testbed: {topology: {dumbbell: [2, 1], ends: [client, server]}}
services:
  server: {image: shop/server, command: [x], x-testbed: {local: {path: app}}}
""",
    )
    assert {host.name for host in plan.hosts} == {"client[1]", "client[2]", "server", "r1", "r2"}
    assert plan.services["server"].argv == ("x",)


def test_a_service_becomes_a_router_by_a_word(tmp_path: Path) -> None:
    plan = read(
        tmp_path,
        """
services:
  a: {image: x, networks: [one], x-testbed: {local: {}}}
  b: {image: x, networks: [two], x-testbed: {local: {}}}
  gate: {image: x, networks: [one, two], x-testbed: {local: {}, router: true}}
networks:
  one: {ipam: {config: [{subnet: 10.1.0.0/24}]}}
  two: {ipam: {config: [{subnet: 10.2.0.0/24}]}}
""",
    )
    assert routes(plan) == {"a": {"0.0.0.0/0": "10.1.0.3"}, "b": {"0.0.0.0/0": "10.2.0.3"}, "gate": {}}


# --- routes ----------------------------------------------------------------------------------------


def test_the_shorter_way_is_taken_and_what_leads_nowhere_is_not() -> None:
    # a - p - z, and the long way a - q - r - z; "island" is no router's.
    ends = {
        "h": {"a": ("10.0.0.9",)},
        "p": {"a": ("10.0.0.1",), "z": ("10.9.0.1",)},
        "q": {"a": ("10.0.0.2",), "m": ("10.5.0.2",)},
        "r": {"m": ("10.5.0.3",), "z": ("10.9.0.3",)},
    }
    subnets = {
        name: (ip_network(text),)
        for name, text in (("a", "10.0.0.0/24"), ("m", "10.5.0.0/24"), ("z", "10.9.0.0/24"), ("island", "10.7.0.0/24"))
    }
    routing = Routing(subnets=subnets, ends=ends, routers=["p", "q", "r"])
    assert dict(routing.routes("h")) == {"0.0.0.0/0": "10.0.0.2", "10.9.0.0/24": "10.0.0.1"}
    assert routing.reached("h") == ["m", "z"]
    assert dict(routing.routes("p")) == {"10.5.0.0/24": "10.0.0.2"}


def test_without_routers_there_are_no_routes() -> None:
    assert Routing(subnets={"a": (ip_network("10.0.0.0/24"),)}, ends={"h": {}}, routers=[]).routes("h") == ()


# --- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("chain", "write {chain: 5}"),
        ({"ring": 5}, "topology: 'ring': unknown"),
        ({"star": 5, "chain": 5}, "name one of star, chain, dumbbell, not 2"),
        ({"dumbbell": 5}, "give two numbers"),
        ({"chain": 0}, "chain(0): must be a whole number from 1"),
        ({"chain": "5"}, "chain('5'): must be a whole number from 1"),
        ({"chain": 5, "ends": ["a", "a"]}, "give two different names"),
        ({"chain": 5, "ends": ["r1", "b"]}, "'r1' is a router's name"),
        ({"chain": 5, "host": "x"}, "has no `host:`"),
    ],
)
def test_a_wrong_shape_is_told_in_the_users_words(value: Any, problem: str) -> None:
    with pytest.raises(InvalidValueError) as refused:
        drawings.from_words(value, {})
    assert problem in str(refused.value)


def test_every_wrong_word_of_a_topologys_service_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidComposeError) as refused:
        read(
            tmp_path,
            """
services:
  left: {image: python, scale: 3, networks: [lan]}
x-testbed:
  topology: {chain: 2}
""",
        )
    assert [problem.partition("compose.yaml:")[2] for problem in refused.value.problems] == [
        "3: service 'left': network 'lan': unknown; known: ",
        "5: chain: service 'left': `networks:` is defined by the topology",
        "5: chain: service 'left': `scale:` is defined by the topology",
    ]


def test_services_that_are_none_of_its_ends_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="service 'lft': unknown; did you mean 'left'"):
        drawings.chain(1, services={"lft": {}})


def test_a_mistyped_word_of_ours_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidComposeError, match="rooter: unknown; did you mean 'router'"):
        read(tmp_path, "services: {a: {image: x, x-testbed: {local: {}, rooter: true}}}\n")


def test_what_only_a_local_lab_does_is_found_in_a_compose_file() -> None:
    config = {"x-testbed": {"topology": {}}, "services": {"a": {"x-testbed": {"router": True}}, "b": {}}}
    assert len(list(drawings.only_local(config))) == 2
    assert list(drawings.only_local({"services": {"b": {"x-testbed": {"local": {}}}}})) == []
