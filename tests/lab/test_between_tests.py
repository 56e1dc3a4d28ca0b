"""Connections of a test do not reach the next one; connections of the session live on, and are counted."""

from __future__ import annotations

import pytest

from testbed import Host, Lab
from testbed.lab.waiting import await_condition

SINK = """
import socket, sys
heard = socket.create_server(("", int(sys.argv[1])), backlog=64); print("up", flush=True); held = []
while True: held.append(heard.accept())
"""
# Opens several connections and sends on them for as long as it lives.
LEAVE = """
import socket, sys, time
held = [socket.create_connection((sys.argv[1], int(sys.argv[2]))) for _ in range(8)]; print("connected", flush=True)
while True: [each.send(b"x") for each in held]; time.sleep(0.05)
"""
# Sends a byte every 20 ms, for as long as it lives.
POOL = """
import socket, sys, time
one = socket.create_connection((sys.argv[1], int(sys.argv[2]))); print("connected", flush=True)
while True: one.send(b"x"); time.sleep(0.02)
"""


def python(host: Host, program: str, *words: object, ready: str) -> None:
    host.start(["python3", "-c", program, *map(str, words)], ready=ready)


def sent(lab: Lab, state: str | None = None) -> list[str]:
    """The connections of client and server, as the kernel tells them."""
    return [
        str(connection)
        for table in lab.tcp_tables().values()
        for connection in table.connections
        if state in (None, connection.state)
    ]


@pytest.fixture
def fresh(lab: Lab) -> Lab:
    """Both hosts known, as after the first impaired test of a session."""
    lab.impair("client <-> server", delay="1ms")
    lab.lifecycle.end()
    lab.lifecycle.begin("one")
    return lab


def test_no_connection_of_a_test_sends_in_the_next_whatever_its_links_did_to_it(fresh: Lab) -> None:
    client, server = fresh.host("client"), fresh.host("server")
    address = server.addresses("lan")[0]
    python(server, SINK, 9300, ready="up")
    python(client, LEAVE, address, 9300, ready="connected")
    fresh.cut("client <-> server")  # the kernels send again, ever more rarely
    stuck = await_condition(
        lambda: [connection for connection in client.connections() if connection["retransmits"] >= 3],
        lambda seen: len(seen) == 8,
        deadline_s=20,
    )
    fresh.lifecycle.end()
    assert fresh.lifecycle.left_over == ""
    assert sent(fresh, "FIN_WAIT1") == sent(fresh, "LAST_ACK") == sent(fresh, "ESTABLISHED") == []
    fresh.lifecycle.begin("two")
    fresh.impair("client <-> server", loss="1%", seed=1)
    fresh.lifecycle.begin_body()
    before = fresh.ports.counts()
    # Longer than the kernels would have waited before they sent again.
    late = 0.2 * 2 ** max(connection["retransmits"] for connection in stuck)
    with pytest.raises(TimeoutError):
        await_condition(fresh.ports.counts, lambda now: now != before, deadline_s=late)


def test_a_connection_that_lives_for_the_session_lives_on_and_its_packets_are_counted(fresh: Lab) -> None:
    client, server = fresh.host("client"), fresh.host("server")
    address = server.addresses("lan")[0]
    python(server, SINK, 9301, ready="up")
    python(client, POOL, address, 9301, ready="connected")
    pool = list(fresh.ledger.programs)
    fresh.ledger.programs.clear()  # as those that a session's fixture has started
    try:
        fresh.lifecycle.end()
        assert len(sent(fresh, "ESTABLISHED")) == 2, "begun in the test that ends, and still owned: it goes on"
        fresh.lifecycle.begin("two")
        fresh.impair("client -> server", loss="5%", seed=3)
        fresh.lifecycle.begin_body()
        link = fresh.link("client -> server")
        before = await_condition(lambda: link.counters().arrived_packets, lambda count: count > 20, deadline_s=20)
        fresh.verifier.verify()
        after = link.counters().arrived_packets
        evidence = next(link for link in fresh.ledger.evidence if link.link == "client -> server")
        (check,) = [check for check in evidence.checks if check.field == "earlier connections"]
        assert evidence.earlier_packets is not None
        # Two counters, which begin one after the other: a packet or two may come between.
        assert before - 5 <= evidence.earlier_packets <= after + 5
        assert check.seen.startswith(f"{evidence.earlier_packets} packets of {client.addresses('lan')[0]}:")
        fresh.lifecycle.end()
        assert len(sent(fresh, "ESTABLISHED")) == 2, "nor does it end with a test in which it was an earlier one"
    finally:
        for program in pool:
            program.stop("SIGKILL")
