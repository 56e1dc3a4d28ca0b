"""What those have of it who are not impaired, when a link to the same host is: nothing is lost, and nothing slows."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from testbed import ComposeLab, Lab
from testbed.labs.waiting import await_condition
from tests.lab.conftest import HERE, lab_of
from tests.lab.programs import bulk

_PROGRAM = "/tmp/bulk.py"


@pytest.fixture(scope="module")
def three(kind: str, pytestconfig: pytest.Config) -> Iterator[Lab]:
    with lab_of(kind, pytestconfig, HERE / "stacks" / "bystanders.yaml") as lab:
        for host in lab.hosts.values():
            host.put(_PROGRAM, (HERE / "programs" / "bulk.py").read_bytes())
        lab.hosts["server"].start(["python3", _PROGRAM, "serve"], ready="ready")
        yield lab


@pytest.fixture
def lab(three: Lab) -> Iterator[Lab]:
    three.begin(None)
    yield three
    three.heal()


def carried(lab: Lab) -> dict[str, dict[str, int]]:
    """What went into the carried kernel and came out at the server's port."""
    port = lab.port(lab.topology.links("client -> server")[0])
    assert port is not None
    counts: dict[str, dict[str, int]] | None = port.channel.call("carried", port=port.name)
    if counts is None:
        pytest.skip(f"--netem {lab.netem_engine}: no kernel is carried")
    return counts


def sent_tcp(lab: Lab, src: str, address: str, count: int) -> float:
    done = lab.hosts[src].run(["python3", _PROGRAM, "send", address, str(count)], timeout="60s")
    assert done.ok, done.stderr
    return float(done.stdout)


@pytest.mark.parametrize("family", [4, 6])
def test_every_byte_that_goes_into_the_carried_kernel_comes_out(lab: Lab, family: int) -> None:
    """Hosts that nobody prepared, TCP in whole writes and UDP in segments, beside an impaired link that loses none."""
    lab.impair("client -> server", delay="5ms")
    before = carried(lab)
    address = next(each for each in lab.hosts["server"].addresses("lan") if (":" in each) == (family == 6))
    for count in (5_000, 100_000, 1_000_000):
        sent_tcp(lab, "other", address, count)
    with ThreadPoolExecutor(5) as pool:
        bulk_of = [("other", 3_000_000)] * 3 + [("client", 3_000_000)]
        list(pool.map(lambda each: sent_tcp(lab, each[0], address, each[1]), bulk_of))
    if isinstance(lab, ComposeLab):  # a local lab's relay is one of its hosts' neighbours already
        from_the_machine(lab, 1_000_000)
    arrived = lab.hosts["other"].run(["python3", _PROGRAM, "gso", address, "500"])
    assert arrived.stdout == "500\n", arrived.stderr
    went = await_condition(lambda: since(before, carried(lab)), balanced, deadline_s=5)
    assert went["to_host"]["in_bytes"] > 13_000_000, went


def from_the_machine(lab: ComposeLab, count: int) -> float:
    """Bytes to the server's published port, sent by this process."""
    state = lab.engine.state(lab.hosts["server"].container)
    (binding,) = state["NetworkSettings"]["Ports"][f"{bulk.PORT}/tcp"]
    return bulk.send(binding["HostIp"], count, int(binding["HostPort"]))


def since(before: dict[str, dict[str, int]], now: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    return {way: {each: now[way][each] - before[way][each] for each in counts} for way, counts in now.items()}


def balanced(went: Any) -> bool:
    return all(
        (way["in_packets"], way["in_bytes"], 0) == (way["out_packets"], way["out_bytes"], way["refused_packets"])
        for way in went.values()
    )
