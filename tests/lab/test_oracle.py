"""The oracle on real links: who dropped a message, in which direction, lost or late, and losses nobody reported."""

from __future__ import annotations

import time

import pytest

from testbed import ComposeLab
from testbed.drive.messages import STRUCTURES, exchange, game, messages
from testbed.evidence.observed import KernelEvidence, difference
from testbed.evidence.verdict import Verdict
from testbed.judge.account import Cause, Expectation
from testbed.lab.waiting import await_condition
from tests.lab.conftest import await_quiet

BELOW_THE_LAB = True


@pytest.fixture(autouse=True)
def _quiet(lab: ComposeLab) -> None:
    """Packets that earlier tests left in TCP's queues would change which ones are lost."""
    await_quiet(lab.hosts["client"], lab.hosts["server"])


def test_what_the_network_drops_is_told_from_what_a_full_socket_buffer_drops(lab: ComposeLab) -> None:
    # 4 ms of work a message that comes each ms: the smallest buffer overflows for certain.
    lab.link("client -> server").impair(loss="10%", seed=1)
    run = messages(
        lab,
        transport="udp",
        count=400,
        size_bytes=500,
        rate_per_s=1000,
        server_options=["--work", "0.004", "--receive-buffer", "4096"],
    )
    account = run.judge()
    there = account.direction("client", "server")
    refused = run.evidence.kernel["server"]["Udp"]["RcvbufErrors"]
    dropped = run.evidence.links["client", "server"].dropped_packets
    assert account.verdict is Verdict.FAILS, str(account)
    assert refused >= 50, "3 of 4 messages find the buffer full"
    assert dropped >= 10, "400 at 10 %"
    assert there.causes == {Cause.RECEIVE_BUFFER: refused, Cause.NETWORK: dropped}
    assert there.lost + there.control_lost == refused + dropped


def test_dropped_acknowledgements_cost_no_message_and_are_not_taken_for_dropped_data(lab: ComposeLab) -> None:
    lab.link("client -> server").impair(delay="1ms")
    lab.link("server -> client").impair(loss="30%", seed=2)
    run = messages(lab, structure="threads", count=300, size_bytes=1000, rate_per_s=500)
    account = run.judge()
    assert account.verdict is Verdict.HOLDS, str(account)
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
    assert back.causes[Cause.NETWORK] == dropped
    assert back.lost >= 10


def test_a_late_message_is_told_from_a_lost_one(lab: ComposeLab) -> None:
    # Half of the packets skip the delay of 300 ms, of those that are not lost.
    lab.link("client -> server").impair(delay="300ms", reorder="50%", loss="10%", seed=4)
    run = messages(lab, transport="udp", count=300, rate_per_s=500)
    account = run.judge(expect=Expectation(late_after_s=0.2, most_lost_ratio=0.3))
    there = account.direction("client", "server")
    assert account.verdict is Verdict.FAILS, str(account)
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
    assert account.verdict is Verdict.HOLDS, str(account)
    assert account.direction("client", "server").delivered == 180
    assert account.direction("server", "client").delivered == 180
    least_s = account.direction("client", "server").delay.min_s
    assert least_s is not None
    assert least_s >= 0.005
    assert run.evidence.links["client", "server"].dropped_packets > 0


# --- the paper's server ----------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "arrives"), [(1024, 1024), (1025, 1024)])
def test_of_1025_bytes_the_papers_server_prints_1024_and_the_client_is_told_nothing(
    lab: ComposeLab, size: int, arrives: int
) -> None:
    client, server = lab.host("client"), lab.host("server")
    port = 7875 + size  # one each: the paper's server cannot bind again what is in TIME_WAIT
    program = server.start(["python3", "paper_server.py", "", str(port)], ready=port)
    before = server.counters()
    message = "x" * size
    sent = client.run(["python3", "paper_client.py", "server", str(port), message])
    await_condition(lambda: program.output, lambda text: text.endswith("\n"), deadline_s=10)
    evidence = KernelEvidence(kernel={"server": difference(before, server.counters())})
    printed = program.stop("SIGINT").stdout.removeprefix("Message ").removesuffix("\n")

    assert printed == message[:arrives]
    assert sent.exit_code == 0, "it was told nothing"
    assert evidence.counted("server", "TcpExt", "TCPAbortOnClose") == (size > arrives)


def test_one_recv_and_a_client_that_trusts_send_lose_the_message_and_the_journals_say_where(lab: ComposeLab) -> None:
    run = messages(lab, count=1, size_bytes=1025, server_options=["--one-recv", "1024"], client_options=["--careless"])
    account = run.judge()
    assert run.client.exit_code == 0, "it was told nothing"
    assert account.causes == {Cause.CUT_BY_RECV: 1}
    assert account.verdict is Verdict.FAILS
    assert run.evidence.counted("server", "TcpExt", "TCPAbortOnClose") == 1


# --- over time -------------------------------------------------------------------------------------


def test_a_cut_of_the_link_delays_messages_and_loses_none(lab: ComposeLab) -> None:
    link = lab.link("client -> server")
    link.impair(delay="1ms")
    with exchange(lab, structure="threads", count=400, rate_per_s=100) as running:
        running.await_server_busy(10)
        before = link.lost_in_cut()  # in earlier tests
        link.cut()
        # Without replies, all that the client sends carries messages.
        await_condition(link.lost_in_cut, lambda lost: lost > before, deadline_s=20, every_s=0.005)
        first_seen_s = time.monotonic()
        await_condition(link.lost_in_cut, lambda lost: lost >= before + 10, deadline_s=20)
        lost_for_s = time.monotonic() - first_seen_s
        link.mend()
        run = running.finish()
    account = run.judge()
    there = account.direction("client", "server")
    assert account.verdict is Verdict.HOLDS, str(account)
    assert there.delivered == 400
    assert run.evidence.links["client", "server"].dropped_packets >= 10
    assert there.delay.max_s is not None
    assert there.delay.max_s >= lost_for_s, "what was lost first can only have come after the mending"
    assert there.head_of_line.max_s is not None
    assert there.head_of_line.max_s > 0, "and what followed waited for it"


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_of_a_game_udp_loses_updates_and_tcp_freezes_instead(lab: ComposeLab, transport: str) -> None:
    lab.link("server -> client").impair(delay="20ms", loss="10%", seed=6)
    run = game(lab, transport=transport, updates=180)
    account = run.judge(expect=Expectation(most_lost_ratio=1.0))
    updates = account.direction("server", "client")
    dropped = run.evidence.links["server", "client"].dropped_packets
    assert account.verdict is Verdict.HOLDS, str(account)
    assert dropped > 0
    if transport == "udp":
        assert updates.lost > 0
        assert updates.lost + updates.control_lost == dropped
    else:
        assert updates.lost == 0
        assert updates.head_of_line.max_s is not None
        assert updates.head_of_line.max_s >= 0.02, "an update waits at least a round trip for the one before it"


_MORE_THAN_ARE_SENT = 20_000
"""On each connection: 40 s of them, for a server that is stopped as soon as it is busy, which ends the client."""


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_server_that_is_asked_to_stop_loses_no_message_that_it_answered(lab: ComposeLab, structure: str) -> None:
    lab.impair("client <-> server", delay="5ms")
    options = ["--no-reconnect"]
    with exchange(
        lab,
        structure=structure,
        count=_MORE_THAN_ARE_SENT,
        rate_per_s=500,
        connections=2,
        replies=True,
        client_options=options,
        server_options=["--drain", "0.5"],
    ) as running:
        running.await_server_busy()
        run = running.stop_server_first()
    account = run.judge()
    there, back = account.direction("client", "server"), account.direction("server", "client")
    assert run.server.exit_code == 0, run.server.stderr
    assert run.client.exit_code == 1, "it could not send all"
    assert 0 < there.delivered < 2 * _MORE_THAN_ARE_SENT
    assert back.sent == there.delivered, "what was read was answered"
    assert account.verdict is not Verdict.INVALID, str(account)
