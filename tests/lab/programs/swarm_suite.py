"""Tests of a stack on three machines: what `tests/lab/test_swarm.py` has pytest run there."""

from __future__ import annotations

import pytest

from testbed.backends.docker.swarm import SwarmLab
from testbed.errors import InvalidComposeError
from testbed.evidence.verdict import Verdict
from testbed.lab.waiting import await_condition
from tests.lab.conftest import Datagrams, prepare

SERVERS = [f"server[{number}]" for number in (1, 2, 3)]
CONNECT = """
import socket, sys, time
times = []
for _ in range(int(sys.argv[3])):
    began = time.monotonic()
    with socket.create_connection((sys.argv[1], 8888), timeout=float(sys.argv[2])):
        times.append(time.monotonic() - began)
print(min(times))
"""


def shortest_s(lab: SwarmLab, server: str, timeout_s: float = 60.0, attempts: int = 8) -> float | None:
    """The shortest time to connect to a server; None if that was not possible in time."""
    address = lab.host(server).addresses("lan")[0]
    done = lab.host("client").run(["python3", "-c", CONNECT, address, str(timeout_s), str(attempts)], timeout="120s")
    return float(done.stdout) if done.ok else None


def test_each_link_is_impaired_within_machines_and_between_them(lab: SwarmLab) -> None:
    assert len({lab.machine_of(server) for server in SERVERS}) == 3, "a Swarm spreads replicas"
    plain_s = {server: shortest_s(lab, server, attempts=40) or 0 for server in SERVERS}
    lab.impair("client -> server[*]", delay="30ms")
    for server in SERVERS:  # on an overlay as on a bridge: what was asked, and at most half a millisecond more
        assert 0.030 <= (shortest_s(lab, server, attempts=40) or 0) <= plain_s[server] + 0.0305
    lab.impair("server[1] -> client", delay="50ms")
    assert (shortest_s(lab, "server[1]") or 0) >= 0.080
    assert 0.030 <= (shortest_s(lab, "server[2]") or 0) < 0.080


def test_a_delay_and_a_loss_are_proven_within_machines_and_between_them(lab: SwarmLab) -> None:
    lab.impair("client -> server[*]", delay="30ms", loss="2%", prove=True)
    lab.verifier.verify()
    probed = {str(ref): {check.field: check.verdict for check in checks} for ref, checks in lab.ledger.probed.items()}
    holds = {"delay": Verdict.HOLDS, "loss": Verdict.HOLDS}
    assert probed == {f"client -> {server}": holds for server in SERVERS}


def test_a_seeded_loss_repeats(lab: SwarmLab) -> None:
    for server in SERVERS:
        datagrams = Datagrams(lab.host("client"), lab.host(server))
        prepare(datagrams.src, datagrams.dst)
        lab.impair(f"client -> {server}", loss="20%", seed=7)
        first = datagrams.arrived(200)
        assert 100 < len(first) < 195, "some were lost"
        lab.impair(f"client -> {server}", loss="20%", seed=7)
        assert datagrams.arrived(200) == first


def test_a_machine_is_parted_from_the_others(lab: SwarmLab) -> None:
    mine = lab.machine(lab.machine_of("client"))
    (beside,) = [server for server in SERVERS if server in mine.hosts]
    cut = mine.isolate()
    assert len(cut) == 2 * len(mine.hosts) * (4 - len(mine.hosts))
    for server in SERVERS:
        assert (shortest_s(lab, server, 2.0) is None) == (server != beside), server
    lab.mend()
    assert all(shortest_s(lab, server) is not None for server in SERVERS)


def test_hosts_of_a_drained_machine_move_and_their_links_stay_impaired(lab: SwarmLab) -> None:
    lab.impair("client -> server[*]", delay="30ms")
    clients = lab.machine_of("client")
    there = next(lab.machine(lab.machine_of(server)) for server in SERVERS if lab.machine_of(server) != clients)
    moving = there.hosts
    there.drain()
    assert there.hosts == ()
    assert all(lab.machine_of(server) != there.node for server in moving)
    for server in SERVERS:
        assert (shortest_s(lab, server) or 0) >= 0.030
    with pytest.raises(InvalidComposeError, match=r"client.*restart: always"):
        lab.machine(clients).drain()


def test_that_is_invalid_as_a_task_was_made_anew(lab: SwarmLab) -> None:
    lab.impair("client -> server[1]", delay="20ms")
    assert (shortest_s(lab, "server[1]") or 0) >= 0.020
    container = lab.hosts["server[1]"].container
    first = container.id or ""
    container.kill()

    def anew() -> bool:
        now = lab.host_states()["server[1]"]
        return now.status == "running" and not first.startswith(now.id)

    await_condition(anew, bool, deadline_s=60)
