"""Cuts and partitions: exactly the cut pairs fail, in exactly the cut direction, and their packets are counted."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, permutations

import pytest

from testbed import ImpairmentNotAppliedError, InvalidValueError, Lab
from testbed.labs.lab import Program
from testbed.labs.waiting import await_condition
from testbed.links import qdisc
from tests.lab.conftest import HERE, lab_of

HOSTS = ("a", "b", "c", "d")
PAIRS = set(permutations(HOSTS, 2))
Pairs = set[tuple[str, str]]
LISTENERS: dict[str, Program] = {}
ROUNDS = count(1)


@pytest.fixture(scope="module")
def shared(kind: str, pytestconfig: pytest.Config) -> Iterator[Lab]:
    with lab_of(kind, pytestconfig, HERE / "stacks" / "four.yaml") as lab:
        for host in lab.hosts.values():
            host.put("/tmp/roll_call.py", (HERE / "programs" / "roll_call.py").read_bytes())
            LISTENERS[host.name] = host.start(["python3", "/tmp/roll_call.py", "hear"], ready="ready")
        yield lab


@pytest.fixture
def four(shared: Lab) -> Iterator[Lab]:
    yield shared
    shared.heal()


def heard(lab: Lab) -> Pairs:
    """Which pairs (who spoke, who heard) got through, once every other packet was seen to be swallowed."""
    cut = [lab.link(f"{ref.src} -> {ref.dst}") for ref in lab.cuts]
    before = [link.lost_in_cut() for link in cut]
    word = f"{next(ROUNDS)}"
    for name in HOSTS:
        others = [lab.hosts[other].addresses()[0] for other in HOSTS if other != name]
        assert lab.hosts[name].run(["python3", "/tmp/roll_call.py", "say", f"{name}.{word}", *others]).ok

    def settled() -> tuple[Pairs, int]:
        lines = {dst: LISTENERS[dst].output.split() for dst in HOSTS}
        pairs = {(src, dst) for src, dst in PAIRS if f"{src}.{word}" in lines[dst]}
        swallowed = sum(link.lost_in_cut() - then >= 3 for link, then in zip(cut, before, strict=True))
        return pairs, swallowed

    pairs, _ = await_condition(settled, lambda seen: len(seen[0]) + seen[1] == len(PAIRS), deadline_s=20)
    return pairs


def between(left: str, right: str) -> Pairs:
    """Every pair across two groups, both ways."""
    return {pair for pair in PAIRS if (pair[0] in left) != (pair[1] in left) and {*pair} <= {*left, *right}}


def test_without_a_cut_everybody_hears_everybody(four: Lab) -> None:
    assert heard(four) == PAIRS


def test_a_one_way_cut_fails_one_way(four: Lab) -> None:
    four.link("a -> b").cut()
    assert heard(four) == PAIRS - {("a", "b")}
    four.link("a -> b").mend()
    assert heard(four) == PAIRS


def test_a_partition_cuts_across_groups_and_not_within(four: Lab) -> None:
    four.partition({"a", "b"}, {"c", "d"})
    assert heard(four) == PAIRS - between("ab", "cd")
    four.heal()
    assert heard(four) == PAIRS


def test_a_host_in_no_group_keeps_all_its_links(four: Lab) -> None:
    four.partition({"a"}, {"b"})
    assert heard(four) == PAIRS - between("a", "b")


def test_an_isolated_host_hears_nobody_and_is_heard_by_nobody(four: Lab) -> None:
    four.isolate("d")
    assert heard(four) == PAIRS - between("d", "abc")
    four.mend("d -> a")
    assert heard(four) == PAIRS - between("d", "abc") | {("d", "a")}


def test_what_impaired_the_link_before_impairs_it_again_after_the_cut(four: Lab) -> None:
    four.impair("a -> b", delay="5ms")
    four.cut("a <-> b")
    four.verify()
    assert heard(four) == PAIRS - between("a", "b")
    before = four.link("a -> b").counters().sent_packets
    four.mend()
    assert heard(four) == PAIRS
    assert four.link("a -> b").counters().sent_packets >= before + 3
    assert four.link("a -> b").impairment is not None


def test_a_connection_survives_a_cut_shorter_than_its_time_out(four: Lab) -> None:
    a, b = four.hosts["a"], four.hosts["b"]
    server = b.start(["python3", "-c", _SERVER], ready=9003)
    client = a.start(["python3", "-c", _CLIENT, b.addresses()[0]], ready="first")
    four.cut("a <-> b")
    before = four.link("a -> b").lost_in_cut()
    a.put("/tmp/go", "")
    # It has sent, and heard nothing: the kernel's retransmissions are swallowed.
    await_condition(four.link("a -> b").lost_in_cut, lambda lost: lost - before >= 2, deadline_s=20)
    four.mend()
    result = client.wait("60s")
    assert result.ok, result.stderr
    assert server.wait().stdout == "first second\n"
    assert a.counters()["Tcp"]["RetransSegs"] >= 1


_SERVER = """
import socket
with socket.create_server(("", 9003)) as listener:
    peer, _ = listener.accept()
    words = peer.makefile()
    print(words.readline().strip(), words.readline().strip())
    peer.send(b"heard")
"""
_CLIENT = """
import os, socket, sys, time
s = socket.create_connection((sys.argv[1], 9003))
s.send(b"first\\n"); print("first", flush=True)
while not os.path.exists("/tmp/go"): time.sleep(0.01)
s.send(b"second\\n")
assert s.recv(99) == b"heard"
"""


def test_a_cut_that_was_mended_behind_our_back_is_found(four: Lab) -> None:
    four.cut("a -> b")
    port = four._ports["b", "lan"]
    source = port.sources[four.link("a -> b").ref]
    (way, *_) = qdisc.cut_filters(source.minor, source.addresses)
    line = way.delete(port.device)
    assert port.channel.call("tc", port=port.name, lines=[line])["complaints"] == []
    with pytest.raises(ImpairmentNotAppliedError, match=r"a -> b.*asked filter .* led to 1:40.*reports none"):
        four.verify()


def test_a_partition_of_unknown_hosts_cuts_nothing(four: Lab) -> None:
    with pytest.raises(InvalidValueError) as caught:
        four.partition({"a", "x"}, {"b"}, ["b"])
    assert caught.value.problems == ("host 'x': unknown; known: a, b, c, d", "host 'b' is in two groups")
    with pytest.raises(InvalidValueError, match="needs two groups"):
        four.partition({"a"})
    assert four.cuts == []
