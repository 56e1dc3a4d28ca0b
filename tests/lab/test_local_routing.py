"""Topologies from code: routers forward packets hop by hop, and each hop can be impaired."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from testbed import Host, InvalidComposeError, InvalidValueError, LocalLab, topologies
from testbed.backends.docker.lab import ComposeLab
from testbed.spec.links import LinkRef
from tests.lab.conftest import HERE, Datagrams, as_late_as_allowed, prepare

LABS = ("local",)
_ROUTE = "/tmp/route.py"


@pytest.fixture(scope="module")
def chain(kind: str, pytestconfig: pytest.Config) -> Iterator[LocalLab]:
    assert kind == "local"
    with as_late_as_allowed(
        LocalLab(topologies.chain(3, ipv6=True), netem=pytestconfig.getoption("--netem")), pytestconfig
    ) as lab:
        for host in lab.hosts.values():
            host.put(_ROUTE, (HERE / "programs" / "route.py").read_bytes())
        prepare(lab.host("left"), lab.host("right"))
        yield lab


def route(source: Host, target: str) -> list[str]:
    done = source.run(["python3", _ROUTE, target])
    assert done.ok, done.stderr
    hops: list[str] = json.loads(done.stdout)
    return hops


@pytest.mark.parametrize("version", [4, 6])
def test_each_hop_is_seen_on_the_way_and_on_the_way_back(chain: LocalLab, version: int) -> None:
    def address(host: str, network: str) -> str:
        return chain.host(host).addresses(network)[0 if version == 4 else 1]

    out = [address("r1", "left-r1"), address("r2", "r1-r2"), address("r3", "r2-r3"), address("right", "r3-right")]
    back = [address("r3", "r3-right"), address("r2", "r2-r3"), address("r1", "r1-r2"), address("left", "left-r1")]
    assert route(chain.host("left"), out[-1]) == out
    assert route(chain.host("right"), back[-1]) == back


_IFA_F_TENTATIVE = 0x40  # linux/if_addr.h
_LISTEN = "import socket; socket.create_server(('::', 9000), family=socket.AF_INET6).accept()"
_CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 9000), 10)"


def test_ipv6_is_ready_when_the_lab_is(kind: str) -> None:
    """Duplicate address detection is off, so neighbours can be found at once, and nothing is sent twice."""
    assert kind == "local"
    with LocalLab(topologies.chain(3, ipv6=True)) as lab:
        tables = {name: host.run(["cat", "/proc/net/if_inet6"]).stdout for name, host in lab.hosts.items()}
        left, right = lab.host("left"), lab.host("right")
        right.start(["python3", "-c", _LISTEN], ready=9000)
        before = left.counters()["Tcp"]["RetransSegs"]
        assert left.run(["python3", "-c", _CONNECT, right.addresses()[1]]).ok
        assert left.counters()["Tcp"]["RetransSegs"] == before
    for name, table in tables.items():
        flags = {line.split()[5]: int(line.split()[4], 16) for line in table.splitlines() if line.startswith("fe80")}
        assert len(flags) == (1 if name in ("left", "right") else 2), table
        assert not any(flag & _IFA_F_TENTATIVE for flag in flags.values()), table


def test_names_beyond_the_routers_resolve(chain: LocalLab) -> None:
    done = chain.host("left").run(["getent", "ahostsv4", "right"])
    assert done.stdout.split()[0] == chain.host("right").addresses()[0]
    # No name server of the machine's is waited for: it could not be reached.
    nobody = chain.host("left").run(["getent", "hosts", "nobody.example"], timeout="4s")
    assert (nobody.exit_code, nobody.stdout) == (2, "")


def test_a_link_between_routers_is_impaired_for_what_they_pass_on(chain: LocalLab) -> None:
    flow = Datagrams(chain.host("left"), chain.host("right"), network="r3-right")
    assert min(flow.round_trips(5)) < 0.150
    try:
        chain.link("r1 -> r2").impair(delay="300ms")
        assert 0.300 <= min(flow.round_trips(2)) < 0.600
        chain.link("r2 -> r1").impair(delay="300ms")
        assert min(flow.round_trips(2)) >= 0.600
        assert chain.link("r1 -> r2").counters().sent_packets >= 6
        chain.verifier.verify()
        chain.link("r1 -> r2").heal()
        chain.link("r2 -> r1").impair(loss="100%")
        assert (
            "nobody heard"
            in chain.host("left")
            .run(
                ["python3", "/tmp/datagrams.py", "send", chain.host("right").addresses()[0], "9000", "1", "1", "0.002"]
            )
            .stderr
        )
    finally:
        chain.heal()


@pytest.mark.parametrize("version", [4, 6])
def test_what_a_router_may_not_pass_on_is_rejected_to_who_sent_it(chain: LocalLab, version: int) -> None:
    left = chain.host("left")
    left.put("/tmp/knock.py", (HERE / "programs" / "knock.py").read_bytes())
    target = chain.host("right").addresses("r3-right")[0 if version == 4 else 1]
    chain.lifecycle.begin(None)
    try:
        before = chain.link("r1 -> r2 udp/9007").lost_in_cut()
        chain.cut("r1 -> r2 udp/9007", reject=True)
        # Nobody listens at the other, so far away that his own answer takes 200 ms.
        chain.link("r3 -> r2").impair(delay="200ms")
        done = left.run(["python3", "/tmp/knock.py", "at", f"udp/{target}/9007", f"udp/{target}/9008"])
        (cut, cut_s), (closed, closed_s) = json.loads(done.stdout)
        assert (cut, closed) == ("ECONNREFUSED", "ECONNREFUSED")
        assert cut_s < 0.200 <= closed_s
        assert chain.link("r1 -> r2 udp/9007").lost_in_cut() == before + 1
        chain.verifier.verify()
    finally:
        chain.heal()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("reject", [False, True])
def test_a_partition_parts_hosts_that_routers_join_and_nobody_else(chain: LocalLab, version: int, reject: bool) -> None:
    chain.lifecycle.begin(None)
    for name in ("left", "r2", "right"):
        chain.host(name).put("/tmp/knock.py", (HERE / "programs" / "knock.py").read_bytes())
        chain.host(name).start(["python3", "/tmp/knock.py", "open", "9010"], ready="ready")
    address = {name: host.addresses()[0 if version == 4 else -1] for name, host in chain.hosts.items()}

    def knocked(source: str, *targets: str) -> list[str]:
        doors = [f"tcp/{address[target]}/9010" for target in targets]
        done = chain.host(source).run(["python3", "/tmp/knock.py", "at", *doors])
        return [outcome for outcome, _ in json.loads(done.stdout)]

    error = "ECONNREFUSED" if reject else "silence"
    try:
        assert knocked("left", "right", "r2") == ["ok", "ok"]
        before = {ref: chain.cutter.lost_packets(ref) for ref in chain.topology.links_between({"left"}, {"right"})}
        chain.partition({"left"}, {"right"}, reject=reject)
        assert sorted(map(str, chain.ports.cut)) == ["left -> right over r1", "right -> left over r3"]
        assert knocked("left", "right", "r2") == [error, "ok"]
        assert chain.cutter.around(LinkRef("left", "r1", "left-r1")) is None, "what ends at the router passes"
        assert knocked("right", "left", "r2") == [error, "ok"]
        # More than one where the end of an earlier connection is under way.
        assert all(chain.cutter.lost_packets(ref) > before[ref] for ref in chain.ports.cut)
        chain.verifier.verify()
        assert {link.link: link.read_back for link in chain.ledger.evidence} == {
            "left -> right over r1": "holds",
            "right -> left over r3": "holds",
        }
        chain.mend()
        assert knocked("left", "right") == ["ok"]
        chain.partition({"left"}, {"right"}, traffic="udp", reject=reject)
        assert knocked("left", "right") == ["ok"]
    finally:
        chain.lifecycle.end()


def test_a_dumbbells_bottleneck_is_shared_and_its_sides_are_not(kind: str, pytestconfig: pytest.Config) -> None:
    with LocalLab(topologies.dumbbell(2, 2), netem=pytestconfig.getoption("--netem")) as lab:
        prepare(*lab.hosts.values())
        near = Datagrams(lab.host("left[1]"), lab.host("left[2]"), network="left")
        far = [Datagrams(lab.host(f"left[{n}]"), lab.host(f"right[{n}]"), network="right") for n in (1, 2)]
        lab.impair("r1 -> r2", delay="300ms")
        assert min(near.round_trips(3)) < 0.150
        assert all(min(address.round_trips(2)) >= 0.300 for address in far)


def test_a_compose_lab_refuses_what_it_cannot_route() -> None:
    path = HERE / "stacks" / "routed.yaml"
    with pytest.raises(InvalidComposeError, match=r"service 'gate': `x-testbed: \{router: true\}`.*--lab local"):
        _ = ComposeLab(path).topology


def test_hosts_that_share_no_network_have_no_link(chain: LocalLab) -> None:
    with pytest.raises(InvalidValueError, match="share no network"):
        chain.link("left -> right")
