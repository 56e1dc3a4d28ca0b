"""From what an oracle remembers, and the kernel's counters, to an account. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from testbed import units
from testbed.evidence.journal import ReceivedRow, SentRow
from testbed.evidence.observed import KernelEvidence
from testbed.evidence.verdict import Verdict, worst
from testbed.judge.account import Account, Balance, Cause, DirectionAccount, Expectation
from testbed.judge.attribution import Attribution
from testbed.judge.flow import HostRecord, MessageFlow
from testbed.judge.metrics import Distribution, loss_runs

_FOREIGN_SHOWN = 3


class Assessment:
    """Makes one account."""

    def __init__(
        self,
        flows: Mapping[int, MessageFlow],
        hosts: Mapping[str, HostRecord],
        problems: Sequence[str],
        expect: Expectation,
        evidence: KernelEvidence,
    ) -> None:
        self._flows, self._hosts, self._expect, self._evidence = flows, hosts, expect, evidence
        for flow in flows.values():
            flow.settle()
        self._attribution = Attribution(hosts, evidence)
        self._invalid = list(problems)
        self._failed: list[str] = []
        self._balances: list[Balance] = []
        self._network: dict[tuple[str, ...], str] = {}
        """A sentence per link, or per host."""

    def account(self) -> Account:
        """The account."""
        for name, host in self._hosts.items():
            if host.cut_short is not None:
                self._invalid.append(f"journal of {name} is not complete: {host.cut_short}")
        if not self._flows:
            self._invalid.append("no message was sent: there is nothing to judge")
        directions = tuple(self._direction(src, dst, flows) for (src, dst), flows in self._flows_by_ends().items())
        for direction in directions:
            self._judge(direction)
            self._describe_network(direction)
        balances = (*self._attribution.balances, *self._balances)
        self._invalid += [f"does not balance: {balance}" for balance in balances if not balance.holds]
        undecided = self._attribution.undecided
        return Account(
            verdict=worst(
                Verdict.INVALID if self._invalid else Verdict.HOLDS,
                Verdict.UNKNOWN if undecided else Verdict.HOLDS,
                Verdict.FAILS if self._failed else Verdict.HOLDS,
            ),
            reasons=(*self._invalid, *undecided, *self._failed),
            directions=directions,
            balances=balances,
            network=tuple(self._network.values()),
            connect={name: host.connect for name, host in self._hosts.items() if host.connect.buckets},
            first_byte={name: host.first_byte for name, host in self._hosts.items() if host.first_byte.buckets},
            errors={name: host.errors for name, host in self._hosts.items() if host.errors},
        )

    def _flows_by_ends(self) -> dict[tuple[str, str], list[MessageFlow]]:
        """The flows by source and destination."""
        ends: dict[tuple[str, str], list[MessageFlow]] = {}
        for flow in sorted(self._flows.values(), key=lambda flow: (flow.number < 0, abs(flow.number))):
            if flow.sender is None:
                self._invalid.append(f"flow {flow.number} arrived at {flow.receiver}; no journal says who sent it")
                continue
            receiver = flow.receiver or self._receiver_of(flow)
            if receiver is None:
                self._invalid.append(f"flow {flow.number} of {flow.sender}: no journal of a receiver")
                continue
            ends.setdefault((flow.sender, receiver), []).append(flow)
        return ends

    def _receiver_of(self, flow: MessageFlow) -> str | None:
        """The receiver of a flow of which nothing arrived: who sent the reverse flow, else the only other host."""
        reverse = self._flows.get(-1 - flow.number)
        if reverse is not None and reverse.sender is not None:
            return reverse.sender
        if reverse is None and flow.number < 0:
            return None
        others = [name for name in self._hosts if name != flow.sender]
        return others[0] if len(others) == 1 else None

    def _direction(self, src: str, dst: str, flows: Sequence[MessageFlow]) -> DirectionAccount:
        transport = self._hosts[src].transport
        damages = Counter(
            ReceivedRow._make(row).state
            for flow in flows
            for sequence, row in flow.damaged.items()
            if sequence in flow.missing
        )
        for flow in flows:
            self._refuse_foreign(flow)
        never_tried = 0
        if self._expect.messages is not None:
            never_tried = sum(max(0, self._expect.messages - flow.sent) for flow in flows if flow.number >= 0)
        control_lost = 0
        if transport == "udp":
            causes, control_lost = self._attribution.datagrams(src, dst, flows)
        else:
            causes = self._attribution.streams(src, dst, flows)
        if never_tried:
            causes[Cause.NEVER_HANDED] += never_tried
        first_number, lost_numbers = 0, list[int]()
        for flow in flows:
            lost_numbers += [first_number + sequence for sequence in flow.missing.keys() - flow.damaged.keys()]
            first_number += flow.top + 1  # losses at a flow's end and at the next one's begin are no run
        sent = sum(flow.sent for flow in flows) + never_tried
        firsts = [flow.first_ns for flow in flows if flow.first_ns is not None]
        lasts = [flow.latest_ns for flow in flows if flow.whole]
        late = sum(flow.late for flow in flows)
        direction = DirectionAccount(
            src=src,
            dst=dst,
            transport=transport,
            sent=sent,
            delivered=sum(flow.whole for flow in flows) - late,
            late=late,
            truncated=damages["truncated"],
            corrupt=damages["corrupt"],
            lost=len(lost_numbers) + never_tried,
            duplicates=sum(flow.order.duplicates for flow in flows),
            resent=sum(flow.resent for flow in flows),
            unreadable=self._hosts[dst].unreadable,
            causes=causes,
            control_lost=control_lost,
            runs=loss_runs(lost_numbers, sent),
            delay=_merged(flow.delay for flow in flows),
            ipdv=_merged(flow.ipdv for flow in flows),
            head_of_line=_merged(flow.head_of_line for flow in flows if transport == "tcp"),
            reordered=sum(flow.order.reordered for flow in flows),
            extents=_summed(flow.order.extents for flow in flows),
            degrees=_summed(flow.order.degrees for flow in flows),
            stalls=sum(flow.stalls for flow in flows),
            stalled_s=sum(flow.stalled_ns for flow in flows) / 1e9,
            longest_pause_s=max((flow.longest_pause_ns for flow in flows), default=0) / 1e9,
            received_bytes=sum(flow.whole_bytes for flow in flows),
            duration_s=max(0, max(lasts) - min(firsts)) / 1e9 if firsts and lasts else 0.0,
        )
        self._balances += [
            Balance(
                name=f"{src} -> {dst}: sent = delivered + late + truncated + corrupt + lost",
                left=direction.sent,
                right=direction.arrived + direction.missing,
            ),
            Balance(
                name=f"{src} -> {dst}: truncated + corrupt + lost{' + control' if control_lost else ''} = causes",
                left=direction.missing + control_lost,
                right=causes.total(),
            ),
        ]
        return direction

    def _refuse_foreign(self, flow: MessageFlow) -> None:
        """Messages that arrived but were not sent like that make the result INVALID."""
        for sequence, row in list(flow.early.items())[:_FOREIGN_SHOWN]:
            received, sending = ReceivedRow._make(row), flow.missing.get(sequence)
            known = "did not send it"
            if sending is not None:
                sent = SentRow._make(sending)
                known = f"sent {sent.size_bytes} bytes stamped {sent.time_ns}"
            self._invalid.append(
                f"flow {flow.number}, message {sequence}: {flow.receiver} received {received.size_bytes} bytes stamped "
                f"{received.sent_ns}, {flow.sender} {known}: journals of different runs?"
            )
        if (more := len(flow.early) - _FOREIGN_SHOWN) > 0:
            self._invalid.append(f"flow {flow.number}: and {more:,} more messages like that")

    def _judge(self, direction: DirectionAccount) -> None:
        expect, way = self._expect, f"{direction.src} -> {direction.dst}"
        causes = ", ".join(f"{count:,} {cause}" for cause, count in direction.causes.items())
        for name, count, total, most_ratio, why in (
            ("not delivered whole", direction.missing, direction.sent, expect.most_lost_ratio, causes),
            ("late", direction.late, direction.sent, expect.most_late_ratio, ""),
            ("duplicates", direction.duplicates, direction.arrived, expect.most_duplicate_ratio, ""),
            ("reordered", direction.reordered, direction.arrived, expect.most_reordered_ratio, ""),
        ):
            if count > most_ratio * total:
                most = f", at most {units.format_ratio(most_ratio)} expected" if most_ratio else ""
                self._failed.append(f"{way}: {count:,} of {total:,} {name}{most}{': ' if why else ''}{why}")
        if direction.transport == "tcp" and direction.reordered > direction.resent:
            self._failed.append(f"{way}: {direction.reordered:,} out of order in a stream, which keeps it")

    def _describe_network(self, direction: DirectionAccount) -> None:
        back = "replies and acknowledgements" if direction.transport == "tcp" else "replies"
        for src, dst, content in (
            (direction.src, direction.dst, "messages"),
            (direction.dst, direction.src, back),
        ):
            if counts := self._evidence.links.get((src, dst)):
                self._network.setdefault(
                    (src, dst),
                    f"link {src} -> {dst}: {counts.dropped_packets:,} of "
                    f"{counts.dropped_packets + counts.sent_packets:,} packets dropped; it carries {content}",
                )
        resent = self._evidence.counted(direction.src, "Tcp", "RetransSegs")
        if direction.transport == "tcp" and resent is not None:
            self._network[direction.src,] = f"{direction.src}: {resent:,} segments sent again (RetransSegs)"


def _merged(parts: Iterable[Distribution]) -> Distribution:
    merged = Distribution()
    for distribution in parts:
        merged.merge(distribution)
    return merged


def _summed(parts: Iterable[Mapping[int, int]]) -> dict[int, int]:
    total: Counter[int] = Counter()
    for counts in parts:
        total.update(counts)
    return dict(total)
