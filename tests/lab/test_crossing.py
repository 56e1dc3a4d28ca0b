"""Packets that filters might miss: fragments, unknown addresses, forwarded packets, forged frames, other paths.

None passes a cut or an impairment without a word: it is impaired, or the test does not count.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from testbed import ImpairmentNotAppliedError, Lab
from testbed.agent.answers import ANSWERER
from testbed.evidence.verdict import Verdict
from testbed.lab.waiting import await_condition
from tests.lab.conftest import HERE, as_one_test, lab_of, of_links, own_subnet

BELOW_THE_LAB = True
COUNT = 20
BIG = 4000  # three fragments of an MTU of 1500
PROGRAM = "/tmp/crossing.py"


@pytest.fixture(scope="module")
def two_hosts(kind: str, pytestconfig: pytest.Config) -> Iterator[Lab]:
    own_subnet()
    with lab_of(kind, pytestconfig, HERE / "stacks" / "crossing.yaml") as lab:
        for host in lab.hosts.values():
            host.put(PROGRAM, (HERE / "programs" / "crossing.py").read_bytes())
        lab.hosts["b"].start(["python3", PROGRAM, "echo", "5000"], ready="ready")
        lab.hosts["b"].start(["python3", PROGRAM, "echo", "6000"], ready="ready")
        lab.ledger.programs.clear()  # they stay
        yield lab


@pytest.fixture
def pair(two_hosts: Lab) -> Iterator[Lab]:
    yield from as_one_test(two_hosts)


def do(lab: Lab, *words: object) -> str:
    done = lab.hosts["a"].run(["python3", PROGRAM, *map(str, words)])
    assert done.ok, done.stderr
    return done.stdout


def address(lab: Lab, family: int) -> str:
    return next(own for own in lab.hosts["b"].addresses("lan") if ipaddress.ip_address(own).version == family)


def received(lab: Lab) -> int:
    """Number of datagrams that `b` received, of both families."""
    counted = lab.hosts["b"].counters()
    return sum(counted[group][name] for group in ("Udp", "Udp6") for name in ("InDatagrams", "NoPorts"))


def arrived(lab: Lab, send: Callable[[], object]) -> int:
    """Number of datagrams that arrive of those sent and of an unimpaired one after them."""
    before = received(lab)
    send()
    back = lab.hosts["b"].addresses("back")[0]  # the other network's queue is the same kernel's
    do(lab, "ask", back, 6000, 1)
    return await_condition(lambda: received(lab), lambda now: now > before, deadline_s=5) - before - 1


NARROWED: dict[str, Callable[[Lab], object]] = {
    "cut": lambda lab: lab.cut("a -> b udp/5000 on lan"),
    "reject": lambda lab: lab.cut("a -> b udp/5000 on lan", reject=True),
    "partition": lambda lab: lab.partition({"a"}, {"b"}, traffic="udp/5000"),
    "loss": lambda lab: lab.impair("a -> b udp/5000 on lan", loss="100%"),
    "protocol": lambda lab: lab.cut("a -> b udp on lan"),
}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("how", NARROWED)
def test_no_fragment_passes_what_is_narrowed_to_its_port(pair: Lab, how: str, family: int) -> None:
    to = address(pair, family)
    assert arrived(pair, lambda: do(pair, "send", to, 5000, BIG, COUNT)) == COUNT
    NARROWED[how](pair)
    assert arrived(pair, lambda: do(pair, "send", to, 5000, BIG, COUNT)) == 0
    if how != "protocol":
        assert arrived(pair, lambda: do(pair, "send", to, 6000, 1000, COUNT)) == COUNT
    pair.verifier.verify()
    rows = [check for link in pair.ledger.evidence for check in link.checks if check.field == "traffic"]
    assert {(row.verdict, row.seen) for row in rows} == {(Verdict.HOLDS, "0 fragmented datagrams of other traffic")}


def test_fragments_are_as_late_as_their_datagram(pair: Lab) -> None:
    pair.impair("a -> b udp/5000 on lan", delay="150ms")
    for family in (4, 6):
        assert float(do(pair, "ask", address(pair, family), 5000, BIG)) >= 0.150
    pair.verifier.verify()


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("how", ["cut", "reject", "loss"])
def test_a_fragmented_datagram_of_another_port_makes_the_test_invalid(pair: Lab, how: str, family: int) -> None:
    NARROWED[how](pair)
    do(pair, "send", address(pair, family), 6000, BIG, 3)
    with pytest.raises(ImpairmentNotAppliedError, match="3 fragmented datagrams that may not be of udp/5000"):
        pair.verifier.verify()
    assert [link.counters for link in pair.ledger.evidence] == [Verdict.FAILS]
    pair.lifecycle.begin(None)
    pair.verifier.verify()  # what an earlier test sent is not this one's


@pytest.mark.parametrize("how", ["cut", "loss"])
def test_parts_of_one_senders_traffic_are_told_apart_but_for_their_fragments(pair: Lab, how: str) -> None:
    parts = [f"a -> b {traffic} on lan" for traffic in ("udp/5000", "tcp/5001", "udp/5002", "tcp/5003", "udp/5004")]
    for part in parts:
        pair.cut(part) if how == "cut" else pair.impair(part, loss="100%")
    for to in (address(pair, 4), address(pair, 6)):
        for port, count in ((5000, 0), (5002, 0), (5004, 0), (6000, COUNT)):
            assert arrived(pair, partial(do, pair, "send", to, port, 100, COUNT)) == count
    pair.verifier.verify()
    do(pair, "send", address(pair, 4), 5004, BIG, 2)
    with pytest.raises(ImpairmentNotAppliedError, match="2 fragmented datagrams that may not be of udp/5000"):
        pair.verifier.verify()
    for part in parts[:-1]:
        pair.link(part).heal()
        pair.link(part).mend()
    assert arrived(pair, lambda: do(pair, "send", address(pair, 4), 5004, BIG, COUNT)) == 0


# --- sources ---------------------------------------------------------------------------------------------


def lan(lab: Lab) -> tuple[str, str, str]:
    """On `lan`: the IPv4 addresses of `a` and `b`, and an unused one."""
    own, other = (
        next(address for address in lab.hosts[name].addresses("lan") if "." in address) for name in ("a", "b")
    )
    return own, other, str(ipaddress.ip_address(own) + 100)


WAYS: dict[str, Callable[[Lab], object]] = {
    "cut": lambda lab: lab.cut("a -> b on lan"),
    "narrowed": lambda lab: lab.cut("a -> b udp/6000 on lan"),
    "reject": lambda lab: lab.cut("a -> b on lan", reject=True),
    "loss": lambda lab: lab.impair("a -> b on lan", loss="100%"),
    "narrowed loss": lambda lab: lab.impair("a -> b udp/6000 on lan", loss="100%"),
    "down": lambda lab: lab.flap("a -> b on lan", up="50ms", down="60s"),
}


PLAIN: dict[str, Callable[[Lab], object]] = {"delay": lambda lab: lab.impair("a -> b on lan", delay="20ms")}


def is_down(lab: Lab) -> None:
    """Wait until a link that flaps is down for the first time."""
    await_condition(lambda: lab.link("a -> b on lan").steps(), lambda steps: len(steps) > 1, deadline_s=5)


@pytest.fixture
def in_force(pair: Lab, how: str) -> Callable[[], None]:
    """Impair or cut the link in one way; a control ran before."""

    def put() -> None:
        (WAYS | PLAIN)[how](pair)
        if how == "down":
            is_down(pair)

    return put


@pytest.mark.parametrize("how", WAYS)
def test_what_a_host_sends_from_an_address_that_it_took_meets_what_the_link_is(
    pair: Lab, in_force: Callable[[], None]
) -> None:
    _own, other, new = lan(pair)
    do(pair, "address", f"{new}/16")
    assert arrived(pair, lambda: do(pair, "send", other, 6000, 100, COUNT, new)) == COUNT
    in_force()
    assert arrived(pair, lambda: do(pair, "send", other, 6000, 100, COUNT, new)) == 0
    pair.verifier.verify()


@pytest.mark.parametrize("how", WAYS)
def test_what_a_host_passes_on_meets_what_the_link_is(pair: Lab, in_force: Callable[[], None]) -> None:
    """Forwarded packets come from the router's interface, with any source address."""
    _own, other, _new = lan(pair)
    mac = str(pair.host("a").mac("lan"))
    foreign = "203.0.113.7"  # RFC 5737
    assert arrived(pair, lambda: do(pair, "forge", other, 6000, COUNT, mac, foreign, 0)) == COUNT + 1  # and a greeting
    in_force()
    assert arrived(pair, lambda: do(pair, "forge", other, 6000, COUNT, mac, foreign, 0)) == 0
    pair.verifier.verify()


@pytest.mark.parametrize("how", WAYS)
def test_no_mac_address_and_no_mark_is_a_way_past(pair: Lab, in_force: Callable[[], None]) -> None:
    """Neither the MAC address of the agent's own answers nor their mark passes a cut."""
    own, other, _new = lan(pair)
    answerer = ":".join(f"{word:02x}" for word in ANSWERER)
    assert arrived(pair, lambda: do(pair, "forge", other, 6000, COUNT, answerer, own, 1)) == COUNT + 1
    in_force()
    cuts = [source.cut for source in pair.ports.attached("b", "lan").sources.values() if source.cut is not None]
    (mark, *_) = [*(cut.mark for cut in cuts if cut.mark is not None), 1]
    assert arrived(pair, lambda: do(pair, "forge", other, 6000, COUNT, answerer, own, mark)) == 0


def frames(lab: Lab) -> int:
    """All packets that `b` received on `lan`."""
    done = lab.hosts["b"].run(["python3", PROGRAM, "received", lan(lab)[1]])
    assert done.ok, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("how", ["cut", "reject", "loss", "down"])
def test_frames_with_a_vlans_tag_and_those_that_are_no_ip_meet_what_the_link_is(
    pair: Lab, in_force: Callable[[], None]
) -> None:
    _own, other, _new = lan(pair)

    def came(kind: str) -> int:
        before = frames(pair)
        arrived(pair, lambda: do(pair, "tagged", other, 6000, COUNT, kind))
        return frames(pair) - before

    assert came("8100") >= COUNT
    in_force()
    for kind in ("8100", "88a8", "88b5"):  # 802.1Q, 802.1ad, and what is for local experiments (IEEE 802)
        assert came(kind) < COUNT // 2  # a few of others, such as ARP
    pair.verifier.verify()


STRANGE = "02:ab:cd:00:00:07"


def forged(pair: Lab) -> None:
    _own, other, new = lan(pair)
    do(pair, "forge", other, 6000, COUNT, STRANGE, new, 0)


def by_macvlan(pair: Lab) -> None:
    _own, other, new = lan(pair)
    do(pair, "macvlan", f"{new}/16", other, 6000, COUNT)


def changed(pair: Lab) -> None:
    (own, other, new), mac = lan(pair), str(pair.host("a").mac("lan"))
    do(pair, "address", f"{new}/16")
    do(pair, "interface", STRANGE, own)
    try:
        do(pair, "send", other, 6000, 100, COUNT, new)
    finally:
        do(pair, "interface", mac, own)


@pytest.mark.parametrize(
    ("how", "sending"),
    [
        *((how, forged) for how in WAYS | PLAIN),
        *((how, sending) for how in ("cut", "narrowed", "delay") for sending in (by_macvlan, changed)),
    ],
)
def test_what_a_host_sends_from_another_mac_address_makes_the_test_invalid(
    pair: Lab, in_force: Callable[[], None], sending: Callable[[Lab], None]
) -> None:
    in_force()
    sending(pair)
    with pytest.raises(ImpairmentNotAppliedError, match="MAC addresses that no host of the lab has"):
        pair.verifier.verify()
    assert Verdict.FAILS in [link.counters for link in pair.ledger.evidence]


@pytest.mark.parametrize("how", WAYS)
def test_no_other_sender_and_no_earlier_one_makes_the_test_invalid(pair: Lab, in_force: Callable[[], None]) -> None:
    """Packets from another port, from another host, or from before the cut make no test INVALID."""
    own, other, _new = lan(pair)
    forged(pair)
    arrived(pair, lambda: None)  # one exchange later
    in_force()
    do(pair, "forge", other, 6000, COUNT, pair.host("b").mac("back"), own, 0)  # as a bridge does
    pair.hosts["b"].run(["python3", PROGRAM, "forge", own, "6000", str(COUNT), STRANGE, other, "0"])
    pair.verifier.verify()


# --- other networks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", WAYS)
def test_what_takes_another_network_alone_makes_the_test_invalid(pair: Lab, in_force: Callable[[], None]) -> None:
    in_force()
    to = next(address for address in pair.hosts["b"].addresses("back") if "." in address)
    do(pair, "ask", to, 6000, 100, COUNT)
    with pytest.raises(ImpairmentNotAppliedError, match=f"no packet .*, but {COUNT} packets took `back`"):
        pair.verifier.verify()
    assert [link.counters for link in pair.ledger.evidence] == [Verdict.FAILS]


def test_what_takes_another_network_and_is_no_part_of_what_is_cut_is_nobodys_business(pair: Lab) -> None:
    pair.cut("a -> b udp/5000 on lan")
    do(pair, "send", next(address for address in pair.hosts["b"].addresses("back") if "." in address), 6000, 100, COUNT)
    pair.verifier.verify()
    assert of_links(pair.ledger.evidence[0].warnings) == ["no packet met the cut"]


def test_what_takes_another_network_beside_a_cut_that_was_met_is_told(pair: Lab) -> None:
    _own, other, _new = lan(pair)
    pair.cut("a -> b on lan")
    do(pair, "send", other, 6000, 100, COUNT)
    do(pair, "ask", next(address for address in pair.hosts["b"].addresses("back") if "." in address), 6000, 100, COUNT)
    pair.verifier.verify()
    assert of_links(pair.ledger.evidence[0].warnings) == [f"{COUNT} packets took `back`, which this cut does not reach"]
