"""Hundreds of sources at one port: changing one is exact, and touches no other."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed import Lab, Link
from testbed.lab.waiting import NotSeenError, await_condition
from testbed.netem import qdisc, readback
from testbed.spec.impairment import Impairment
from testbed.spec.links import LinkRef
from tests.lab.conftest import lab_of

LABS = ("local",)
SOURCES, _BURST = 250, 100

_RECEIVE = """
import json, socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", 9000)); s.settimeout(60)
print("ready", flush=True)
print(json.dumps([(int(s.recv(99)), time.monotonic()) for _ in range(int(sys.argv[1]))]))
"""
_SEND = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(int(sys.argv[2])):
    before_s = time.monotonic(); s.sendto(b"%d" % number, (sys.argv[1], 9000))
print(before_s)
"""


@pytest.fixture(scope="module")
def crowd(kind: str, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A receiver and as many sources as a port must tell apart."""
    file: Path = tmp_path_factory.mktemp("crowd") / "compose.yaml"
    service = "{image: none, networks: [lan], x-testbed: {local: {python: true}}"
    file.write_text(f"services:\n  r: {service}}}\n  h: {service}, scale: {SOURCES}}}\nnetworks: {{lan: {{}}}}\n")
    with lab_of(kind, pytestconfig, file) as lab:
        yield lab


def impairment_of(number: int) -> Impairment:
    """A different one for each source."""
    return Impairment(delay_s=2.0 + number / 1000, loss_ratio=number / 1000)


def test_a_change_among_hundreds_is_exact_and_spares_what_the_others_have_queued(crowd: Lab) -> None:
    links = {number: crowd.link(f"h[{number}] -> r") for number in range(1, SOURCES + 1)}
    impairments = {number: impairment_of(number) for number in links}
    for number, link in links.items():
        link.impair(impairments[number])
    for held_s in (2.0, 8.0, 32.0):
        impairments[1] = Impairment(delay_s=held_s)
        links[1].impair(impairments[1])
        if changed_while_held(crowd, links, held_s):
            break
        links[3].impair(impairments[3])
    else:
        pytest.fail(f"the others were not changed within {held_s:g} s")
    held = netems(crowd, links[1].ref)
    assert held.pop("1:11")["options"]["delay"]["delay"] == pytest.approx(0.008)
    assert "1:12" not in held
    wanted = {f"1:{qdisc.FIRST_MINOR + number - 1:x}": impairments[number] for number in links if number not in (2, 3)}
    assert set(held) == set(wanted)
    assert not [
        difference for parent, netem in held.items() for difference in readback.differences(wanted[parent], netem)
    ]


def changed_while_held(crowd: Lab, links: dict[int, Link], held_s: float) -> bool:
    """Whether the packets of h[1], which are held so long, waited while others were changed; False if not in time."""
    receiver = crowd.host("r")
    receiving = receiver.start(["python3", "-c", _RECEIVE, str(_BURST)], ready="ready")
    before = links[2].impair(impairment_of(2))
    begun = time.monotonic()
    sender = crowd.host("h[1]").run(["python3", "-c", _SEND, receiver.addresses("lan")[0], str(_BURST)])
    with contextlib.suppress(NotSeenError):  # not in time, or amiss, which the last look tells
        await_condition(lambda: links[1].counters().queued_packets, lambda packets: packets == _BURST, deadline_s=1.5)
    changed = links[2].impair(delay="7ms", loss="50%")
    assert changed.kernel["handle"] == before.kernel["handle"], "changed in place"
    links[2].impair(delay="9ms", rate="8mbit")  # in place, with a field more
    links[2].impair(delay="8ms")  # a fresh one
    links[3].heal()
    queued = links[1].counters().queued_packets
    in_time = time.monotonic() - begun < held_s
    arrivals = json.loads(receiving.wait("60s").stdout.splitlines()[1])
    assert [number for number, _ in arrivals] == list(range(_BURST))
    assert arrivals[-1][1] - float(sender.stdout) >= held_s
    assert not in_time or queued == _BURST, "they waited while another source was changed"
    return in_time


def netems(lab: Lab, ref: LinkRef) -> dict[str, dict[str, Any]]:
    """Every netem of a link's port, by its parent, as tc shows them all."""
    port = lab.ports.of(ref)
    assert port is not None
    answer = port.channel.call("tc", port=port.name, lines=[qdisc.show(port.device)])
    return {row["parent"]: row for row in answer["shown"][0] if row["kind"] == "netem"}
