"""The fate of every message, from journals written by hand or drawn with known faults."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.evidence.observed import KernelEvidence, LinkCounts
from testbed.evidence.verdict import Verdict
from testbed.judge.account import Account, Cause, Expectation
from testbed.judge.oracle import Oracle, judge
from tests.unit.journals import (
    DATAGRAM_FATES,
    LATE_AFTER_S,
    MS,
    SIZE,
    STREAM_FATES,
    Datagrams,
    Written,
    connections,
    counters,
    datagrams,
)

IN_TIME = Expectation(late_after_s=LATE_AFTER_S)


def judged(run: Datagrams, expect: Expectation = IN_TIME, evidence: KernelEvidence | None = None) -> Account:
    return judge([run.client.journal(), run.server.journal()], evidence or run.evidence, expect=expect)


def assert_no_false_verdict(run: Datagrams, account: Account) -> None:
    """What a judge that knows the fates would say."""
    there = account.direction("client", "server")
    fates = Counter(run.fates)
    assert not [str(balance) for balance in account.balances if not balance.holds]
    assert account.causes == run.causes
    assert there.sent == len(run.fates)
    assert (there.truncated, there.corrupt) == (fates["truncated"] + fates["torn"] + fates["partly"], fates["corrupt"])
    assert there.lost == sum(run.causes.values()) - there.truncated - there.corrupt
    assert there.late == fates["late"]
    assert there.duplicates == fates["duplicated"] + fates["again"]
    assert there.delivered + there.late == len(run.arrivals)
    good = not run.causes and not there.late and not there.duplicates
    assert account.verdict is (Verdict.HOLDS if good else Verdict.FAILS), str(account)


def by_hand(*, transport: str = "udp") -> tuple[Written, Written]:
    return Written("client", transport), Written("server", transport)


# --- drawn -----------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(DATAGRAM_FATES), min_size=1, max_size=12))
def test_no_false_verdict_on_datagrams_of_known_fate(fates: list[str]) -> None:
    run = datagrams(fates)
    account = judged(run)
    assert_no_false_verdict(run, account)
    later = [at for at, sequence in enumerate(run.arrivals) if any(arrival > sequence for arrival in run.arrivals[:at])]
    assert account.direction("client", "server").reordered == len(later)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(STREAM_FATES), min_size=1, max_size=8))
def test_no_false_verdict_on_connections_of_known_fate(fates: list[str]) -> None:
    run = connections(fates)
    assert_no_false_verdict(run, judged(run))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(DATAGRAM_FATES[:8]), min_size=2, max_size=12), st.randoms())
def test_the_order_in_which_rows_are_read_does_not_change_what_became_of_messages(
    fates: list[str], chance: random.Random
) -> None:
    run = datagrams(fates)
    accounts = set()
    for server_first in (False, True):
        oracle = Oracle(expect=IN_TIME)
        for host in ("client", "server"):
            oracle.host(host, "udp")
        sides = [[("client", row) for row in run.client.rows], [("server", row) for row in run.server.rows]]
        if server_first:
            sides.reverse()
        for host, row in itertools.chain(*sides):
            oracle.take(host, [row])
        accounts.add(str(oracle.judge(run.evidence)))
    assert len(accounts) == 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(("delivered", "network", "buffer")), min_size=1, max_size=12), st.data())
def test_a_run_whose_record_was_tampered_with_is_invalid(fates: list[str], data: st.DataObject) -> None:
    run = datagrams(fates)
    link = run.evidence.links["client", "server"]
    tampered = ["a drop too many", "a drop too few", "no end"]
    if run.server.rows:
        tampered += ["an arrival gone", "another stamp"]
    match data.draw(st.sampled_from(tampered)):
        case "a drop too many":
            link = replace(link, dropped_packets=link.dropped_packets + 1)
        case "a drop too few":
            link = replace(link, dropped_packets=link.dropped_packets - 1)
        case "no end":
            run.server.ends = False
        case "an arrival gone":
            del run.server.rows[data.draw(st.integers(0, len(run.server.rows) - 1))]
        case "another stamp":
            run.server.rows[data.draw(st.integers(0, len(run.server.rows) - 1))][6] += 1
    evidence = replace(run.evidence, links={("client", "server"): link})
    assert judged(run, evidence=evidence).verdict is Verdict.INVALID


# --- by hand: datagrams ----------------------------------------------------------------------------


def test_what_no_counter_was_read_for_is_lost_for_an_unknown_cause() -> None:
    run = datagrams(["delivered", "network"])
    account = judged(run, evidence=KernelEvidence())
    assert (account.verdict, account.causes) == (Verdict.FAILS, {Cause.UNKNOWN: 1})


def test_a_link_that_saw_fewer_packets_than_were_sent_was_not_in_the_way() -> None:
    run = datagrams(["delivered"] * 5)
    evidence = KernelEvidence(links={("client", "server"): LinkCounts(sent_packets=0, dropped_packets=0)})
    account = judged(run, evidence=evidence)
    assert account.verdict is Verdict.INVALID
    assert "packets that the link saw ≥ datagrams sent: 0 ≥ 5" in account.reasons[0]


def test_packets_still_under_way_leave_it_open_what_becomes_of_them() -> None:
    run = datagrams(["delivered", "delivered"])
    del run.server.rows[1]
    link = LinkCounts(sent_packets=1, dropped_packets=0, queued_packets=1)
    account = judged(run, evidence=replace(run.evidence, links={("client", "server"): link}))
    assert account.verdict is Verdict.UNKNOWN


def test_a_lost_word_of_the_end_is_a_datagram_that_the_link_dropped_and_no_lost_message() -> None:
    run = datagrams(["delivered"])
    for _ in range(2):
        run.client.add("control", 2000 * MS, 1, 0, "sent")
    run.server.add("control", 2000 * MS, 1, 0, "received")
    link = LinkCounts(sent_packets=2, dropped_packets=1)
    account = judged(run, evidence=replace(run.evidence, links={("client", "server"): link}))
    there = account.direction("client", "server")
    assert (account.verdict, there.lost, there.control_lost) == (Verdict.HOLDS, 0, 1)
    assert there.causes == {Cause.NETWORK: 1}


def test_drops_beyond_what_is_missing_may_be_of_what_else_the_host_sent_and_of_nothing_else() -> None:
    run = datagrams(["delivered", "network"])
    link = LinkCounts(sent_packets=3, dropped_packets=3)
    for segments, verdict in ((2, Verdict.FAILS), (1, Verdict.INVALID)):
        kernel = {**run.evidence.kernel, "client": {"Tcp": {"OutSegs": segments}}}
        account = judged(run, evidence=KernelEvidence(kernel=kernel, links={("client", "server"): link}))
        assert account.verdict is verdict, str(account)


def test_nothing_at_all_is_no_success() -> None:
    assert judge([row.journal() for row in by_hand()]).verdict is Verdict.INVALID


def test_messages_that_were_never_tried_are_missed_if_one_says_how_many_there_are() -> None:
    run = datagrams(["delivered", "delivered"])
    account = judged(run, Expectation(messages=5))
    assert account.verdict is Verdict.FAILS
    assert account.direction("client", "server").lost == 3
    assert account.causes == {Cause.NEVER_HANDED: 3}


def test_two_hosts_that_send_the_same_flow_are_told_so() -> None:
    run = datagrams(["delivered"])
    other = Written("other")
    other.sent(1000 * MS, 0)
    account = judge([run.client.journal(), other.journal(), run.server.journal()], run.evidence)
    assert account.verdict is Verdict.INVALID
    assert "flow 0 is sent by client and by other: give them different flows (--first-flow)" in account.reasons


def test_a_message_that_arrives_before_it_was_sent_shows_that_the_clocks_differ() -> None:
    client, server = by_hand()
    client.sent(10 * MS, 0)
    server.received(9 * MS, 0, 10 * MS)
    account = judge([client.journal(), server.journal()])
    assert account.verdict is Verdict.INVALID
    assert "arrived before it was sent" in account.reasons[0]


def test_how_much_loss_is_allowed_decides_between_pass_and_fail() -> None:
    run = datagrams(["network"] + ["delivered"] * 9)
    assert judged(run, Expectation(most_lost_ratio=0.1)).verdict is Verdict.HOLDS
    account = judged(run, Expectation(most_lost_ratio=0.09))
    assert account.reasons == (
        "client -> server: 1 of 10 not delivered whole, at most 9% expected: 1 dropped by the network",
    )


def test_a_lost_packet_has_no_delay_and_counts_as_infinitely_late() -> None:
    run = datagrams(["delivered"] * 3 + ["network"] * 3)
    there = judged(run).direction("client", "server")
    half, most = (there.delay.quantile(q, lost=there.missing) for q in (0.5, 0.9))
    assert half is not None
    assert most is not None
    assert half.value == pytest.approx(0.005, rel=0.01)
    assert most.value == float("inf")


# --- by hand: streams ------------------------------------------------------------------------------


def test_of_a_stream_what_comes_out_of_order_is_a_failure() -> None:
    client, server = by_hand(transport="tcp")
    for sequence in range(2):
        client.sent(sequence * MS + MS, sequence)
    server.received(5 * MS, 1, 2 * MS)
    server.received(6 * MS, 0, MS)
    account = judge([client.journal(), server.journal()])
    assert account.reasons == ("client -> server: 1 out of order in a stream, which keeps it",)


def test_a_message_that_waits_for_the_one_before_it_has_waited_head_of_line() -> None:
    """Sent at 0, 10, 20 ms over a path of 5 ms; the first is late by 100 ms and holds up the other two."""
    client, server = by_hand(transport="tcp")
    for sequence, (sent, arrived) in enumerate(((0, 5), (10, 115), (20, 115), (30, 115))):
        client.sent(MS + sent * MS, sequence)
        server.received(MS + arrived * MS, sequence, MS + sent * MS)
    there = judge([client.journal(), server.journal()], stall_s=0.1).direction("client", "server")
    # The third could have been there at 25, the fourth at 35; their predecessor came at 115.
    assert there.head_of_line.max_s == pytest.approx(0.090)
    assert there.head_of_line.total_ns == (90 + 80) * MS
    assert there.stalls == 1
    assert there.longest_pause_s == pytest.approx(0.110)


def test_a_message_sent_again_may_arrive_as_either_copy() -> None:
    for copies in ((0,), (1,), (0, 1), (1, 0)):
        client, server = by_hand(transport="tcp")
        client.sent(MS, 0)
        client.sent(2 * MS, 0)
        for number, copy in enumerate(copies):
            server.received((5 + number) * MS, 0, (1 + copy) * MS)
        account = judge([client.journal(), server.journal()])
        there = account.direction("client", "server")
        assert (there.sent, there.delivered, there.resent, there.duplicates) == (1, 1, 1, len(copies) - 1)
        assert account.verdict is (Verdict.HOLDS if len(copies) == 1 else Verdict.FAILS), str(account)


def test_a_full_listener_queue_is_named_only_if_the_kernel_counted_it() -> None:
    run = connections(["not_accepted"])
    assert judged(run).causes == {Cause.LISTEN_QUEUE: 1}
    assert judged(run, evidence=KernelEvidence(kernel={"server": counters()})).causes == {Cause.NOT_ACCEPTED: 1}


def test_dropped_acknowledgements_are_told_and_cost_nothing() -> None:
    run = connections(["delivered"])
    link = LinkCounts(sent_packets=70, dropped_packets=30)
    account = judged(run, evidence=KernelEvidence(links={("server", "client"): link}))
    assert account.verdict is Verdict.HOLDS
    assert account.network == (
        "link server -> client: 30 of 100 packets dropped; it carries replies and acknowledgements",
    )


def test_the_time_to_connect_and_to_the_first_byte_back() -> None:
    client, server = by_hand(transport="tcp")
    client.add("connect", 30 * MS, 1, 10 * MS, "a:1", "b:2")
    server.add("accept", 25 * MS, 1, "b:2", "a:1")
    client.sent(31 * MS, 0)
    server.received(40 * MS, 0, 31 * MS)
    server.sent(41 * MS, 0, flow=-1)
    client.received(50 * MS, 0, 41 * MS, flow=-1)
    account = judge([client.journal(), server.journal()])
    assert account.verdict is Verdict.HOLDS
    assert account.connect["client"].max_s == pytest.approx(0.020)
    assert account.first_byte["client"].max_s == pytest.approx(0.040)


# --- memory ----------------------------------------------------------------------------------------


def state_after(count: int, lost_every: int) -> int:
    """The most that the oracle remembered on the way, of so many messages, five under way at any time."""
    oracle, most = Oracle(), 0
    for host in ("client", "server"):
        oracle.host(host, "udp")
    for sequence in range(count + 5):
        if sequence < count:
            oracle.take("client", [["sent", sequence * MS, 1, 0, sequence, SIZE, SIZE, SIZE]])
        before = sequence - 5
        if before >= 0 and before % lost_every:
            oracle.take("server", [["received", sequence * MS, 1, 0, before, SIZE, before * MS, "whole"]])
        most = max(most, oracle.state)
    return most


def test_memory_grows_with_what_is_missing_and_not_with_what_arrived() -> None:
    nothing_lost = 10**9
    assert state_after(20_000, nothing_lost) <= state_after(2_000, nothing_lost) + 1
    # Of each that is missing, itself and the gap that it leaves.
    assert 20 <= state_after(20_000, 1_000) - state_after(20_000, nothing_lost) <= 2 * 20


def test_an_account_can_be_written_as_json() -> None:
    text = json.dumps(judged(datagrams(["delivered", "network", "late"])).as_json(), allow_nan=False)
    assert json.loads(text)["directions"][0]["causes"] == {"NETWORK": 1}
