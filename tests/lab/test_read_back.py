"""Netlink and tc report the same qdisc, field by field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from testbed import Lab
from testbed.lab.ports import Port
from testbed.lab.waiting import await_condition
from testbed.netem import qdisc, readback
from testbed.spec.impairment import Impairment

LABS = ("local",)
LINK = "client -> server"

# Every field of netem at least once, rates of more than 32 bit, and a token bucket behind it.
FIELDS: tuple[dict[str, object], ...] = (
    {"delay": "12.345ms", "jitter": "678us", "correlation": "25%", "reorder_by_jitter": True},
    {"delay": "5s", "jitter": "1.5s", "distribution": "pareto"},
    {"loss": "3.7%", "ecn": True, "limit": 77},
    {"loss": "5%", "burst": 3},
    {"gemodel": "1% 25% 90% 3%"},
    {"loss_state": "1% 30% 20% 5% 2%"},
    {"duplicate": "2.5%"},
    {"delay": "15ms", "reorder": "40%", "gap": 5},
    {"corrupt": "0.01%"},
    {"rate": "8mbit", "overhead": 24},
    {"rate": "100gbit", "delay": "1ms"},
    {"slot": "30ms 31ms", "slot_packets": 5},
    {"slot": "normal 20ms 5ms", "slot_bytes": "3kB"},
    {"rate": "1mbit", "bucket": "16kB", "queue": "64kB", "delay": "3ms"},
    {"loss": "1%", "seed": 2**63 + 1},
    {},
)


def both(lab: Lab, port: Port, minor: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The qdiscs at a class and behind it, by netlink and by tc."""
    answer = port.channel.call("tc", port=port.name, lines=[qdisc.get(port.device, minor), qdisc.show(port.device)])
    assert answer["complaints"] == []
    (alone, shown), parents = answer["shown"], {f"1:{minor:x}"}
    for handle in [row["handle"] for row in alone]:
        parents.add(f"{handle}1")
        line = qdisc.read(port.device, int(handle.removesuffix(":"), 16), 1)
        alone += port.channel.call("tc", port=port.name, lines=[line])["shown"][0]
    theirs = [line for line in shown if line.get("parent") in parents]
    return alone, sorted(theirs, key=lambda row: row["parent"] != alone[0]["parent"])


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested groups as one flat mapping."""
    flat_mapping: dict[str, Any] = {}
    for name, value in nested.items():
        flat_mapping |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat_mapping


@pytest.mark.parametrize("words", FIELDS, ids=lambda words: " ".join(words) or "nothing")
def test_netlink_and_tc_tell_the_same_of_every_field(stack: Lab, words: dict[str, object]) -> None:
    link = stack.link(LINK)
    impairment = Impairment.parse(words)
    applied = link.impair(impairment)
    try:
        stack.host("client").run(["python3", "-c", _SEND, stack.host("server").addresses()[0]])
        port = stack.ports.of(link.ref)
        assert port is not None
        minor = port.sources[link.ref].minor
        # One is asked after the other: what left in between makes them differ, but not for ever.
        alone, shown = await_condition(
            lambda: both(stack, port, minor),
            lambda seen: [row["packets"] for row in seen[0]] == [row["packets"] for row in seen[1]],
            deadline_s=20.0,
        )
        for mine, theirs in zip(alone, shown, strict=True):
            if mine["kind"] == "tbf":  # of which we read what we ask
                theirs["options"] = {name: theirs["options"][name] for name in ("rate", "burst", "lat")}
            mine, theirs = flat(mine), flat(theirs)
            assert mine.keys() == theirs.keys()
            assert all(
                value == theirs[name] or value == pytest.approx(theirs[name], rel=1e-5, abs=1e-9)
                for name, value in mine.items()
            ), f"{mine} {theirs}"
        assert len(alone) == 1 + ("bucket" in words)
        assert readback.differences(impairment, applied.kernel) == []
    finally:
        link.heal()


_SEND = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(10): s.sendto(bytes(100), (sys.argv[1], 9))
"""


def test_where_nothing_hangs_nothing_is_told_and_a_device_that_is_not_there_is_an_error(stack: Lab) -> None:
    link = stack.link(LINK)
    link.impair(delay="1ms")
    port = stack.ports.of(link.ref)
    assert port is not None
    lines = [qdisc.get(port.device, 0x777), qdisc.get_bucket(port.device, port.sources[link.ref].minor)]
    answer = port.channel.call("tc", port=port.name, lines=lines)
    assert answer["shown"] == [[], []]
    assert answer["complaints"] == []
    link.heal()
    assert stack.ports.netem(link.ref) is None


_TAKE = """
import socket
heard = socket.create_server(("", 9300)); print("ready", flush=True); taken, _ = heard.accept()
while taken.recv(1 << 20): pass
"""
_POUR = """
import socket, sys
with socket.create_connection((sys.argv[1], 9300)) as s:
    while True: s.send(bytes(65536))
"""


def test_a_flow_as_fast_as_the_machine_can_leaves_the_kernel_time_to_answer(stack: Lab) -> None:
    link, server = stack.link(LINK), stack.host("server")
    link.impair(delay="1ms")
    server.start(["python3", "-c", _TAKE], ready="ready")
    flow = stack.host("client").start(["python3", "-c", _POUR, server.addresses()[0]])
    try:
        before = link.counters().sent_packets
        for number in range(300):  # each of them would take 5 s and fail
            link.impair(delay=f"{1 + number % 3}ms")
        assert link.counters().sent_packets > before + 1000, "it flowed meanwhile"
        assert not flow.ended
    finally:  # the next tests share the stack
        flow.stop("SIGKILL")
        link.heal()
