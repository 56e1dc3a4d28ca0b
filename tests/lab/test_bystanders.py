"""Links of other hosts at the same port: they lose nothing and do not slow down."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from testbed import ComposeLab, ImpairmentNotAppliedError, InvalidValueError, Lab
from testbed.lab.waiting import await_condition
from tests.lab.conftest import HERE, as_one_test, lab_of, own_subnet
from tests.lab.programs import bulk

_PROGRAM, _STEADY = "/tmp/bulk.py", "/tmp/steady.py"
_BUFFER_BYTES = 65_536
"""Windows so small that what is under way of five connections fits into the queue before the carried kernel."""
_QUIET_S = 1.5
"""Longer than multicast listeners wait before they say again what they listen to (RFC 3810, 9.11)."""


@pytest.fixture(scope="module")
def three(kind: str, pytestconfig: pytest.Config) -> Iterator[Lab]:
    own_subnet()
    with lab_of(kind, pytestconfig, HERE / "stacks" / "bystanders.yaml") as lab:
        for host in lab.hosts.values():
            host.put(_PROGRAM, (HERE / "programs" / "bulk.py").read_bytes())
            host.put(_STEADY, (HERE / "programs" / "steady.py").read_bytes())
        lab.hosts["server"].start(["python3", _PROGRAM, "serve", str(_BUFFER_BYTES)], ready="ready")
        lab.hosts["server"].start(["python3", _STEADY, "echo"], ready="ready")
        yield lab


@pytest.fixture
def lab(three: Lab) -> Iterator[Lab]:
    yield from as_one_test(three)


def carried(lab: Lab) -> dict[str, dict[str, int]]:
    """What went into the carried kernel and came out at the server's port."""
    port = lab.ports.of(lab.topology.links("client -> server")[0])
    assert port is not None
    counts: dict[str, dict[str, int]] | None = port.channel.call("carried", ports=[port.name]).get(port.name)
    if counts is None:
        pytest.skip(f"--netem {lab.netem_engine}: no kernel is carried")
    return counts


def at_rest(lab: Lab) -> dict[str, dict[str, int]]:
    """The same while no packet passes: a counter is read after the other, and a packet between them is in one alone."""
    seen = [carried(lab)]

    def last_two() -> list[dict[str, dict[str, int]]]:
        seen.append(carried(lab))
        return seen[-2:]

    return await_condition(last_two, lambda two: two[0] == two[1], deadline_s=10)[1]


def sent_tcp(lab: Lab, src: str, address: str, count: int) -> float:
    done = lab.hosts[src].run(["python3", _PROGRAM, "send", address, str(count)], timeout="60s")
    assert done.ok, done.stderr
    return float(done.stdout)


def test_a_bystander_loses_nothing_when_a_port_is_attached_released_and_taken_up_again(lab: Lab) -> None:
    """The first test of the module, and so the first time that this port is impaired."""
    assert lab.ports.of(lab.topology.links("client -> server")[0]) is None
    asking = lab.hosts["other"].start(
        ["python3", _STEADY, "ask", lab.hosts["server"].addresses("lan")[0]], ready="ready"
    )
    for _ in range(10):
        lab.impair("client -> server", delay="1ms")
        lab.heal()
        lab.lifecycle.release()
    counted = json.loads(asking.stop().stdout.splitlines()[-1])
    assert counted["sent"] > 100, counted
    if lab.netem_engine == "host":  # a device that is given a root qdisc sends nothing for a moment
        assert len(counted["lost"]) <= 0.1 * counted["sent"], counted
    else:
        assert counted["lost"] == [], counted


@pytest.mark.parametrize("family", [4, 6])
def test_every_byte_that_goes_into_the_carried_kernel_comes_out(lab: Lab, family: int) -> None:
    """Unprepared hosts send TCP in large writes and UDP in segments, beside an impaired link that loses nothing."""
    lab.impair("client -> server", delay="5ms")
    before = at_rest(lab)
    address = next(address for address in lab.hosts["server"].addresses("lan") if (":" in address) == (family == 6))
    for count in (5_000, 100_000, 1_000_000):
        sent_tcp(lab, "other", address, count)
    with ThreadPoolExecutor(5) as pool:
        bulk_of = [("other", 3_000_000)] * 3 + [("client", 3_000_000)]
        list(pool.map(lambda bulk: sent_tcp(lab, bulk[0], address, bulk[1]), bulk_of))
    if isinstance(lab, ComposeLab):  # a local lab's relay is one of its hosts' neighbours already
        from_the_machine(lab, 1_000_000)
    arrived = lab.hosts["other"].run(["python3", _PROGRAM, "gso", address, "500"])
    assert arrived.stdout == "500\n", arrived.stderr
    went = await_condition(lambda: since(before, carried(lab)), balanced, deadline_s=5)
    assert went["to_host"]["in_bytes"] > 13_000_000, went
    assert sum(way["refused_packets"] for way in went.values()) == 0, went


def from_the_machine(lab: ComposeLab, count: int) -> float:
    """Bytes to the server's published port, sent by this process."""
    address, port = lab.host("server").published(bulk.PORT)
    return bulk.send(address, count, port)


def test_a_port_that_is_published_is_reached_from_this_machine(lab: Lab) -> None:
    address, port = lab.host("server").published(bulk.PORT)
    assert bulk.send(address, 5_000, port) > 0
    for host, number, protocol, listed in (
        ("server", 81, "tcp", f"{bulk.PORT}/tcp"),
        ("server", bulk.PORT, "udp", f"{bulk.PORT}/tcp"),
        ("other", bulk.PORT, "tcp", "none"),
    ):
        problem = f"`{host}`: port {number}/'{protocol}' is not published; published: {listed}. "
        with pytest.raises(InvalidValueError, match=re.escape(problem)):
            lab.host(host).published(number, protocol=protocol)


def since(before: dict[str, dict[str, int]], now: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    return {way: {count: now[way][count] - before[way][count] for count in counts} for way, counts in now.items()}


def drained(went: Any) -> bool:
    return all(way["in_packets"] == way["out_packets"] for way in went.values())


def balanced(went: Any) -> bool:
    return all((way["in_packets"], way["in_bytes"]) == (way["out_packets"], way["out_bytes"]) for way in went.values())


_BURST = """
import socket, sys
_UDP_SEGMENT, AT_ONCE, BYTES = 103, 50, 100
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, BYTES)
for _ in range(int(sys.argv[2]) // AT_ONCE): s.sendto(bytes(BYTES * AT_ONCE), (sys.argv[1], 9))
"""


def test_what_finds_the_queue_before_a_carried_kernel_full_is_in_the_evidence_and_the_test_does_not_count(
    lab: Lab,
) -> None:
    """Datagrams faster than any carried kernel takes them, and no netem that loses one."""
    sent = 20_000
    lab.impair("client -> server", delay="1ms", limit=sent + 1000)
    before = at_rest(lab)
    assert lab.hosts["client"].run(["python3", "-c", _BURST, address_of(lab), str(sent)], timeout="60s").ok

    def arrived(went: Any) -> bool:
        came = went["to_host"]["in_packets"] + went["to_host"]["refused_packets"]
        return came >= sent and drained(went)

    went = await_condition(lambda: since(before, carried(lab)), arrived, deadline_s=10)["to_host"]
    assert went["refused_packets"] > 0.01 * sent, went
    with pytest.raises(ImpairmentNotAppliedError, match="found the queue before the carried kernel full"):
        lab.verifier.verify()
    (evidence,) = lab.ledger.evidence
    assert evidence.at_taps is not None
    assert evidence.at_taps.refused_packets >= went["refused_packets"]
    assert evidence.at_taps.came_packets >= sent
    assert any(f"{evidence.at_taps.refused_packets} of " in warning for warning in evidence.warnings), evidence.warnings
    lab.lifecycle.end()
    lab.lifecycle.begin(None)
    lab.impair("client -> server", delay="1ms")
    sent_tcp(lab, "client", address_of(lab), 5_000)
    lab.verifier.verify()
    assert [link.at_taps is not None and link.at_taps.refused_packets for link in lab.ledger.evidence] == [0]


def test_a_port_that_nothing_impairs_any_more_is_as_if_it_had_never_been(lab: Lab) -> None:
    """A healed port has the path and the offloads that it had before it was impaired."""
    before = offloads_of(lab)
    lab.impair("client <-> server", delay="5ms")
    lab.cut("other -> server")
    impaired = sent_tcp(lab, "client", address_of(lab), 5_000)
    assert impaired > 0.01
    lab.lifecycle.end()
    lab.lifecycle.begin(None)
    assert offloads_of(lab) == before
    went_before = passed_when_the_bridge_is_quiet(lab)
    for src in ("client", "other"):
        sent_tcp(lab, src, address_of(lab), 100_000)
    now = passed(lab)
    if isinstance(now, list):
        assert now == went_before, "past any qdisc of ours"
        return
    went = since(went_before, now)
    # A host's IPv6 greets routers at any time (RFC 7559), and what is flooded reaches the port that leads nowhere.
    assert max(counts[unit] for counts in went.values() for unit in ("in_bytes", "out_bytes")) < 2_000, (
        f"past the kernel that is carried: {went}"
    )


def test_a_port_that_the_next_test_impairs_stays_where_it_is(lab: Lab) -> None:
    (ref,) = lab.topology.links("client -> server")
    lab.impair("client -> server", delay="5ms")
    lab.lifecycle.end()
    lab.lifecycle.begin(None, [ref])
    port = lab.ports.of(ref)
    assert port is not None
    assert not port.released
    lab.impair("client -> server", delay="20ms")
    assert sent_tcp(lab, "client", address_of(lab), 5_000) > 0.04
    lab.verifier.verify()
    lab.lifecycle.end()
    lab.lifecycle.begin(None)
    assert port.released
    lab.impair("client -> server", delay="20ms")
    assert not port.released
    assert sent_tcp(lab, "client", address_of(lab), 5_000) > 0.04
    lab.verifier.verify()
    assert [link.read_back for link in lab.ledger.evidence] == ["holds"]
    lab.lifecycle.end()
    lab.lifecycle.begin(None)
    lab.cut("client -> server")
    lost = lab.hosts["client"].run(["python3", "-c", _CONNECT, address_of(lab)])
    assert lost.stdout == "timed out\n"
    assert lab.link("client -> server").lost_in_cut() > 0
    lab.verifier.verify()


_CONNECT = """
import socket, sys
try: socket.create_connection((sys.argv[1], 9700), timeout=0.5); print("connected")
except OSError as error: print(error)
"""


def address_of(lab: Lab) -> str:
    return lab.hosts["server"].addresses("lan")[0]


def passed(lab: Lab) -> Any:
    """Packets through the carried kernel at the server's port, or through the host engine's root qdisc there."""
    port = lab.ports.of(lab.topology.links("client -> server")[0])
    assert port is not None
    counts = port.channel.call("carried", ports=[port.name]).get(port.name)
    shown = port.channel.call("tc", port=port.name, lines=[f"qdisc show dev {port.device}"])["shown"]
    return counts or [row["kind"] for row in shown[0] if row.get("root")]


def passed_when_the_bridge_is_quiet(lab: Lab) -> Any:
    """The same counts, once the bridge sends no packets of its own any more.

    It listens to multicasts of its own (RFC 4286), and says so twice within some two seconds of its start, at every
    port that forwards (br_forward.c, br_flood), wherever it floods what others send.
    """
    seen: list[tuple[float, Any]] = []

    def look() -> float:
        now, count = time.monotonic(), passed(lab)
        if not seen or seen[-1][1] != count:
            seen.append((now, count))
        return now - seen[-1][0]

    await_condition(look, lambda quiet_s: quiet_s > _QUIET_S, deadline_s=15, every_s=0.1)
    return seen[-1][1]


def offloads_of(lab: Lab) -> dict[str, Any]:
    """The offloads of each host, from its own kernel."""
    script = (
        "import fcntl, socket, struct, ctypes\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for command in (0x1E, 0x23, 0x2B):\n"
        "    value = ctypes.create_string_buffer(struct.pack('=II', command, 0))\n"
        "    fcntl.ioctl(s, 0x8946, struct.pack('16sP16x', b'eth0', ctypes.addressof(value)))\n"
        "    print(struct.unpack_from('=I', value.raw, 4)[0])\n"
    )
    done = {name: host.run(["python3", "-c", script]) for name, host in lab.hosts.items()}
    assert all(result.ok for result in done.values()), done
    return {name: result.stdout.split() for name, result in done.items()}
