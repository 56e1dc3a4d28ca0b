"""Cuts and partitions: exactly the cut pairs fail, only in the cut direction, and their packets are counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count, permutations

import pytest

from testbed import ImpairmentNotAppliedError, InvalidValueError, Lab
from testbed.lab.host import Program
from testbed.lab.lab import Link
from testbed.lab.waiting import await_condition
from testbed.netem import qdisc
from testbed.spec.timeline import Taken
from tests.lab.conftest import HERE, as_one_test, lab_of

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
    yield from as_one_test(shared)


def heard(lab: Lab) -> Pairs:
    """The pairs (sender, receiver) that got through, once the cuts have counted every other packet."""
    before = {ref: lab.cutter.lost_packets(ref) for ref in lab.ports.cut}
    word = f"{next(ROUNDS)}"
    for name in HOSTS:
        others = [lab.hosts[other].addresses()[0] for other in HOSTS if other != name]
        assert lab.hosts[name].run(["python3", "/tmp/roll_call.py", "say", f"{name}.{word}", *others]).ok

    def settled() -> tuple[Pairs, int]:
        lines = {dst: LISTENERS[dst].output.split() for dst in HOSTS}
        pairs = {(src, dst) for src, dst in PAIRS if f"{src}.{word}" in lines[dst]}
        swallowed = sum(lab.cutter.lost_packets(ref) - then >= 3 for ref, then in before.items())
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


def test_a_partition_that_rejects_cuts_the_same(four: Lab) -> None:
    four.partition({"a", "b"}, {"c", "d"}, reject=True)
    assert heard(four) == PAIRS - between("ab", "cd")
    four.verifier.verify()
    (ends, *_) = [link for link in four.ledger.evidence if link.link == "a -> c"]
    assert ends.checks[0].seen.startswith("3 packets rejected; its sender was told by 0 resets and 6 ICMP errors")
    four.cut("a -> c")  # from now on silently
    assert heard(four) == PAIRS - between("ab", "cd")
    four.mend()
    assert heard(four) == PAIRS


def test_a_host_in_no_group_keeps_all_its_links(four: Lab) -> None:
    four.partition({"a"}, {"b"})
    assert heard(four) == PAIRS - between("a", "b")


def test_an_isolated_host_hears_nobody_and_is_heard_by_nobody(four: Lab) -> None:
    four.isolate("d")
    assert heard(four) == PAIRS - between("d", "abc")
    four.mend("d -> a")
    assert heard(four) == PAIRS - between("d", "abc") | {("d", "a")}


def test_a_partition_of_a_port_cuts_that_port_and_no_other(four: Lab) -> None:
    four.partition({"a", "b"}, {"c,d"}, traffic="udp/9002")
    assert heard(four) == PAIRS - between("ab", "cd")
    four.mend()
    four.partition({"a", "b"}, {"c,d"}, traffic="udp/9")
    four.isolate("a", traffic="tcp")
    assert heard(four) == PAIRS


def test_what_impaired_the_link_before_impairs_it_again_after_the_cut(four: Lab) -> None:
    four.impair("a -> b", delay="5ms")
    four.cut("a <-> b")
    four.verifier.verify()
    assert heard(four) == PAIRS - between("a", "b")
    before = four.link("a -> b").counters().sent_packets
    four.mend()
    assert heard(four) == PAIRS
    assert four.link("a -> b").counters().sent_packets >= before + 3
    assert four.link("a -> b").impairment is not None


def test_a_connection_that_is_cut_longer_than_its_time_out_ends_and_says_so(four: Lab) -> None:
    a, b = four.hosts["a"], four.hosts["b"]
    server = b.start(["python3", "-c", _SERVER], ready=9003)
    # RFC 5482: the time-out is the user's; without, Linux takes a quarter of an hour.
    client = a.start(["python3", "-c", _CLIENT, b.addresses()[0], "800"], ready="first")
    four.cut("a <-> b")
    a.put("/tmp/go", "")
    result = client.wait("20s")
    assert result.exit_code == 1
    assert result.stderr.strip().endswith("TimeoutError: [Errno 110] Connection timed out")
    assert a.counters()["TcpExt"]["TCPAbortOnTimeout"] >= 1
    four.verifier.verify()
    assert {link.link: link.read_back for link in four.ledger.evidence} == {"a -> b": "holds", "b -> a": "holds"}
    server.stop("SIGKILL")


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
if sys.argv[2:]: s.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(sys.argv[2]))
s.send(b"first\\n"); print("first", flush=True)
while not os.path.exists("/tmp/go"): time.sleep(0.01)
os.unlink("/tmp/go")
s.send(b"second\\n")
assert s.recv(99) == b"heard"
"""


def test_a_cut_that_was_mended_behind_our_back_is_found(four: Lab) -> None:
    four.cut("a -> b")
    port = four.ports.attached("b", "lan")
    source = port.sources[four.link("a -> b").ref]
    (way, *_) = qdisc.cut_filters(source.minor, source.addresses)
    line = way.delete(port.device)
    assert port.channel.call("tc", port=port.name, lines=[line])["complaints"] == []
    with pytest.raises(ImpairmentNotAppliedError, match=r"a -> b.*asked filter .* led to 1:40.*reports none"):
        four.verifier.verify()


def flapped(link: Link) -> list[Taken]:
    """The steps of a link that was up for 500 ms and down for 350 ms, in turns: every one was taken."""
    steps = [step for step in link.steps() if step.cut is not None]
    assert [step.complaint for step in steps] == [None] * len(steps)
    assert [step.cut for step in steps] == [bool(number % 2) for number in range(len(steps))]
    assert [step.planned_s for step in steps[:4]] == pytest.approx([0, 0.5, 0.85, 1.35])
    assert len(steps) >= 6
    return steps


def test_a_link_that_flaps_loses_what_comes_while_it_is_down_and_nothing_else(four: Lab) -> None:
    four.impair("a -> b", delay="5ms")
    link = four.link("a -> b")
    lost_before, sent_before = link.lost_in_cut(), link.counters().sent_packets
    four.flap("a -> b", up="500ms", down="350ms")
    a, b = four.hosts["a"], four.hosts["b"]
    hearing = b.start(["python3", "-c", _HEAR], ready="ready")
    document = json.loads(a.run(["python3", "-c", _SAY, b.addresses()[0]]).stdout)
    four.mend()
    assert a.run(["python3", "-c", _SAY, b.addresses()[0], "end"]).ok
    arrived = set(json.loads(hearing.wait().stdout.splitlines()[1]))
    steps = flapped(link)
    # The agent's clock is the hosts' own. A step is in force at the latest when it was read back, and never before it
    # was due. (What is sent 5 ms after one is not judged, nor what the sender was interrupted at sending.)
    for number, (before_s, sent_s) in enumerate(document):
        last = [step for step in steps if step.monotonic_s <= before_s][-1:]
        later = [step for step in steps if step.monotonic_s > before_s][:1]
        due_s = [step.monotonic_s - step.actual_s + step.planned_s for step in later]
        if last and before_s - last[0].monotonic_s > 0.005 and (not due_s or due_s[0] > sent_s):
            assert (number in arrived) == (not last[0].cut), (number, before_s, sent_s, last)
    lost = link.lost_in_cut() - lost_before
    assert lost == len(document) - len(arrived) > 0
    assert link.counters().sent_packets - sent_before >= len(arrived)  # they went through what impairs the link
    four.verifier.verify()
    (evidence,) = [link for link in four.ledger.evidence if "cut" in link.asked]
    assert evidence.checks[0].asked == "flapping, up 500ms, down 350ms, silently"
    assert evidence.steps == steps


_HEAR = """
import json, socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", 9004)); print("ready", flush=True)
heard = []
while (word := s.recv(99)) != b"end": heard.append(int(word))
print(json.dumps(heard))
"""
_SAY = """
import json, socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect((sys.argv[1], 9004))
if sys.argv[2:]: s.send(b"end"); sys.exit()
said = []
for number in range(300):
    before_s = time.monotonic(); s.send(b"%d" % number); said.append((before_s, time.monotonic())); time.sleep(0.008)
print(json.dumps(said))
"""


def test_a_link_that_flaps_and_rejects_tells_its_sender_while_it_is_down(four: Lab) -> None:
    four.impair("a -> b", delay="5ms")
    link = four.link("a -> b")
    lost_before = link.lost_in_cut()
    four.flap("a -> b", up="500ms", down="350ms", reject=True)
    a, b = four.hosts["a"], four.hosts["b"]
    hearing = b.start(["python3", "-c", _HEAR], ready="ready")
    count, refused = json.loads(a.run(["python3", "-c", _SAY_AND_HEAR_OF_IT, b.addresses()[0]]).stdout)
    four.verifier.verify()
    (evidence,) = [link for link in four.ledger.evidence if "cut" in link.asked]
    four.mend()
    assert a.run(["python3", "-c", _SAY, b.addresses()[0], "end"]).ok
    arrived = set(json.loads(hearing.wait().stdout.splitlines()[1]))
    flapped(link)
    lost = count - len(arrived)
    assert link.lost_in_cut() - lost_before == lost > 30
    # Each is told of by one ICMP error; the socket keeps the last of those that come before it looks.
    assert lost // 2 < refused <= lost
    assert evidence.checks[0].asked == "flapping, up 500ms, down 350ms, rejecting"
    assert f"{lost} packets rejected; its sender was told by 0 resets and {lost} ICMP errors" in evidence.checks[0].seen
    assert heard(four) == PAIRS


_SAY_AND_HEAR_OF_IT = """
import json, socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect((sys.argv[1], 9004))
s.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR: also of errors that may pass
said = refused = 0
for number in range(300):
    try:
        s.send(b"%d" % number); said += 1
    except OSError:
        refused += 1
        try:
            s.send(b"%d" % number); said += 1
        except OSError:
            refused += 1
    time.sleep(0.008)
print(json.dumps([said, refused]))
"""


def test_times_of_flapping_that_make_no_sense_are_refused_at_once(four: Lab) -> None:
    with pytest.raises(InvalidValueError) as caught:
        four.flap("a -> b", up="1ms", down="soon")
    assert caught.value.problems[0] == "up='1ms': at least 50ms"
    assert caught.value.problems[1].startswith("down='soon'")
    assert four.ports.cut == []


def test_a_partition_of_unknown_hosts_cuts_nothing(four: Lab) -> None:
    with pytest.raises(InvalidValueError) as caught:
        four.partition({"a", "x"}, {"b"}, ["b"])
    assert caught.value.problems == ("host 'x': unknown; known: a, b, c, d", "host 'b' is in two groups")
    with pytest.raises(InvalidValueError, match="needs two groups"):
        four.partition({"a"})
    with pytest.raises(InvalidValueError) as caught:
        four.partition({"a"}, set(), traffic="tpc/80")
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "'tpc/80'",
        "a group of a partition is empty",
    ]
    with pytest.raises(InvalidValueError, match="traffic=80: must be text"):
        four.partition({"a"}, {"b"}, traffic=80)  # type: ignore[arg-type]  # wrong use
    assert four.ports.cut == []


def test_a_partition_that_is_refused_halfway_leaves_no_half(four: Lab) -> None:
    four.cut("a -> b", reject=True)
    with pytest.raises(InvalidValueError):  # what is rejected as a whole cannot be lost silently in part
        four.partition({"b"}, {"a"}, traffic="tcp/80")
    assert list(map(str, four.ports.cut)) == ["a -> b"]
    four.mend()
