"""What the Compose file declares, and which links its hosts can have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from testbed.errors import InvalidComposeError, InvalidValueError
from testbed.spec.links import LinkRef, Traffic
from testbed.spec.topology import Network, Service, Topology

# As `docker compose config --format json` prints it, cut to what matters.
CONFIG: dict[str, Any] = {
    "name": "shop",
    "services": {
        "client": {"image": "busybox", "networks": {"lan": None}},
        "server": {"build": {"context": "/srv"}, "networks": {"lan": {"aliases": ["www"]}, "dmz": None}},
        "gate-1": {"networks": {"lan": None, "dmz": None, "wide": None}},
        "web": {"deploy": {"replicas": 2}, "networks": {"dmz": None}},
        "idle": {"scale": 0, "networks": {"lan": None}},
        "far": {"networks": {"wide": None}},
        "farther": {"networks": {"wide": None}},
        "bare": {"network_mode": "host"},
        "alone": {"network_mode": None, "networks": {}},
    },
    "networks": {
        "lan": {"name": "shop_lan", "driver": "bridge"},
        "dmz": {"name": "shop_dmz"},
        "wide": {"name": "shop_wide", "driver": "macvlan"},
    },
}
TOPOLOGY = Topology.from_compose(CONFIG)


def problems_of(link: str) -> tuple[str, ...]:
    with pytest.raises(InvalidValueError) as refused:
        TOPOLOGY.links(link)
    assert all(problem.startswith(f"link {link!r}: ") for problem in refused.value.problems)
    return tuple(problem.removeprefix(f"link {link!r}: ") for problem in refused.value.problems)


# --- reading ---------------------------------------------------------------------------------------


def test_a_host_is_a_replica_in_the_order_of_the_file() -> None:
    assert TOPOLOGY.hosts == ("client", "server", "gate-1", "web[1]", "web[2]", "far", "farther", "bare", "alone")


def test_a_service_keeps_what_matters_to_a_lab() -> None:
    assert TOPOLOGY.services["server"] == Service(
        name="server",
        networks=("lan", "dmz"),
        build={"context": "/srv"},
        replicas=1,
        image=None,
        network_mode=None,
        also=frozenset({"www"}),
    )
    assert TOPOLOGY.services["client"].image == "busybox"
    assert TOPOLOGY.services["bare"].network_mode == "host"


def test_a_network_is_a_bridge_under_its_own_name_unless_said() -> None:
    topology = Topology.from_compose({"services": {"a": {}}, "networks": {"default": None, "lan": {"name": "x_lan"}}})
    assert topology.networks == {
        "default": Network(name="default", engine_name="default", driver="bridge"),
        "lan": Network(name="lan", engine_name="x_lan", driver="bridge"),
    }
    assert TOPOLOGY.networks["wide"].driver == "macvlan"


@pytest.mark.parametrize(
    ("body", "replicas"),
    [
        ({}, 1),
        ({"scale": 3}, 3),
        ({"deploy": None}, 1),
        ({"deploy": {}}, 1),
        ({"deploy": {"replicas": None}, "scale": 2}, 2),
        ({"deploy": {"replicas": 2}}, 2),
        ({"deploy": {"replicas": 0}}, 0),
        ({"deploy": {"replicas": 0}, "scale": 5}, 0),
    ],
)
def test_replicas_are_counted_from_deploy_then_from_scale(body: dict[str, Any], replicas: int) -> None:
    assert Topology.from_compose({"services": {"a": body}}).services["a"].replicas == replicas


@pytest.mark.parametrize(
    ("replicas", "hosts"), [(0, ()), (1, ("a",)), (2, ("a[1]", "a[2]")), (3, ("a[1]", "a[2]", "a[3]"))]
)
def test_replicas_are_numbered_where_there_are_several(replicas: int, hosts: tuple[str, ...]) -> None:
    assert Service(name="a", replicas=replicas).hosts == hosts


@pytest.mark.parametrize("config", [{}, {"services": None}, {"services": {}}])
def test_no_service_is_refused_with_the_likely_reason(config: dict[str, Any]) -> None:
    with pytest.raises(InvalidComposeError, match=r"no active service.*--compose-profile NAME or COMPOSE_PROFILES"):
        Topology.from_compose(config)


def test_a_file_without_networks_has_none() -> None:
    assert Topology.from_compose({"services": {"a": {}}}).networks == {}


@pytest.mark.parametrize(("host", "service"), [("client", "client"), ("web[2]", "web"), ("gate-1", "gate-1")])
def test_a_host_belongs_to_its_service(host: str, service: str) -> None:
    owner = TOPOLOGY.service_of(host)
    assert owner is not None
    assert owner.name == service


@pytest.mark.parametrize("host", ["web", "web[0]", "web[3]", "client[1]", "idle", "nobody", ""])
def test_what_is_no_replica_belongs_to_no_service(host: str) -> None:
    assert TOPOLOGY.service_of(host) is None


# --- links -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "links"),
    [
        ("client -> server", [("client", "server", "lan")]),
        ("server -> client", [("server", "client", "lan")]),
        ("client->server", [("client", "server", "lan")]),
        ("  client   ->\tserver  ", [("client", "server", "lan")]),
        ("client <-> server", [("client", "server", "lan"), ("server", "client", "lan")]),
        ("client<->server", [("client", "server", "lan"), ("server", "client", "lan")]),
        ("client -> server on lan", [("client", "server", "lan")]),
        ("server <-> gate-1 on dmz", [("server", "gate-1", "dmz"), ("gate-1", "server", "dmz")]),
        ("gate-1->client", [("gate-1", "client", "lan")]),
        ("web[1] -> web[2]", [("web[1]", "web[2]", "dmz")]),
        ("web[2] -> server", [("web[2]", "server", "dmz")]),
    ],
)
def test_a_link_is_named_by_its_ends(text: str, links: list[tuple[str, str, str]]) -> None:
    assert TOPOLOGY.links(text) == tuple(LinkRef(*link) for link in links)


def test_a_link_is_shown_as_it_is_written() -> None:
    assert str(LinkRef("client", "server", "lan")) == "client -> server"
    assert str(LinkRef("client", "server", "lan", Traffic("tcp", 8888))) == "client -> server tcp/8888"


@pytest.mark.parametrize(
    ("words", "traffic"),
    [("", Traffic()), (" tcp", Traffic("tcp")), (" udp/53", Traffic("udp", 53)), (" icmp on lan", Traffic("icmp"))],
)
def test_a_link_is_narrowed_by_protocol_and_port_both_ways(words: str, traffic: Traffic) -> None:
    assert TOPOLOGY.links(f"client <-> server{words}") == (
        LinkRef("client", "server", "lan", traffic),
        LinkRef("server", "client", "lan", traffic),
    )


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("lan", "'lan' is a network; write \"on lan\""),
        ("tpc/8888", "'tpc/8888': unknown; did you mean 'tcp'? Known: tcp, udp, icmp, with a port as in tcp/8888"),
        ("tcp/", "'tcp/': a port is a number from 1 to 65535, as in tcp/8888"),
        ("tcp/0", "'tcp/0': a port is a number from 1 to 65535, as in tcp/8888"),
        ("udp/65536", "'udp/65536': a port is a number from 1 to 65535, as in udp/8888"),
        ("icmp/8", "'icmp/8': icmp has no ports"),
        ("TCP/80", "'TCP/80': write it in small letters: tcp/80"),
        ("Icmp", "'Icmp': write it in small letters: icmp"),
        ("8888", "'8888' is no part of a link: write tcp/8888 or udp/8888"),
        ("80/udp", "'80/udp' is no part of a link: write udp/80"),
        ("tcp udp", "'tcp udp': one part at a time; write one link per part"),
        ("tcp/80, udp/90 on lan", "'tcp/80,udp/90': one part at a time; write one link per part"),
        ("on lan tcp/80", "the part stands before `on`: client -> server tcp/80 on lan"),
        ("on lan dmz", "'on lan dmz': one network at a time"),
        ("tcp on", 'which network? Write "client -> server on lan"'),
    ],
)
def test_what_is_no_traffic_is_refused(words: str, problem: str) -> None:
    assert problems_of(f"client -> server {words}") == (problem,)


@pytest.mark.parametrize(
    ("text", "forward", "reverse"),
    [
        ("web[*] -> server", ["web[1] -> server", "web[2] -> server"], []),
        ("web[1..2] <-> server", ["web[1] -> server", "web[2] -> server"], ["server -> web[1]", "server -> web[2]"]),
        ("web[2..2] -> server", ["web[2] -> server"], []),
        ("web[*] -> web[*]", ["web[1] -> web[2]", "web[2] -> web[1]"], []),
        ("web[*] <-> web[*]", ["web[1] -> web[2]", "web[2] -> web[1]"], []),
        ("web[*],server -> web[1]", ["web[2] -> web[1]", "server -> web[1]"], []),
        ("* -> web[1]", ["server -> web[1]", "web[2] -> web[1]"], []),
    ],
)
def test_an_end_may_stand_for_several_hosts(text: str, forward: list[str], reverse: list[str]) -> None:
    there, back = TOPOLOGY.directions(f"{text} on dmz")
    gate = "gate-1 -> web[1]"  # on dmz as well
    assert [str(ref) for ref in there if str(ref) != gate] == forward
    assert [str(ref) for ref in back] == reverse


def test_replicas_that_are_not_there_are_refused() -> None:
    for wrong in ("web[0..1]", "web[2..3]", "web[3..1]", "web[0]", "web[3]"):
        assert problems_of(f"{wrong} -> server") == (f"{wrong!r}: web has 2 replicas, counted from 1",)
    assert problems_of("idle[*] -> server") == ("'idle[*]': idle has 0 replicas, counted from 1",)


def test_replicas_that_run_backwards_are_refused() -> None:
    assert problems_of("web[2..1] -> server") == ("'web[2..1]': the range runs backwards; write web[1..2]",)


@pytest.mark.parametrize("text", ["server, gate-1 -> far", "server , gate-1 -> far"])
def test_blanks_between_hosts_are_refused_with_whatever_else_is_wrong(text: str) -> None:
    assert problems_of(f"{text} TCP") == (
        "write several hosts without blanks: server,gate-1 -> far TCP",
        "'TCP': write it in small letters: tcp",
    )
    assert problems_of("far -> server, zzz tcp") == (
        "write several hosts without blanks: far -> server,zzz tcp",
        f"host 'zzz': unknown; known: {KNOWN}",
    )


def test_of_all_hosts_those_are_meant_that_can_have_a_link() -> None:
    assert "bare -> server" not in map(str, TOPOLOGY.links("* -> server on lan"))
    assert problems_of("* -> far on lan") == ("no two of these hosts share a network",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "client",
        "client server",
        "client <- server",
        "client => server",
        "-> server",
        "client ->",
        "client - > server",
        "client server -> gate-1",
    ],
)
def test_what_is_no_link_is_refused_with_the_three_ways_to_write_one(text: str) -> None:
    with pytest.raises(InvalidValueError) as refused:
        TOPOLOGY.links(text)
    assert str(refused.value) == (
        f'link {text!r}: write "client -> server" for one direction, "client <-> server" for both, '
        f'and "client -> server on lan" where two hosts share several networks'
    )


KNOWN = "client, server, gate-1, web[1], web[2], far, farther, bare, alone"


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("cleint -> server", [f"host 'cleint': unknown; did you mean 'client'? Known: {KNOWN}"]),
        ("zzz -> qqq", [f"host 'zzz': unknown; known: {KNOWN}", f"host 'qqq': unknown; known: {KNOWN}"]),
        ("zzz -> zzz", [f"host 'zzz': unknown; known: {KNOWN}"]),
        ("zzz -> server on nowhere", [f"host 'zzz': unknown; known: {KNOWN}"]),
        ("web -> server", ["'web' has 2 replicas; name one, as web[1], or all, web[*]"]),
        ("idle -> server", ["'idle' has 0 replicas; there is no host to link"]),
        ("client -> client", ["a host has no link to itself"]),
        (
            "bare -> alone",
            [
                "host 'bare' has `network_mode: host`, and so no port of its own to impair; write `networks:` instead",
                "host 'alone' is on no network; give the service one under `networks:`",
            ],
        ),
        ("client -> web[1]", ["client (on lan) and web[1] (on dmz) share no network"]),
        ("client -> web[1] on lan", ["client (on lan) and web[1] (on dmz) share no network"]),
        ("server -> gate-1", ['server and gate-1 share several networks; add " on NETWORK": lan, dmz']),
        (
            "server -> gate-1 on dmx",
            ["network 'dmx': unknown; did you mean 'dmz'? Known: lan, dmz (the networks that server and gate-1 share)"],
        ),
        (
            "client -> server on dmz",
            ["client is not on network 'dmz'; client and server share: lan"],
        ),
        ("far -> farther", ["network 'wide' has driver 'macvlan'; only a bridge has ports to impair"]),
    ],
)
def test_a_link_that_cannot_be_is_refused_with_every_reason(text: str, problems: list[str]) -> None:
    assert problems_of(text) == tuple(problems)


# --- links between groups --------------------------------------------------------------------------


def joined(networks: dict[str, str], *routers: str, drivers: dict[str, str] | None = None) -> Topology:
    """Services, each with the names of its networks, one letter each."""
    return Topology.from_compose(
        {
            "services": {
                name: {"networks": dict.fromkeys(on), "x-testbed": {"router": name in routers}}
                for name, on in networks.items()
            },
            "networks": {
                name: {"driver": (drivers or {}).get(name, "bridge")} for name in {*"".join(networks.values())}
            },
        }
    )


def refused(topology: Topology, *groups: Iterable[str]) -> tuple[str, ...]:
    with pytest.raises(InvalidValueError) as caught:
        topology.links_between(*groups)
    return caught.value.problems


def test_links_between_groups_go_both_ways_over_every_shared_network() -> None:
    topology = joined({"a": "lb", "b": "lb", "c": "l"})
    assert {(link.src, link.dst, link.network) for link in topology.links_between({"a"}, ["b", "c"])} == {
        ("a", "b", "l"),
        ("b", "a", "l"),
        ("a", "b", "b"),
        ("b", "a", "b"),
        ("a", "c", "l"),
        ("c", "a", "l"),
    }
    assert {str(link) for link in topology.links_between("b", "c")} == {"b -> c", "c -> b"}
    assert {str(link) for link in topology.links_between("b", "c", traffic=Traffic("tcp", 80))} == {
        "b -> c tcp/80",
        "c -> b tcp/80",
    }


def test_groups_name_hosts_as_links_do_and_get_the_same_hints() -> None:
    web = {"web[1]", "web[2]"}
    assert {ref.src for ref in TOPOLOGY.links_between({"web[*]"}, {"server"})} == {*web, "server"}
    assert {ref.src for ref in TOPOLOGY.links_between(["web[1..2]"], "server")} == {*web, "server"}
    assert {ref.src for ref in TOPOLOGY.links_between(["web[2],gate-1"], "server")} == {"web[2]", "gate-1", "server"}
    assert refused(TOPOLOGY, {"web"}, {"server"}) == ("'web' has 2 replicas; name one, as web[1], or all, web[*]",)
    assert refused(TOPOLOGY, {"web[1..3]"}, {"srver"}) == (
        "'web[1..3]': web has 2 replicas, counted from 1",
        "host 'srver': unknown; did you mean 'server'? Known: " + ", ".join(TOPOLOGY.hosts),
    )
    (hint,) = refused(TOPOLOGY, {"bare"}, {"server"})
    assert hint.startswith("host 'bare' has `network_mode: host`, and so no port of its own")


def test_of_several_hosts_that_are_isolated_each_is_alone() -> None:
    topology = joined({"a": "l", "b": "l", "c": "l"})
    assert {str(ref) for ref in topology.links_around("a")} == {"a -> b", "b -> a", "a -> c", "c -> a"}
    assert len(topology.links_around("a,b")) == 6
    assert len(topology.links_around("*")) == 6
    around = TOPOLOGY.links_around("web[*]", traffic=Traffic("udp"))
    assert {str(ref) for ref in around} >= {"web[1] -> web[2] udp", "server -> web[1] udp"}
    with pytest.raises(InvalidValueError, match=r"'web' has 2 replicas; name one, as web\[1\], or all, web\[\*\]"):
        TOPOLOGY.links_around("web")
    with pytest.raises(InvalidValueError, match=r"'a': nothing to cut: there is no other host"):
        joined({"a": "l"}).links_around("a")


def test_groups_that_nothing_joins_cannot_be_parted() -> None:
    apart = joined({"x": "a", "y": "b", "z": "ab"})
    assert refused(apart, {"x"}, {"y"}) == (
        "nothing to cut: these groups share no network, and no router joins them: x is on a; y is on b. "
        "A service that forwards packets has links of its own to cut",
    )
    assert {str(link) for link in apart.links_between({"x"}, {"y", "z"})} == {"x -> z", "z -> x"}
    assert refused(apart, {"x"}, set()) == ("a group of a partition is empty: no host to cut off",)
    assert refused(apart, ["x", 3], {"y"}) == ("3 is not the name of a host: write a text",)  # type: ignore[list-item]  # wrong
    assert refused(apart, {"x"}) == ('a partition needs two groups of hosts: partition({"a", "b"}, {"c"})',)
    wide = joined({"a": "lw", "b": "lw"}, drivers={"w": "overlay"})
    assert refused(wide, {"a"}, {"b"}) == ("a and b share network 'w' of driver 'overlay', which has no ports to cut",)


CHAIN = joined({"left": "a", "r1": "ab", "r2": "bc", "r3": "cd", "right": "d"}, "r1", "r2", "r3")


@pytest.mark.parametrize(
    ("groups", "links"),
    [
        (("left", "right"), {"left -> right over r1", "right -> left over r3"}),
        (("left", "r2"), {"left -> r2 over r1", "r2 -> left over r1"}),
        # What is cut beside them parts the others too.
        (("left", ["r1", "right"]), {"left -> r1", "r1 -> left"}),
        ((["left", "r1"], ["r2", "r3", "right"]), {"r1 -> r2", "r2 -> r1"}),
        # Not so here: r2 is on neither side, and passes on.
        (
            (["left", "r1"], ["r3"]),
            {"left -> r3 over r1", "r3 -> left over r2", "r1 -> r3 over r2", "r3 -> r1 over r2"},
        ),
    ],
)
def test_what_routers_lead_from_group_to_group_is_cut_beside_its_sender(groups: Any, links: set[str]) -> None:
    refs = CHAIN.links_between(*groups)
    assert {str(ref) for ref in refs} == links
    assert all(ref.network in CHAIN.networks for ref in refs)


def test_an_isolated_host_needs_its_own_links_cut_alone() -> None:
    assert {str(ref) for ref in CHAIN.links_around("left")} == {"left -> r1", "r1 -> left"}


def test_hosts_beside_each_other_do_not_speak_over_the_router_that_both_have() -> None:
    dumbbell = joined({"a": "l", "b": "l", "r1": "lm", "r2": "mr", "c": "r"}, "r1", "r2")
    assert {str(link) for link in dumbbell.links_between("a", "b")} == {"a -> b", "b -> a"}
    both = joined({"a": "l", "b": "lr", "r": "lr"}, "r")  # here they do: to the other address of b
    assert {str(link) for link in both.links_between("a", "b")} == {"a -> b", "b -> a", "a -> b over r"}


def test_a_link_covers_what_is_a_part_of_it() -> None:
    whole = LinkRef("a", "r", "l")
    part, port = LinkRef("a", "r", "l", to="b"), LinkRef("a", "r", "l", Traffic("tcp", 80))
    assert whole.covers(part)
    assert whole.covers(port)
    assert not part.covers(whole)
    assert not part.covers(port)
    assert not whole.covers(LinkRef("c", "r", "l"))


# --- beyond the stack ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "links"),
    [
        ("localhost -> client", ["localhost -> client on lan"]),
        ("localhost <-> client tcp/80", ["localhost -> client tcp/80 on lan", "client -> localhost tcp/80 on lan"]),
        # A published port may be reached over any of its networks.
        ("localhost -> server", ["localhost -> server on lan", "localhost -> server on dmz"]),
        ("server -> outside on dmz", ["server -> outside on dmz"]),
        ("gate-1 -> localhost", ["gate-1 -> localhost on lan", "gate-1 -> localhost on dmz"]),  # no port on `wide`
        ("client -> 203.0.113.0/24 tcp/443", ["client -> 203.0.113.0/24 tcp/443 on lan"]),
        ("client -> 203.0.113.7/32", ["client -> 203.0.113.7 on lan"]),
        ("2001:DB8:0::/32 -> client", ["2001:db8::/32 -> client on lan"]),
        ("web[*] -> outside", ["web[1] -> outside on dmz", "web[2] -> outside on dmz"]),
    ],
)
def test_an_end_may_be_beyond_the_stack(text: str, links: list[str]) -> None:
    refs = TOPOLOGY.links(text)
    assert [f"{ref} on {ref.network}" for ref in refs] == links
    assert all(ref.back().back() == ref and ref.far not in ref.hosts for ref in refs)
    assert all(LinkRef.from_state(ref.state()) == ref for ref in refs)


def test_what_a_host_sends_beyond_the_stack_leaves_by_its_own_port() -> None:
    out, into = TOPOLOGY.links("client <-> outside")
    assert (str(out.receivers_port), str(into.receivers_port)) == ("client@lan out", "client@lan")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("localhost -> outside", "one end of a link is a host of the stack: client, server,"),
        ("localhost -> far", "far is on no bridge network: wide"),
        ("localhost -> client on dmz", "client is on no bridge network 'dmz'; it is on lan"),
        ("localhost -> bare", "host 'bare' has `network_mode: host`, and so no port of its own to impair"),
    ],
)
def test_a_link_beyond_the_stack_needs_a_host_with_a_port(text: str, problem: str) -> None:
    (seen,) = problems_of(text)
    assert seen.startswith(problem)


def test_a_service_may_be_called_as_what_is_beyond_the_stack() -> None:
    topology = Topology.from_compose({**CONFIG, "services": {**CONFIG["services"], "outside": {"networks": ["lan"]}}})
    (ref,) = topology.links("client -> outside")
    assert (ref.beyond, ref.receivers_port.out) == ("", False)


def test_the_machine_may_be_a_group_of_a_partition() -> None:
    assert {str(ref) for ref in TOPOLOGY.links_between({"localhost"}, {"client"})} == {
        "localhost -> client",
        "client -> localhost",
    }


def test_where_nothing_leads_out_the_machine_alone_is_beyond() -> None:
    inner = Topology.from_compose(CONFIG, no_way_out="there is no way out")
    assert inner.links("localhost -> client")
    for end in ("outside", "203.0.113.7"):
        with pytest.raises(InvalidValueError, match=f"'{end}': there is no way out"):
            inner.links(f"client -> {end}")
