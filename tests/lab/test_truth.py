"""No test passes over a network that was not in force: faults during a test, on both labs.

Some cells for every run; `benchmarks.truth` has all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import ComposeLab, ImpairmentNotAppliedError, Lab
from tests.lab import truth
from tests.lab.conftest import Datagrams, lab_of, prepare

_FRAMES = 10
_ASKED = {impairment.name: impairment for impairment in truth.IMPAIRMENTS}

# Each kind of fault once, and each impairment. (A stopped kernel is below; hosts that are gone: test_hosts_that_go.)
CELLS = (
    ("link down at the veth", "delay"),
    ("qdisc deleted", "loss 100%"),
    ("splice deleted", "timeline"),
    ("redirect in the kernel deleted", "flap"),
    ("kernel frozen 0.3 s", "delay"),
    ("machine starved", "cut"),
    ("agent killed", "delay"),
    ("container paused", "timeline"),
    ("container restarted", "flap"),
    ("container recreated", "delay"),
    ("address added", "cut"),
    ("fragments", "narrowed cut"),
    ("stray network", "delay"),
    ("stray network, connected meanwhile", "narrowed cut"),
)

_OF_THE_PATH = ("link down at the veth", "splice deleted", "redirect in the kernel deleted")


@pytest.fixture(scope="module")
def own(kind: str, pytestconfig: pytest.Config) -> Iterator[Lab]:
    """A stack for this module alone: a fault may leave something behind."""
    with lab_of(kind, pytestconfig, truth.STACK) as lab:
        yield lab


@pytest.fixture
def carried(own: Lab) -> Lab:
    """The stack, if a carried kernel impairs it."""
    if own.netem_engine != "carried":
        pytest.skip("these faults are a carried kernel's")
    return own


@pytest.mark.parametrize(("fault", "impairment"), CELLS, ids=lambda word: word.replace(" ", "-"))
def test_a_fault_in_mid_test_is_never_passed_and_the_next_test_finds_all_in_order(
    carried: Lab, fault: str, impairment: str
) -> None:
    if fault not in truth.faults(type(carried)):
        pytest.skip("nobody but the lab connects a local lab's namespaces to a network")
    cell = truth.cell(carried, fault, _ASKED[impairment])
    assert cell.right, cell
    if fault in _OF_THE_PATH:
        assert "the path through the port is broken" in cell.reason


@pytest.mark.parametrize("fault", ["splice deleted", "kernel stopped"], ids=lambda word: word.replace(" ", "-"))
def test_a_path_is_put_right_without_harm_to_what_else_the_kernel_carries(carried: Lab, fault: str) -> None:
    """A path is repaired without ending kernels that carry other ports."""
    carried.lifecycle.begin("repair")
    try:
        carried.impair(truth.LINK, delay="10ms")
        carried.impair("server -> client on lan", delay="10ms")
        place = truth.place(carried)
        other = next(port for port in carried.ports if port.name == "client@lan")
        truth.FAULTS[fault](place)
        carried.carriage.repair(carried.carriage.paths([place.port]))
        assert place.port not in carried.ports
        assert carried.carriage.paths([other])[other.name].amiss == ()
        carried.impair(truth.LINK, delay="10ms")
        assert truth.place(carried).port.kernel == place.port.kernel
    finally:
        carried.lifecycle.end()


@pytest.mark.parametrize("impairment", ["delay", "cut"])
def test_a_network_connected_between_two_tests_is_in_the_evidence_of_the_next(carried: Lab, impairment: str) -> None:
    if not isinstance(carried, ComposeLab):
        pytest.skip("nobody but the lab connects a local lab's namespaces to a network")
    with truth.connected(carried, "client", "server") as name:
        carried.lifecycle.begin("next")
        try:
            _ASKED[impairment].put(carried)
            with pytest.raises(ImpairmentNotAppliedError, match=f"are connected to '{name}' too"):
                carried.verifier.verify()
        finally:
            carried.lifecycle.end()
    cell = truth.cell(carried, "none", _ASKED[impairment])
    assert cell.right, cell


def test_how_late_the_carrier_was_is_in_the_evidence(carried: Lab) -> None:
    carried.lifecycle.begin("lateness")
    try:
        carried.impair(truth.LINK, delay="40ms")
        carried.carriage.settle()
        truth.await_frames(carried, _FRAMES)
        try:
            carried.verifier.verify()
        finally:
            (link,) = carried.ledger.evidence
            lateness = link.lateness
    finally:
        carried.lifecycle.end()
    assert lateness is not None
    assert lateness["frames"] >= _FRAMES
    assert 0 < lateness["median_s"] <= lateness["worst_s"]
    assert lateness["tolerance_s"] == 0.005
    assert [check.field for check in link.checks][-1] == "lateness"


_BRIDGED = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


@pytest.fixture
def rewriting(carried: Lab) -> ComposeLab:
    """A stack whose packets this machine's NAT may rewrite."""
    if not isinstance(carried, ComposeLab):
        pytest.skip("a local lab's bridges are in a network namespace that has no rules")
    if os.geteuid() or not _BRIDGED.exists() or _BRIDGED.read_text().strip() != "1":
        pytest.skip("bridged packets do not pass iptables here, or rules are root's to make")
    return carried


def test_packets_that_nat_rewrites_meet_the_impairment_and_there_is_a_warning(rewriting: ComposeLab) -> None:
    client, server = rewriting.hosts["client"], rewriting.hosts["server"]
    prepare(client, server)
    rewriting.impair(truth.LINK, delay="10ms")
    with truth.rewritten(rewriting, "lan"):
        assert len(Datagrams(client, server).arrived(3, pace_s=0.01)) == 3
    rewriting.verifier.verify()
    evidence = rewriting.ledger.evidence[-1]  # after those of links that were healed before
    assert evidence.tally is not None
    assert evidence.tally.arrived_packets >= 3
    warnings = "; ".join(evidence.warnings)
    assert "packets from hosts of the network reached `server` on `lan` with the source address" in warnings
    assert f"the sender of this link has {client.addresses('lan')[0]}" in warnings
    assert "iptables -t nat -S" in warnings
    rewriting.heal()
    rewriting.impair(truth.LINK, delay="10ms")
    assert len(Datagrams(client, server).arrived(3, pace_s=0.01)) == 3
    rewriting.verifier.verify()
    rewriting.heal()


def test_a_stray_network_is_noticed_also_where_nat_rewrites_its_packets(rewriting: ComposeLab) -> None:
    with truth.rewritten(rewriting, "side"):
        cell = truth.cell(rewriting, "stray network", _ASKED["delay"])
    assert cell.right, cell
    assert "packets took `side`" in cell.reason
