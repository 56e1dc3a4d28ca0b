"""Journals with known faults: written by hand or drawn, for the oracle's tests and its benchmark."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from testbed.evidence.journal import VERSION, Journal
from testbed.evidence.observed import KernelEvidence, LinkCounts
from testbed.judge.account import Cause

MS = 1_000_000
SIZE = 100


@dataclass
class Written:
    """A journal being written."""

    host: str
    transport: str = "udp"
    rows: list[list[Any]] = field(default_factory=list)
    ends: bool = True

    def add(self, *row: Any) -> None:
        self.rows.append(list(row))

    def sent(
        self, at: int, sequence: int, *, flow: int = 0, conn: int = 1, taken: int = SIZE, believed: int = SIZE
    ) -> None:
        self.add("sent", at, conn, flow, sequence, SIZE, believed, taken)

    def received(
        self, at: int, sequence: int, sent: int, *, flow: int = 0, conn: int = 1, size: int = SIZE, state: str = "whole"
    ) -> None:
        self.add("received", at, conn, flow, sequence, size, sent, state)

    def lines(self) -> bytes:
        first = {"journal": "testbed", "version": VERSION, "program": "by hand", "transport": self.transport}
        rows = [["begin", 0, 1], *self.rows]
        if self.ends:
            rows.append(["end", 10**15, 1, len(rows) + 1])
        return "".join(json.dumps(line) + "\n" for line in (first, *rows)).encode()

    def journal(self) -> Journal:
        return Journal.of(self.lines(), name=self.host)


def counters(*, buffer: int = 0, checksum: int = 0, no_port: int = 0, **tcp_ext: int) -> dict[str, dict[str, int]]:
    """What a receiver's kernel counted."""
    return {
        "Udp": {"RcvbufErrors": buffer, "InCsumErrors": checksum, "NoPorts": no_port},
        "TcpExt": {"ListenOverflows": 0, "ListenDrops": 0, **tcp_ext},
    }


DATAGRAM_FATES = (
    "delivered", "network", "buffer", "checksum", "never", "late", "duplicated", "overtaken", "truncated", "corrupt",
)  # fmt: skip
LATE_AFTER_S = 0.2


@dataclass
class Datagrams:
    """A run of datagrams, 1 ms apart and 5 ms under way, each with a fate of its own."""

    fates: Sequence[str]
    client: Written
    server: Written
    evidence: KernelEvidence
    causes: Counter[Cause]
    arrivals: list[int]
    """The first whole copies in order of arrival."""


def datagrams(fates: Sequence[str], *, replies_to: int = 0) -> Datagrams:
    """Write what such a run's programs and kernels would have noted."""
    client, server = Written("client"), Written("server")
    causes: Counter[Cause] = Counter()
    arriving: list[tuple[int, int, list[Any]]] = []
    for sequence, fate in enumerate(fates):
        at = 1000 * MS + sequence * MS
        client.sent(at, sequence, taken=0 if fate == "never" else SIZE)
        state = {"truncated": "truncated", "corrupt": "corrupt"}.get(fate, "whole")
        row = ["received", 0, 1, 0, sequence, SIZE // 2 if fate == "truncated" else SIZE, at, state]
        cause = {
            "network": Cause.NETWORK,
            "buffer": Cause.RECEIVE_BUFFER,
            "checksum": Cause.CHECKSUM,
            "never": Cause.NEVER_HANDED,
            "truncated": Cause.CUT_BY_RECV,
            "corrupt": Cause.CORRUPTED,
        }.get(fate)
        if cause is not None:
            causes[cause] += 1
        if cause in (None, Cause.CUT_BY_RECV, Cause.CORRUPTED):
            under_way = {"late": 500 * MS, "overtaken": 7 * MS + MS // 2}.get(fate, 5 * MS)
            arriving.append((at + under_way, sequence, row))
            if fate == "duplicated":
                arriving.append((at + under_way + 2 * MS + MS // 4, sequence, list(row)))
    arrivals: list[int] = []
    for at, sequence, row in sorted(arriving, key=lambda arrival: arrival[:2]):
        row[1] = at
        server.add(*row)
        if row[7] == "whole" and sequence not in arrivals:
            arrivals.append(sequence)
    taken = sum(fate != "never" for fate in fates)
    evidence = KernelEvidence(
        kernel={"server": counters(buffer=causes[Cause.RECEIVE_BUFFER], checksum=causes[Cause.CHECKSUM])},
        links={
            ("client", "server"): LinkCounts(
                sent_packets=taken - causes[Cause.NETWORK] + fates.count("duplicated"),
                dropped_packets=causes[Cause.NETWORK],
                duplicates="duplicated" in fates,
            )
        },
    )
    return Datagrams(fates, client, server, evidence, +causes, arrivals)


STREAM_FATES = ("delivered", "never", "partly", "unread", "torn", "not_accepted", "broken", "again")


def connections(fates: Sequence[str]) -> Datagrams:
    """Messages on connections of their own, one each, and each with a fate."""
    client, server = Written("client", "tcp"), Written("server", "tcp")
    causes: Counter[Cause] = Counter()
    arrivals: list[int] = []
    for flow, fate in enumerate(fates):
        at, conn, here, there = 1000 * MS + flow * 10 * MS, flow + 1, f"10.0.0.1:{4000 + flow}", "10.0.0.2:80"
        client.add("connect", at - MS, conn, at - 2 * MS, here, there)
        if fate != "not_accepted":
            server.add("accept", at - MS, conn, there, here)
        taken = {"never": 0, "partly": SIZE // 2}.get(fate, SIZE)
        client.sent(at, 0, flow=flow, conn=conn, taken=taken)
        why = "eof"
        match fate:
            case "delivered":
                server.received(at + 5 * MS, 0, at, flow=flow, conn=conn)
            case "again":
                client.sent(at + MS, 0, flow=flow, conn=conn)
                server.received(at + 5 * MS, 0, at, flow=flow, conn=conn)
                server.received(at + 6 * MS, 0, at + MS, flow=flow, conn=conn)
            case "never":
                causes[Cause.NEVER_HANDED] += 1
            case "partly":
                causes[Cause.PARTLY_HANDED] += 1
                server.received(at + 5 * MS, 0, at, flow=flow, conn=conn, size=SIZE // 2, state="truncated")
            case "unread":
                causes[Cause.DESTROYED_BY_CLOSE] += 1
                why = "done"
            case "torn":
                causes[Cause.CUT_BY_RECV] += 1
                server.received(at + 5 * MS, 0, at, flow=flow, conn=conn, size=SIZE - 1, state="truncated")
                why = "done"
            case "not_accepted":
                causes[Cause.LISTEN_QUEUE] += 1
            case "broken":
                causes[Cause.CONNECTION_LOST] += 1
                why = "reset"
        if fate in ("delivered", "again"):
            arrivals.append(flow)
        client.add("close", at + 8 * MS, conn, "done", 0, 0)
        if fate != "not_accepted":
            server.add("close", at + 9 * MS, conn, why, 0, 0)
    evidence = KernelEvidence(kernel={"server": counters(ListenOverflows=causes[Cause.LISTEN_QUEUE])})
    return Datagrams(fates, client, server, evidence, +causes, arrivals)
