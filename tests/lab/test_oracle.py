"""Confusions told apart, on real links: who dropped it, which way, lost or late, and what nobody was told."""

from __future__ import annotations

import pytest

from testbed import ComposeLab
from testbed.drive.messages import STRUCTURES, messages
from testbed.judge.oracle import Cause, Expectation
from testbed.judge.verdict import Verdict


def test_what_the_network_drops_is_told_from_what_a_full_socket_buffer_drops(lab: ComposeLab) -> None:
    # 4 ms of work a message that comes each ms: the smallest buffer overflows for certain.
    lab.link("client -> server").impair(loss="10%", seed=1)
    run = messages(
        lab, transport="udp", count=400, size_bytes=500, rate_per_s=1000,
        server_options=["--work", "0.004", "--receive-buffer", "4096"],
    )  # fmt: skip
    account = run.judge()
    there = account.direction("client", "server")
    refused = run.evidence.kernel["server"]["Udp"]["RcvbufErrors"]
    dropped = run.evidence.links["client", "server"].dropped_packets
    assert account.verdict is Verdict.FAIL, str(account)
    assert refused >= 50, "3 of 4 messages find the buffer full"
    assert dropped >= 10, "400 at 10 %"
    assert there.causes == {Cause.RECEIVE_BUFFER: refused, Cause.NETWORK: dropped}
    assert there.lost + there.control_lost == refused + dropped


def test_dropped_acknowledgements_cost_no_message_and_are_not_taken_for_dropped_data(lab: ComposeLab) -> None:
    lab.link("client -> server").impair(delay="1ms")
    lab.link("server -> client").impair(loss="30%", seed=2)
    run = messages(lab, structure="threads", count=300, size_bytes=1000, rate_per_s=500)
    account = run.judge()
    assert account.verdict is Verdict.PASS, str(account)
    assert run.evidence.links["client", "server"].dropped_packets == 0
    assert run.evidence.links["server", "client"].dropped_packets > 0
    assert any(line.startswith("link server -> client") and "acknowledgements" in line for line in account.network)


def test_a_lost_reply_is_told_from_a_lost_request(lab: ComposeLab) -> None:
    lab.link("client -> server").impair(delay="1ms")
    lab.link("server -> client").impair(loss="20%", seed=3)
    run = messages(lab, transport="udp", count=200, rate_per_s=500, replies=True, deadline_s=20)
    account = run.judge()
    dropped = run.evidence.links["server", "client"].dropped_packets
    there, back = account.direction("client", "server"), account.direction("server", "client")
    assert (there.delivered, there.lost) == (200, 0)
    assert dropped >= 10
    assert back.causes == {Cause.NETWORK: dropped}
    assert back.lost + back.control_lost == dropped


def test_a_late_message_is_told_from_a_lost_one(lab: ComposeLab) -> None:
    # Half of the packets skip the delay of 300 ms, of those that are not lost.
    lab.link("client -> server").impair(delay="300ms", reorder="50%", loss="10%", seed=4)
    run = messages(lab, transport="udp", count=300, rate_per_s=500)
    account = run.judge(expect=Expectation(late_after_s=0.2, most_lost_ratio=0.3))
    there = account.direction("client", "server")
    assert account.verdict is Verdict.FAIL, str(account)
    assert there.late >= 50
    assert there.delivered >= 50
    assert there.lost >= 5
    assert there.late + there.delivered + there.lost == 300
    assert there.causes == {Cause.NETWORK: run.evidence.links["client", "server"].dropped_packets}
    assert there.reordered > 0


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_structure_delivers_everything_over_a_lossy_link(lab: ComposeLab, structure: str) -> None:
    lab.impair("client <-> server", delay="5ms", loss="3%", seed=5)
    run = messages(lab, structure=structure, count=60, connections=3, size_bytes=3000, rate_per_s=200, replies=True)
    account = run.judge(expect=Expectation(messages=60))
    assert account.verdict is Verdict.PASS, str(account)
    assert account.direction("client", "server").delivered == 180
    assert account.direction("server", "client").delivered == 180
    least_s = account.direction("client", "server").delay.min_s
    assert least_s is not None
    assert least_s >= 0.005
    assert run.evidence.links["client", "server"].dropped_packets > 0
