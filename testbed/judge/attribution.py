"""Why messages are missing: from what both sides and their kernels noted, each gets its cause. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from testbed.evidence.journal import ReceivedRow, SentRow
from testbed.evidence.observed import KernelEvidence
from testbed.judge.account import Balance, Cause
from testbed.judge.flow import ConnectionRecord, HostRecord, MessageFlow

_UNFRAGMENTED_BYTES = 1472  # of UDP payload in an MTU of 1500
_REFUSED_DATAGRAMS = {
    Cause.RECEIVE_BUFFER: "RcvbufErrors",
    Cause.CHECKSUM: "InCsumErrors",
    Cause.NO_PORT: "NoPorts",
}
"""Drops of datagrams by the receiver's kernel: the counter of each, in its group Udp."""


class Attribution:
    """Finds causes, direction by direction."""

    def __init__(self, hosts: Mapping[str, HostRecord], evidence: KernelEvidence) -> None:
        self._hosts, self._evidence = hosts, evidence
        self.undecided: list[str] = []
        """Why the evidence does not decide."""
        self.balances: list[Balance] = []

    # --- datagrams -----------------------------------------------------------------------------------

    def datagrams(self, src: str, dst: str, flows: Sequence[MessageFlow]) -> tuple[Counter[Cause], int]:
        """Causes of missing datagrams, and how many of these carried no message.

        Counters know numbers and no datagrams: each cause gets its count.
        """
        causes: Counter[Cause] = Counter()
        missing = 0
        for flow in flows:
            for sequence, row in flow.missing.items():
                damage = flow.damaged.get(sequence)
                if damage is not None:
                    truncated = ReceivedRow._make(damage).state == "truncated"
                    causes[Cause.CUT_BY_RECV if truncated else Cause.CORRUPTED] += 1
                elif not SentRow._make(row).taken_bytes:
                    causes[Cause.NEVER_HANDED] += 1
                else:
                    missing += 1
        control_lost = (self._hosts[src].control_sent - self._hosts[dst].control_received).total()
        self._divide(src, dst, missing + control_lost, causes)
        return causes, control_lost

    def _divide(self, src: str, dst: str, missing: int, causes: Counter[Cause]) -> None:
        """Divide datagrams that the sender's kernel took and nobody received among the counters of drops."""
        sender, link = self._hosts[src], self._evidence.links.get((src, dst))
        way = f"{src} -> {dst}"
        kernel = {cause: self._evidence.counted(dst, "Udp", name) for cause, name in _REFUSED_DATAGRAMS.items()}
        refused = {cause: count for cause, count in kernel.items() if count}
        refused_count = sum(refused.values())
        dropped = 0
        if link is not None:
            dropped, queued = link.dropped_packets, link.queued_packets
            self.balances.append(
                Balance(
                    name=f"{way}: packets that the link saw ≥ datagrams sent",
                    left=link.sent_packets + dropped + queued,
                    right=sender.taken_messages + sender.control_sent.total(),
                    at_least=True,
                )
            )
            # Other packets of the sender's host, such as the last ACKs of an earlier run, may be among the drops.
            others = sum(
                self._evidence.counted(src, *counter) or 0 for counter in (("Tcp", "OutSegs"), ("Icmp", "OutMsgs"))
            )
            exact = not link.duplicates and sender.largest <= _UNFRAGMENTED_BYTES and None not in kernel.values()
            if exact and not dropped - others <= missing - refused_count <= dropped:
                if queued and missing - refused_count - dropped <= queued:
                    self.undecided.append(f"{way}: {queued:,} packets were still under way when the receiver stopped")
                else:
                    self.balances.append(
                        Balance(
                            name=f"{way}: datagrams missing = dropped by the link + refused by the receiver's kernel",
                            left=missing,
                            right=dropped + refused_count,
                        )
                    )
        left = missing
        for cause, count in (*refused.items(), (Cause.NETWORK, dropped), (Cause.UNKNOWN, missing)):
            if part := min(count, left):
                causes[cause] += part
                left -= part

    # --- streams -------------------------------------------------------------------------------------

    def streams(self, src: str, dst: str, flows: Sequence[MessageFlow]) -> Counter[Cause]:
        """Causes of missing messages on connections, each found by itself."""
        ends = {(end.peer, end.local): end for end in self._hosts[dst].connections.values() if end.local}
        causes: Counter[Cause] = Counter()
        for flow in flows:
            for sequence, row in flow.missing.items():
                sending, damage = SentRow._make(row), flow.damaged.get(sequence)
                here = self._hosts[src].connections.get(sending.conn)
                there = ends.get((here.local, here.peer)) if here is not None else None
                state = None if damage is None else ReceivedRow._make(damage).state
                causes[self._stream_cause(sending, state, here, there, dst)] += 1
        if unknown := causes[Cause.UNKNOWN]:
            self.undecided.append(f"{src} -> {dst}: nothing says what became of {unknown:,} messages")
        return +causes

    def _stream_cause(
        self,
        sending: SentRow,
        damage: str | None,
        here: ConnectionRecord | None,
        there: ConnectionRecord | None,
        dst: str,
    ) -> Cause:
        """The cause of one message; ``damage``: the state in which it arrived, if it did."""
        if damage == "corrupt":
            return Cause.CORRUPTED
        if sending.taken_bytes < sending.size_bytes:
            return Cause.PARTLY_HANDED if sending.taken_bytes else Cause.NEVER_HANDED
        if there is None:
            full_queue = any(self._evidence.counted(dst, "TcpExt", name) for name in ("ListenOverflows", "ListenDrops"))
            return Cause.LISTEN_QUEUE if full_queue else Cause.NOT_ACCEPTED
        if there.why in ("done", "stop"):  # closed by the receiver's own will, with more to come
            if damage is not None and there.why == "done":
                return Cause.CUT_BY_RECV
            return Cause.DESTROYED_BY_CLOSE
        if there.why in ("reset", "error") or there.errors:
            return Cause.CONNECTION_LOST
        if here is not None and here.why in ("stop", "error"):
            return Cause.GAVE_UP
        return Cause.UNKNOWN
