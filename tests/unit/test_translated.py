"""Packets that NAT gave the gateway's address are told from the gateway's own."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from testbed.netem import bpf, translated
from tests.unit.fakes import FakeLab
from tests.unit.test_rejecting import runs

MAC, ANOTHER = "02:42:00:00:00:01", "02:42:00:00:00:02"
GATEWAY = {"mac": MAC, "addresses": ["172.18.0.1", "fd00::1"]}


def matches(code: bpf.Instructions, mac: str, source: str) -> bool:
    """Whether a program matches a frame from this interface and address."""
    packed = ip_address(source).packed
    before = bytes(12 if len(packed) == 4 else 8)  # of the IP header
    return runs(code, bytes(6) + bytes.fromhex(mac.replace(":", "")) + bytes(2) + before + packed + bytes(16))


@pytest.mark.parametrize("address", GATEWAY["addresses"])
def test_what_another_interface_sends_from_the_gateways_address_matches(address: str) -> None:
    code = translated.program(MAC, address)
    assert matches(code, ANOTHER, address)
    assert matches(code, "02:43:00:00:00:01", address), "the first part of the MAC address tells them apart, too"
    assert not matches(code, MAC, address), "the gateway's own"
    assert not matches(code, ANOTHER, "172.18.0.2" if "." in address else "fd00::2")


def test_each_address_has_a_line_of_its_own_before_all_that_leads_to_a_class() -> None:
    first, second = translated.watch("vec0", GATEWAY)
    assert first.startswith("filter replace dev vec0 parent 1: protocol ip prio 5 handle 0x1 bpf bytecode")
    assert second.startswith("filter replace dev vec0 parent 1: protocol ipv6 prio 6 handle 0x2 bpf bytecode")
    assert first.endswith(" action continue")


def test_such_packets_are_told_once_and_again_when_there_are_more(monkeypatch: pytest.MonkeyPatch) -> None:
    lab, counted = FakeLab(), 0
    real = lab.agent.call

    def call(operation: str, **arguments: Any) -> Any:
        answer = real(operation, **arguments)
        if operation == "tc" and answer["shown"]:
            actions = [{"kind": "gact", "stats": {"packets": counted}}]
            answer["shown"][0] = [
                *answer["shown"][0],
                {"kind": "bpf", "pref": 5, "options": {"handle": "0x1", "actions": actions}},
            ]
        return answer

    monkeypatch.setattr(lab.agent, "call", call)
    lab.impair("client -> server", delay="10ms")
    next(iter(lab.ports)).gateway = GATEWAY
    lab.verifier.verify()
    for counted in (1, 4):
        lab.verifier.verify()
        warnings = "; ".join(lab.ledger.evidence[-1].warnings)
        new = "1 packet from" if counted == 1 else "3 packets from"
        assert f"{new} hosts of the network reached `server` on `lan`" in warnings
        assert "172.18.0.1 or fd00::1, which is the gateway's" in warnings
        assert "the sender of this link has 172.18.0.2)" in warnings
        lab.verifier.verify()
        assert "hosts of the network reached" not in "; ".join(lab.ledger.evidence[-1].warnings)
